"""Trained policies in numpy: they act, are sent to rollout actors, and are saved as one small file.

Running a policy needs neither torch nor Ray. Actions are the policy's deterministic mean, squashed to [-1, 1].
Shapes: P members, N episodes or rows, S observation, A action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.io.files import save_arrays

POLICY_SCHEMA = 1
STATISTICS = ("observation_mean", "observation_std")
TRANSFORMER = "transformer"


@dataclass(frozen=True)
class PopulationPolicy(ABC):
    """P policies that act on standardised observations. observation_mean, observation_std: [S] float32, shared by all."""

    observation_mean: np.ndarray
    observation_std: np.ndarray

    @property
    @abstractmethod
    def action_size(self) -> int: ...

    @abstractmethod
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return actions [P, N, A] float32 in [-1, 1] for observations [P, N, S].

        A policy with memory takes every observation as the first of its episode. To the last bit, an action does not depend
        on the other rows.
        """

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return the members' arrays [P, …] by their names in a policy file."""

    @abstractmethod
    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PopulationPolicy:
        """Return this policy with other members' `arrays`."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Return the metadata that a file needs to rebuild the policy from its arrays."""

    @property
    def memory(self) -> bool:
        """Whether an action depends on the episode's earlier steps; the runner of `begin` then keeps them."""
        return False

    @property
    def members(self) -> int:
        return len(next(iter(self.arrays().values())))

    @property
    def observation_size(self) -> int:
        return len(self.observation_mean)

    @staticmethod
    def join(parts: Sequence[PopulationPolicy]) -> PopulationPolicy:
        """Concatenate the members of populations with equal shapes, statistics and `about`."""
        arrays = [part.arrays() for part in parts]
        return parts[0].with_arrays({name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]})

    def select(self, members: Sequence[int]) -> PopulationPolicy:
        """Return the population of the given members, in the given order."""
        index = list(members)
        return self.with_arrays({name: array[index] for name, array in self.arrays().items()})

    def finite(self) -> np.ndarray:
        """Return which members have only finite weights, [P] bool."""
        return np.all([np.isfinite(x).reshape(self.members, -1).all(1) for x in self.arrays().values()], axis=0)

    def begin(self, episodes: int) -> PolicyRunner:
        """Return a runner that acts in N = `episodes` episodes of every member in parallel."""
        return PolicyRunner(self)

    def save_population(self, path: Path, meta: dict[str, Any]) -> None:
        """Save all members in one file for `load_population`."""
        save_arrays(path, self._statistics() | self.arrays(), {"population_schema": POLICY_SCHEMA, **self.about(), **meta})

    def save(self, path: Path, member: int, meta: dict[str, Any]) -> None:
        """Save one member as a policy file; `meta` (task, config, results …) must be serialisable as JSON."""
        arrays = {name: array[member] for name, array in self.arrays().items()}
        save_arrays(path, self._statistics() | arrays, {"policy_schema": POLICY_SCHEMA, **self.about(), **meta})

    def _statistics(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in STATISTICS}

    def standardised(self, observations: np.ndarray) -> np.ndarray:
        return (np.asarray(observations, np.float32) - self.observation_mean) / self.observation_std


class PolicyRunner:
    """Runs a population in N parallel episodes of each member."""

    def __init__(self, policies: PopulationPolicy) -> None:
        self._policies, self._members = policies, np.arange(policies.members)
        self._chosen = policies

    def act(self, observations: np.ndarray, active: np.ndarray, actions: np.ndarray) -> None:
        """Write the actions of active episodes into `actions` [P, N, A]; entries of finished episodes are unspecified.

        observations: [P, N, S]. active: [P, N] bool.
        """
        unfinished = np.flatnonzero(active.any(axis=1))
        if len(unfinished) < len(self._members):
            self._members, self._chosen = unfinished, self._policies.select(unfinished.tolist())
        index = ... if active.all() else np.ix_(self._members, np.flatnonzero(active.any(axis=0)))
        actions[index] = self._chosen.act(observations[index])

    def note(self, rewards: np.ndarray, costs: np.ndarray) -> None:
        """Record the rewards and costs [P, N] of the last actions; a policy without memory ignores them."""
