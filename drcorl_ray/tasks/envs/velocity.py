"""The five velocity tasks: gymnasium's MuJoCo robots (`*-v4`) with Safety-Gymnasium's cost on speed.

A step costs 1 if the speed exceeds the robot's limit, else 0. The speed is the signed x velocity; for Ant it is the norm of
(vx, vy). `VelocitySimulator` steps MuJoCo directly, without the per-step overhead of the environments, and equals them to the
last bit.
"""
# mujoco is an extension module without type stubs
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np

from drcorl_ray.tasks.envs.simulator import Step
from drcorl_ray.tasks.registry import Task


@dataclass(frozen=True)
class Robot:
    """Constants of a robot.

    module: gymnasium's module. speed_limit: m/s. hidden: number of leading positions that the observation leaves out.
    planar: whether the speed includes the y velocity.
    """

    module: str
    speed_limit: float
    ctrl_cost_weight: float
    healthy_reward: float = 0.0
    hidden: int = 1
    velocity_clip: float = np.inf
    planar: bool = False


ROBOTS = {
    "AntVelocity": Robot("ant_v4", 2.6222, 0.5, healthy_reward=1.0, hidden=2, planar=True),
    "HalfCheetahVelocity": Robot("half_cheetah_v4", 3.2096, 0.1),
    "HopperVelocity": Robot("hopper_v4", 0.7402, 1e-3, healthy_reward=1.0, velocity_clip=10.0),
    "SwimmerVelocity": Robot("swimmer_v4", 0.2282, 1e-4, hidden=2),
    "Walker2dVelocity": Robot("walker2d_v4", 2.3415, 1e-3, healthy_reward=1.0, velocity_clip=10.0),
}


def _robot_env(robot: Robot) -> Any:
    name = "".join(part.capitalize() for part in robot.module.removesuffix("_v4").split("_")) + "Env"
    return getattr(importlib.import_module(f"gymnasium.envs.mujoco.{robot.module}"), name)()


