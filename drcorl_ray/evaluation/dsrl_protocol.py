"""DSRL's protocol: 3 cost limits × 3 training seeds × 20 episodes; an algorithm's score is its mean over limits and seeds.

Rows are those of `evaluation.score_policies`. A limit-blind policy (plain behaviour cloning, whose settings say cost_limit
null) is scored against every limit that the other algorithms of its task were trained for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from drcorl_ray.tasks.scores import normalized_cost

LIMITS, SEEDS, EPISODES = 3, 3, 20
_KEYS = ("task", "algorithm", "evaluation_mode", "selection")

Row = Mapping[str, Any]
Cells = dict[tuple[float, int], list[Row]]


def dsrl_groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows by task, algorithm, evaluation mode and selection, each group with its scores.

    A group has these four, `limits` (for each cost limit: cost_limit, seeds, policies, scores over its seeds), its own scores
    over limits × seeds, and `gaps`: what it lacks of the protocol, in words. Scores are normalized_reward, normalized_cost
    (means), normalized_reward_std, normalized_cost_std and safe; a reward is None where a policy of it has none.
    """
    members: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(row[key] for key in _KEYS), []).append(row)
    return [_group(key, _cells(members[key], rows)) for key in sorted(members)]


def _group(key: tuple[str, ...], cells: Cells) -> dict[str, Any]:
    limits = []
    for limit in sorted({limit for limit, _ in cells}):
        here = {seed: chosen for (of, seed), chosen in cells.items() if of == limit}
        files = [row["policy"] for chosen in here.values() for row in chosen]
        limits.append({"cost_limit": limit, "seeds": list(here), "policies": files} | _scores(list(here.values())))
    return dict(zip(_KEYS, key, strict=True)) | {"limits": limits, "gaps": _gaps(cells)} | _scores(list(cells.values()))


def _cells(members: Sequence[Row], rows: Sequence[Row]) -> Cells:
    """A group's policies by cost limit and seed."""
    others = {row["cost_limit"] for row in rows if row["task"] == members[0]["task"] and not _limit_blind(row)}
    cells: dict[tuple[float, int], dict[Any, Row]] = {}
    for row in members:
        same = (*row["returns"], *row["costs"])  # a policy that is in several files, as a run has a limit-blind one per limit
        for limit in (others if _limit_blind(row) else ()) or (row["cost_limit"],):
            cost = float(normalized_cost(row["costs"], limit).mean())
            cells.setdefault((limit, row["seed"]), {}).setdefault(same, {**row, "normalized_cost": cost})
    return {cell: list(policies.values()) for cell, policies in sorted(cells.items())}


def _limit_blind(row: Row) -> bool:
    return row["config"].get("cost_limit", row["cost_limit"]) is None


def _scores(cells: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Mean and standard deviation over cells, each the mean of its policies."""
    costs = [np.mean([row["normalized_cost"] for row in cell]) for cell in cells]
    scores: dict[str, Any] = {"normalized_reward": None, "normalized_reward_std": None}
    if all(row["normalized_reward"] is not None for cell in cells for row in cell):
        rewards = [np.mean([row["normalized_reward"] for row in cell]) for cell in cells]
        scores = {"normalized_reward": float(np.mean(rewards)), "normalized_reward_std": float(np.std(rewards))}
    cost = float(np.mean(costs))
    return scores | {"normalized_cost": cost, "normalized_cost_std": float(np.std(costs)), "safe": cost <= 1}


def _gaps(cells: Cells) -> list[str]:
    limits, seeds = (sorted(set(values)) for values in zip(*cells, strict=True))
    gaps = [] if len(limits) == LIMITS else [f"{_counted('cost limit', limits)}, not {LIMITS}"]
    for limit in limits:
        here = [seed for seed in seeds if (limit, seed) in cells]
        if len(here) != SEEDS:
            absent = "".join(f", no {seed}" for seed in seeds if seed not in here)
            gaps.append(f"limit {limit:g}: {_counted('seed', here)}{absent}, not {SEEDS}")
    crowded = [(cell, len(rows)) for cell, rows in cells.items() if len(rows) > 1]
    return gaps + [f"limit {limit:g} seed {seed}: the mean of {count} policies" for (limit, seed), count in crowded]


def _counted(what: str, values: Sequence[float]) -> str:
    return f"{len(values)} {what}{'s' if len(values) != 1 else ''} ({', '.join(f'{value:g}' for value in values)})"


def protocol_table(groups: Iterable[Row]) -> Table:
    """A line per limit, mean ± standard deviation over its seeds; one per group, over limits × seeds. Green is safe."""
    table = Table("task", "algorithm", "mode", "selection", "limit", "seeds", "reward", "cost", "safe")
    for group in groups:
        names = [escape(str(group[key])) for key in _KEYS]
        for part in group["limits"]:
            seeds = len(part["seeds"])
            table.add_row(*names, f"{part['cost_limit']:g}", str(seeds), *_shown(part, spread=seeds > 1), style=_style(part))
            names = [""] * len(names)
        table.add_row(*names, "all", "", *_shown(group, spread=False), style=f"bold {_style(group)}", end_section=True)
    return table


def protocol_gaps(groups: Iterable[Row]) -> list[str]:
    """A line for every group that is not the whole protocol, or has several policies in a cell."""
    return [f"{' '.join(group[key] for key in _KEYS)}: {'; '.join(group['gaps'])}" for group in groups if group["gaps"]]


def _shown(scores: Row, *, spread: bool) -> tuple[str, str, str]:
    def text(name: str, digits: int) -> str:
        if scores[name] is None:
            return "–"
        return f"{scores[name]:.{digits}f}" + (f" ± {scores[f'{name}_std']:.{digits}f}" if spread else "")

    return text("normalized_reward", 3), text("normalized_cost", 2), "yes" if scores["safe"] else "no"


def _style(scores: Row) -> str:
    return "green" if scores["safe"] else "red"
