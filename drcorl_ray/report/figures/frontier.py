"""The frontier of a task: reward against undiscounted episode cost of its policies, and of the data's episodes behind them.

Policies that cost more than three times the largest limit are drawn on that edge; the data's episodes beyond it are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from drcorl_ray.config.algorithms import Marker, algorithms, shown_algorithm
from drcorl_ray.report.optuna_views import policies
from drcorl_ray.report.tables.core import EDGE, is_baseline, settings, task_names, varied_keys
from drcorl_ray.runs.schema import Results, Row

TITLE = "Frontier: reward against episode cost"
NOTE = (
    "Each policy at its mean undiscounted episode cost (a search's winners by their fresh score), in the colour of its cost "
    "limit: safe where it is left of the dashed line of its colour. Small points: the data's own episodes, at most 1,000, "
    "evenly chosen."
)
BEST = "best episode of the data within the limit"


FAR = Marker(">", "triangle-right")
_SHAPES = (
    Marker("o", "circle"),
    Marker("s", "square"),
    Marker("^", "triangle-up"),
    Marker("v", "triangle-down"),
    Marker("P", "cross"),
)
_MOST_KEYS = 2  # in a legend's line
_LEAST_LIMIT = 0.1  # a limit of zero has an edge too


class Mark(NamedTuple):
    """A policy as it is drawn; its episode cost is at most the edge."""

    row: Row
    cost: float
    reward: float
    color: str
    shape: Marker


@dataclass(frozen=True)
class Panel:
    """What is drawn of one task.

    edge: an undiscounted episode cost, the right end of the picture; colors: by cost limit, rising; shapes: the policies', by
    what the legend calls them; costs and rewards, undiscounted and normalised: of the data's episodes up to the edge, [E];
    beyond: how many are not; best: normalised reward of the data's best episode, by cost limit.
    """

    task: str
    edge: float
    colors: Mapping[float, str]
    shapes: Mapping[str, Marker]
    policies: Sequence[Mark]
    baselines: Sequence[Mark]
    costs: np.ndarray
    rewards: np.ndarray
    beyond: int
    best: Mapping[float, float]

    @property
    def algorithms(self) -> list[str]:
        """The baselines' names, the registered ones first, in their order."""
        names = {mark.row["algorithm"] for mark in self.baselines}
        registered = [algorithm.name for algorithm in algorithms() if algorithm.name in names]
        return [*registered, *sorted(names - {*registered})]

    @property
    def axis(self) -> str:
        return f"undiscounted episode cost (▸: over {self.edge:g})"

    @property
    def backdrop(self) -> str:
        return f"{len(self.costs):,} episodes of the data" + (f" ({self.beyond:,} more beyond)" if self.beyond else "")


def panels(results: Results) -> list[Panel]:
    """Of each task that has several policies, or several cost limits; what a rung stopped is left out."""
    found = [_panel(results, task) for task in task_names(results)]
    return [panel for panel in found if len(panel.policies) > 1 or len(panel.colors) > 1]


def _panel(results: Results, task: str) -> Panel:
    finished = [row for row in policies(results, task).values() if row.get("state") != "stopped"]
    baselines = [row for row in results["rows"] if row["task"] == task and is_baseline(row)]
    limits = sorted({row["cost_limit"] for row in (*finished, *baselines)})
    edge, colors = EDGE * max([_LEAST_LIMIT, *limits]), dict(zip(limits, _colors(len(limits)), strict=True))
    names = _names(finished)
    shapes = dict(zip(sorted(set(names)), _SHAPES, strict=False))

    def mark(row: Row, color: str, shape: Marker) -> Mark:
        far = row["cost_mean"] > edge
        return Mark(row, min(row["cost_mean"], edge), row["normalized_reward"], color, FAR if far else shape)

    costs, rewards = _episodes(results, task)
    near = costs <= edge
    best = {
        entry["cost_limit"]: entry["normalized_reward"]
        for entry in results["run"].get("references", [])
        if entry["task"] == task and entry["cost_limit"] in colors
    }
    return Panel(
        task,
        edge,
        colors,
        shapes,
        [mark(row, colors[row["cost_limit"]], shapes[name]) for row, name in zip(finished, names, strict=True)],
        [mark(row, _baseline_color(row, colors), shown_algorithm(row["algorithm"]).marker) for row in baselines],
        costs[near],
        rewards[near],
        int((~near).sum()),
        best,
    )


def _colors(count: int) -> list[str]:
    return [to_hex(colormaps["turbo"](0.05 + 0.9 * place / max(1, count - 1))) for place in range(count)]


def _baseline_color(row: Row, colors: Mapping[float, str]) -> str:
    """Black for a policy that acts alike at every limit."""
    return "black" if shown_algorithm(row["algorithm"]).limit_blind else colors[row["cost_limit"]]


def _names(rows: Sequence[Row]) -> list[str]:
    """Of each policy what it differs in beside the limit, if that is little; else they are all alike."""
    keys = [key for key in varied_keys(rows) if key != "cost_limit"]
    names = [", ".join(settings(row, keys)) for row in rows]
    few = 0 < len(keys) <= _MOST_KEYS and len(set(names)) <= len(_SHAPES)
    return names if few else ["policy"] * len(rows)


def _episodes(results: Results, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Costs and normalised rewards of the data's episodes, none in the results of older versions."""
    own = [entry for entry in results["run"].get("data_episodes", []) if entry["task"] == task]
    costs, rewards = (np.array([x for entry in own for x in entry[name]], float) for name in ("cost", "normalized_reward"))
    return costs, rewards
