"""Table 1 in the paper's layout, as Markdown and LaTeX: tasks down, algorithms across, the paper's own numbers below ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drcorl_ray.report.tables import Results, Row, is_winner, plain

TITLE = "Table 1"
NOTE = (
    "Normalised reward (normalised cost), means over the seeds of the policies at the end of training; bold: safe. DRCORL is "
    "its last policy where one configuration was trained, the search's winner on fresh episodes otherwise. *paper*: its Table "
    "1, on DSRL's data at the limit 10."
)

NAMES = {
    "bc": "BC", "bc_safe": "BC-Safe", "bc_reward": "BC-Reward", "bc_frontier": "BC-Frontier", "bcq_lag": "BCQ-Lag",
    "bear_lag": "BEAR-Lag", "cdt": "CDT", "cpq": "CPQ", "coptidice": "COptiDICE", "drcorl": "DRCORL",
}  # fmt: skip
_PAPER_LIMIT = 10.0
_ORDER = ("bc", "bcq_lag", "bear_lag", "cdt", "cpq", "coptidice", "drcorl")
_PRINTED = {
    "AntVelocity": ((0.99, 4.36), (0.99, 8.40), (-1.01, 0.0), (0.91, 6.04), (-1.01, 0.0), (0.992, 11.41), (0.88, 0.89)),
    "HalfCheetahVelocity": (
        (0.976, 19.04), (1.06, 63.94), (0.947, 104.45), (0.48, 3.65), (0.71, 14.7), (0.61, 0.0), (0.86, 0.0),
    ),
    "HopperVelocity": ((0.76, 12.14), (0.81, 14.92), (0.257, 124.05), (0.21, 1.12), (0.57, 0.0), (0.14, 7.84), (0.68, 0.79)),
    "Walker2dVelocity": ((0.78, 5.38), (0.80, 0.07), (0.763, 0.8), (0.73, 1.95), (0.08, 0.96), (0.12, 2.34), (0.74, 0.30)),
}  # fmt: skip
PAPER = {task: dict(zip(_ORDER, cells, strict=True)) for task, cells in _PRINTED.items()}


@dataclass(frozen=True)
class Cell:
    """A method's mean normalised reward and cost on a task at a limit."""

    reward: float
    cost: float

    def __str__(self) -> str:
        return f"{self.reward:.2f} ({self.cost:.2f})"


@dataclass(frozen=True)
class Table:
    """Of one cost limit: cells {task: {algorithm: cell}}; algorithms in the paper's order."""

    limit: float
    algorithms: Sequence[str]
    cells: dict[str, dict[str, Cell]]

    def printed(self, task: str) -> dict[str, Cell]:
        """The paper's own numbers, where it has this task and limit."""
        known = PAPER.get(task, {}) if self.limit == _PAPER_LIMIT else {}
        return {name: Cell(*known[name]) for name in self.algorithms if name in known}


def tables(results: Results) -> list[Table]:
    """One of each cost limit at which several algorithms were evaluated."""
    found = []
    for limit in sorted({row["cost_limit"] for row in results["rows"]}):
        rows = [row for row in results["rows"] if row["cost_limit"] == limit]
        names = [name for name in NAMES if any(row["algorithm"] == name for row in rows)]
        cells: dict[str, dict[str, Cell]] = {}
        for task in sorted({row["task"] for row in rows}):
            own = {name: _cell([row for row in rows if (row["task"], row["algorithm"]) == (task, name)]) for name in names}
            cells[task] = {name: cell for name, cell in own.items() if cell is not None}
        if len(names) > 1:
            found.append(Table(limit, names, cells))
    return found


def _cell(rows: Sequence[Row]) -> Cell | None:
    last = [row for row in rows if row["selection"] == "last" and row.get("state") != "stopped"]
    methods = {json.dumps({key: x for key, x in row["config"].items() if key != "seed"}, sort_keys=True) for row in last}
    chosen = last if len(methods) == 1 else list(filter(is_winner, rows))[:1]
    if not chosen:
        return None
    return Cell(*(float(np.mean([row[f"normalized_{name}"] for row in chosen])) for name in ("reward", "cost")))


def markdown(found: Sequence[Table]) -> list[str]:
    lines = []
    for table in found:
        lines += ["", f"Cost limit {table.limit:g}:", ""]
        lines += ["| task | " + " | ".join(NAMES[name] for name in table.algorithms) + " |"]
        lines += ["|" + " --- |" * (1 + len(table.algorithms))]
        bold: Callable[[Cell], str] = lambda cell: f"**{cell}**" if cell.cost <= 1 else str(cell)  # noqa: E731
        for task, cells in table.cells.items():
            lines += [_markdown_line(plain(task), table, cells, bold)]
            if printed := table.printed(task):
                lines += [_markdown_line("*paper*", table, printed, str)]
    return lines[1:]


def _markdown_line(head: str, table: Table, cells: dict[str, Cell], form: Callable[[Cell], str]) -> str:
    shown = (form(cells[name]) if name in cells else "–" for name in table.algorithms)
    return f"| {head} | " + " | ".join(shown) + " |"


def latex(found: Sequence[Table]) -> str:
    """A tabular for each limit; safe cells blue, the others grey, as the paper has them (needs xcolor and booktabs)."""
    lines = ["% \\usepackage{booktabs,xcolor}"]
    for table in found:
        lines += [
            f"% cost limit {table.limit:g}",
            "\\begin{tabular}{l" + "c" * len(table.algorithms) + "}",
            "\\toprule",
            "Reward (Cost) & " + " & ".join(NAMES[name] for name in table.algorithms) + " \\\\",
            "\\midrule",
        ]
        for task, cells in table.cells.items():
            lines.append(_latex_line(task.replace("_", "\\_"), table, cells, _coloured))
            if printed := table.printed(task):
                lines.append(_latex_line("\\textit{paper}", table, printed, str))
        lines += ["\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(lines)


def _coloured(cell: Cell) -> str:
    return f"\\textcolor{{{'blue' if cell.cost <= 1 else 'gray'}}}{{{cell}}}"


def _latex_line(head: str, table: Table, cells: dict[str, Cell], form: Callable[[Cell], str]) -> str:
    return f"{head} & " + " & ".join(form(cells[name]) if name in cells else "--" for name in table.algorithms) + " \\\\"
