"""The batch interface of every simulator, and its implementation for any gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.registry import Task

Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Simulator(Protocol):
    """A batch of n episodes of one task; S = observation_size, A = action_size.

    An episode depends on its seed and actions alone, to the last bit: not on n, on the other episodes of the batch, or on
    earlier episodes. The caller enforces the task's time limit.
    """

    observation_size: int
    action_size: int
    truncated: np.ndarray | np.bool_  # [n] or scalar: episodes that ended in the last step because of a time limit

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Drop the old episodes, start len(seeds) new ones and return observations [n, S]."""
        ...

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        """Step the episodes marked in `active` [n] bool (all if None) with actions [n, A] float32 in [-1, 1].

        Return observations [n, S], rewards [n] and costs [n] float64, and ended [n] bool (the environment ended the episode).
        Values of inactive episodes are unspecified.
        """
        ...

    def close(self) -> None:
        """Release the environments."""
        ...


class GymSimulator:
    """Any gymnasium environment with info["cost"]: one instance per episode, reused in later resets."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        self._make = make
        self._envs = [make()]
        self.observation_size, self.action_size = flat_sizes(self._envs[0])
        self._observations = np.empty((0, self.observation_size))
        self.truncated: np.ndarray | np.bool_ = np.False_

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self._envs += [self._make() for _ in range(len(seeds) - len(self._envs))]
        starts = [env.reset(seed=int(seed))[0] for env, seed in zip(self._envs, seeds, strict=False)]
        self._observations = np.stack(starts)
        return self._observations.copy()

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        count = len(self._observations)
        rewards, costs, ended = np.zeros(count), np.zeros(count), np.zeros(count, bool)
        cut = np.zeros(count, bool)
        for row in range(count) if active is None else np.flatnonzero(active):
            observation, reward, terminated, truncated, info = self._envs[row].step(actions[row])
            self._observations[row] = observation
            rewards[row], costs[row], ended[row] = reward, info["cost"], terminated or truncated
            cut[row] = truncated and not terminated
        self.truncated = cut
        return self._observations.copy(), rewards, costs, ended

    def close(self) -> None:
        for env in self._envs:
            env.close()


class RequireCost(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A user's environment; `step` raises UserError if its info has no cost."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: Task) -> None:
        super().__init__(env)
        self._task = task

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise UserError(f"{self._task.name}: {self._task.environment_id} must put each step's cost into info['cost']")
        return observation, reward, terminated, truncated, info


def user_env(task: Task) -> gymnasium.Env[Any, Any]:
    """Return a registered task's environment with actions in [-1, 1].

    Raise UserError if gymnasium cannot make it or its spaces do not fit.
    """
    try:
        env = gymnasium.make(task.environment_id, max_episode_steps=-1, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{task.name}: gymnasium cannot make {task.environment_id!r} ({reason})") from error
    box = env.action_space
    flat_sizes(env)
    if isinstance(box, gymnasium.spaces.Box) and not (np.all(box.low == -1) and np.all(box.high == 1)):
        env = gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    return RequireCost(env, task)


def flat_sizes(env: gymnasium.Env[Any, Any]) -> tuple[int, int]:
    """Return (S, A) of an environment; UserError unless both spaces are flat boxes and the action box is bounded."""
    sizes = []
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"{env}: the {name} space must be a one-dimensional Box, not {space}; wrap the environment")
        sizes.append(space.shape[0])
    if not env.action_space.is_bounded():  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(f"{env}: the action space must be bounded, not {env.action_space}; wrap the environment")
    return sizes[0], sizes[1]
