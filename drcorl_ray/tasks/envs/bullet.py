"""The eight Bullet tasks (Ant, Ball, Car, Drone × Circle, Run) on bullet-safety-gym, with reproducible resets.

bullet-safety-gym ignores seeds, draws its resets from numpy's global state, and applies the last episode's motor commands
during the first simulation step of the next one. This wrapper makes an episode depend on its seed alone and restores
numpy's global state. Steps draw no random numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.envs.global_state import numpy_seeded
from drcorl_ray.tasks.registry import Task

_AGENTS = {"Ant": "Ant", "Ball": "Ball", "Car": "RaceCar", "Drone": "Drone"}
_WORLDS = {"Run": {"name": "Plane200", "factor": 1}, "Circle": {"name": "Octagon"}}


class BulletEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The bullet-safety-gym environment of a task; UserError if the package is not installed."""

    def __init__(self, task: Task) -> None:
        kind = "Run" if task.name.endswith("Run") else "Circle"
        agent = _AGENTS[task.name.removesuffix(kind)]
        with numpy_seeded(0), _plain_streams(), warnings.catch_warnings(action="ignore"):
            super().__init__(_builder(task)(agent, f"{kind}Task", {}, _WORLDS[kind]))
            self.env.reset()  # pybullet keeps the first reset's state and restores it at each later one

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        for joint in self.env.unwrapped.agent.joint_list:  # pyright: ignore[reportAttributeAccessIssue]
            joint.disable_motor()
        if seed is None:
            return self.env.reset()
        with numpy_seeded(seed):
            return self.env.reset()

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "cost": float(info["cost"])}


def _builder(task: Task) -> Any:
    try:
        from bullet_safety_gym.envs.builder import EnvironmentBuilder
    except ImportError as error:
        raise UserError(
            f"{task.name} needs bullet-safety-gym and pybullet ({error}); run `uv sync --group sims` with Python 3.11, "
            "for which pybullet has wheels"
        ) from error
    return EnvironmentBuilder


@contextmanager
def _plain_streams() -> Iterator[None]:
    """Use the process's own stdout and stderr: bullet-safety-gym hides pybullet's banner there, and fails on other streams."""
    with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err, redirect_stdout(out), redirect_stderr(err):
        yield
