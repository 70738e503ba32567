"""Table 1 in the layout of the paper (a row per task, a column per algorithm), with the paper's numbers below ours."""

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
    "Normalised reward (normalised cost): means over the seeds, of the policies at the end of training. Safe scores are "
    "marked. An algorithm with several configurations is represented by the search's winner on fresh episodes; without a "
    "search its cell has a dash. paper: Table 1 of the paper, on DSRL's data at the limit 10."
)

_FAMILIAR = {"bc", "bc_safe", "drcorl"}  # the first table of a report suffices for these
_PAPER_ORDER = ("bc", "bcq_lag", "bear_lag", "cdt", "cpq", "coptidice", "drcorl")
_PAPER_LIMIT = 10.0
_PAPER_SCORES = {  # (reward, cost) in that order
    "AntVelocity": ((0.99, 4.36), (0.99, 8.40), (-1.01, 0.0), (0.91, 6.04), (-1.01, 0.0), (0.992, 11.41), (0.88, 0.89)),
    "HalfCheetahVelocity": (
        (0.976, 19.04), (1.06, 63.94), (0.947, 104.45), (0.48, 3.65), (0.71, 14.7), (0.61, 0.0), (0.86, 0.0),
    ),
    "HopperVelocity": ((0.76, 12.14), (0.81, 14.92), (0.257, 124.05), (0.21, 1.12), (0.57, 0.0), (0.14, 7.84), (0.68, 0.79)),
    "Walker2dVelocity": ((0.78, 5.38), (0.80, 0.07), (0.763, 0.8), (0.73, 1.95), (0.08, 0.96), (0.12, 2.34), (0.74, 0.30)),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """The mean normalised reward and cost of a method on a task at a cost limit."""

    reward: float
    cost: float

    @property
    def safe(self) -> bool:
        return self.cost <= 1

    def __str__(self) -> str:
        return f"{self.reward:.2f} ({self.cost:.2f})"


PAPER = {
    task: {name: Cell(*scores) for name, scores in zip(_PAPER_ORDER, cells, strict=True)}
    for task, cells in _PAPER_SCORES.items()
}


@dataclass(frozen=True)
class Line:
    """The cells of a task {algorithm: cell}; `measured` is False for the numbers of the paper."""

    head: str
    cells: Mapping[str, Cell]
    measured: bool


@dataclass(frozen=True)
class Table:
    """The table of one cost limit. Algorithms: the paper's baselines in its order, other ones, DRCORL."""

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


def paper_cells(task: str, limit: float) -> Mapping[str, Cell]:
    """Return a line of the paper's Table 1 {algorithm: cell}; empty for a task or limit that it lacks."""
    return PAPER.get(task, {}) if limit == _PAPER_LIMIT else {}


def paper_scores(results: Results) -> dict[str, Cell]:
    """Return DRCORL's scores in the paper {task: cell}, for the tasks that this run has at the paper's limit."""
    tasks = {row["task"] for row in results["rows"] if row["cost_limit"] == _PAPER_LIMIT}
    return {task: PAPER[task]["drcorl"] for task in sorted(tasks & {*PAPER})}


def tables(results: Results) -> list[Table]:
    """Return one table for each cost limit at which several algorithms are compared.

    Clones and DRCORL alone get a table only on the tasks of the paper; elsewhere the first table of the report suffices.
    """
    by_limit = []
    for limit in sorted({row["cost_limit"] for row in results["rows"]}):
        rows = [row for row in results["rows"] if row["cost_limit"] == limit]
        names = _in_order({row["algorithm"] for row in rows})
        tasks = sorted({row["task"] for row in rows})
        if len(names) > 1 and ({*names} - _FAMILIAR or {*tasks} & {*PAPER}):
            by_limit.append(Table(limit, names, [line for task in tasks for line in _lines(task, limit, names, rows)]))
    return by_limit


def _in_order(names: Collection[str]) -> list[str]:
    """Sort algorithms: registered baselines in the order of the registry, unregistered ones by name, DRCORL."""
    registered = [algorithm.name for algorithm in sorted(algorithms(), key=lambda algorithm: algorithm.pretrained)]
    others = sorted({*names} - {*registered})
    return [name for name in (*registered[:-1], *others, registered[-1]) if name in names]


def _lines(task: str, limit: float, names: Sequence[str], rows: Sequence[Row]) -> list[Line]:
    cells = {name: _cell([row for row in rows if (row["task"], row["algorithm"]) == (task, name)]) for name in names}
    lines = [Line(task, {name: cell for name, cell in cells.items() if cell is not None}, measured=True)]
    in_paper = {name: cell for name, cell in paper_cells(task, limit).items() if name in names}
    return [*lines, Line("paper", in_paper, measured=False)] if in_paper else lines


def _cell(rows: Sequence[Row]) -> Cell | None:
    """Average the last policies over the seeds; of several configurations take the search's winner, if there is one."""
    last = [row for row in rows if row["selection"] == "last" and row.get("state") != "stopped"]
    methods = {json.dumps({key: x for key, x in row["config"].items() if key != "seed"}, sort_keys=True) for row in last}
    chosen = last if len(methods) == 1 else list(filter(is_winner, rows))[:1]
    if not chosen:
        return None
    rewards, costs = ([row["normalized_reward"] for row in chosen], [row["normalized_cost"] for row in chosen])
    return Cell(float(np.mean(rewards)), float(np.mean(costs)))


def print_tables(results: Results) -> None:
    """Print the tables on the terminal. A line is green if its last algorithm (DRCORL, if the run has it) is safe."""
    for table in tables(results):
        last = table.algorithms[-1]
        text = terminal_table(
            table.columns(), table.lines, lambda line, last=last: last in line.cells and line.cells[last].safe
        )
        wide_console().print(f"{table.title}:", text, sep="\n", highlight=False)


def latex(by_limit: Sequence[Table]) -> str:
    """Return a tabular for each limit, with safe cells in blue and others in grey as in the paper (xcolor, booktabs)."""
    texts = ["% \\usepackage{booktabs,xcolor}"]
    for table in by_limit:
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
