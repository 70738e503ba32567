"""Figure 2: the score of a policy against its time for 1,000 actions, compared with sampling from a diffusion model.

The times are `run.inference_times` of results.json; without them a report has no such section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drcorl_ray.config.algorithms import shown_algorithm
from drcorl_ray.report.tables.core import Column
from drcorl_ray.report.tables.paper import Cell, Table, tables
from drcorl_ray.runs.schema import Results

TITLE = "Score against inference time"
NOTE = (
    "Seconds for 1,000 single-state actions of one policy of each algorithm, on one thread of the machine that finished the "
    "run. Our policies run in numpy. diffusion: this run's noise network, sampled in torch; it is timed but not scored."
)


@dataclass(frozen=True)
class InferenceTime:
    """The seconds of a method for 1,000 actions, and its mean score over the tasks (None: it has no score)."""

    name: str
    seconds: float
    score: Cell | None


COLUMNS = [
    Column("method", lambda entry: entry.name),
    Column("seconds", lambda entry: f"{entry.seconds:.3f}"),
    Column("reward (cost)", lambda entry: str(entry.score or "–"), lambda entry: entry.score and entry.score.safe),
]


def inference_times(results: Results) -> list[InferenceTime]:
    """Return the algorithms in the order of Table 1, then the diffusion models.

    The scores are those of the first table with a baseline that is more than a clone; without one no algorithm is returned.
    """
    measured = results["run"].get("inference_times", [])
    comparisons = [table for table in tables(results) if any(map(_is_heavy, table.algorithms))]
    seconds = {entry["algorithm"]: entry["seconds"] for entry in measured}
    return [
        *(
            InferenceTime(shown_algorithm(name).title, seconds[name], _mean(_cells(table, name)))
            for table in comparisons[:1]
            for name in table.algorithms
            if name in seconds
        ),
        *(InferenceTime(entry["name"], entry["seconds"], None) for entry in measured if entry["algorithm"] is None),
    ]


def _cells(table: Table, algorithm: str) -> list[Cell]:
    return [line.cells[algorithm] for line in table.lines if line.measured and algorithm in line.cells]


def _is_heavy(name: str) -> bool:
    algorithm = shown_algorithm(name)
    return not (algorithm.light or algorithm.pretrained)


def _mean(cells: Sequence[Cell]) -> Cell | None:
    return Cell(*(float(np.mean([getattr(x, part) for x in cells])) for part in ("reward", "cost"))) if cells else None
