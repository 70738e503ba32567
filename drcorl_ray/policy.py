"""Trained policies outside the learner: numpy arrays that act, travel to rollout actors and leave as one small file.

Neither torch nor Ray is needed to run one. Actions are the deterministic mean, tanh-squashed to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.checkpoint import load_arrays, read_json, save_arrays
from drcorl_ray.errors import UserError
from drcorl_ray.storage import named_file, storage_path

POLICY_SCHEMA = 1


@dataclass(frozen=True)
class PopulationPolicy:
    """P multi-layer perceptrons (ReLU between layers, tanh at the end) on standardised observations.

    observation_mean, observation_std: [S] float32, shared. weights: per layer [P, in, out]; biases: per layer [P, out].
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @property
    def members(self) -> int:
        return self.weights[0].shape[0]

    @classmethod
    def join(cls, parts: Sequence[PopulationPolicy]) -> PopulationPolicy:
        """The members of several populations with equal shapes and statistics, one after another."""
        weights, biases = (
            tuple(np.concatenate(layers) for layers in zip(*every, strict=True))
            for every in ([part.weights for part in parts], [part.biases for part in parts])
        )
        return cls(parts[0].observation_mean, parts[0].observation_std, weights, biases)

    def select(self, members: Sequence[int]) -> PopulationPolicy:
        """The population of the given members, in the given order."""
        index = list(members)
        weights, biases = (tuple(layer[index] for layer in layers) for layers in (self.weights, self.biases))
        return PopulationPolicy(self.observation_mean, self.observation_std, weights, biases)

    def finite(self) -> np.ndarray:
        """Which members' weights are all finite, [P] bool."""
        layers = [np.isfinite(layer).reshape(self.members, -1).all(1) for layer in (*self.weights, *self.biases)]
        return np.all(layers, axis=0)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions [P, N, A] float32 in [-1, 1] for observations [P, N, S].

        Each row is its own vector-matrix product, so an action depends on its observation alone, to the last bit: an episode
        is the same whichever episodes are stepped beside it.
        """
        standardised = (np.asarray(observations, np.float32) - self.observation_mean) / self.observation_std
        rows = standardised[:, :, None, :]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows = np.matmul(rows, weight[:, None]) + bias[:, None, None]
            rows = np.tanh(rows) if layer == len(self.weights) - 1 else np.maximum(rows, 0.0)
        return rows[:, :, 0, :]

    def save_population(self, path: Path, meta: dict[str, Any]) -> None:
        """Write all members into one file, to be read by `load_population`."""
        save_arrays(path, self._arrays(), {"population_schema": POLICY_SCHEMA, "layers": len(self.weights), **meta})

    def save(self, path: Path, member: int, meta: dict[str, Any]) -> None:
        """Write one member as a policy file; `meta` (task, config, results …) is any JSON-able mapping."""
        arrays = self.select([member])._arrays()
        arrays = {name: array[0] if name.startswith("layers") else array for name, array in arrays.items()}
        save_arrays(path, arrays, {"policy_schema": POLICY_SCHEMA, "layers": len(self.weights), **meta})

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"observation_mean": self.observation_mean, "observation_std": self.observation_std}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays |= {f"layers.{layer}.weight": weight, f"layers.{layer}.bias": bias}
        return arrays


@dataclass(frozen=True)
class Policy:
    """One trained policy and what is known of it (`meta`: task, config, …)."""

    population: PopulationPolicy
    meta: dict[str, Any]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions [A] or [N, A] float32 in [-1, 1] for observations [S] or [N, S]; ValueError on any other shape."""
        array = np.asarray(observations, np.float32)
        size = self.population.observation_mean.shape[0]
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(f"observations of shape [{size}] or [N, {size}] expected, got {list(array.shape)}")
        actions = self.population.act(array.reshape(1, -1, size))[0]
        return actions[0] if array.ndim == 1 else actions


def load_policy(path: str | Path) -> Policy:
    """Load a policy file, or the best policy of a finished run's directory; UserError where it is not an intact policy."""
    file = storage_path(str(path))
    file = _policy_of_run(file) if file.is_dir() else file
    arrays, meta = load_arrays(file)
    lifted = {name: array[None] if name.startswith("layers") else array for name, array in arrays.items()}
    return Policy(_population(file, lifted, meta, "policy_schema"), meta)


def _policy_of_run(run: Path) -> Path:
    """The search's first winner, or the first member of a training run."""
    results = read_json(run / "results.json")
    try:
        rows = results["rows"]
        chosen = next((row for row in rows if row["selection"] == "search_winner"), rows[0])
        return named_file(run / "results.json", chosen["policy"])
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{run / 'results.json'}: lists no policy ({error!r})") from error


def load_population(path: Path) -> tuple[PopulationPolicy, dict[str, Any]]:
    """What `save_population` wrote, and its meta."""
    arrays, meta = load_arrays(path)
    return _population(path, arrays, meta, "population_schema"), meta


def _population(file: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], schema: str) -> PopulationPolicy:
    if meta.get(schema) != POLICY_SCHEMA:
        raise UserError(
            f"{file}: its {schema} is {meta.get(schema)!r}, not {POLICY_SCHEMA}; it is no such file of this release"
        )
    try:
        layers = range(int(meta["layers"]))
        weights, biases = (tuple(arrays[f"layers.{layer}.{part}"] for layer in layers) for part in ("weight", "bias"))
        mean, std = arrays["observation_mean"], arrays["observation_std"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a complete policy ({error!r} is missing or wrong)") from error
    sizes = [*mean.shape, *(bias.shape[-1] for bias in biases if bias.ndim == 2)]
    shapes = [x.shape[1:] for layer in zip(weights, biases, strict=True) for x in layer if x.shape[:1] == weights[0].shape[:1]]
    fitting = [shape for pair in pairwise(sizes) for shape in (pair, pair[1:])]
    if not shapes or shapes != fitting or mean.shape != std.shape or len(arrays) != 2 + len(shapes):
        raise UserError(f"{file}: not a policy (the shapes of its layers do not fit together)")
    return PopulationPolicy(mean, std, weights, biases)
