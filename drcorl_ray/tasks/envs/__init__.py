"""The tasks' environments, one at a time behind gymnasium's API or as a batch of episodes.

A simulator's package is imported when its first environment is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from drcorl_ray.tasks.envs.simulator import GymSimulator, Simulator, user_env
from drcorl_ray.tasks.registry import Task, get_task

__all__ = ["Simulator", "make_env", "make_simulator"]


def make_env(task: Task | str) -> gymnasium.Env[Any, Any]:
    """Return the task's environment: actions in [-1, 1], each step's cost in info["cost"], a limit of `episode_length` steps.

    Raise UserError if the task is unknown or its package is not installed.
    """
    task = get_task(task) if isinstance(task, str) else task
    return gymnasium.wrappers.TimeLimit(_endless_env(task), task.episode_length)


def make_simulator(task: Task | str) -> Simulator:
    """Return a simulator that steps a batch of the task's episodes; same errors as `make_env`."""
    task = get_task(task) if isinstance(task, str) else task
    match task.suite:
        case "builtin":
            from drcorl_ray.tasks.envs.point_circle import PointCircleSimulator

            return PointCircleSimulator()
        case "velocity":
            from drcorl_ray.tasks.envs.velocity import VelocitySimulator

            return VelocitySimulator(task)
        case _:
            return GymSimulator(lambda: _endless_env(task))


def _endless_env(task: Task) -> gymnasium.Env[Any, Any]:
    match task.suite:
        case "builtin":
            from drcorl_ray.tasks.envs.point_circle import PointCircleEnv

            return PointCircleEnv()
        case "velocity":
            from drcorl_ray.tasks.envs.velocity import VelocityCost

            return VelocityCost(task)
        case "bullet":
            from drcorl_ray.tasks.envs.bullet import BulletEnv

            return BulletEnv(task)
        case "safety_gymnasium":
            from drcorl_ray.tasks.envs.navigation import NavigationEnv

            return NavigationEnv(task)
        case "metadrive":
            from drcorl_ray.tasks.envs.metadrive import MetaDriveEnv

            return MetaDriveEnv(task)
        case "gymnasium":
            return user_env(task)
