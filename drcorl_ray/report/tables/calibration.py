"""Can the offline estimate be trusted? The critics' estimate of a policy's episode cost against the cost of its rollouts.

`run.calibration` of results.json holds, for each task (or winner of a search), both costs of every member along its
training. A policy is (estimated) safe if the (estimated) normalised cost of Eq. 26 is at most 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.stats import binomtest, rankdata

from drcorl_ray.report.tables.core import EDGE, Column
from drcorl_ray.runs.schema import Calibration, Results
from drcorl_ray.tasks.scores import normalized_cost

TITLE = "Can the offline estimate be trusted?"
NOTE = (
    "Estimate: the episode cost of a policy according to the cost critics (mean + k standard deviations of the ensemble). "
    "Truth: the mean over its rollouts. training k: the k with which a member was trained. Each point is one policy along a "
    "training; the points of one member are correlated, so the 95 % intervals are somewhat too narrow. Bias: mean of "
    "estimate − truth, in episode cost. The answer and the table cover only the offline members, if there are any, because "
    "only these adapt by the critics' estimate; the figures show all members."
)
KINDS = {  # (estimated safe, truly safe)
    (True, True): "estimated safe, truly safe",
    (True, False): "estimated safe, truly UNSAFE",
    (False, True): "estimated unsafe, truly safe",
    (False, False): "estimated unsafe, truly unsafe",
}
FEWEST = 5  # policies for a verdict
TOLERATED = 0.1  # share of unsafe policies among those estimated safe


@dataclass(frozen=True)
class Point:
    """The policy of a member at a step: its episode cost as estimated with k, and the true one with its standard error."""

    member: str
    step: int
    limit: float
    k: float
    estimate: float
    true: float
    true_se: float

    @property
    def normalized(self) -> tuple[float, float, float]:
        """(true cost, its standard error, estimate), each normalised."""
        true, true_se, estimate = normalized_cost(np.array([self.true, self.true_se, self.estimate]), self.limit).tolist()
        return true, true_se, estimate

    @property
    def kind(self) -> tuple[bool, bool]:
        """(estimated safe, truly safe)"""
        true, _, estimate = self.normalized
        return estimate <= 1, true <= 1

    @property
    def drawn(self) -> tuple[float, float, float]:
        """`normalized`, clipped to a figure's range [0, EDGE]; a clipped true cost has no standard error."""
        true, true_se, estimate = self.normalized
        return min(true, EDGE), true_se if true <= EDGE else 0.0, min(max(estimate, 0.0), EDGE)

    @property
    def error(self) -> float:
        """Estimate − truth of the clipped costs: if both are far above the limit, their difference does not matter."""
        true, _, estimate = self.drawn
        return estimate - true


def by_task(results: Results) -> dict[str, list[Calibration]]:
    """Return the entries with points and members, {task: entries} sorted by task."""
    entries: dict[str, list[Calibration]] = {}
    for entry in results["run"].get("calibration") or []:
        if entry["steps"] and entry["members"]:
            entries.setdefault(entry["task"], []).append(entry)
    return dict(sorted(entries.items()))


def other_k(entries: Sequence[Calibration]) -> list[float]:
    """Return every k of the estimates, without the training k if all members share it."""
    trained = _training_ks(entries)
    return sorted({k for entry in entries for k in entry["k"]} - (trained if len(trained) == 1 else set()))


def points(entries: Iterable[Calibration], k: float | None = None) -> list[Point]:
    """Return every policy with both costs known, estimated with `k` or, if it is None, with each member's training k."""
    known = []
    for entry in entries:
        if k is not None and k not in entry["k"]:
            continue
        for index, member in enumerate(entry["members"]):
            estimates = entry["own_estimates"][index] if k is None else entry["estimates"][index][entry["k"].index(k)]
            member_fields = {
                "member": _name(entry, member),
                "limit": entry["cost_limits"][index],
                "k": entry["member_k"][index] if k is None else k,
            }
            known += [
                Point(step=step, estimate=estimate, true=true, true_se=true_se or 0.0, **member_fields)
                for step, estimate, true, true_se in zip(
                    entry["steps"], estimates, entry["true_cost"][index], entry["true_cost_se"][index], strict=True
                )
                if estimate is not None and true is not None
            ]
    return known


