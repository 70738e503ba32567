"""PointCircle, the built-in task: a point mass earns reward for circling the origin, and cost for leaving a corridor.

Fast motion along the circle of radius RADIUS earns most. Every step with |x| > CORRIDOR costs 1. Lengths are in m, times in s.
n episodes are stepped at once in numpy. Only +, −, ×, ÷ and √ are used, so an episode's bits do not depend on n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.tasks.envs.simulator import Step

RADIUS = 2.0
CORRIDOR = 1.2
ARENA = 3.0  # walls at |x| = ARENA and |y| = ARENA stop the mass
TIME_STEP = 0.1
ACCELERATION = 2.0  # m/s² per unit of action
DRAG = 0.2  # 1/s
REWARD_SCALE = 0.25
START_POSITION, START_VELOCITY = 1.0, 0.5  # each component is uniform within ± this value
OBSERVATION_SIZE, ACTION_SIZE = 8, 2


def observe(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return observations [n, 8] float32: x, y, vx, vy, ‖p‖ − R, p/‖p‖, distance to the corridor's edge (< 0 outside)."""
    radius = _norm(positions)
    direction = positions / np.maximum(radius, 1e-6)[:, None]
    edge = CORRIDOR - np.abs(positions[:, 0])
    return np.column_stack((positions, velocities, radius - RADIUS, direction, edge)).astype(np.float32)


class PointCircleSimulator:
    """n point masses, each in its own episode; the `Simulator` interface."""

    observation_size, action_size = OBSERVATION_SIZE, ACTION_SIZE
    truncated: np.ndarray | np.bool_ = np.False_

    def __init__(self) -> None:
        self._positions = self._velocities = np.empty((0, 2))

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        draws = np.array([np.random.default_rng(int(seed)).uniform(-1.0, 1.0, (2, 2)) for seed in seeds])
        self._positions, self._velocities = draws[:, 0] * START_POSITION, draws[:, 1] * START_VELOCITY
        return observe(self._positions, self._velocities)

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        force = np.clip(actions.astype(np.float64), -1.0, 1.0)
        velocities = self._velocities + TIME_STEP * (ACCELERATION * force - DRAG * self._velocities)
        positions = self._positions + TIME_STEP * velocities
        self._velocities = np.where(np.abs(positions) > ARENA, 0.0, velocities)
        self._positions = np.clip(positions, -ARENA, ARENA)
        (x, y), (vx, vy) = self._positions.T, self._velocities.T
        rewards = REWARD_SCALE * (x * vy - y * vx) / (1.0 + np.abs(_norm(self._positions) - RADIUS))
        costs = (np.abs(x) > CORRIDOR).astype(np.float64)
        return observe(self._positions, self._velocities), rewards, costs, np.zeros(len(x), bool)

    def close(self) -> None: ...


def _norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(vectors[:, 0] * vectors[:, 0] + vectors[:, 1] * vectors[:, 1])


class PointCircleEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One point mass behind gymnasium's API."""

    def __init__(self) -> None:
        self._simulator = PointCircleSimulator()
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        start = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._simulator.reset([start])[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observations, rewards, costs, ended = self._simulator.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(ended[0]), False, {"cost": float(costs[0])}
