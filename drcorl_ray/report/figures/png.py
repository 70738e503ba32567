"""PNG figures of a report with matplotlib: curves, speed, scatter, frontier, importances, parallel coordinates, Pareto."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from drcorl_ray.config.algorithms import shown_algorithm
from drcorl_ray.io.files import write_bytes
from drcorl_ray.report.figures.axes import grid, save, unsafe_side
from drcorl_ray.report.figures.frontier import BEST, Mark, Panel
from drcorl_ray.report.optuna_views import JudgedConfiguration, StudyView, pareto_front, quiet, ranked_keys
from drcorl_ray.report.tables.core import EDGE, is_winner
from drcorl_ray.report.tables.paper import Cell
from drcorl_ray.report.tables.seeds import SeedCurves
from drcorl_ray.report.tables.speed import InferenceTime
from drcorl_ray.runs.schema import Curve, Reference, Row

_MOST_COLUMNS = 4
_MOST_STUDIES = 6
_MOST_LINES = 10  # with a legend


def curves(path: Path, lines: Sequence[Curve], groups: Sequence[SeedCurves], paper_scores: Mapping[str, Cell]) -> Path:
    """Draw true normalised reward and cost along the training, two panels per task, with the limit and the paper's result.

    Runs that differ only in the seed share one line of their mean, with a band from the lowest to the highest value. Tasks
    without `groups` have one line per member. paper_scores: {task: DRCORL's score in the paper's Table 1}.
    """
    tasks = list(dict.fromkeys([*(group.task for group in groups), *(line["task"] for line in lines)]))
    figure, axes = grid(2 * len(tasks))
    for task, pair in zip(tasks, zip(axes[::2], axes[1::2], strict=True), strict=True):
        by_method = [group for group in groups if group.task == task]
        by_member = [line for line in lines if line["task"] == task]
        num_lines = _seed_lines(pair, by_method) if by_method else _member_lines(pair, by_member)
        _explain_curves(pair, task, paper_scores.get(task))
        if num_lines <= _MOST_LINES:
            pair[0].legend(fontsize=8, loc="lower right")
    return save(figure, path)


def _explain_curves(pair: Sequence[Axes], task: str, paper_score: Cell | None) -> None:
    reward, cost = pair
    for axis, label in zip(pair, ("normalised reward", "normalised cost"), strict=True):
        axis.set(xlabel="extraction step", ylabel=label, title=task)
        axis.grid(alpha=0.3)
    low, high = reward.get_ylim()
    reward.set_ylim(min(low, 0.0), max(high, 1.0))
    cost.axhline(1.0, color="black", linestyle="--", linewidth=1)
    cost.annotate("cost limit", (0.02, 1.0), xycoords=("axes fraction", "data"), va="bottom")
    if paper_score:
        for axis, value in zip(pair, (paper_score.reward, paper_score.cost), strict=True):
            axis.axhline(value, color="grey", linestyle=":", linewidth=1)
            axis.annotate(
                "paper, limit 10", (0.98, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey"
            )
    cost.set_ylim(bottom=0)


def _member_lines(axes: Sequence[Axes], lines: Sequence[Curve]) -> int:
    """Draw one line per member and return their number."""
    for curve in lines:
        for axis, name in zip(axes, ("normalized_reward", "normalized_cost"), strict=True):
            for member, values in enumerate(curve[name]):
                axis.plot(
                    curve["steps"], np.array(values, float), marker="o", markersize=3, label=f"{curve.get('label', member)}"
                )
    return sum(len(curve["normalized_cost"]) for curve in lines)


def _seed_lines(axes: Sequence[Axes], groups: Sequence[SeedCurves]) -> int:
    """Draw one line per method and return their number."""
    for group in groups:
        for axis, values in zip(axes, (group.reward, group.cost), strict=True):
            [line] = axis.plot(group.steps, values.mean(0), marker="o", markersize=3, label=group.label)
            axis.fill_between(group.steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    return len(groups)


def speed(path: Path, times: Sequence[InferenceTime]) -> Path:
    """Draw the paper's Fig. 2: reward against the time for 1,000 actions; hollow: unsafe; vertical lines: without a score."""
    figure, [axis] = grid(1, width=7.0, height=4.4)
    for entry in times:
        if entry.score is None:
            axis.axvline(entry.seconds, color="grey", linestyle=":", linewidth=1)
            axis.annotate(
                entry.name, (entry.seconds, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="right", color="grey"
            )
            continue
        color = "tab:blue" if entry.score.safe else "tab:red"
        axis.plot(
            entry.seconds, entry.score.reward, "o", markersize=9, color=color,
            markerfacecolor=color if entry.score.safe else "none",
        )  # fmt: skip
        axis.annotate(entry.name, (entry.seconds, entry.score.reward), xytext=(7, 4), textcoords="offset points", fontsize=9)
    axis.set(xscale="log", xlabel="seconds for 1,000 actions", ylabel="normalised reward (hollow: unsafe)")
    axis.margins(x=0.15, y=0.15)
    axis.grid(alpha=0.3)
    return save(figure, path)


def scatter(path: Path, tasks: Sequence[str], rows: Sequence[Row], references: Sequence[Reference]) -> Path:
    """Draw reward against cost of every evaluated policy, one panel per task; hollow: stopped early."""
    figure, axes = grid(len(tasks))
    for axis, task in zip(axes, tasks, strict=False):
        shown = [row for row in rows if row["task"] == task]
        for algorithm in sorted({row["algorithm"] for row in shown}):
            points = [row for row in shown if row["algorithm"] == algorithm and not is_winner(row)]
            _points(axis, [row for row in points if row.get("state") != "stopped"], algorithm, hollow=False)
            _points(axis, [row for row in points if row.get("state") == "stopped"], algorithm, hollow=True)
        winners = [row for row in shown if is_winner(row)]
        axis.scatter(
            [min(row["normalized_cost"], EDGE) for row in winners], [row["normalized_reward"] for row in winners],
            marker="*", s=180, color="gold", edgecolor="black", label="winner, fresh score" if winners else None, zorder=3,
        )  # fmt: skip
        for value in {reference["normalized_reward"] for reference in references if reference["task"] == task}:
            axis.axhline(value, color="tab:green", linestyle=":", linewidth=1)
            axis.annotate(BEST, (EDGE, value), ha="right", va="bottom", fontsize=8, color="tab:green")
        unsafe_side(axis)
        axis.set(xlabel=f"normalised cost (▸: over {EDGE:g})", ylabel="normalised reward", title=task)
        if shown:
            axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return save(figure, path)


def _points(axis: Axes, rows: Sequence[Row], algorithm: str, *, hollow: bool) -> None:
    if not rows:
        return
    costs = np.array([row["normalized_cost"] for row in rows])
    rewards = np.array([row["normalized_reward"] for row in rows])
    beyond, color = costs > EDGE, shown_algorithm(algorithm).color
    style = {"edgecolor": color, "facecolor": "none" if hollow else color, "alpha": 0.8}
    axis.scatter(costs[~beyond], rewards[~beyond], label=f"{algorithm}, stopped early" if hollow else algorithm, **style)
    axis.scatter(np.full(beyond.sum(), EDGE), rewards[beyond], marker=">", **style)


def frontier(path: Path, panels: Sequence[Panel]) -> Path:
    """Draw the policies over the data's own episodes, in the colours of their cost limits; hollow: baselines."""
    figure, axes = grid(len(panels), width=8.0, height=6.4)
    for axis, panel in zip(axes, panels, strict=True):
        if len(panel.costs):
            axis.scatter(panel.costs, panel.rewards, s=10, color="grey", alpha=0.4, linewidth=0, label=panel.backdrop)
        for limit, color in panel.colors.items():
            axis.axvline(limit, color=color, linestyle="--", linewidth=1, label=f"limit {limit:g}")
        for limit, reward in panel.best.items():
            axis.plot(limit, reward, "_", markersize=8, markeredgewidth=2.5, color=panel.colors[limit])
        _marks(axis, panel.baselines, hollow=True)
        _marks(axis, panel.policies, hollow=False)
        _explain(axis, panel)
        axis.set(xlabel=panel.axis, ylabel="normalised reward", title=panel.task, xlim=(-0.02 * panel.edge, 1.03 * panel.edge))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    return save(figure, path)


def _marks(axis: Axes, marks: Sequence[Mark], *, hollow: bool) -> None:
    for mark in marks:
        face, edge, width = ("none", mark.color, 1.5) if hollow else (mark.color, "white", 0.7)
        style: dict[str, Any] = {"marker": mark.shape.png, "facecolor": face, "edgecolor": edge, "linewidth": width}
        axis.scatter(mark.cost, mark.reward, s=70, zorder=3, **style)


def _explain(axis: Axes, panel: Panel) -> None:
    """Add legend entries for the marks that occur in several colours."""
    style: dict[str, Any] = {"linestyle": "", "color": "grey"}
    for name, shape in panel.shapes.items():
        axis.plot([], [], marker=shape.png, label=name, **style)
    for name in panel.algorithms:
        axis.plot([], [], marker=shown_algorithm(name).marker.png, markerfacecolor="none", label=name, **style)
    if panel.best:
        axis.plot([], [], marker="_", markersize=8, markeredgewidth=2.5, label=BEST, **style)


def importances(path: Path, shares: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Path:
    """Draw one panel per study, a pair of bars per key. shares: {study: {"reward" | "cost": {key: share}}}."""
    figure, axes = grid(len(shares))
    for axis, (study, by_score) in zip(axes, shares.items(), strict=False):
        keys = ranked_keys(by_score)
        heights = np.arange(len(keys))
        for offset, (score, by_key) in zip((0.2, -0.2), by_score.items(), strict=False):
            color = {"reward": "tab:blue", "cost": "tab:orange"}[score]
            axis.barh(heights + offset, [by_key.get(key, 0.0) for key in keys], 0.4, color=color, label=f"for the {score}")
        axis.set_yticks(heights, keys)
        axis.set(xlabel="importance (PED-ANOVA)", title=study, xlim=(0, 1))
        axis.legend(fontsize=8, loc="lower right")
    return save(figure, path)


def parallel(path: Path, studies: Sequence[StudyView]) -> Path:
    """Stack Optuna's own picture of each study, at most six."""
    with quiet():
        rows = [_parallel(study) for study in studies[:_MOST_STUDIES]]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    content = io.BytesIO()
    plt.imsave(content, np.concatenate(padded))
    write_bytes(path, content.getvalue())
    return path


def _parallel(study: StudyView) -> np.ndarray:
    """Return the picture of one study as RGBA pixels [H, W, 4]."""
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    assert study.optuna is not None
    axis: Any = plot_parallel_coordinate(study.optuna, target_name="reward")
    axis.set_title(study.name, loc="left", y=1.03)
    axis.set_title("")
    figure = axis.figure
    figure.set_size_inches(12, 4)
    figure.subplots_adjust(left=0.06, right=1.0, bottom=0.2, top=0.86)  # the labels are slanted
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="rgba")
    plt.close(figure)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(4 * 110, 12 * 110, 4)


def pareto(path: Path, studies: Mapping[str, Sequence[JudgedConfiguration]]) -> Path:
    """Draw the finished configurations of each study and their Pareto front. studies: {name: judged configurations}."""
    figure, axes = grid(len(studies))
    for axis, (name, configurations) in zip(axes, studies.items(), strict=False):
        finished = [point for point in configurations if point.state == "complete"]
        front = [finished[index] for index in pareto_front([(point.reward, point.cost) for point in finished])]
        axis.scatter([min(point.cost, EDGE) for point in finished], [point.reward for point in finished], alpha=0.5)
        axis.plot(
            [min(point.cost, EDGE) for point in front], [point.reward for point in front],
            drawstyle="steps-post", marker="o", color="tab:purple", label="Pareto front",
        )  # fmt: skip
        unsafe_side(axis)
        axis.set(xlabel=f"normalised cost (capped at {EDGE:g})", ylabel="normalised reward", title=name)
        axis.legend(fontsize=8)
    return save(figure, path)