class VelocityCost(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Add info["cost"], and return the same reset observation of Ant as Safety-Gymnasium."""

    def __init__(self, task: Task) -> None:
        self._robot = ROBOTS[task.name]
        super().__init__(_robot_env(self._robot))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return _normalise_root(self._robot, observation), info

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        speed = np.sqrt(info["x_velocity"] ** 2 + info["y_velocity"] ** 2) if self._robot.planar else info["x_velocity"]
        return observation, reward, terminated, truncated, {**info, "cost": float(speed > self._robot.speed_limit)}


def _normalise_root(robot: Robot, observation: np.ndarray) -> np.ndarray:
    """Normalise Ant's root quaternion in place: since MuJoCo 3 it is not a unit quaternion before the first step."""
    if robot.planar:
        observation[1:5] /= np.linalg.norm(observation[1:5])
    return observation


def _lean_model(path: str) -> mujoco.MjModel:
    """Compile the robot's model without work that cannot change a result; it is one tree of bodies on a floor.

    Constraint islands are switched off, as there is only one. If limbs collide with the floor alone, explicit contact pairs
    replace the search for colliding geoms. They have the parameters that MuJoCo would derive from the two geoms, which
    differ in friction only.
    """
    spec = mujoco.MjSpec.from_file(path)
    floor, *limbs = spec.geoms
    if not any(one.contype & other.conaffinity for one in limbs for other in limbs):
        for limb in limbs:
            if limb.contype & floor.conaffinity or floor.contype & limb.conaffinity:
                slide, spin, roll = np.maximum(limb.friction, floor.friction)
                spec.add_pair(
                    geomname1=floor.name,
                    geomname2=limb.name,
                    condim=limb.condim,
                    friction=[slide, slide, spin, roll, roll],
                    margin=limb.margin,
                    solref=limb.solref,
                    solimp=limb.solimp,
                )
        for geom in spec.geoms:
            geom.contype = geom.conaffinity = 0
    model = spec.compile()
    model.opt.disableflags |= getattr(mujoco.mjtDisableBit, "mjDSBL_ISLAND", 0)  # opt-in in MuJoCo 3.3.0, later opt-out
    return model


class _Slot(NamedTuple):
    """The MuJoCo data of one robot and views of it: `ctrl`, and as `readings` qpos, qvel and the (x, y) position.

    Ant's position is that of its torso, which is one substep behind its joints.
    """

    data: mujoco.MjData
    ctrl: np.ndarray
    readings: tuple[np.ndarray, np.ndarray, np.ndarray]


class VelocitySimulator:
    """n robots that share one model; computes only what observations, rewards and costs need.

    `step` switches off MuJoCo's timers (`MjData.timer`) in this process; the next new MjData switches them on again.
    """

    truncated: np.ndarray | np.bool_ = np.False_

    def __init__(self, task: Task) -> None:
        self._task, self._robot = task, ROBOTS[task.name]
        self._env = _robot_env(self._robot)
        self._model = _lean_model(self._env.fullpath)
        self.observation_size: int = self._env.observation_space.shape[0]
        self.action_size: int = self._model.nu
        self._slots: list[_Slot] = []
        self._readings = np.empty((0, self._model.nq + self._model.nv + 2))

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self._slots += [self._new_slot() for _ in range(len(seeds) - len(self._slots))]
        for seed, slot in zip(seeds, self._slots, strict=False):
            self._env.reset(seed=int(seed))
            mujoco.mj_resetData(self._model, slot.data)
            slot.data.qpos[:], slot.data.qvel[:] = self._env.data.qpos, self._env.data.qvel
            mujoco.mj_forward(self._model, slot.data)
        self._readings = np.empty((len(seeds), self._readings.shape[1]))
        self._read()
        return np.stack([_normalise_root(self._robot, observation) for observation in self._observations()])

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> Step:
        before = self._positions.copy()
        model, frame_skip = self._model, self._env.frame_skip
        mujoco.set_mjcb_time(None)
        for row in range(len(actions)) if active is None else np.flatnonzero(active).tolist():
            slot = self._slots[row]
            slot.ctrl[:] = actions[row]
            mujoco.mj_step(model, slot.data, frame_skip)
        self._read()
        velocity = (self._positions - before) / self._env.dt
        forward = velocity[:, 0]
        speed = np.sqrt(velocity[:, 0] ** 2 + velocity[:, 1] ** 2) if self._robot.planar else forward
        ctrl_cost = self._robot.ctrl_cost_weight * np.sum(np.square(actions), axis=1)
        rewards = forward + self._robot.healthy_reward - ctrl_cost
        costs = (speed > self._robot.speed_limit).astype(np.float64)
        return self._observations(), rewards, costs, ~self._healthy()

    def close(self) -> None:
        self._env.close()
        self._slots.clear()

    def _new_slot(self) -> _Slot:
        data = mujoco.MjData(self._model)
        position = data.xpos[1, :2] if self._robot.planar else data.qpos[:2]
        return _Slot(data, data.ctrl, (data.qpos, data.qvel, position))

    def _read(self) -> None:
        parts = [part for slot in self._slots[: len(self._readings)] for part in slot.readings]
        np.concatenate(parts, out=self._readings.reshape(-1))

    @property
    def _states(self) -> np.ndarray:
        return self._readings[:, :-2]

    @property
    def _positions(self) -> np.ndarray:
        return self._readings[:, -2:]

    def _observations(self) -> np.ndarray:
        observations = self._states[:, self._robot.hidden :].copy()
        if self._robot.velocity_clip < np.inf:
            velocities = observations[:, self._model.nq - self._robot.hidden :]
            np.clip(velocities, -self._robot.velocity_clip, self._robot.velocity_clip, out=velocities)
        return observations

    def _healthy(self) -> np.ndarray:
        """Return gymnasium's `is_healthy` for each robot, [n] bool."""
        state = self._states
        match self._task.name:
            case "AntVelocity":
                return np.isfinite(state).all(axis=1) & (state[:, 2] >= 0.2) & (state[:, 2] <= 1.0)
            case "HopperVelocity":
                bounded = (np.abs(state[:, 2:]) < 100.0).all(axis=1)
                return bounded & (state[:, 1] > 0.7) & (np.abs(state[:, 2]) < 0.2)
            case "Walker2dVelocity":
                return (state[:, 1] > 0.8) & (state[:, 1] < 2.0) & (np.abs(state[:, 2]) < 1.0)
            case _:
                return np.ones(len(state), bool)
