"""An episode as a GIF, without a display: PointCircle is drawn here, the velocity tasks by MuJoCo where it can."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from drcorl_ray.checkpoint import write_bytes
from drcorl_ray.envs import make_env
from drcorl_ray.envs.point_circle import ARENA, CORRIDOR, RADIUS
from drcorl_ray.errors import UserError
from drcorl_ray.policy import Policy
from drcorl_ray.tasks import Task

_FRAMES, _FRAME_MS, _PIXELS = 100, 60, 240  # an episode's frames are spread evenly, so that files stay small

Draw = Callable[[np.ndarray], Image.Image]


def record_episode(policy: Policy, task: Task, seed: int, file: Path) -> float:
    """Write the episode of that seed, the same as in an evaluation, as a GIF; its return.

    UserError where the task cannot be drawn on this machine.
    """
    env, draw = _drawn_env(task)
    every, frames = max(1, task.episode_length // _FRAMES), []
    total, cost, done, step = 0.0, 0.0, False, 0
    observation, _ = env.reset(seed=seed)
    while not done:
        if step % every == 0:
            frames.append(_labelled(draw(observation), f"step {step}  return {total:.1f}  cost {cost:g}"))
        observation, reward, terminated, truncated, info = env.step(policy.act(observation))
        total, cost, done, step = total + float(reward), cost + info["cost"], terminated or truncated, step + 1
    env.close()
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    write_bytes(file, content.getvalue())
    return total


def _drawn_env(task: Task) -> tuple[gymnasium.Env[Any, Any], Draw]:
    match task.suite:
        case "builtin":
            return make_env(task), PointCirclePictures()
        case "velocity":
            return _velocity(task)
        case _:
            raise UserError(f"{task.name}: its episodes cannot be drawn (PointCircle's and the velocity tasks' can)")


def _velocity(task: Task) -> tuple[gymnasium.Env[Any, Any], Draw]:
    os.environ.setdefault("MUJOCO_GL", "egl")
    env = make_env(task)
    robot: Any = env.unwrapped
    renderer, robot.render_mode = robot.mujoco_renderer, "rgb_array"
    renderer.width = renderer.height = _PIXELS
    renderer.camera_id = robot.model.camera("track").id
    try:
        env.reset(seed=0)
        env.render()
    except Exception as error:  # of many kinds, from a machine without the drivers to one without a library
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UserError(
            f"{task.name}: MuJoCo cannot draw here ({reason}); install libegl1 or libosmesa6, and set MUJOCO_GL=egl or osmesa"
        ) from error
    return env, lambda _: Image.fromarray(np.asarray(robot.render(), np.uint8))


class PointCirclePictures:
    """The arena from above: the corridor in which motion is free, the reference circle, and the mass with its trail."""

    def __init__(self) -> None:
        self._trail: list[tuple[float, float]] = []

    def __call__(self, observation: np.ndarray) -> Image.Image:
        x, y = float(observation[0]), float(observation[1])
        self._trail.append(_pixel(x, y))
        image = Image.new("RGB", (_PIXELS, _PIXELS), "#f3d9d6")
        canvas = ImageDraw.Draw(image)
        canvas.rectangle([*_pixel(-CORRIDOR, ARENA), *_pixel(CORRIDOR, -ARENA)], fill="white")
        canvas.ellipse([*_pixel(-RADIUS, RADIUS), *_pixel(RADIUS, -RADIUS)], outline="#9aa0a6")
        canvas.line(self._trail, fill="#1f77b4", width=2)
        canvas.circle(self._trail[-1], 5, fill="#c0392b" if abs(x) > CORRIDOR else "#2e8b57")
        return image


def _pixel(x: float, y: float) -> tuple[float, float]:
    return (x / ARENA + 1.0) * _PIXELS / 2, (1.0 - y / ARENA) * _PIXELS / 2


def _labelled(image: Image.Image, text: str) -> Image.Image:
    canvas = ImageDraw.Draw(image)
    canvas.rectangle([0, _PIXELS - 16, _PIXELS, _PIXELS], fill="white")
    canvas.text((4, _PIXELS - 14), text, fill="black")
    return image
