"""Small gymnasium environments for the tests, registered on import: `tests.helpers.small_envs:Walk-v0`, NoCost, Picky."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.tasks.envs.point_circle import PointCircleEnv


class Walk(gymnasium.Env[np.ndarray, np.ndarray]):
    """A walk on a line: the action in [-2, 2] is the step, the reward is x, the cost is 1 if |x| > 1, the end is |x| > 5."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, costly: bool = True, forbidden_seed: int | None = None) -> None:
        self.costly, self.forbidden_seed = costly, forbidden_seed
        self.x = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.forbidden_seed is not None and seed == self.forbidden_seed:
            raise RuntimeError("forbidden seed")
        self.x = float(self.np_random.uniform(-1, 1))
        return np.array([self.x]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x += float(action[0])
        info = {"cost": float(abs(self.x) > 1)} if self.costly else {}
        return np.array([self.x]), self.x, abs(self.x) > 5, False, info


class Ending(Walk):
    """A walk that ends after `steps` steps, truncated by its own clock or terminated."""

    def __init__(self, steps: int, clock: bool) -> None:
        super().__init__()
        self._steps, self._clock, self._step = steps, clock, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._step = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        self._step += 1
        over = self._step == self._steps
        return observation, reward, over and not self._clock, over and self._clock, info


class CountedCircle(PointCircleEnv):
    """PointCircle that writes the seed of every episode into the file named by COUNTED_EPISODES before it begins."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        with Path(os.environ["COUNTED_EPISODES"]).open("a") as file:
            file.write(f"{seed}\n")
        return super().reset(seed=seed, options=options)


class PlacedCircle(PointCircleEnv):
    """PointCircle that writes the Ray node of every episode into the file named by PLACED_EPISODES."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        import ray

        with Path(os.environ["PLACED_EPISODES"]).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return super().reset(seed=seed, options=options)


gymnasium.register("PlacedCircle-v0", PlacedCircle)
gymnasium.register("Cut3-v0", Ending, kwargs={"steps": 3, "clock": True})
gymnasium.register("Cut7-v0", Ending, kwargs={"steps": 7, "clock": True})
gymnasium.register("Fall-v0", Ending, kwargs={"steps": 2, "clock": False})
gymnasium.register("CountedCircle-v0", CountedCircle)
gymnasium.register("Walk-v0", Walk, max_episode_steps=3)
gymnasium.register("NoCost-v0", Walk, kwargs={"costly": False})
gymnasium.register("Picky-v0", Walk, kwargs={"forbidden_seed": 13})
