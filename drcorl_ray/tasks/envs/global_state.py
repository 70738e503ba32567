"""A context manager for numpy's global random state, from which some simulators draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global random state and restore the previous state on exit; 0 ≤ seed < 2³²."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
