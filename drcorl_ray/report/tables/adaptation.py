"""The table of adaptation: which gradients each policy followed, and its last cost estimate beside its true cost."""

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
    "Shares of the policy steps. reward steps: the cost estimate was below the band. both gradients: it was in the band. cost "
    "steps: it was above the band (by default such a step adds half of the reward gradient). conflict: the two gradients "
    "conflicted. CRPO has no band; the Lagrangian follows both gradients at every step. estimate: the cost estimate that the "
    "adaptation used, averaged over the steps of the last report (offline: mean + k standard deviations of the critics). true "
    "cost: the mean episode cost of the last policy."
)
_CONFLICT = "adaptation/conflict"


@dataclass(frozen=True)
class AdaptationShares:
    """The row of a policy, the shares of its policy steps by metric, and the last estimate of its episode cost."""

    row: Row
    shares: Mapping[str, float]
    estimate: float

    def share(self, name: str) -> str:
        """Return a share in percent; a dash if it is unknown, or a region of the Lagrangian, which has none."""
        has_regions = self.row["config"].get("adaptation") != "lagrangian" or name == _CONFLICT
        return f"{100 * self.shares[name]:.0f} %" if has_regions and not math.isnan(self.shares[name]) else "–"


def columns(policies: Sequence[AdaptationShares]) -> list[Column]:
    """Return the columns, among them one for each hyper-parameter (limit and seed aside) that differs."""
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
    """Return the policies of a training run or the winners of a search. curves: from `optuna_views.offline_curves`."""
    entries = []
    for task in task_names(results):
        for policy, row in sorted(policies_of(results, task).items()):
            if policy in curves.get(task, {}) and not (is_search(results) and is_judged(row)):
                series = curves[task][policy]
                shares = {name: _over_all_steps(series, name) for name in SHARES}
                entries.append(AdaptationShares(row, shares, float(series.values["adaptation/cost_estimate"][-1])))
    return entries


def _over_all_steps(series: Series, name: str) -> float:
    """Average a metric over all steps. The log holds means between reports; the first interval is as long as the second."""
    lengths = np.diff(series.steps)
    weights = np.concatenate([lengths[:1], lengths]) if len(lengths) else None
    return float(np.average(series.values[name], weights=weights))
