"""What a learner must know of a task's dataset: sizes, statistics, and the totals of its episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REWARD_RANGE = 1000.0  # the data's return range after scaling, so that β does not depend on the task's reward unit


@dataclass(frozen=True)
class DataSpec:
    """Sizes, units and statistics of one task's dataset.

    return_min, return_max: extreme episode returns. mean_cost, max_cost: per step. reward_rate_*: of the reward rates.
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
    """A dataset's episodes in row order: undiscounted returns and costs, lengths, and the rows behind their last; [E] each."""

    returns: np.ndarray
    costs: np.ndarray
    lengths: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)
