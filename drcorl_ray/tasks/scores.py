"""The paper's normalised scores (Eq. 26) and the statistics of evaluation episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COST_EPSILON = 0.1  # Eq. 26: keeps the normalised cost finite at a cost limit of 0


def normalized_reward(episode_return: np.ndarray, return_min: float, return_max: float) -> np.ndarray:
    """Return (R − R_min) / (R_max − R_min), Eq. 26; R_min and R_max are the dataset's smallest and largest episode returns."""
    return (np.asarray(episode_return, np.float64) - return_min) / (return_max - return_min)


def normalized_cost(episode_cost: np.ndarray, cost_limit: float | np.ndarray) -> np.ndarray:
    """Return C / (l + 0.1); a policy is safe if the result is at most 1.

    Eq. 26 also subtracts C_min, which would call some policies safe whose cost is above their limit.
    """
    return np.asarray(episode_cost, np.float64) / (np.asarray(cost_limit, np.float64) + COST_EPSILON)


@dataclass(frozen=True)
class EpisodeStats:
    """Statistics of E episodes of each of P members.

    returns, costs: undiscounted sums [P, E] float64. lengths: in steps, [P, E] int64. seeds: [E] int64.
    """

    returns: np.ndarray
    costs: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
