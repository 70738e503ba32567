"""The episodes of a dataset, and discounted averages over their remaining steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drcorl_ray.data.schema import RATE_DISCOUNT


@dataclass(frozen=True)
class Episodes:
    """The E episodes of a dataset in file order; all arrays are [E].

    starts: first row. lengths: number of rows. returns, costs: undiscounted sums. terminated: whether the episode ended with
    a terminal, not with a timeout.
    """

    starts: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    costs: np.ndarray
    terminated: np.ndarray

    def of_rows(self) -> np.ndarray:
        """Return the index of each row's episode, [N] int64."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)


def discounted_rates(values: np.ndarray, episodes: Episodes) -> np.ndarray:
    """Return the discounted average of `values` [N] over the rest of each row's episode, [N] float32.

    rateᵢ = Σⱼ γʲ⁻ⁱ xⱼ / Σⱼ γʲ⁻ⁱ, with j from i to the end of the episode. A terminal is followed by zeros for ever, so the
    denominator is 1/(1-γ); a timeout ends both sums.
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