def _name(entry: Calibration, member: str) -> str:
    if "label" not in entry:
        return f"member {member}"
    return entry["label"] if len(entry["members"]) == 1 else f"{entry['label']}, member {member}"


def _training_ks(entries: Iterable[Calibration]) -> set[float]:
    return {k for entry in entries for k in entry["member_k"]}


def training_k_name(entries: Iterable[Calibration]) -> str:
    trained = _training_ks(entries)
    return f"training k = {trained.pop():g}" if len(trained) == 1 else "training k"


def k_name(k: float) -> str:
    return f"k = {k:g}" if k else "k = 0 (mean critic)"


class Agreement:
    """How well an estimate agrees with the truth.

    Statistics are None without points; the rank correlation also with fewer than FEWEST, or if one of the costs never differs.
    """

    def __init__(self, task: str, estimate: str, compared: Sequence[Point]) -> None:
        errors = np.array([point.estimate - point.true for point in compared])
        self.task, self.estimate, self.points = task, estimate, len(compared)
        self.bias = float(errors.mean()) if compared else None
        near = [point.normalized[0] <= EDGE for point in compared]
        self.median = float(np.median(errors[near])) if any(near) else None  # without costs far above the limit
        self.mean_error = float(np.abs(errors).mean()) if compared else None
        self.rank_correlation = _rank_correlation(compared)
        self.counts = Counter(point.kind for point in compared)

    @property
    def estimated_safe(self) -> int:
        return self.counts[True, True] + self.counts[True, False]

    @property
    def truly_safe(self) -> int:
        return self.counts[True, True] + self.counts[False, True]

    @property
    def dangerous(self) -> bool:
        """Whether too many of the policies estimated safe are truly unsafe."""
        return self.counts[True, False] > TOLERATED * self.estimated_safe


def _rank_correlation(compared: Sequence[Point]) -> float | None:
    """Return Spearman's correlation of the normalised costs, which are comparable between members of different limits."""
    pairs = [point.normalized[::2] for point in compared]
    if len(pairs) < FEWEST or any(len(set(costs)) == 1 for costs in zip(*pairs, strict=True)):
        return None
    return float(np.corrcoef(rankdata(pairs, axis=0), rowvar=False)[0, 1])


_MEMBER_COLUMNS = ("members", "modes", "cost_limits", "member_k", "estimates", "own_estimates", "true_cost", "true_cost_se")


def offline_members(entries: Sequence[Calibration]) -> Sequence[Calibration]:
    """Restrict the entries to their offline members; if no member is known to be offline, return them unchanged."""
    restricted = []
    for entry in entries:
        if offline := [index for index, mode in enumerate(entry.get("modes", ())) if mode == "offline"]:
            columns = cast("dict[str, Any]", entry)
            restricted.append({**entry, **{name: [columns[name][index] for index in offline] for name in _MEMBER_COLUMNS}})
    return restricted or entries


def agreements(task: str, entries: Sequence[Calibration]) -> list[Agreement]:
    """Return the agreement of the estimate with the training k, which offline mode uses, then with every other k."""
    entries = offline_members(entries)
    others = [Agreement(task, k_name(k), points(entries, k)) for k in other_k(entries)]
    return [Agreement(task, training_k_name(entries), points(entries)), *others]


def table(task: str, entries: Sequence[Calibration]) -> list[Agreement]:
    """Return `agreements`; with several cost limits, the training k also has a row for each limit."""
    overall, *others = agreements(task, entries)
    entries = offline_members(entries)
    compared = points(entries)
    limits = sorted({point.limit for point in compared})
    at_limits = [
        Agreement(task, f"{training_k_name(entries)}, limit {limit:g}", [point for point in compared if point.limit == limit])
        for limit in (limits if len(limits) > 1 else [])
    ]
    return [overall, *at_limits, *others]


