"""The nine MetaDrive tasks (easy, medium, hard × sparse, mean, dense) on metadrive-simulator 0.2.6.0, as DSRL sets it up.

The task fixes the map. The traffic is random: MetaDrive seeds it from the operating system, this wrapper from the episode's
seed. MetaDrive has one engine per process and reuses the cars of earlier episodes, which changes the last bits of a result.
Every reset therefore starts a new engine (about 0.2 s) and takes it away from the environment that had it. Steps draw
nothing from global random states.

MetaDrive was written for older packages. These patches, all within MetaDrive, make it run:
- three of its modules get a numpy that still has `np.bool`, `np.float` and `np.int`;
- its gym registration and its Waymo protobufs, unused here and no longer importable, are replaced by empty modules;
- panda3d's messages about input devices and tasks are switched off.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import sys
import types
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.envs.global_state import numpy_seeded
from drcorl_ray.tasks.registry import Task

_ROADS = {"easy": (0, "SCS"), "medium": (100, "XST"), "hard": (200, "TRO")}  # start seed, map blocks
_TRAFFIC_DENSITY = {"sparse": 0.1, "mean": 0.15, "dense": 0.2}
_LIDAR_RAYS = 240  # the last entries of the observation: distance / 50 m, 1 if nothing is hit
_FREE_SPEED = 10.0  # km/h
_FREE_DISTANCE = 0.1  # as a fraction of the lidar's range of 50 m


class MetaDriveEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A drive through the task's map; a step's cost counts crashes, leaving the road, speed and proximity.

    `reset` takes over the process's one engine. After another environment was reset, this one must be reset before it can
    step again. UserError if the package is not installed.
    """

    def __init__(self, task: Task) -> None:
        _import_metadrive(task)
        self._task = task
        self._env: Any = None
        spaces = _drive(task)
        for name in ("observation_space", "action_space"):
            box = getattr(spaces, name)
            setattr(self, name, gymnasium.spaces.Box(box.low, box.high, box.shape, box.dtype))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = int(self.np_random.integers(2**31)) if seed is None else seed
        _engine().close_engine()
        with numpy_seeded(0):
            self._env = _drive(self._task)
            self._env.lazy_init()
            randomizable = importlib.import_module("metadrive.base_class.randomizable").Randomizable
            randomizable.seed(self._env.engine.traffic_manager, start)
            return self._env.reset(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._has_engine():
            raise RuntimeError(f"{self._task.name}: reset first; another MetaDrive environment uses this process's one engine")
        observation, reward, _, info = self._env.step(action)
        speeding = max(0.0, 1e-2 * (info["velocity"] - _FREE_SPEED))
        proximity = 1e-2 * max(0.0, _FREE_DISTANCE - float(np.min(observation[-_LIDAR_RAYS:]))) ** 2
        ended = bool(info["arrive_dest"] or info["crash"] or info["out_of_road"])
        cost = float(info["cost"] + speeding + proximity)
        return observation, float(reward), ended, bool(info["max_step"]), {**info, "cost": cost}

    def close(self) -> None:
        if self._has_engine():
            _engine().close_engine()
        self._env = None

    def _has_engine(self) -> bool:
        return self._env is not None and self._env.engine is _engine().get_engine()


def _drive(task: Task) -> Any:
    """Return MetaDrive's own environment of a task; its engine starts at the first reset."""
    road = next(road for road in _ROADS if task.name.startswith(road))
    start_seed, blocks = _ROADS[road]
    base = importlib.import_module("metadrive.envs.safe_metadrive_env").SafeMetaDriveEnv
    return base(
        {
            "start_seed": start_seed,
            "environment_num": 1,
            "map": 3,
            "map_config": {"type": "block_sequence", "config": blocks},
            "traffic_density": _TRAFFIC_DENSITY[task.name.removeprefix(road)],
            "traffic_mode": "hybrid",
            "random_traffic": True,
            "accident_prob": 0.0,
            "crash_vehicle_penalty": 0.0,
            "horizon": task.episode_length,
        }
    )


def _engine() -> Any:
    return importlib.import_module("metadrive.engine.engine_utils")


def _import_metadrive(task: Task) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides gym's warning that it is unmaintained
            _patch_packages()
            importlib.import_module("metadrive.envs.safe_metadrive_env")
    except ImportError as error:
        raise UserError(f"{task.name} needs metadrive-simulator 0.2.6.0 ({error}); run `uv sync --group metadrive`") from error


def _patch_packages() -> None:
    """Apply the patches that the module's docstring lists."""
    if "metadrive.register" in sys.modules:
        return
    load_settings = importlib.import_module("panda3d.core").loadPrcFileData
    load_settings("", "notify-level-device fatal")
    load_settings("", "notify-level-task error")
    protos = "metadrive.utils.waymo_utils.protos"
    for name in ("metadrive.register", protos, f"{protos}.scenario_pb2"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[protos])["scenario_pb2"] = sys.modules[f"{protos}.scenario_pb2"]
    old_numpy = types.SimpleNamespace(**(vars(np) | {"bool": bool, "float": float, "int": int}))
    for name in ("utils.math_utils", "utils.config", "component.vehicle_module.lidar"):
        vars(importlib.import_module(f"metadrive.{name}"))["np"] = old_numpy
    atexit.register(_engine().close_engine)  # an engine left open crashes the interpreter at exit
