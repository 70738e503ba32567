"""Can the offline estimate be trusted? What the critics say of a policy's episode cost, against what its rollouts say.

run.calibration in results.json holds, per task (or winner of a search), both costs of every member along its training.
By either cost a policy is safe where that, normalised (Eq. 26), is at most 1.
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
    "Offline estimate: what the cost critics say of a policy's episode cost (mean + k standard deviations of the ensemble); "
    "truth: the mean of its rollouts. A point is a policy along the training; those of a member are alike, so that the 95 % "
    "intervals are rather too narrow. Bias: mean of estimate − truth, in episode cost. Answer and table are about offline "
    "members where there are any, since those climb by the estimate they are judged by; the figures show all members."
)
KINDS = {  # (called safe, truly safe)
    (True, True): "called safe, and safe",
    (True, False): "called safe, but UNSAFE",
    (False, True): "called unsafe, yet safe",
    (False, False): "called unsafe, and unsafe",
}
FEWEST = 5  # policies; fewer prove nothing
TOLERATED = 0.1  # share of unsafe policies among those called safe


@dataclass(frozen=True)
class Point:
    """A member's policy at a step: its episode cost as estimated with k, and the true one with its standard error."""

    member: str
    step: int
    limit: float
    k: float
    estimate: float
    true: float
    true_se: float

    @property
    def normalized(self) -> tuple[float, float, float]:
        """(true cost, its standard error, estimate)"""
        true, true_se, estimate = normalized_cost(np.array([self.true, self.true_se, self.estimate]), self.limit).tolist()
        return true, true_se, estimate

    @property
    def kind(self) -> tuple[bool, bool]:
        true, _, estimate = self.normalized
        return estimate <= 1, true <= 1

    @property
    def drawn(self) -> tuple[float, float, float]:
        """As `normalized`, within what a figure shows: costs between 0 and the edge, on which they have no error."""
        true, true_se, estimate = self.normalized
        return min(true, EDGE), true_se if true <= EDGE else 0.0, min(max(estimate, 0.0), EDGE)

    @property
    def error(self) -> float:
        """Estimate − truth of what is drawn: between costs that are both far over the limit, no error matters."""
        true, _, estimate = self.drawn
        return estimate - true


def by_task(results: Results) -> dict[str, list[Calibration]]:
    """The entries that have something, by task in the order of the alphabet."""
    found: dict[str, list[Calibration]] = {}
    for entry in results["run"].get("calibration") or []:
        if entry["steps"] and entry["members"]:
            found.setdefault(entry["task"], []).append(entry)
    return dict(sorted(found.items()))


def other_k(entries: Sequence[Calibration]) -> list[float]:
    """Every k that was asked for, but the one that all members train with, if there is one."""
    own = _own_k(entries)
    return sorted({k for entry in entries for k in entry["k"]} - (own if len(own) == 1 else set()))


def points(entries: Iterable[Calibration], k: float | None = None) -> list[Point]:
    """Every policy of which both costs are known; estimated with that k, or (None) with each member's own."""
    found = []
    for entry in entries:
        if k is not None and k not in entry["k"]:
            continue
        for place, member in enumerate(entry["members"]):
            estimates = entry["own_estimates"][place] if k is None else entry["estimates"][place][entry["k"].index(k)]
            known = {
                "member": _name(entry, member),
                "limit": entry["cost_limits"][place],
                "k": entry["member_k"][place] if k is None else k,
            }
            found += [
                Point(step=step, estimate=estimate, true=true, true_se=true_se or 0.0, **known)
                for step, estimate, true, true_se in zip(
                    entry["steps"], estimates, entry["true_cost"][place], entry["true_cost_se"][place], strict=True
                )
                if estimate is not None and true is not None
            ]
    return found


def _name(entry: Calibration, member: str) -> str:
    if "label" not in entry:
        return f"member {member}"
    return entry["label"] if len(entry["members"]) == 1 else f"{entry['label']}, member {member}"


def _own_k(entries: Iterable[Calibration]) -> set[float]:
    return {k for entry in entries for k in entry["member_k"]}


def own_name(entries: Iterable[Calibration]) -> str:
    own = _own_k(entries)
    return f"own k = {own.pop():g}" if len(own) == 1 else "own k"


def k_name(k: float) -> str:
    return f"k = {k:g}" if k else "k = 0 (mean critic)"


class Agreement:
    """How well an estimate agrees with the truth; None where there are too few points, or no order among them."""

    def __init__(self, task: str, estimate: str, found: Sequence[Point]) -> None:
        errors = np.array([point.estimate - point.true for point in found])
        self.task, self.estimate, self.points = task, estimate, len(found)
        self.bias = float(errors.mean()) if found else None
        near = [point.normalized[0] <= EDGE for point in found]
        self.median = float(np.median(errors[near])) if any(near) else None  # not of costs far over the limit
        self.mean_error = float(np.abs(errors).mean()) if found else None
        self.rank_correlation = _rank_correlation(found)
        self.counts = Counter(point.kind for point in found)

    @property
    def called_safe(self) -> int:
        return self.counts[True, True] + self.counts[True, False]

    @property
    def truly_safe(self) -> int:
        return self.counts[True, True] + self.counts[False, True]

    @property
    def dangerous(self) -> bool:
        """Too many that it called safe were not."""
        return self.counts[True, False] > TOLERATED * self.called_safe


