"""References from the dataset for a report: its best safe episodes and a sample of all its episodes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from drcorl_ray.data.task_data import TaskData
from drcorl_ray.runs.schema import DataEpisodes, Reference
from drcorl_ray.tasks.scores import normalized_reward

MOST_EPISODES = 1000


def best_safe_episodes(data: TaskData, cost_limits: Iterable[float]) -> list[Reference]:
    """Return one reference per cost limit within which the data have an episode."""
    best = {limit: best_safe_episode(data, limit) for limit in sorted(set(cost_limits))}
    return [
        {"task": data.task.name, "cost_limit": limit, "normalized_reward": reward}
        for limit, reward in best.items()
        if reward is not None
    ]


def best_safe_episode(data: TaskData, cost_limit: float) -> float | None:
    """Return the normalised return of the best episode whose cost is within the limit; None if there is none."""
    returns, costs = (np.asarray(x) for x in (data.manifest.episode_returns, data.manifest.episode_costs))
    safe = returns[costs <= cost_limit]
    return float(normalized_reward(safe.max(), data.spec.return_min, data.spec.return_max)) if len(safe) else None


def data_episodes(data: TaskData) -> DataEpisodes:
    """Return the episodes of the data for a report.

    If there are more than 1,000, return 1,000 of them, evenly spaced in the data's order, with the first and the last.
    """
    count = len(data.episodes.costs)
    kept = np.linspace(0, count - 1, min(count, MOST_EPISODES)).round().astype(int)
    rewards = normalized_reward(data.episodes.returns[kept], data.spec.return_min, data.spec.return_max)
    return {"task": data.task.name, "normalized_reward": rewards.tolist(), "cost": data.episodes.costs[kept].tolist()}
