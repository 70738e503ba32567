"""The columns of a transition: those of DSRL's files, and those that the store derives from them."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import numpy as np

SCHEMA_VERSION = 1
RATE_DISCOUNT = 0.99


class Column(NamedTuple):
    """A column. dtype: in memory. width: "S" (observation size), "A" (action size), or "" for one value per row."""

    dtype: np.dtype
    width: str = ""


_FLOAT, _FLAG, _INTEGER = np.dtype(np.float32), np.dtype(np.bool_), np.dtype(np.int64)

TRANSITION = MappingProxyType(
    {
        "observations": Column(_FLOAT, "S"),
        "actions": Column(_FLOAT, "A"),  # in [-1, 1]
        "next_observations": Column(_FLOAT, "S"),
        "rewards": Column(_FLOAT),
        "costs": Column(_FLOAT),  # ≥ 0
        "terminals": Column(_FLAG),  # the environment ended the episode: no step follows
        "timeouts": Column(_FLAG),  # the episode was cut off: more steps would have followed
    }
)
DERIVED = MappingProxyType(
    {
        "rows": Column(_INTEGER),  # global row number 0 … N-1, in episode order
        "reward_rates": Column(_FLOAT),  # discounted average reward over the rest of the episode
        "cost_rates": Column(_FLOAT),
        "episode_returns": Column(_FLOAT),  # undiscounted sum over the row's episode
        "episode_costs": Column(_FLOAT),
    }
)
STORED = MappingProxyType({**TRANSITION, **DERIVED})
