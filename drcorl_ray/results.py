"""results.json: one row per evaluated policy, saying what it is, how it was chosen and what it scored (schema 1).

A row has: task, algorithm, member, config, seed, cost_limit, dataset_sha256; evaluation_mode (where training's cost estimate
came from), selection (`last`, `online_best`, `search_winner`), online_episodes (spent in training or selection), episodes (of
this evaluation); reward_mean, reward_std, cost_mean, cost_std, length_mean, normalized_reward, normalized_cost (Eq. 26);
policy (file, relative to the run).

An online or hybrid member's rows have in addition online_staleness (steps that its estimates lagged behind), online_budget (of
its training), appended_transitions and appended_budget.

A search's rows have in addition study, configuration (the Optuna trial), state (`complete`, or `stopped` by a rung),
member_steps (extraction steps spent on it) and config_file (its complete settings, relative to the run); those of its winners
search_normalized_reward and search_normalized_cost, by which they were chosen, beside the fresh ones.

What a report draws beside the rows is in `run`: curves and calibration (curves.py), references (`best_safe_episodes`),
data_episodes (`data_episodes`, an entry a task) and, of a search, what it was and took.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from drcorl_ray.metrics import EpisodeStats, normalized_cost, normalized_reward
from drcorl_ray.policy import PopulationPolicy
from drcorl_ray.run_directory import RESULTS_SCHEMA, RunDirectory
from drcorl_ray.stages import TaskData

MOST_EPISODES = 1000
_PACKAGES = ("drcorl_ray", "torch", "ray", "optuna", "gymnasium", "mujoco", "numpy", "pyarrow")

Selection = Literal["last", "online_best", "search_winner"]


@dataclass(frozen=True)
class Candidate:
    """What a row says of a policy beyond its scores; `config` are its hyper-parameters, `details` further columns."""

    algorithm: str
    config: Mapping[str, Any]
    seed: int
    cost_limit: float
    selection: Selection = "last"
    online_episodes: int = 0
    evaluation_mode: str = "offline"
    details: Mapping[str, Any] = field(default_factory=dict)


def score(
    run: RunDirectory,
    data: TaskData,
    policies: PopulationPolicy,
    candidates: Sequence[Candidate],
    stats: EpisodeStats,
    labels: Sequence[str],
    members: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a population's evaluation; each member's policy is written to RUN/policies/TASK-LABEL.safetensors.

    members: the numbers by which the rows call them, 0, 1 … if not given.
    """
    rows = []
    for member, (candidate, label) in enumerate(zip(candidates, labels, strict=True)):
        path = run.policies / f"{data.task.name}-{label}.safetensors"
        returns, costs = stats.returns[member], stats.costs[member]
        row = {
            "task": data.task.name,
            "algorithm": candidate.algorithm,
            "member": member if members is None else members[member],
            "config": dict(candidate.config),
            "seed": candidate.seed,
            "cost_limit": candidate.cost_limit,
            "dataset_sha256": data.manifest.source.sha256,
            "evaluation_mode": candidate.evaluation_mode,
            "selection": candidate.selection,
            "online_episodes": candidate.online_episodes,
            "episodes": len(stats.seeds),
            "reward_mean": float(returns.mean()),
            "reward_std": float(returns.std()),
            "cost_mean": float(costs.mean()),
            "cost_std": float(costs.std()),
            "length_mean": float(stats.lengths[member].mean()),
            "normalized_reward": float(normalized_reward(returns, data.spec.return_min, data.spec.return_max).mean()),
            "normalized_cost": float(normalized_cost(costs, candidate.cost_limit).mean()),
            "policy": str(path.relative_to(run.path)),
            **candidate.details,
        }
        policies.save(path, member, {"result": row, "return_range": [data.spec.return_min, data.spec.return_max]})
        rows.append(row)
    return rows


def best_safe_episodes(data: TaskData, cost_limits: Iterable[float]) -> list[dict[str, Any]]:
    """References of a report: {"task", "cost_limit", "normalized_reward"} per limit that an episode of the data keeps."""
    best = {limit: best_safe_episode(data, limit) for limit in sorted(set(cost_limits))}
    return [
        {"task": data.task.name, "cost_limit": limit, "normalized_reward": reward}
        for limit, reward in best.items()
        if reward is not None
    ]


def best_safe_episode(data: TaskData, cost_limit: float) -> float | None:
    """Normalised return of the data's best episode whose cost is within the limit; None where there is none."""
    returns, costs = (np.asarray(x) for x in (data.manifest.episode_returns, data.manifest.episode_costs))
    safe = returns[costs <= cost_limit]
    return float(normalized_reward(safe.max(), data.spec.return_min, data.spec.return_max)) if len(safe) else None


def data_episodes(data: TaskData) -> dict[str, Any]:
    """The data's own episodes, for a report: {"task", "normalized_reward": [E], "cost": [E]}, costs undiscounted sums.

    Of more than 1,000 that many, evenly spaced in the data's order, the first and the last among them.
    """
    count = len(data.episodes.costs)
    kept = np.linspace(0, count - 1, min(count, MOST_EPISODES)).round().astype(int)
    rewards = normalized_reward(data.episodes.returns[kept], data.spec.return_min, data.spec.return_max)
    return {"task": data.task.name, "normalized_reward": rewards.tolist(), "cost": data.episodes.costs[kept].tolist()}


def describe_results(rows: Sequence[Mapping[str, Any]], wall_s: float, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json, the last file of a run: its presence says that the run is finished."""
    about = {"commit": _commit(), "versions": _versions(), "machine": _machine(), "wall_s": round(wall_s, 1), "argv": sys.argv}
    return {"schema": RESULTS_SCHEMA, "run": about | dict(extra), "rows": [dict(row) for row in rows]}


def _commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "gpus": gpus}
