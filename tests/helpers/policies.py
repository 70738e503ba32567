"""Policies to evaluate in tests."""

from __future__ import annotations

import numpy as np

from drcorl_ray.policy.mlp import MLPPolicy
from drcorl_ray.policy.transformer import TransformerPolicy, shapes


def random_policy(observations: int, actions: int, members: int = 1, hidden: int = 32, seed: int = 0) -> MLPPolicy:
    rng = np.random.default_rng(seed)
    sizes = [(observations, hidden), (hidden, hidden), (hidden, actions)]
    weights = tuple((rng.standard_normal((members, *size)) / np.sqrt(size[0])).astype(np.float32) for size in sizes)
    biases = tuple(0.1 * rng.standard_normal((members, size[1])).astype(np.float32) for size in sizes)
    return MLPPolicy(np.zeros(observations, np.float32), np.ones(observations, np.float32), weights, biases)


def random_transformer(observations: int, actions: int, context: int = 3, seed: int = 0) -> TransformerPolicy:
    """Return a CDT policy of one member: two heads, one block, times up to 5."""
    rng = np.random.default_rng(seed)
    sizes = shapes(observations, actions, times=6, width=4, blocks=1)
    weights = {name: 0.4 * rng.standard_normal((1, *shape)).astype(np.float32) for name, shape in sizes.items()}
    target = 20.0 * np.abs(weights.pop("target"))
    statistics = np.zeros(observations, np.float32), np.ones(observations, np.float32)
    return TransformerPolicy(*statistics, weights, target, heads=2, context=context, units=(10.0, 50.0))
