"""Record an episode as a GIF, without a display: PointCircle is drawn here, other tasks by their simulator."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from drcorl_ray.errors import UserError
from drcorl_ray.policy.loading import Policy
from drcorl_ray.tasks.envs import make_env
from drcorl_ray.tasks.envs.point_circle import ARENA, CORRIDOR, RADIUS
from drcorl_ray.tasks.registry import Task

if TYPE_CHECKING:
    import gymnasium

FRAMES, SIDE = 100, 320  # largest number of frames; largest side in pixels
_FRAME_MS, _COLOURS = 60, 64

Camera = Callable[[Sequence[np.ndarray], Sequence[float]], Any]
"""Called with an episode's observations and costs so far; returns an image [height, width, 3 or 4] uint8 of its last state."""


def record_episode(policy: Policy, task: Task, seed: int, steps: int) -> tuple[float, bytes]:
    """Run the same episode as `rollout.evaluate` with that seed; return its return and the bytes of a GIF.

    steps: length of the episode, over which the frames are spread. UserError if the task cannot be drawn on this machine.
    """
    every = -(-steps // (FRAMES - 2))
    env = make_env(task)
    try:
        camera = _camera(env, task)
        observation, _ = env.reset(seed=seed)
        episode = policy.episode()
        observations, costs, total, done = [observation], [], 0.0, False
        frames = [_frame(task, camera, observations, costs, total)]
        while not done:
            observation, reward, terminated, truncated, info = env.step(episode.act(observation))
            observations.append(observation)
            costs.append(float(info["cost"]))
            episode.note(float(reward), costs[-1])
            total, done = total + float(reward), terminated or truncated
            if done or len(costs) % every == 0:
                frames.append(_frame(task, camera, observations, costs, total))
    finally:
        env.close()
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    return total, content.getvalue()


def _frame(
    task: Task, camera: Camera, observations: Sequence[np.ndarray], costs: Sequence[float], total: float
) -> Image.Image:
    try:
        image = Image.fromarray(np.asarray(camera(observations, costs), np.uint8)).convert("RGB")
    except Exception as error:  # an error while drawing must not end the evaluation
        raise UserError(f"{task.name}: no video, its simulator cannot draw here ({_reason(error)})") from error
    image.thumbnail((SIDE, SIDE))
    caption = f"step {len(costs)}   reward {total:.1f}   cost {sum(costs):g}"
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width, 13), fill="white")
    draw.text((4, 1), caption, fill="black")
    return image.quantize(_COLOURS, dither=Image.Dither.NONE)


def _camera(env: gymnasium.Env[Any, Any], task: Task) -> Camera:
    simulator: Any = env.unwrapped
    match task.suite:
        case "builtin":
            return _circle_camera()
        case "bullet":
            # its render() opens a window, and in its images the marker of a violation hides the agent
            raise UserError(f"{task.name}: no video, bullet-safety-gym offers no pictures without a window")
        case "velocity":
            _try_opengl(task)
            simulator.mujoco_renderer.camera_id = simulator.model.camera("track").id  # else the robot runs out of the image
    if "rgb_array" not in env.metadata.get("render_modes", []):
        raise UserError(f"{task.name}: no video, its environment offers no pictures (render mode rgb_array)")
    simulator.render_mode = "rgb_array"
    return lambda *_: env.render()


def _try_opengl(task: Task) -> None:
    """Raise UserError if MuJoCo cannot draw without a display."""
    backend = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" else "glfw")
    os.environ["MUJOCO_GL"] = backend  # gymnasium reads it when it first draws
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext
        context._context = None  # if __init__ fails, __del__ reads this attribute and prints an error
        context(SIDE, SIDE).free()
    except Exception as error:  # ImportError, OpenGL's errors, AttributeError, depending on the missing library
        raise UserError(
            f"{task.name}: no video, MuJoCo cannot draw with MUJOCO_GL={backend} ({_reason(error)}); "
            "install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _circle_camera() -> Camera:
    """Return a camera above the arena: the corridor without cost, the circle to follow, and the mass with its trail."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(SIDE / 100, SIDE / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.955), xlim=(-ARENA, ARENA), ylim=(-ARENA, ARENA), xticks=[], yticks=[])
    axes.set_facecolor("#f6d9d5")
    axes.axvspan(-CORRIDOR, CORRIDOR, color="white")
    axes.add_patch(Circle((0.0, 0.0), RADIUS, fill=False, linestyle="--", color="#888888"))
    [trail] = axes.plot([], [], color="#1f77b4", linewidth=1.0)
    [costly] = axes.plot([], [], ".", color="#c0392b", markersize=4)
    [mass] = axes.plot([], [], "o", color="black", markersize=7)

    def picture(observations: Sequence[np.ndarray], costs: Sequence[float]) -> np.ndarray:
        positions = np.stack(observations)[:, :2]
        trail.set_data(*positions.T)
        costly.set_data(*positions[1:][np.asarray(costs, bool)].T)
        mass.set_data(*positions[-1:].T)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())

    return picture
