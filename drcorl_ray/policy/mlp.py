"""Policies that are multi-layer perceptrons (MLPs), with an optional perturbation of the action (BCQ).

Shapes: P members, N rows, S observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from drcorl_ray.policy.population import PopulationPolicy


@dataclass(frozen=True)
class Perturbation:
    """BCQ's perturbation network: MLPs on [observation, action]; `scale` [P] times their output is added to the action.

    weights, biases: per layer, as in `MLPPolicy`. In files `scale` is named "perturbation.reach".
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    scale: np.ndarray


@dataclass(frozen=True)
class MLPPolicy(PopulationPolicy):
    """P MLPs with ReLU between the layers and tanh at the end.

    weights: per layer [P, in, out]. biases: per layer [P, out]. perturbation: changes the actions, which stay in [-1, 1].
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    perturbation: Perturbation | None = None

    @property
    def action_size(self) -> int:
        return self.weights[-1].shape[2]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """See `PopulationPolicy.act`. Each row has its own vector-matrix product, so its bits do not depend on the others."""
        rows = self.standardised(observations)[:, :, None, :]
        actions = _mlps(self.weights, self.biases, rows)
        if (perturbation := self.perturbation) is not None:
            change = _mlps(perturbation.weights, perturbation.biases, np.concatenate([rows, actions], axis=-1))
            actions = np.clip(actions + perturbation.scale[:, None, None, None] * change, -1.0, 1.0)
        return actions[:, :, 0, :]

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = _named(self.weights, self.biases, "")
        if (perturbation := self.perturbation) is not None:
            arrays |= _named(perturbation.weights, perturbation.biases, PERTURBATION)
            arrays[PERTURBATION_SCALE] = perturbation.scale
        return arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> MLPPolicy:
        return assemble(self.observation_mean, self.observation_std, arrays)

    def about(self) -> dict[str, Any]:
        changed = {"perturbation_layers": len(self.perturbation.weights)} if self.perturbation else {}
        return {"layers": len(self.weights), **changed}


PERTURBATION = "perturbation."
PERTURBATION_SCALE = "perturbation.reach"  # the array's name in policy files of every release


def _mlps(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Apply the networks to rows [P, N, 1, in]; return [P, N, 1, out] in [-1, 1]."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rows = np.matmul(rows, weight[:, None]) + bias[:, None, None]
        rows = np.tanh(rows) if layer == len(weights) - 1 else np.maximum(rows, 0.0)
    return rows


def _named(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    pairs = enumerate(zip(weights, biases, strict=True))
    return {f"{prefix}layers.{i}.{part}": x for i, pair in pairs for part, x in zip(("weight", "bias"), pair, strict=True)}


def assemble(mean: np.ndarray, std: np.ndarray, arrays: Mapping[str, np.ndarray]) -> MLPPolicy:
    """Build a policy from the arrays of `MLPPolicy.arrays`."""

    def layers(prefix: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        count = sum(name.startswith(f"{prefix}layers.") for name in arrays) // 2
        weights, biases = (tuple(arrays[f"{prefix}layers.{i}.{part}"] for i in range(count)) for part in ("weight", "bias"))
        return weights, biases

    scale = arrays.get(PERTURBATION_SCALE)
    return MLPPolicy(mean, std, *layers(""), None if scale is None else Perturbation(*layers(PERTURBATION), scale))


def shapes_fit(mean: np.ndarray, std: np.ndarray, counts: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the layers' shapes fit each other, the observation and the action; counts: layers by name prefix."""
    if mean.ndim != 1 or mean.shape != std.shape:
        return False
    action, expected = arrays[f"layers.{counts[''] - 1}.bias"].shape[-1:], dict[str, tuple[int, ...]]()
    for prefix, count in counts.items():
        sizes = [mean.shape if not prefix else (mean.size + sum(action),)]
        sizes += [arrays[f"{prefix}layers.{i}.bias"].shape[1:] for i in range(count)]
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            expected |= {f"{prefix}layers.{i}.weight": inputs + outputs, f"{prefix}layers.{i}.bias": outputs}
        if count and (len(sizes[-1]) != 1 or (prefix and sizes[-1] != action)):
            return False
    expected |= {PERTURBATION_SCALE: ()} if counts[PERTURBATION] else {}
    members = arrays["layers.0.bias"].shape[:1]
    return all(arrays[name].shape == members + shape for name, shape in expected.items())
