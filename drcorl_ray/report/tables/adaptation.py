"""How each policy was adapted: which gradients it followed, and what it was believed to cost in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drcorl_ray.report.optuna_views import SHARES, Series
from drcorl_ray.report.optuna_views import policies as policies_of
from drcorl_ray.report.tables.core import Column, is_judged, is_search, number, setting, task_names, varied_keys
from drcorl_ray.runs.schema import Results, Row

TITLE = "How the policies were adapted"
NOTE = (
    "Shares of the policy steps: those that followed the reward (estimate under the band), both gradients (in the band), the "
    "cost (over it; by default with half of the reward's gradient); and those at which the two gradients conflict. CRPO has "
    "no band, and the Lagrangian follows both at every step. estimate: the cost that the adaptation went by, mean over the "
    "last report's steps (offline: mean + k deviations of the critics), beside the true cost of the last policy."
)
_CONFLICT = "adaptation/conflict"


@dataclass(frozen=True)
class AdaptationShares:
    """A policy's row, the shares of its policy steps by metric, and the last estimate of its episode cost."""

    row: Row
    shares: Mapping[str, float]
    estimate: float

    def share(self, name: str) -> str:
        by_regions = self.row["config"].get("adaptation") != "lagrangian" or name == _CONFLICT
        return f"{100 * self.shares[name]:.0f} %" if by_regions and not math.isnan(self.shares[name]) else "–"


def columns(policies: Sequence[AdaptationShares]) -> list[Column]:
    """The table's columns, one for each hyper-parameter in which the policies differ beside limit and seed."""
    keys = [key for key in varied_keys(entry.row for entry in policies) if key not in ("seed", "cost_limit")]
    return [
        Column("task", lambda entry: entry.row["task"]),
        Column("policy", lambda entry: str(number(entry.row))),
        Column("limit", lambda entry: f"{entry.row['cost_limit']:g}"),
        Column("seed", lambda entry: str(entry.row["seed"])),
        *(Column(key, lambda entry, key=key: setting(entry.row["config"].get(key))) for key in keys),
        *(Column(title, lambda entry, name=name: entry.share(name)) for name, title in SHARES.items()),
        Column("estimate", lambda entry: f"{entry.estimate:.1f}"),
        Column("true cost", lambda entry: f"{entry.row['cost_mean']:.1f}", lambda entry: entry.row["normalized_cost"] <= 1),
    ]


def adaptation_shares(results: Results, curves: Mapping[str, Mapping[int, Series]]) -> list[AdaptationShares]:
    """The policies of a training run, the winners of a search; curves: `optuna_views.offline_curves`."""
    adapted = []
    for task in task_names(results):
        for policy, row in sorted(policies_of(results, task).items()):
            if policy in curves.get(task, {}) and not (is_search(results) and is_judged(row)):
                series = curves[task][policy]
                shares = {name: _over_all_steps(series, name) for name in SHARES}
                adapted.append(AdaptationShares(row, shares, float(series.values["adaptation/cost_estimate"][-1])))
    return adapted


def _over_all_steps(series: Series, name: str) -> float:
    """Mean of a metric that is logged as means between reports, the first of them as long as the second."""
    lengths = np.diff(series.steps)
    weights = np.concatenate([lengths[:1], lengths]) if len(lengths) else None
    return float(np.average(series.values[name], weights=weights))
