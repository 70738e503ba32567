"""Trained policies outside the learner: numpy arrays that act, travel to rollout actors and leave as one small file.

Neither torch nor Ray is needed to run one. Actions are the deterministic mean, tanh-squashed to [-1, 1].
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.checkpoint import load_arrays, read_json, save_arrays
from drcorl_ray.errors import UserError
from drcorl_ray.storage import named_file, storage_path

POLICY_SCHEMA = 1
TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Perturbation:
    """BCQ's: perceptrons on [observation, action], with a policy's layers; reach [P] times their output is added to it."""

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    reach: np.ndarray


@dataclass(frozen=True)
class PopulationPolicy(ABC):
    """P policies on standardised observations. observation_mean, observation_std: [S] float32, shared."""

    observation_mean: np.ndarray
    observation_std: np.ndarray

    @property
    @abstractmethod
    def action_size(self) -> int: ...

    @abstractmethod
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions [P, N, A] float32 in [-1, 1] for observations [P, N, S], the first ones of their episodes if that matters.

        An action depends on its own episode alone, to the last bit: an episode is the same whichever are stepped beside it.
        """

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """All that its members have of their own, [P, …] by the names of a file."""

    @abstractmethod
    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PopulationPolicy:
        """The same with other `arrays`."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a file says of the arrays' meaning."""

    @property
    def memory(self) -> bool:
        """Whether an action depends on the episode so far; `begin` then keeps it."""
        return False

    @property
    def members(self) -> int:
        return len(next(iter(self.arrays().values())))

    @property
    def observation_size(self) -> int:
        return len(self.observation_mean)

    @staticmethod
    def join(parts: Sequence[PopulationPolicy]) -> PopulationPolicy:
        """The members of several populations with equal shapes, statistics and `about`, one after another."""
        arrays = [part.arrays() for part in parts]
        return parts[0].with_arrays({name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})

    def select(self, members: Sequence[int]) -> PopulationPolicy:
        """The population of the given members, in the given order."""
        index = list(members)
        return self.with_arrays({name: array[index] for name, array in self.arrays().items()})

    def finite(self) -> np.ndarray:
        """Which members' weights are all finite, [P] bool."""
        return np.all([np.isfinite(x).reshape(self.members, -1).all(1) for x in self.arrays().values()], axis=0)

    def begin(self, episodes: int) -> Acting:
        """What acts in that many episodes of every member, stepped side by side."""
        return Acting(self)

    def save_population(self, path: Path, meta: dict[str, Any]) -> None:
        """Write all members into one file, to be read by `load_population`."""
        save_arrays(path, self._statistics() | self.arrays(), {"population_schema": POLICY_SCHEMA, **self.about(), **meta})

    def save(self, path: Path, member: int, meta: dict[str, Any]) -> None:
        """Write one member as a policy file; `meta` (task, config, results …) is any JSON-able mapping."""
        own = {name: array[member] for name, array in self.arrays().items()}
        save_arrays(path, self._statistics() | own, {"policy_schema": POLICY_SCHEMA, **self.about(), **meta})

    def _statistics(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _STATISTICS}

    def standardised(self, observations: np.ndarray) -> np.ndarray:
        return (np.asarray(observations, np.float32) - self.observation_mean) / self.observation_std


class Acting:
    """A population at work in episodes that are stepped side by side."""

    def __init__(self, policies: PopulationPolicy) -> None:
        self._policies, self._members = policies, np.arange(policies.members)
        self._chosen = policies

    def act(self, observations: np.ndarray, active: np.ndarray, actions: np.ndarray) -> None:
        """Put the actions [P, N, A] of active episodes [P, N] for observations [P, N, S] into `actions`, others at will."""
        unfinished = np.flatnonzero(active.any(axis=1))
        if len(unfinished) < len(self._members):
            self._members, self._chosen = unfinished, self._policies.select(unfinished.tolist())
        acting = ... if active.all() else np.ix_(self._members, np.flatnonzero(active.any(axis=0)))
        actions[acting] = self._chosen.act(observations[acting])

    def note(self, rewards: np.ndarray, costs: np.ndarray) -> None:
        """Take in what the last actions brought, [P, N] each."""


@dataclass(frozen=True)
class PerceptronPolicy(PopulationPolicy):
    """Multi-layer perceptrons, ReLU between layers, tanh at the end.

    weights: per layer [P, in, out]; biases: per layer [P, out]. perturbation: changes the actions, within [-1, 1].
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    perturbation: Perturbation | None = None

    @property
    def action_size(self) -> int:
        return self.weights[-1].shape[2]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """As the population's; each row is its own vector-matrix product."""
        rows = self.standardised(observations)[:, :, None, :]
        actions = _perceptrons(self.weights, self.biases, rows)
        if (own := self.perturbation) is not None:
            change = _perceptrons(own.weights, own.biases, np.concatenate([rows, actions], axis=-1))
            actions = np.clip(actions + own.reach[:, None, None, None] * change, -1.0, 1.0)
        return actions[:, :, 0, :]

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = _named(self.weights, self.biases, "")
        if (own := self.perturbation) is not None:
            arrays |= _named(own.weights, own.biases, _PERTURBATION) | {_PERTURBATION + "reach": own.reach}
        return arrays

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PerceptronPolicy:
        return _assembled(self.observation_mean, self.observation_std, arrays)

    def about(self) -> dict[str, Any]:
        changed = {"perturbation_layers": len(self.perturbation.weights)} if self.perturbation else {}
        return {"layers": len(self.weights), **changed}


