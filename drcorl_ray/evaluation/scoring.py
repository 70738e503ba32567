"""The rows of a run: the columns that are not scores (`RowInfo`), and complete rows from an evaluation (`score`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from drcorl_ray.config import EvaluationConfig, MemberSettings
from drcorl_ray.config.members import row_settings
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.schema import Row, RowDetails, Selection, row_scores
from drcorl_ray.tasks.scores import EpisodeStats, normalized_cost, normalized_reward


@dataclass(frozen=True)
class RowInfo:
    """The columns of a row that are not scores; config: hyper-parameters; details: columns that only some rows have."""

    algorithm: str
    config: Mapping[str, Any]
    seed: int
    cost_limit: float
    selection: Selection = "last"
    online_episodes: int = 0
    evaluation_mode: str = "offline"
    details: RowDetails = field(default_factory=RowDetails)


def score(
    run: RunDirectory,
    data: TaskData,
    policies: PopulationPolicy,
    infos: Sequence[RowInfo],
    stats: EpisodeStats,
    labels: Sequence[str],
    members: Sequence[int] | None = None,
) -> list[Row]:
    """Return the rows of a population's evaluation; save each member's policy as RUN/policies/TASK-LABEL.safetensors.

    members: the column `member` of the rows; 0, 1, … by default.
    """
    rows = []
    return_range = data.spec.return_min, data.spec.return_max
    for member, (info, label) in enumerate(zip(infos, labels, strict=True)):
        path = run.policies / f"{data.task.name}-{label}.safetensors"
        episodes = stats.returns[member], stats.costs[member], stats.lengths[member]
        row = {
            "task": data.task.name,
            "algorithm": info.algorithm,
            "member": member if members is None else members[member],
            "config": dict(info.config),
            "seed": info.seed,
            "cost_limit": info.cost_limit,
            "dataset_sha256": data.manifest.source.sha256,
            "evaluation_mode": info.evaluation_mode,
            "selection": info.selection,
            "online_episodes": info.online_episodes,
            **row_scores(*episodes, info.cost_limit, return_range),
            "policy": str(path.relative_to(run.path)),
            **info.details,
        }
        policies.save(path, member, {"result": row, "return_range": list(return_range)})
        rows.append(cast("Row", row))
    return rows


def member_info(
    algorithm: str,
    settings: EvaluationConfig,
    member: MemberSettings,
    online_episodes: int,
    appended: int,
    selection: Selection = "last",
    details: RowDetails | None = None,
) -> RowInfo:
    """Return the columns of a member's row that are not scores.

    online_episodes: spent in its training and selection. appended: transitions that it learned from besides the dataset.
    """
    assert member.seed is not None
    assert member.evaluation_mode is not None
    online: RowDetails = {
        "online_staleness": settings.online_staleness,
        "online_budget": settings.online_budget,
        "appended_transitions": appended,
        "appended_budget": settings.hybrid_transitions if member.evaluation_mode == "hybrid" else 0,
    }
    details = details or RowDetails()
    return RowInfo(
        algorithm,
        row_settings(algorithm, member),
        member.seed,
        member.cost_limit,
        selection,
        online_episodes,
        member.evaluation_mode,
        details if member.evaluation_mode == "offline" else {**details, **online},
    )


def mean_scores(data: TaskData, stats: EpisodeStats, cost_limits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return each member's mean normalised reward and cost over its episodes (Eq. 26), [P] and [P]."""
    rewards = normalized_reward(stats.returns, data.spec.return_min, data.spec.return_max)
    return rewards.mean(1), normalized_cost(stats.costs, np.array(cost_limits)[:, None]).mean(1)
