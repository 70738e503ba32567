"""The episodes of a dataset, and discounted averages over their remaining steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drcorl_ray.data.schema import RATE_DISCOUNT


@dataclass(frozen=True)
class Episodes:
    """One entry an episode, in file order, all [E].

    starts: first row. lengths: rows. returns, costs: undiscounted sums. terminated: ended by a terminal, not by a cut.
    """

    starts: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    costs: np.ndarray
    terminated: np.ndarray

    def of_rows(self) -> np.ndarray:
        """Number of the episode each row belongs to, [N] int64."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)


def discounted_rates(values: np.ndarray, episodes: Episodes) -> np.ndarray:
    """Discounted average of `values` [N] over the rest of each row's episode, [N] float32.

    rateᵢ = Σⱼ γʲ⁻ⁱ xⱼ / Σⱼ γʲ⁻ⁱ, j from i to the end of the episode. After a terminal zeros follow for ever, so that the
    denominator is 1/(1-γ); after a timeout nothing is assumed.
    """
    rates = np.empty(len(values), np.float64)
    total = np.zeros(len(episodes.starts))
    weight = np.where(episodes.terminated, 1.0 / (1.0 - RATE_DISCOUNT), 0.0)
    for steps_left in range(episodes.lengths.max()):
        live = episodes.lengths > steps_left
        rows = (episodes.starts + episodes.lengths - 1 - steps_left)[live]
        total[live] = values[rows] + RATE_DISCOUNT * total[live]
        weight[live] = 1.0 + RATE_DISCOUNT * weight[live]
        rates[rows] = total[live] / weight[live]
    return rates.astype(np.float32)
