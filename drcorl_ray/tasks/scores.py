"""Scores of the paper (Eq. 26), episode statistics and the names of every metric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COST_EPSILON = 0.1  # Eq. 26: keeps a cost limit of zero finite


def normalized_reward(episode_return: np.ndarray, return_min: float, return_max: float) -> np.ndarray:
    """(R − R_min) / (R_max − R_min), Eq. 26; R_min and R_max are the extreme episode returns of the dataset."""
    return (np.asarray(episode_return, np.float64) - return_min) / (return_max - return_min)


def normalized_cost(episode_cost: np.ndarray, cost_limit: float | np.ndarray) -> np.ndarray:
    """C / (l + 0.1), Eq. 26 without its C_min (which would call a policy over its limit safe); safe means ≤ 1."""
    return np.asarray(episode_cost, np.float64) / (np.asarray(cost_limit, np.float64) + COST_EPSILON)


@dataclass(frozen=True)
class EpisodeStats:
    """Episodes of a population: undiscounted returns and costs [P, E] float64, lengths [P, E] int64, seeds [E] int64."""

    returns: np.ndarray
    costs: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
