"""The properties of a dataset that a learner needs: sizes, statistics, and the totals of the episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REWARD_RANGE = 1000.0  # the range of returns after scaling, so that β does not depend on the task's reward unit


@dataclass(frozen=True)
class DataSpec:
    """Sizes and statistics of a task's dataset.

    episode_length: in steps. observation_mean, observation_std: [S]. return_min, return_max: smallest and largest episode
    return. mean_cost, max_cost: per step. reward_rate_mean, reward_rate_std: of the column `reward_rates`.
    """

    observation_size: int
    action_size: int
    episode_length: int
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    return_min: float
    return_max: float
    mean_cost: float
    max_cost: float
    reward_rate_mean: float
    reward_rate_std: float

    @property
    def reward_scale(self) -> float:
        return REWARD_RANGE / (self.return_max - self.return_min)


@dataclass(frozen=True)
class EpisodeTotals:
    """The totals of a dataset's E episodes in row order.

    returns, costs: undiscounted sums [E]. lengths: in rows [E]. ends: the row after each episode's last row [E].
    """

    returns: np.ndarray
    costs: np.ndarray
    lengths: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)
