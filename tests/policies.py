"""Policies to evaluate in tests."""

from __future__ import annotations

import numpy as np

from drcorl_ray.policy import PerceptronPolicy


def random_policy(observations: int, actions: int, members: int = 1, hidden: int = 32, seed: int = 0) -> PerceptronPolicy:
    rng = np.random.default_rng(seed)
    sizes = [(observations, hidden), (hidden, hidden), (hidden, actions)]
    weights = tuple((rng.standard_normal((members, *size)) / np.sqrt(size[0])).astype(np.float32) for size in sizes)
    biases = tuple(0.1 * rng.standard_normal((members, size[1])).astype(np.float32) for size in sizes)
    return PerceptronPolicy(np.zeros(observations, np.float32), np.ones(observations, np.float32), weights, biases)
