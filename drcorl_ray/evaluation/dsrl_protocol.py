"""DSRL's protocol: 3 cost limits × 3 training seeds × 20 episodes; an algorithm's score is its mean over limits and seeds.

The rows come from `policy_files.score_policies`. A limit-blind policy (plain behaviour cloning, whose settings have
cost_limit null) is scored against every limit for which the other algorithms of its task were trained.
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
    """Group the rows by task, algorithm, evaluation mode and selection, and score each group.

    A group is a dict of these four, `limits` (for each cost limit: cost_limit, seeds, policies, and scores over its seeds),
    the scores over limits × seeds, and `gaps` (sentences about what is missing from the protocol). Scores are
    normalized_reward, normalized_cost (means), normalized_reward_std, normalized_cost_std and safe; a reward is None if one
    of its policies has none.
    """
    members: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(row[key] for key in _KEYS), []).append(row)
    return [_group(key, _cells(members[key], rows)) for key in sorted(members)]


def _group(key: tuple[str, ...], cells: Cells) -> dict[str, Any]:
    limits = []
    for limit in sorted({limit for limit, _ in cells}):
        by_seed = {seed: rows for (cell_limit, seed), rows in cells.items() if cell_limit == limit}
        files = [row["policy"] for rows in by_seed.values() for row in rows]
        limits.append({"cost_limit": limit, "seeds": list(by_seed), "policies": files} | _scores(list(by_seed.values())))
    return dict(zip(_KEYS, key, strict=True)) | {"limits": limits, "gaps": _gaps(cells)} | _scores(list(cells.values()))


def _cells(members: Sequence[Row], rows: Sequence[Row]) -> Cells:
    """Return a group's policies by cost limit and seed."""
    others = {row["cost_limit"] for row in rows if row["task"] == members[0]["task"] and not _limit_blind(row)}
    cells: dict[tuple[float, int], dict[Any, Row]] = {}
    for row in members:
        episodes = (*row["returns"], *row["costs"])  # equal for copies of a policy: a run saves a limit-blind one per limit
        for limit in (others if _limit_blind(row) else ()) or (row["cost_limit"],):
            cost = float(normalized_cost(row["costs"], limit).mean())
            cells.setdefault((limit, row["seed"]), {}).setdefault(episodes, {**row, "normalized_cost": cost})
    return {cell: list(policies.values()) for cell, policies in sorted(cells.items())}


def _limit_blind(row: Row) -> bool:
    return row["config"].get("cost_limit", row["cost_limit"]) is None


def _scores(cells: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Return mean and standard deviation over cells; a cell is the mean of its policies."""
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
        present = [seed for seed in seeds if (limit, seed) in cells]
        if len(present) != SEEDS:
            absent = "".join(f", no {seed}" for seed in seeds if seed not in present)
            gaps.append(f"limit {limit:g}: {_counted('seed', present)}{absent}, not {SEEDS}")
    crowded = [(cell, len(rows)) for cell, rows in cells.items() if len(rows) > 1]
    return gaps + [f"limit {limit:g} seed {seed}: the mean of {count} policies" for (limit, seed), count in crowded]


def _counted(noun: str, values: Sequence[float]) -> str:
    return f"{len(values)} {noun}{'s' if len(values) != 1 else ''} ({', '.join(f'{value:g}' for value in values)})"


def protocol_table(groups: Iterable[Row]) -> Table:
    """Return a table: a line per limit (mean ± standard deviation over seeds) and per group (over both); green is safe."""
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
    """Return a line for every group that misses a part of the protocol or has several policies in a cell."""
    return [f"{' '.join(group[key] for key in _KEYS)}: {'; '.join(group['gaps'])}" for group in groups if group["gaps"]]


def _shown(scores: Row, *, spread: bool) -> tuple[str, str, str]:
    def text(name: str, digits: int) -> str:
        if scores[name] is None:
            return "–"
        return f"{scores[name]:.{digits}f}" + (f" ± {scores[f'{name}_std']:.{digits}f}" if spread else "")

    return text("normalized_reward", 3), text("normalized_cost", 2), "yes" if scores["safe"] else "no"


def _style(scores: Row) -> str:
    return "green" if scores["safe"] else "red"
