"""A generated dataset for PointCircle: scripted drivers from safe to reckless and from unskilled to expert.

A driver follows an ellipse counter-clockwise. A wide ellipse earns most and leaves the corridor; a narrow one is safe. The
action depends on the observation and on the driver's style. The style shows in the driver's position and speed, so a policy
can imitate it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drcorl_ray.tasks.envs.point_circle import ACCELERATION, ACTION_SIZE, CORRIDOR, DRAG, RADIUS, PointCircleSimulator

EPISODE_LENGTH = 200
_LOOKAHEAD = 0.25  # s
_RADIAL_GAIN, _VELOCITY_GAIN = 3.0, 2.8
_SAFE_SHARE, _CAREFUL_SHARE = 0.35, 0.2  # shares of the drivers; the rest is reckless
_EXPERT_SHARE, _SWITCH_SHARE = 0.5, 0.15


@dataclass(frozen=True)
class Style:
    """Styles of n drivers: the half-axes of the ellipse (m) and the speed along it (m/s), each [n]."""

    half_width: np.ndarray
    half_height: np.ndarray
    speed: np.ndarray


def drive(observations: np.ndarray, style: Style) -> np.ndarray:
    """Return actions [n, 2] float64 in [-1, 1] that steer along each driver's ellipse, given observations [n, 8]."""
    positions, velocities = observations[:, :2].astype(np.float64), observations[:, 2:4].astype(np.float64)
    ahead = positions + _LOOKAHEAD * velocities
    axes = np.column_stack((style.half_width, style.half_height))
    scaled = ahead / axes
    outward = _unit(scaled / axes)
    tangent = np.column_stack((-outward[:, 1], outward[:, 0]))
    inside = 1.0 - np.linalg.norm(scaled, axis=1, keepdims=True)
    wanted = style.speed[:, None] * _unit(tangent + _RADIAL_GAIN * inside * outward)
    return np.clip(_VELOCITY_GAIN * (wanted - velocities) + DRAG / ACCELERATION * velocities, -1.0, 1.0)


def generate_dataset(seed: int = 0, episodes: int = 450) -> dict[str, np.ndarray]:
    """Return DSRL's columns for `episodes` whole episodes of 200 steps, one after another; equal seeds give equal bits."""
    rng = np.random.default_rng(seed)
    simulator = PointCircleSimulator()
    before, after = _draw_styles(rng, episodes), _draw_styles(rng, episodes)
    switch_step = np.where(rng.random(episodes) < _SWITCH_SHARE, rng.integers(60, 140, episodes), EPISODE_LENGTH)
    noise = rng.choice([0.02, 0.1, 0.3], episodes)[:, None]
    observations = simulator.reset(rng.integers(2**31, size=episodes).tolist())
    steps = []
    for step in range(EPISODE_LENGTH):
        actions = drive(observations, _choose(step < switch_step, before, after))
        actions = np.clip(actions + noise * rng.standard_normal((episodes, ACTION_SIZE)), -1.0, 1.0).astype(np.float32)
        following, rewards, costs, _ = simulator.step(actions)
        steps.append((observations, actions, following, rewards.astype(np.float32), costs.astype(np.float32)))
        observations = following
    names = ("observations", "actions", "next_observations", "rewards", "costs")
    columns = {
        name: np.concatenate(np.stack(column, axis=1)) for name, column in zip(names, zip(*steps, strict=True), strict=True)
    }
    last = np.tile(np.arange(EPISODE_LENGTH) == EPISODE_LENGTH - 1, episodes)
    return columns | {"terminals": np.zeros_like(last), "timeouts": last}


def _draw_styles(rng: np.random.Generator, count: int) -> Style:
    kind = rng.random(count)
    safe, careful = kind < _SAFE_SHARE, kind < _SAFE_SHARE + _CAREFUL_SHARE
    narrow, middling = rng.uniform(0.5, 0.95, count) * CORRIDOR, rng.uniform(0.95, 1.2, count) * CORRIDOR
    wide = rng.uniform(0.7, 1.05, count) * RADIUS
    skill = np.where(rng.random(count) < _EXPERT_SHARE, rng.uniform(0.9, 1.0, count), rng.uniform(0.1, 0.9, count))
    return Style(
        half_width=np.where(safe, narrow, np.where(careful, middling, wide)),
        half_height=rng.uniform(0.9, 1.1, count) * RADIUS,
        speed=2.8 * skill,
    )


def _choose(first: np.ndarray, one: Style, other: Style) -> Style:
    return Style(*(np.where(first, vars(one)[name], vars(other)[name]) for name in vars(one)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