_PERTURBATION, _STATISTICS = "perturbation.", ("observation_mean", "observation_std")


def _perceptrons(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[P, N, 1, in] → [P, N, 1, out] in [-1, 1]."""
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rows = np.matmul(rows, weight[:, None]) + bias[:, None, None]
        rows = np.tanh(rows) if layer == len(weights) - 1 else np.maximum(rows, 0.0)
    return rows


def _named(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    pairs = enumerate(zip(weights, biases, strict=True))
    return {f"{prefix}layers.{i}.{part}": x for i, pair in pairs for part, x in zip(("weight", "bias"), pair, strict=True)}


def _assembled(mean: np.ndarray, std: np.ndarray, arrays: Mapping[str, np.ndarray]) -> PerceptronPolicy:
    """From what `arrays` returned."""

    def layers(prefix: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        count = sum(name.startswith(f"{prefix}layers.") for name in arrays) // 2
        weights, biases = (tuple(arrays[f"{prefix}layers.{i}.{part}"] for i in range(count)) for part in ("weight", "bias"))
        return weights, biases

    reach = arrays.get(_PERTURBATION + "reach")
    return PerceptronPolicy(mean, std, *layers(""), None if reach is None else Perturbation(*layers(_PERTURBATION), reach))


@dataclass(frozen=True)
class Policy:
    """One trained policy and what is known of it (`meta`: task, config, …)."""

    population: PopulationPolicy
    meta: dict[str, Any]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions [A] or [N, A] float32 in [-1, 1] for observations [S] or [N, S]; ValueError on any other shape.

        A policy with a memory (CDT) takes each for the first one of its episode, and says so; `episode` acts with its memory.
        """
        if self.population.memory:
            warnings.warn(
                "this policy acts without its memory here: ask policy.episode().act(observation), tell it .note(reward, cost)",
                stacklevel=2,
            )
        array = np.asarray(observations, np.float32)
        size = self.population.observation_size
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(f"observations of shape [{size}] or [N, {size}] expected, got {list(array.shape)}")
        actions = self.population.act(array.reshape(1, -1, size))[0]
        return actions[0] if array.ndim == 1 else actions

    def episode(self) -> Episode:
        """Acts through one episode; for a policy without a memory the same as `act`."""
        return Episode(self.population)


class Episode:
    """One episode of one policy: `act` and `note` in turn."""

    def __init__(self, population: PopulationPolicy) -> None:
        self._acting, self._size = population.begin(1), population.action_size

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The action [A] for an observation [S]."""
        actions = np.zeros((1, 1, self._size), np.float32)
        self._acting.act(np.asarray(observation, np.float32)[None, None], np.ones((1, 1), bool), actions)
        return actions[0, 0]

    def note(self, reward: float, cost: float) -> None:
        """What the last action brought."""
        self._acting.note(np.array([[reward]]), np.array([[cost]]))


def load_policy(path: str | Path) -> Policy:
    """Load a policy file, or the best policy of a finished run's directory; UserError where it is not an intact policy."""
    file = storage_path(str(path))
    file = _policy_of_run(file) if file.is_dir() else file
    arrays, meta = load_arrays(file)
    lifted = {name: array if name in _STATISTICS else array[None] for name, array in arrays.items()}
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
    if meta.get("kind") == TRANSFORMER:
        from drcorl_ray.transformer_policy import assembled  # the few that have one

        return assembled(file, arrays, meta)
    try:
        counts = {"": meta["layers"], _PERTURBATION: meta.get("perturbation_layers", 0)}
        if not all(type(count) is int and 0 <= count <= len(arrays) for count in counts.values()):
            raise ValueError(f"layers: {counts}")
        mean, std = (arrays[name] for name in _STATISTICS)
        names = [f"{p}layers.{i}.{part}" for p, count in counts.items() for i in range(count) for part in ("weight", "bias")]
        names += [_PERTURBATION + "reach"] * (counts[_PERTURBATION] > 0)
        own = {name: arrays[name] for name in names}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a complete policy ({error!r} is missing or wrong)") from error
    if counts[""] < 1 or {*arrays} != {*own, *_STATISTICS} or not _fits(mean, std, counts, own):
        raise UserError(f"{file}: not a policy (the shapes of its layers do not fit together)")
    return _assembled(mean, std, own)


def _fits(mean: np.ndarray, std: np.ndarray, counts: Mapping[str, int], own: Mapping[str, np.ndarray]) -> bool:
    """Whether all arrays have the shapes that the observation, the action and the layers between give them."""
    if mean.ndim != 1 or mean.shape != std.shape:
        return False
    action, expected = own[f"layers.{counts[''] - 1}.bias"].shape[-1:], dict[str, tuple[int, ...]]()
    for prefix, count in counts.items():
        sizes = [mean.shape if not prefix else (mean.size + sum(action),)]
        sizes += [own[f"{prefix}layers.{i}.bias"].shape[1:] for i in range(count)]
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            expected |= {f"{prefix}layers.{i}.weight": inputs + outputs, f"{prefix}layers.{i}.bias": outputs}
        if count and (len(sizes[-1]) != 1 or (prefix and sizes[-1] != action)):
            return False
    expected |= {_PERTURBATION + "reach": ()} if counts[_PERTURBATION] else {}
    members = own["layers.0.bias"].shape[:1]
    return all(own[name].shape == members + shape for name, shape in expected.items())
