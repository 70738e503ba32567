"""True reward and cost of the policies along a training, measured after it; they do not influence the training.

The critics' cost estimates of the same policies are saved beside them, so that a user sees how far to trust offline estimates.

P members, K points along a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.config import MemberSettings
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.evaluation.scoring import mean_scores
from drcorl_ray.evaluation.seeds import CURVE_SEEDS
from drcorl_ray.method.interfaces import Population
from drcorl_ray.policy.loading import load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.schema import Calibration, Curve

CALIBRATED_K = (0.0, 1.0, 2.0, 3.0, 4.0)  # estimates mean + k standard deviations that are compared with the true cost


@dataclass(frozen=True)
class CurvePoint:
    """A population at one step, with the mean and standard deviation [P] of its critics' episode cost (nan if not finite)."""

    policies: PopulationPolicy
    offline_mean: np.ndarray
    offline_deviation: np.ndarray

    def select(self, members: Sequence[int]) -> CurvePoint:
        index = list(members)
        return CurvePoint(self.policies.select(index), self.offline_mean[index], self.offline_deviation[index])


PointAt = Callable[[int], CurvePoint]


def save_curve_point(path: Path, learner: Population) -> None:
    """Save the policies of a learner and its offline cost estimates."""
    mean, deviation = (values.cpu().numpy() for values in learner.offline_estimate())
    _save(path, CurvePoint(learner.policies(), mean, deviation))


def join_curve_points(path: Path, parts: Sequence[Path]) -> None:
    """Join the points of populations that were trained separately into one file."""
    points = [load_curve_point(part) for part in parts]
    mean, deviation = (np.concatenate(x) for x in zip(*((p.offline_mean, p.offline_deviation) for p in points), strict=True))
    _save(path, CurvePoint(PopulationPolicy.join([point.policies for point in points]), mean, deviation))


def _save(path: Path, point: CurvePoint) -> None:
    meta = {"offline_mean": _nested(point.offline_mean), "offline_deviation": _nested(point.offline_deviation)}
    point.policies.save_population(path, meta)


def load_curve_point(path: Path) -> CurvePoint:
    """Load a point that `save_curve_point` or `join_curve_points` saved."""
    policies, meta = load_population(path)
    mean, deviation = (np.array(meta[name], np.float64) for name in ("offline_mean", "offline_deviation"))
    return CurvePoint(policies, mean, deviation)


def roll_out_curves(
    data: TaskData,
    members: Sequence[MemberSettings],
    steps: Sequence[int],
    episodes: int,
    point_at: PointAt,
    pool: RolloutPool,
) -> tuple[Curve, Calibration]:
    """Return the entries "curves" and "calibration" of results.json: P members at K steps, `episodes` episodes each."""
    seeds = range(CURVE_SEEDS, CURVE_SEEDS + episodes)
    limits = [member.cost_limit for member in members]
    measured = np.full((len(steps), 4, len(members)), np.nan)  # normalised reward and cost, cost and its standard error
    estimated = np.full((len(steps), 2, len(members)), np.nan)
    for index, step in enumerate(steps):
        point = point_at(step)
        estimated[index] = point.offline_mean, point.offline_deviation
        finite = np.flatnonzero(point.policies.finite()).tolist()
        if finite:
            stats = pool.evaluate(point.policies.select(finite), data.task, seeds)
            reward, cost = mean_scores(data, stats, [limits[member] for member in finite])
            error = stats.costs.std(axis=1) / math.sqrt(episodes)
            measured[index][:, finite] = reward, cost, stats.costs.mean(axis=1), error
    reward, cost, true_cost, error = measured.transpose(1, 2, 0)
    mean, deviation = estimated.transpose(1, 2, 0)
    member_k = np.array([member.k for member in members])
    curve: Curve = {
        "task": data.task.name,
        "steps": list(steps),
        "numbers": list(range(len(members))),
        "normalized_reward": _nested(reward),
        "normalized_cost": _nested(cost),
    }
    calibration: Calibration = {
        "task": data.task.name,
        "steps": list(steps),
        "members": [f"{index} {member.evaluation_mode}" for index, member in enumerate(members)],
        "modes": [str(member.evaluation_mode) for member in members],
        "cost_limits": limits,
        "member_k": member_k.tolist(),
        "k": list(CALIBRATED_K),
        "estimates": _nested(np.stack([mean + k * deviation for k in CALIBRATED_K], axis=1)),
        "own_estimates": _nested(mean + member_k[:, None] * deviation),
        "true_cost": _nested(true_cost),
        "true_cost_se": _nested(error),
        "episodes": episodes,
    }
    return curve, calibration


def _nested(values: np.ndarray) -> list[Any]:
    """Return nested lists, with None for values that are not finite."""
    return [_number(value) if np.ndim(value) == 0 else _nested(value) for value in values]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
