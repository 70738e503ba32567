"""Small made-up datasets in DSRL's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drcorl_ray.data.dsrl import make_dataset
from drcorl_ray.data.store import Manifest, Source, convert

SOURCE = Source(file_name="made-up.hdf5", sha256="0" * 64)


def make_columns(rows: int = 50, seed: int = 0, observation_size: int = 3, action_size: int = 2) -> dict[str, np.ndarray]:
    """Return random transitions; an episode ends with probability 0.1 per row, by either flag."""
    generator = np.random.default_rng(seed)
    ends = generator.choice(3, size=rows, p=[0.9, 0.05, 0.05])
    return {
        "observations": generator.normal(2.0, 3.0, (rows, observation_size)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (rows, action_size)).astype(np.float32),
        "next_observations": generator.normal(2.0, 3.0, (rows, observation_size)).astype(np.float32),
        "rewards": generator.normal(size=rows).astype(np.float32),
        "costs": generator.integers(0, 2, rows).astype(np.float32),
        "terminals": ends == 1,
        "timeouts": ends == 2,
    }


def make_store(folder: Path, rows: int = 50, seed: int = 0, rows_per_shard: int = 65536) -> Manifest:
    return convert(
        make_dataset(make_columns(rows, seed)), folder, task="made-up", source=SOURCE, rows_per_shard=rows_per_shard
    )
