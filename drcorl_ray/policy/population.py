"""Trained policies outside the learner: numpy arrays that act, travel to rollout actors and leave as one small file.

Neither torch nor Ray is needed to run one. Actions are the deterministic mean, tanh-squashed to [-1, 1].
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

    def begin(self, episodes: int) -> PolicyRunner:
        """What acts in that many episodes of every member, stepped side by side."""
        return PolicyRunner(self)

    def save_population(self, path: Path, meta: dict[str, Any]) -> None:
        """Write all members into one file, to be read by `load_population`."""
        save_arrays(path, self._statistics() | self.arrays(), {"population_schema": POLICY_SCHEMA, **self.about(), **meta})

    def save(self, path: Path, member: int, meta: dict[str, Any]) -> None:
        """Write one member as a policy file; `meta` (task, config, results …) is any JSON-able mapping."""
        own = {name: array[member] for name, array in self.arrays().items()}
        save_arrays(path, self._statistics() | own, {"policy_schema": POLICY_SCHEMA, **self.about(), **meta})

    def _statistics(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in STATISTICS}

    def standardised(self, observations: np.ndarray) -> np.ndarray:
        return (np.asarray(observations, np.float32) - self.observation_mean) / self.observation_std


class PolicyRunner:
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
