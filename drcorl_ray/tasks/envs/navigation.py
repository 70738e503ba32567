"""The sixteen navigation tasks (Point, Car × Goal, Button, Push, Circle × 1, 2) on safety-gymnasium 0.4.0.

Written for gymnasium < 1, numpy < 2.4 and Python < 3.11, it runs on later ones because of what is patched here:
its `__init__`, which imports wrappers that gymnasium has dropped, is not executed, only its submodules are imported;
its table of colours holds hashable arrays, since Python 3.11's dataclasses refuse others as defaults;
while an agent is built, `MjModel.jnt` takes one-element arrays, which numpy 2.4 no longer lets pass for an int;
and its worlds have a plain sky instead of pictures of stars, whose decoding was nine tenths of a reset.

An episode depends on its seed alone; steps draw from a generator of the environment, never from numpy's global state.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.envs.global_state import numpy_seeded
from drcorl_ray.tasks.registry import Task


class NavigationEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """safety-gymnasium's environment of a task; cost 1 in a step that violates any constraint.

    UserError where the package is not installed.
    """

    def __init__(self, task: Task) -> None:
        agent = "Point" if task.name.startswith("Point") else "Car"
        builder = _builder(task)
        with numpy_seeded(0), _joints_by_array(), warnings.catch_warnings(action="ignore"):
            self._env = builder(f"Safety{task.name}-v0", {"agent_name": agent})
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._env.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, cost, terminated, truncated, info = self._env.step(np.asarray(action))
        return observation, float(reward), terminated, truncated, {**info, "cost": float(cost)}


class _Hashable(np.ndarray):
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


def _builder(task: Task) -> Any:
    try:
        if "safety_gymnasium" not in sys.modules:
            _enter_package()
        from safety_gymnasium.builder import Builder
    except ImportError as error:
        raise UserError(f"{task.name} needs safety-gymnasium 0.4.0 ({error}); run `uv sync --group sims`") from error
    return Builder


def _enter_package() -> None:
    spec = importlib.util.find_spec("safety_gymnasium")
    if spec is None:
        raise ModuleNotFoundError("No module named 'safety_gymnasium'")
    sys.modules["safety_gymnasium"] = importlib.util.module_from_spec(spec)
    from safety_gymnasium.assets.color import COLOR

    COLOR.update({name: colour.view(_Hashable) for name, colour in COLOR.items()})
    world: Any = importlib.import_module("safety_gymnasium.world")
    parse, loader = world.yaml.load, world.yaml.FullLoader

    def load(*arguments: Any, **options: Any) -> dict[str, Any]:
        assets = parse(*arguments, **options)
        assets["textures"]["skybox"] = {"@type": "skybox", "@builtin": "flat", "@width": "8", "@height": "8"}
        return assets

    world.yaml = SimpleNamespace(load=load, FullLoader=loader)


@contextmanager
def _joints_by_array() -> Iterator[None]:
    model: Any = mujoco.MjModel  # pyright: ignore[reportAttributeAccessIssue]
    joint = model.jnt
    model.jnt = lambda self, index: joint(self, index if isinstance(index, str) else int(np.squeeze(index)))
    try:
        yield
    finally:
        model.jnt = joint
