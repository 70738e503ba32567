"""The table over seeds: the score of a method instead of a single policy, relative to the data's best safe episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drcorl_ray.io.console import wide_console
from drcorl_ray.report.tables.core import Column, is_baseline, number, setting, settings, terminal_table, varied_keys
from drcorl_ray.runs.schema import Results, Row

TITLE = "Means over seeds"
NOTE = (
    "Mean ± standard deviation (n - 1) over runs that differ only in the seed; each run counts as the mean of its episodes. A "
    "method is safe if its mean cost is safe. worst cost: the largest mean cost of a run. share of best: the mean reward "
    "divided by that of the best safe episode of the data."
)


@dataclass(frozen=True)
class Group:
    """Runs with at least two seeds. best: normalised reward of the best safe episode of the data, if there is one."""

    rows: Sequence[Row]
    best: float | None

    @property
    def first(self) -> Row:
        return self.rows[0]

    def values(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows], float)

    def safe(self) -> bool:
        return bool(self.values("normalized_cost").mean() <= 1)

    def spread(self, name: str, digits: int) -> str:
        values = self.values(name)
        return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"

    def share_of_best(self) -> str:
        return f"{self.values('normalized_reward').mean() / self.best:.2f}" if self.best else "–"


def groups(results: Results) -> list[Group]:
    """Group the runs that differ only in the seed, by task, limit and method; without stopped configurations and winners."""
    best = {(entry["task"], entry["cost_limit"]): entry["normalized_reward"] for entry in results["run"].get("references", [])}
    repeated = [rows for rows in _by_method(results) if len({row["seed"] for row in rows}) > 1]
    return [Group(rows, best.get((rows[0]["task"], rows[0]["cost_limit"]))) for rows in repeated]


def _by_method(results: Results) -> list[list[Row]]:
    """Return the rows of each group, single runs included."""
    by_method: dict[str, list[Row]] = {}
    for row in results["rows"]:
        if row.get("state") != "stopped" and row["selection"] != "search_winner":
            config = {key: value for key, value in row["config"].items() if key != "seed"}
            fields = [row[key] for key in ("task", "cost_limit", "algorithm", "selection", "evaluation_mode")]
            by_method.setdefault(json.dumps([fields, config], sort_keys=True), []).append(row)
    return sorted(by_method.values(), key=lambda rows: _order(rows[0]))


@dataclass(frozen=True)
class SeedCurves:
    """The true normalised scores along the training of S runs that differ only in the seed.

    steps: [K]. reward, cost: [S, K], NaN where a policy was not finite.
    """

    task: str
    label: str
    steps: Sequence[int]
    reward: np.ndarray
    cost: np.ndarray


def curves(results: Results) -> list[SeedCurves]:
    """Return the learning curves of every method all of whose seeds have one, labelled by the settings that differ."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for curve in results["run"].get("curves", []):
        for index, policy in enumerate(curve.get("numbers", [])):
            lines[curve["task"], policy] = {
                "steps": curve["steps"],
                "reward": curve["normalized_reward"][index],
                "cost": curve["normalized_cost"][index],
            }
    methods = []
    for rows in _by_method(results):
        if not is_baseline(rows[0]) and rows[0]["selection"] == "last":
            runs = [lines.get((row["task"], number(row))) for row in rows]
            known = [run for run in runs if run is not None and run["steps"]]
            if len(known) == len(runs) and all(run["steps"] == known[0]["steps"] for run in known):
                methods.append((rows, known))
    keys = [key for key in varied_keys(row for rows, _ in methods for row in rows) if key != "seed"]
    return [
        SeedCurves(
            rows[0]["task"],
            ", ".join(settings(rows[0], keys)) or rows[0]["task"],
            runs[0]["steps"],
            *(np.array([run[name] for run in runs], float) for name in ("reward", "cost")),
        )
        for rows, runs in methods
    ]


def columns(groups: Sequence[Group]) -> list[Column]:
    """Return the columns, among them one for each hyper-parameter (limit and seed aside) that differs."""
    keys = [key for key in varied_keys(row for group in groups for row in group.rows) if key not in ("seed", "cost_limit")]
    return [
        Column("task", lambda group: group.first["task"]),
        Column("limit", lambda group: f"{group.first['cost_limit']:g}"),
        Column("algorithm", lambda group: group.first["algorithm"]),
        *(Column(key, lambda group, key=key: _setting(group.first, key)) for key in keys),
        Column("selection", lambda group: group.first["selection"]),
        Column("seeds", lambda group: str(len(group.rows))),
        Column("reward", lambda group: group.spread("normalized_reward", 3), Group.safe),
        Column("cost", lambda group: group.spread("normalized_cost", 2), Group.safe),
        Column("worst cost", lambda group: f"{group.values('normalized_cost').max():.2f}"),
        Column("length", lambda group: f"{group.values('length_mean').mean():.0f}"),
        Column("share of best", Group.share_of_best),
    ]


def print_table(results: Results) -> None:
    """Print the table on the terminal, if there is one."""
    if repeated := groups(results):
        wide_console().print(f"{TITLE}:", terminal_table(columns(repeated), repeated, Group.safe), sep="\n", highlight=False)


def _setting(row: Row, key: str) -> str:
    return "–" if is_baseline(row) else setting(row["config"].get(key))


def _order(row: Row) -> tuple[object, ...]:
    baseline = is_baseline(row)
    config = [] if baseline else sorted(item for item in row["config"].items() if item[0] != "seed")
    values = [(0, x, "") if isinstance(x, int | float) else (1, 0, str(x)) for _, x in config]
    return row["task"], row["cost_limit"], baseline, row["algorithm"], row["selection"], values
