"""Tables and figures of a run: report.md, curves.png, scatter.png, and the same table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from drcorl_ray.checkpoint import write_bytes
from drcorl_ray.progress import wide_console
from drcorl_ray.run_directory import RunDirectory, read_results

Row = Mapping[str, Any]

_HEADER = ("task", "algorithm", "limit", "selection", "reward", "cost", "safe", "episode cost", "length", "episodes")
_COLORS = {"drcorl": "tab:blue", "bc": "tab:red", "bc_safe": "tab:orange"}


def rebuild(run: Path) -> None:
    """launch/report.py: write the report of a finished run again from its results.json; UserError where there is none."""
    results = read_results(run)
    about = results["run"]
    write_report(RunDirectory(run), results["rows"], about.get("curves", []), about.get("references", []))


def write_report(
    run: RunDirectory, rows: Sequence[Row], curves: Sequence[Mapping[str, Any]], references: Sequence[Row] = ()
) -> None:
    """Write the report's files and print the table. references: what `results.best_safe_episodes` returned."""
    ordered = sorted(rows, key=_order)
    pictures = [("Reward against cost", _scatter(run.path / "scatter.png", ordered, references))]
    curves = [curve for curve in curves if curve["steps"]]
    if curves:
        pictures.insert(0, ("Training curves", _curves(run.path / "curves.png", curves)))
    notes = [_reference(reference) for reference in references]
    text = [f"# {run.path.name}", "", *_markdown(ordered), "", *(f"- {note}" for note in notes), "", *_legend()]
    for title, path in pictures:
        text += ["", f"## {title}", "", f"![{title}]({path.name})"]
    write_bytes(run.path / "report.md", ("\n".join(text) + "\n").encode())
    print_table(ordered, notes)


def _reference(reference: Row) -> str:
    return (
        f"{reference['task']}: the data's best episode within the limit {reference['cost_limit']:g} "
        f"has normalised reward {reference['normalized_reward']:.3f}"
    )


def print_table(rows: Sequence[Row], notes: Sequence[str]) -> None:
    table = Table(*_HEADER)
    for row in rows:
        table.add_row(*_cells(row), style="green" if row["normalized_cost"] <= 1 else "red")
    wide_console().print(table, *notes, sep="\n", highlight=False)


def _order(row: Row) -> tuple[Any, ...]:
    return row["task"], row["cost_limit"], row["selection"] != "search_winner", row["algorithm"] != "drcorl", row["algorithm"]


def _cells(row: Row) -> list[str]:
    return [
        row["task"],
        row["algorithm"],
        f"{row['cost_limit']:g}",
        row["selection"],
        f"{row['normalized_reward']:.3f}",
        f"{row['normalized_cost']:.2f}",
        "yes" if row["normalized_cost"] <= 1 else "no",
        f"{row['cost_mean']:.1f} ± {row['cost_std']:.1f}",
        f"{row['length_mean']:.0f}",
        str(row["episodes"]),
    ]


def _markdown(rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + " --- |" * len(_HEADER)]
    for row in rows:
        cells = _cells(row)
        if row["normalized_cost"] <= 1:
            cells[4], cells[5] = f"**{cells[4]}**", f"**{cells[5]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _legend() -> list[str]:
    return [
        "reward and cost are normalised (Eq. 26): the dataset's extreme returns are 0 and 1, the cost limit is 1; safe cells",
        "are bold. `last`: the policy at the end of training, chosen by nobody. `search_winner`: chosen among the search's",
        "configurations by online episodes, then evaluated on fresh ones.",
    ]


def _figure(columns: int):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(4.8 * columns, 3.8), squeeze=False, layout="constrained")
    return figure, axes[0]


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _curves(path: Path, curves: Sequence[Mapping[str, Any]]) -> Path:
    """True normalised reward and cost along the training, a line a member, the limit drawn."""
    figure, axes = _figure(2)
    for curve in curves:
        for axis, name in zip(axes, ("normalized_reward", "normalized_cost"), strict=True):
            for member, values in enumerate(curve[name]):
                series = [np.nan if value is None else value for value in values]
                axis.plot(curve["steps"], series, marker="o", markersize=3, label=f"{curve['task']} {member}")
    for axis, label in zip(axes, ("normalised reward", "normalised cost"), strict=True):
        axis.set(xlabel="extraction step", ylabel=label)
        axis.grid(alpha=0.3)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(min(low, 0.0), max(high, 1.0))
    axes[1].axhline(1.0, color="black", linestyle="--", linewidth=1)
    axes[1].annotate("cost limit", (0.02, 1.0), xycoords=("axes fraction", "data"), va="bottom")
    axes[1].set_ylim(bottom=0)
    if sum(len(curve["normalized_cost"]) for curve in curves) <= 8:
        axes[0].legend(fontsize=8)
    return _save(figure, path)


def _scatter(path: Path, rows: Sequence[Row], references: Sequence[Row]) -> Path:
    """Every evaluated policy, reward against cost, the unsafe side shaded; costs far over the limit sit at the edge."""
    tasks = sorted({row["task"] for row in rows}) or [""]
    figure, axes = _figure(len(tasks))
    edge = 3.0
    for axis, task in zip(axes, tasks, strict=True):
        shown = [row for row in rows if row["task"] == task]
        for algorithm in sorted({row["algorithm"] for row in shown}):
            points = [row for row in shown if row["algorithm"] == algorithm and row["selection"] != "search_winner"]
            color = _COLORS.get(algorithm)
            costs, rewards = (np.array([row[f"normalized_{name}"] for row in points]) for name in ("cost", "reward"))
            beyond = costs > edge
            axis.scatter(costs[~beyond], rewards[~beyond], color=color, label=algorithm, alpha=0.8)
            axis.scatter(np.full(beyond.sum(), edge), rewards[beyond], color=color, marker=">", alpha=0.8)
        winners = [row for row in shown if row["selection"] == "search_winner"]
        axis.scatter(
            [min(row["normalized_cost"], edge) for row in winners], [row["normalized_reward"] for row in winners],
            marker="*", s=180, color="gold", edgecolor="black", label="search winner" if winners else None, zorder=3,
        )  # fmt: skip
        for value in {reference["normalized_reward"] for reference in references if reference["task"] == task}:
            axis.axhline(value, color="tab:green", linestyle=":", linewidth=1)
            axis.annotate(
                "best safe episode of the data", (edge, value), ha="right", va="bottom", fontsize=8, color="tab:green"
            )
        axis.axvline(1.0, color="black", linestyle="--", linewidth=1)
        axis.axvspan(1.0, edge * 1.03, color="tab:red", alpha=0.06)
        axis.set(
            xlabel=f"normalised cost (▸: over {edge:g})", ylabel="normalised reward", title=task, xlim=(-0.05, edge * 1.03)
        )
        axis.grid(alpha=0.3)
        if shown:
            axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _save(figure, path)
