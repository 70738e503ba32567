"""The sixteen navigation tasks (Point, Car × Goal, Button, Push, Circle × 1, 2) on safety-gymnasium 0.4.0.

safety-gymnasium was written for gymnasium < 1, numpy < 2.4 and Python < 3.11. These patches make it run on later versions:
- its `__init__`, which imports wrappers that gymnasium has removed, is skipped; only its submodules are imported;
- its table of colours holds hashable arrays, because dataclasses of Python 3.11 refuse other defaults;
- `MjModel.jnt` accepts one-element arrays while an agent is built; numpy 2.4 no longer converts them to int;
- its worlds have a plain sky; decoding the star images took nine tenths of a reset.

An episode depends on its seed alone; steps draw from the environment's own generator, never from numpy's global state.
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
    """The safety-gymnasium environment of a task; a step that violates any constraint costs 1.

    UserError if the package is not installed.
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
            _import_patched()
        from safety_gymnasium.builder import Builder
    except ImportError as error:
        raise UserError(f"{task.name} needs safety-gymnasium 0.4.0 ({error}); run `uv sync --group sims`") from error
    return Builder


def _import_patched() -> None:
    """Import the package without its `__init__`, and patch its colours and its sky."""
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
    """Let `MjModel.jnt` accept one-element arrays."""
    model: Any = mujoco.MjModel  # pyright: ignore[reportAttributeAccessIssue]
    joint = model.jnt
    model.jnt = lambda self, index: joint(self, index if isinstance(index, str) else int(np.squeeze(index)))
    try:
        yield
    finally:
        model.jnt = joint
