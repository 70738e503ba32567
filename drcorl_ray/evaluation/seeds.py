"""First episode seed of each purpose; no two purposes share an episode."""

from __future__ import annotations

FRESH_SEEDS = 1_000_000  # the final evaluation of a training run or of a search's winners
CURVE_SEEDS = 2_000_000  # points along a training
SEARCH_SEEDS = 3_000_000  # the scores by which a search ranks its configurations
EVALUATION_SEEDS = 4_000_000  # `drcorl evaluate`
ONLINE_SEEDS = 5_000_000  # online evaluations; the seeds of each one follow those of the one before


def episode_seeds(first: int, episodes: int) -> list[int]:
    """Return the seeds first, first + 1, …, one per episode."""
    return list(range(first, first + episodes))