@dataclass(frozen=True)
class Verdict:
    """The answer to the title's question. word: the answer; style: good, bad, doubtful or unknown; reason: full sentences."""

    word: str
    style: str
    reason: str


def verdict(task: str, entries: Sequence[Calibration]) -> Verdict:
    """Say whether offline mode can be trusted on this data; never "yes" with too few policies or without an unsafe one."""
    trained, *others = agreements(task, entries)
    if trained.points < FEWEST:
        return Verdict(
            "too few points", "unknown", f"Policies with both costs: {trained.points}; at least {FEWEST} are needed."
        )
    reason = f"The estimate with {trained.estimate} is safe for {_outcome(trained)}.{_typical_error(trained)}"
    if trained.dangerous:
        return Verdict("no", "bad", f"{reason} Prefer evaluation.mode = online or hybrid.{_hindsight(trained, others)}")
    if trained.truly_safe == trained.points:
        return Verdict(
            "not tested", "unknown", f"{reason} No policy is truly unsafe: whether one would be detected is unknown."
        )
    missed = trained.counts[False, True]
    if missed > trained.truly_safe / 2:
        waste = f"{missed} of the {trained.truly_safe} truly safe policies are estimated unsafe: reward is wasted."
        return Verdict("too cautious", "doubtful", f"{reason} {waste}{_hindsight(trained, others)}")
    if trained.estimated_safe < FEWEST:
        return Verdict(
            "too few estimated safe", "unknown", f"{reason} A verdict needs at least {FEWEST} policies estimated safe."
        )
    return Verdict("yes", "good", reason)


def _outcome(agreement: Agreement) -> str:
    if not agreement.estimated_safe:
        return f"none of {agreement.points} policies"
    wrong = agreement.counts[True, False]
    truth = f"{wrong} of them {'are' if wrong > 1 else 'is'} UNSAFE" if wrong else "all of them are safe"
    return f"{agreement.estimated_safe} of {agreement.points} policies; {truth}"


def _typical_error(agreement: Agreement) -> str:
    if agreement.median is None:
        return ""
    size = f"{abs(agreement.median):.1f}"
    error = "correct" if size == "0.0" else f"{size} too {'high' if agreement.median > 0 else 'low'}"
    return f" For true costs up to {EDGE:g} limits, the estimate is typically {error} (median)."


def _hindsight(trained: Agreement, others: Iterable[Agreement]) -> str:
    """Name the k that would have identified the most safe policies with few errors."""
    harmless = [other for other in others if other.estimated_safe >= FEWEST and not other.dangerous]
    best = max(harmless, key=lambda other: other.counts[True, True], default=trained)
    if best is trained or (best.counts[True, True] <= trained.counts[True, True] and not trained.dangerous):
        return ""
    right = f"{best.counts[True, True]} of its {best.estimated_safe} policies estimated safe are safe"
    return f" In hindsight, {best.estimate} would have been better: {right}."


def _share(part: int, whole: int) -> str:
    """Format a share with its 95 % Wilson interval."""
    if not whole:
        return "none"
    interval = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{part} of {whole} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"


def _number(name: str, form: str) -> Callable[[Agreement], str]:
    return lambda row: "–" if getattr(row, name) is None else format(getattr(row, name), form)


COLUMNS = [
    Column("task", lambda row: row.task),
    Column("estimate", lambda row: row.estimate),
    Column("points", lambda row: str(row.points)),
    Column("bias", _number("bias", "+z.1f")),
    Column(f"median error, ≤ {EDGE:g} limits", _number("median", "+z.1f")),
    Column("mean absolute error", _number("mean_error", ".1f")),
    Column("rank correlation", _number("rank_correlation", ".2f")),
    Column(
        "truly safe of estimated safe",
        lambda row: _share(row.counts[True, True], row.estimated_safe),
        lambda row: False if row.dangerous else row.estimated_safe >= FEWEST or None,
    ),
    Column("estimated unsafe of truly safe", lambda row: _share(row.counts[False, True], row.truly_safe)),
]