def _rank_correlation(found: Sequence[Point]) -> float | None:
    """Spearman's, of normalised costs, so that members of different limits may be compared."""
    pairs = [point.normalized[::2] for point in found]
    if len(pairs) < FEWEST or any(len(set(costs)) == 1 for costs in zip(*pairs, strict=True)):
        return None
    return float(np.corrcoef(rankdata(pairs, axis=0), rowvar=False)[0, 1])


_OF_MEMBERS = ("members", "modes", "cost_limits", "member_k", "estimates", "own_estimates", "true_cost", "true_cost_se")


def offline_members(entries: Sequence[Calibration]) -> Sequence[Calibration]:
    """The entries cut to their offline members; as they are where no member is known to be offline."""
    cut = []
    for entry in entries:
        if places := [place for place, mode in enumerate(entry.get("modes", ())) if mode == "offline"]:
            columns = cast("dict[str, Any]", entry)
            cut.append({**entry, **{name: [columns[name][place] for place in places] for name in _OF_MEMBERS}})
    return cut or entries


def agreements(task: str, entries: Sequence[Calibration]) -> list[Agreement]:
    """With the members' own k, by which offline mode goes, and then with every other k."""
    entries = offline_members(entries)
    others = [Agreement(task, k_name(k), points(entries, k)) for k in other_k(entries)]
    return [Agreement(task, own_name(entries), points(entries)), *others]


def table(task: str, entries: Sequence[Calibration]) -> list[Agreement]:
    """`agreements`, the members' own k also at each of several cost limits."""
    own, *others = agreements(task, entries)
    entries = offline_members(entries)
    found = points(entries)
    limits = sorted({point.limit for point in found})
    at_limits = [
        Agreement(task, f"{own_name(entries)}, limit {limit:g}", [point for point in found if point.limit == limit])
        for limit in (limits if len(limits) > 1 else [])
    ]
    return [own, *at_limits, *others]


@dataclass(frozen=True)
class Verdict:
    """word: the answer; style: good, bad, doubtful or unknown; reason: in sentences."""

    word: str
    style: str
    reason: str


def verdict(task: str, entries: Sequence[Calibration]) -> Verdict:
    """May offline mode be trusted on this data? Never a yes where too few policies put it to the test, or no unsafe one."""
    own, *others = agreements(task, entries)
    if own.points < FEWEST:
        return Verdict("too few points", "unknown", f"{own.points} policies have both costs; {FEWEST} are the least.")
    reason = f"The estimate with {own.estimate} called {_called(own)}.{_typical(own)}"
    if own.dangerous:
        return Verdict("no", "bad", f"{reason} Prefer evaluation.mode = online or hybrid.{_hindsight(own, others)}")
    if own.truly_safe == own.points:
        return Verdict("not tested", "unknown", f"{reason} None was truly unsafe: whether it would notice one is not known.")
    missed = own.counts[False, True]
    if missed > own.truly_safe / 2:
        waste = f"{missed} of the {own.truly_safe} truly safe ones were called unsafe: reward is wasted."
        return Verdict("too cautious", "doubtful", f"{reason} {waste}{_hindsight(own, others)}")
    if own.called_safe < FEWEST:
        return Verdict("too few called safe", "unknown", f"{reason} {FEWEST} called safe are the least to judge by.")
    return Verdict("yes", "good", reason)


def _called(own: Agreement) -> str:
    wrong = own.counts[True, False]
    were = f"{wrong} of them {'were' if wrong > 1 else 'was'} NOT" if wrong else "all of them were"
    return (
        f"{own.called_safe} of {own.points} policies safe; {were}"
        if own.called_safe
        else f"none of {own.points} policies safe"
    )


def _typical(own: Agreement) -> str:
    if own.median is None:
        return ""
    size = f"{abs(own.median):.1f}"
    error = "right" if size == "0.0" else f"{size} too {'high' if own.median > 0 else 'low'}"
    return f" Where the truth is up to {EDGE:g} limits, it is typically {error} (median)."


def _hindsight(own: Agreement, others: Iterable[Agreement]) -> str:
    """The k that would have found the most, with few mistakes."""
    harmless = [other for other in others if other.called_safe >= FEWEST and not other.dangerous]
    best = max(harmless, key=lambda other: other.counts[True, True], default=own)
    if best is own or (best.counts[True, True] <= own.counts[True, True] and not own.dangerous):
        return ""
    right = f"{best.counts[True, True]} of the {best.called_safe} it calls safe are"
    return f" In hindsight {best.estimate} would have done better: {right}."


def _share(part: int, whole: int) -> str:
    """With Wilson's 95 % interval."""
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
        "safe of called safe",
        lambda row: _share(row.counts[True, True], row.called_safe),
        lambda row: False if row.dangerous else row.called_safe >= FEWEST or None,
    ),
    Column("called unsafe of safe", lambda row: _share(row.counts[False, True], row.truly_safe)),
]
