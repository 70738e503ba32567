"""The paper's own layout: Table 1 (tasks down, algorithms across) as columns, Markdown and LaTeX, its numbers below ours."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drcorl_ray.config.algorithms import algorithms, shown_algorithm
from drcorl_ray.io.console import wide_console
from drcorl_ray.report.tables.core import Column, is_winner, terminal_table
from drcorl_ray.runs.schema import Results, Row

TITLE = "Table 1"
NOTE = (
    "Normalised reward (normalised cost), means over the seeds of the policies at the end of training; safe cells are marked. "
    "Of several configurations the search's winner is shown, on fresh episodes, and none where there was no search. paper: "
    "its own Table 1, on DSRL's data at the limit 10."
)

_FAMILIAR = {"bc", "bc_safe", "drcorl"}  # are in every report's first table
_ORDER = ("bc", "bcq_lag", "bear_lag", "cdt", "cpq", "coptidice", "drcorl")
_PAPER_LIMIT = 10.0
_PRINTED = {
    "AntVelocity": ((0.99, 4.36), (0.99, 8.40), (-1.01, 0.0), (0.91, 6.04), (-1.01, 0.0), (0.992, 11.41), (0.88, 0.89)),
    "HalfCheetahVelocity": (
        (0.976, 19.04), (1.06, 63.94), (0.947, 104.45), (0.48, 3.65), (0.71, 14.7), (0.61, 0.0), (0.86, 0.0),
    ),
    "HopperVelocity": ((0.76, 12.14), (0.81, 14.92), (0.257, 124.05), (0.21, 1.12), (0.57, 0.0), (0.14, 7.84), (0.68, 0.79)),
    "Walker2dVelocity": ((0.78, 5.38), (0.80, 0.07), (0.763, 0.8), (0.73, 1.95), (0.08, 0.96), (0.12, 2.34), (0.74, 0.30)),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A method's mean normalised reward and cost on a task at a limit."""

    reward: float
    cost: float

    @property
    def safe(self) -> bool:
        return self.cost <= 1

    def __str__(self) -> str:
        return f"{self.reward:.2f} ({self.cost:.2f})"


PAPER = {task: {name: Cell(*numbers) for name, numbers in zip(_ORDER, cells, strict=True)} for task, cells in _PRINTED.items()}


@dataclass(frozen=True)
class Line:
    """A task's cells {algorithm: cell}, measured, or printed in the paper."""

    head: str
    cells: Mapping[str, Cell]
    measured: bool


@dataclass(frozen=True)
class Table:
    """Of one cost limit; algorithms in the paper's order, others behind its baselines, DRCORL last."""

    limit: float
    algorithms: Sequence[str]
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        return f"{TITLE}, cost limit {self.limit:g}"

    def columns(self) -> list[Column]:
        return [
            Column("task", lambda line: line.head),
            *(
                Column(
                    shown_algorithm(name).title,
                    lambda line, name=name: str(line.cells.get(name, "–")),
                    lambda line, name=name: line.cells[name].safe if line.measured and name in line.cells else None,
                )
                for name in self.algorithms
            ),
        ]


def printed(task: str, limit: float) -> Mapping[str, Cell]:
    """The paper's Table 1 {algorithm: cell}, empty where it has no such task or limit."""
    return PAPER.get(task, {}) if limit == _PAPER_LIMIT else {}


def printed_scores(results: Results) -> dict[str, Cell]:
    """What the paper's DRCORL scored, by task, where a run has its tasks at its limit."""
    tasks = {row["task"] for row in results["rows"] if row["cost_limit"] == _PAPER_LIMIT}
    return {task: PAPER[task]["drcorl"] for task in sorted(tasks & {*PAPER})}


def tables(results: Results) -> list[Table]:
    """One of each cost limit, where a task or an algorithm is the paper's beyond what every report has."""
    found = []
    for limit in sorted({row["cost_limit"] for row in results["rows"]}):
        rows = [row for row in results["rows"] if row["cost_limit"] == limit]
        names = _in_order({row["algorithm"] for row in rows})
        tasks = sorted({row["task"] for row in rows})
        if len(names) > 1 and ({*names} - _FAMILIAR or {*tasks} & {*PAPER}):
            found.append(Table(limit, names, [line for task in tasks for line in _lines(task, limit, names, rows)]))
    return found


def _in_order(names: Collection[str]) -> list[str]:
    """The registered baselines in their order, those that are not registered here, DRCORL."""
    registered = [algorithm.name for algorithm in sorted(algorithms(), key=lambda algorithm: algorithm.pretrained)]
    others = sorted({*names} - {*registered})
    return [name for name in (*registered[:-1], *others, registered[-1]) if name in names]


def _lines(task: str, limit: float, names: Sequence[str], rows: Sequence[Row]) -> list[Line]:
    own = {name: _cell([row for row in rows if (row["task"], row["algorithm"]) == (task, name)]) for name in names}
    lines = [Line(task, {name: cell for name, cell in own.items() if cell is not None}, measured=True)]
    known = {name: cell for name, cell in printed(task, limit).items() if name in names}
    return [*lines, Line("paper", known, measured=False)] if known else lines


def _cell(rows: Sequence[Row]) -> Cell | None:
    last = [row for row in rows if row["selection"] == "last" and row.get("state") != "stopped"]
    methods = {json.dumps({key: x for key, x in row["config"].items() if key != "seed"}, sort_keys=True) for row in last}
    chosen = last if len(methods) == 1 else list(filter(is_winner, rows))[:1]
    if not chosen:
        return None
    rewards, costs = ([row["normalized_reward"] for row in chosen], [row["normalized_cost"] for row in chosen])
    return Cell(float(np.mean(rewards)), float(np.mean(costs)))


def print_tables(results: Results) -> None:
    """On the terminal, if there are any; a line is green where DRCORL (or the run's own algorithm, the last) is safe."""
    for table in tables(results):
        last = table.algorithms[-1]
        shown = terminal_table(
            table.columns(), table.lines, lambda line, last=last: last in line.cells and line.cells[last].safe
        )
        wide_console().print(f"{table.title}:", shown, sep="\n", highlight=False)


def latex(found: Sequence[Table]) -> str:
    """A tabular for each limit; safe cells blue, the others grey, as the paper has them (needs xcolor and booktabs)."""
    texts = ["% \\usepackage{booktabs,xcolor}"]
    for table in found:
        texts += [
            f"% cost limit {table.limit:g}",
            "\\begin{tabular}{l" + "c" * len(table.algorithms) + "}",
            "\\toprule",
            " & ".join(["Reward (Cost)", *(_latex_text(shown_algorithm(name).title) for name in table.algorithms)]) + " \\\\",
            "\\midrule",
            *(_latex_line(table, line) for line in table.lines),
            "\\bottomrule",
            "\\end{tabular}",
        ]
    return "\n".join(texts) + "\n"


def _latex_line(table: Table, line: Line) -> str:
    head = _latex_text(line.head) if line.measured else "\\textit{paper}"
    cells = [line.cells.get(name) for name in table.algorithms]
    shown = ["--" if cell is None else _coloured(cell) if line.measured else str(cell) for cell in cells]
    return " & ".join([head, *shown]) + " \\\\"


def _latex_text(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", ""))


def _coloured(cell: Cell) -> str:
    return f"\\textcolor{{{'blue' if cell.safe else 'gray'}}}{{{cell}}}"
