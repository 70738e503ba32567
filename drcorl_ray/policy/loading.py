"""Load policy files: `load_policy` for one policy, `load_population` for all members of a training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import load_arrays
from drcorl_ray.io.storage import named_file, storage_path
from drcorl_ray.policy.mlp import PERTURBATION, PERTURBATION_SCALE, assemble, shapes_fit
from drcorl_ray.policy.population import POLICY_SCHEMA, STATISTICS, TRANSFORMER, PopulationPolicy
from drcorl_ray.runs.results import read_results, results_file


@dataclass(frozen=True)
class Policy:
    """A trained policy and the metadata of its file (`meta`: its row of results.json, …).

    >>> import drcorl_ray
    >>> policy = drcorl_ray.load_policy("runs/circle")
    >>> policy.meta["result"]["task"]
    'PointCircle'
    """

    population: PopulationPolicy
    meta: dict[str, Any]

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return actions [A] or [N, A], float32 in [-1, 1], for observations [S] or [N, S]; ValueError for another shape.

        A policy with memory (CDT) takes each observation as the first of an episode and warns; call `episode` for it instead.
        """
        if self.population.memory:
            warnings.warn(
                "act() ignores this policy's memory; call policy.episode().act(observation) and .note(reward, cost) instead",
                stacklevel=2,
            )
        array = np.asarray(observations, np.float32)
        size = self.population.observation_size
        if array.ndim not in (1, 2) or array.shape[-1] != size:
            raise ValueError(f"observations of shape [{size}] or [N, {size}] expected, got {list(array.shape)}")
        actions = self.population.act(array.reshape(1, -1, size))[0]
        return actions[0] if array.ndim == 1 else actions

    def episode(self) -> Episode:
        """Return an object that acts in one episode; for a policy without memory its actions equal those of `act`."""
        return Episode(self.population)


class Episode:
    """One episode of one policy; call `act` and `note` alternately."""

    def __init__(self, population: PopulationPolicy) -> None:
        self._runner, self._size = population.begin(1), population.action_size

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the action [A] for an observation [S]."""
        actions = np.zeros((1, 1, self._size), np.float32)
        self._runner.act(np.asarray(observation, np.float32)[None, None], np.ones((1, 1), bool), actions)
        return actions[0, 0]

    def note(self, reward: float, cost: float) -> None:
        """Record the reward and the cost of the last action."""
        self._runner.note(np.array([[reward]]), np.array([[cost]]))


def load_policy(path: str | Path) -> Policy:
    """Load a policy file, or the best policy of a finished run's directory: its first winner, else its first member.

    UserError if the file is not an intact policy, the run is not finished, or the run has policies of several tasks.

    >>> import drcorl_ray, numpy
    >>> policy = drcorl_ray.load_policy("runs/circle")
    >>> policy.act(numpy.zeros(8)).shape
    (2,)
    """
    file = storage_path(str(path))
    file = _policy_of_run(file) if file.is_dir() else file
    arrays, meta = load_arrays(file)
    stacked = {name: array if name in STATISTICS else array[None] for name, array in arrays.items()}
    return Policy(_population(file, stacked, meta, "policy_schema"), meta)


def _policy_of_run(run: Path) -> Path:
    """Return the file of a search's first winner, or of a training run's first member; UserError for several tasks."""
    listing, rows = results_file(run), read_results(run, otherwise="name a policy file")["rows"]
    try:
        selected: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: row["selection"] != "search_winner"):
            selected.setdefault(row["task"], row["policy"])
        files = [named_file(listing, name) for name in selected.values()]
    except (KeyError, TypeError) as error:
        raise UserError(f"{listing}: lists no policy ({error!r})") from error
    if not files:
        raise UserError(f"{listing}: lists no policy")
    if len(files) > 1:
        raise UserError(f"{run}: has policies of {len(files)} tasks; name one of them: {', '.join(map(str, files))}")
    return files[0]


def load_population(path: Path) -> tuple[PopulationPolicy, dict[str, Any]]:
    """Load the members that `save_population` saved, and the metadata of the file."""
    arrays, meta = load_arrays(path)
    return _population(path, arrays, meta, "population_schema"), meta


def _population(file: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], schema: str) -> PopulationPolicy:
    if meta.get(schema) != POLICY_SCHEMA:
        raise UserError(
            f"{file}: its {schema} is {meta.get(schema)!r}, not {POLICY_SCHEMA}; it is of another kind or another release"
        )
    if meta.get("kind") == TRANSFORMER:
        from drcorl_ray.policy.transformer import assemble_transformer  # only transformer policies need it

        return assemble_transformer(file, arrays, meta)
    try:
        counts = {"": meta["layers"], PERTURBATION: meta.get("perturbation_layers", 0)}
        if not all(type(count) is int and 0 <= count <= len(arrays) for count in counts.values()):
            raise ValueError(f"layers: {counts}")
        mean, std = (arrays[name] for name in STATISTICS)
        names = [f"{p}layers.{i}.{part}" for p, count in counts.items() for i in range(count) for part in ("weight", "bias")]
        names += [PERTURBATION_SCALE] * (counts[PERTURBATION] > 0)
        layers = {name: arrays[name] for name in names}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a complete policy ({error!r} is missing or wrong)") from error
    if counts[""] < 1 or {*arrays} != {*layers, *STATISTICS} or not shapes_fit(mean, std, counts, layers):
        raise UserError(f"{file}: not a policy (the shapes of its layers do not fit together)")
    return assemble(mean, std, layers)
