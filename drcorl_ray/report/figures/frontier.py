"""The frontier of a task: reward against undiscounted episode cost of its policies, over the data's own episodes.

The cost axis ends at three times the largest limit. Policies with larger costs are drawn at its end; episodes of the data with
larger costs are only counted.
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
    "Each policy at its mean undiscounted episode cost (winners of a search: their fresh score), in the colour of its cost "
    "limit. A policy is safe if it is left of the dashed line of its colour. Small points: the data's own episodes, an evenly "
    "spaced selection of at most 1,000."
)
BEST = "best safe episode of the data"

FAR = Marker(">", "triangle-right")
_SHAPES = (
    Marker("o", "circle"),
    Marker("s", "square"),
    Marker("^", "triangle-up"),
    Marker("v", "triangle-down"),
    Marker("P", "cross"),
)
_MOST_KEYS = 2  # in one entry of the legend
_LEAST_LIMIT = 0.1  # keeps the axis from being empty at a limit of zero


class Mark(NamedTuple):
    """A policy as it is drawn; its episode cost is clipped to the edge."""

    row: Row
    cost: float
    reward: float
    color: str
    shape: Marker


@dataclass(frozen=True)
class Panel:
    """The content of one task's panel.

    edge: the undiscounted episode cost at the right end of the axis. colors: {cost limit: color}, by increasing limit. shapes:
    {name in the legend: marker of the policies}. costs, rewards: [E], undiscounted cost and normalised reward of the data's
    episodes up to the edge. beyond: the number of episodes above it. best: {cost limit: normalised reward of the best safe
    episode of the data}.
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
        """The names of the baselines: registered ones in the order of the registry, then the others."""
        names = {mark.row["algorithm"] for mark in self.baselines}
        registered = [algorithm.name for algorithm in algorithms() if algorithm.name in names]
        return [*registered, *sorted(names - {*registered})]

    @property
    def axis(self) -> str:
        return f"undiscounted episode cost (▸: over {self.edge:g})"

    @property
    def backdrop(self) -> str:
        return f"{len(self.costs):,} episodes of the data" + (f" ({self.beyond:,} more at higher cost)" if self.beyond else "")


def panels(results: Results) -> list[Panel]:
    """Return a panel for each task with several policies or cost limits; configurations stopped at a rung are left out."""
    by_task = [_panel(results, task) for task in task_names(results)]
    return [panel for panel in by_task if len(panel.policies) > 1 or len(panel.colors) > 1]


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
    return [to_hex(colormaps["turbo"](0.05 + 0.9 * index / max(1, count - 1))) for index in range(count)]


def _baseline_color(row: Row, colors: Mapping[float, str]) -> str:
    """Return the colour of the limit; black for a policy that acts the same at every limit."""
    return "black" if shown_algorithm(row["algorithm"]).limit_blind else colors[row["cost_limit"]]


def _names(rows: Sequence[Row]) -> list[str]:
    """Name each policy by the settings that differ, apart from the limit; with many of them all share one name."""
    keys = [key for key in varied_keys(rows) if key != "cost_limit"]
    names = [", ".join(settings(row, keys)) for row in rows]
    distinguishable = 0 < len(keys) <= _MOST_KEYS and len(set(names)) <= len(_SHAPES)
    return names if distinguishable else ["policy"] * len(rows)


def _episodes(results: Results, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return costs and normalised rewards of the data's episodes, [E] each; results of older versions have none."""
    entries = [entry for entry in results["run"].get("data_episodes", []) if entry["task"] == task]
    costs, rewards = (np.array([x for entry in entries for x in entry[name]], float) for name in ("cost", "normalized_reward"))
    return costs, rewards
