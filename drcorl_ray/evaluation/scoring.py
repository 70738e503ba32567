"""results.json: one row per evaluated policy, saying what it is, how it was chosen and what it scored (schema 1).

A row has: task, algorithm, member, config, seed, cost_limit, dataset_sha256; evaluation_mode (where training's cost estimate
came from), selection (`last`, `online_best`, `search_winner`), online_episodes (spent in training or selection), episodes (of
this evaluation); reward_mean, reward_std, cost_mean, cost_std, length_mean, normalized_reward, normalized_cost (Eq. 26);
policy (file, relative to the run).

An online or hybrid member's rows have in addition online_staleness (steps that its estimates lagged behind), online_budget (of
its training), appended_transitions and appended_budget.

A search's rows have in addition study, configuration (the Optuna trial), state (`complete`, or `stopped` by a rung),
member_steps (extraction steps spent on it) and config_file (its complete settings, relative to the run); those of its winners
search_normalized_reward and search_normalized_cost, by which they were chosen, beside the fresh ones.

What a report draws beside the rows is in `run`: curves and calibration (curves.py), references (`best_safe_episodes`),
data_episodes (`data_episodes`, an entry a task) and, of a search, what it was and took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from drcorl_ray.config import Config, MemberSettings
from drcorl_ray.config.members import row_settings
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.tasks.scores import EpisodeStats, normalized_cost, normalized_reward

Selection = Literal["last", "online_best", "search_winner"]


@dataclass(frozen=True)
class Candidate:
    """What a row says of a policy beyond its scores; `config` are its hyper-parameters, `details` further columns."""

    algorithm: str
    config: Mapping[str, Any]
    seed: int
    cost_limit: float
    selection: Selection = "last"
    online_episodes: int = 0
    evaluation_mode: str = "offline"
    details: Mapping[str, Any] = field(default_factory=dict)


def score(
    run: RunDirectory,
    data: TaskData,
    policies: PopulationPolicy,
    candidates: Sequence[Candidate],
    stats: EpisodeStats,
    labels: Sequence[str],
    members: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a population's evaluation; each member's policy is written to RUN/policies/TASK-LABEL.safetensors.

    members: the numbers by which the rows call them, 0, 1 … if not given.
    """
    rows = []
    for member, (candidate, label) in enumerate(zip(candidates, labels, strict=True)):
        path = run.policies / f"{data.task.name}-{label}.safetensors"
        returns, costs = stats.returns[member], stats.costs[member]
        row = {
            "task": data.task.name,
            "algorithm": candidate.algorithm,
            "member": member if members is None else members[member],
            "config": dict(candidate.config),
            "seed": candidate.seed,
            "cost_limit": candidate.cost_limit,
            "dataset_sha256": data.manifest.source.sha256,
            "evaluation_mode": candidate.evaluation_mode,
            "selection": candidate.selection,
            "online_episodes": candidate.online_episodes,
            "episodes": len(stats.seeds),
            "reward_mean": float(returns.mean()),
            "reward_std": float(returns.std()),
            "cost_mean": float(costs.mean()),
            "cost_std": float(costs.std()),
            "length_mean": float(stats.lengths[member].mean()),
            "normalized_reward": float(normalized_reward(returns, data.spec.return_min, data.spec.return_max).mean()),
            "normalized_cost": float(normalized_cost(costs, candidate.cost_limit).mean()),
            "policy": str(path.relative_to(run.path)),
            **candidate.details,
        }
        policies.save(path, member, {"result": row, "return_range": [data.spec.return_min, data.spec.return_max]})
        rows.append(row)
    return rows


Records = list[dict[str, Any]]


def member_candidate(
    config: Config,
    member: MemberSettings,
    online_episodes: int,
    appended: int,
    selection: Selection = "last",
    details: Mapping[str, Any] = MappingProxyType({}),
) -> Candidate:
    """online_episodes: spent on it in training and selection; appended: transitions it learnt from beside the dataset."""
    assert member.seed is not None
    assert member.evaluation_mode is not None
    settings = config.evaluation
    online = {
        "online_staleness": settings.online_staleness,
        "online_budget": settings.online_budget,
        "appended_transitions": appended,
        "appended_budget": settings.hybrid_transitions if member.evaluation_mode == "hybrid" else 0,
    }
    return Candidate(
        config.run.algorithm,
        row_settings(config.run.algorithm, member),
        member.seed,
        member.cost_limit,
        selection,
        online_episodes,
        member.evaluation_mode,
        details if member.evaluation_mode == "offline" else {**details, **online},
    )


def mean_scores(data: TaskData, stats: EpisodeStats, cost_limits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Each member's mean normalised reward and cost over its episodes (Eq. 26), [P] and [P]."""
    rewards = normalized_reward(stats.returns, data.spec.return_min, data.spec.return_max)
    return rewards.mean(1), normalized_cost(stats.costs, np.array(cost_limits)[:, None]).mean(1)
