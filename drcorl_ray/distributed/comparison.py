"""The algorithms that a run is compared with: trained beside it, one population each, and shown in its results.

They are trained in a Ray task of their own, whose states lie in RUN/baselines/TASK-ALGORITHM: a killed one goes on, a
finished one is not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from drcorl_ray.config import Config, MemberSettings
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.evaluation.scoring import score
from drcorl_ray.io.console import console
from drcorl_ray.policy.loading import load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.schema import Row
from drcorl_ray.training.baselines import baseline_class
from drcorl_ray.training.comparison import BaselinePlan, _device, _label, plan, train


@dataclass(frozen=True)
class Pending:
    """Populations under way in a Ray task."""

    plans: tuple[BaselinePlan, ...]
    result: Any


def start(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberSettings], cpus: float = 0.0
) -> Pending | None:
    """Train what the run is compared with beside the main job; None where there is nothing.

    cpus: that are booked; none where a Ray Train job comes next, which would wait for them until it gives up.
    """
    plans = tuple(plan(config, data, members))
    if not plans:
        return None
    scaling = config.scaling
    heavy = _device(config, plans) == "cuda"
    task = ray.remote(train).options(
        num_cpus=cpus,
        num_gpus=scaling.gpus_per_pack if heavy else 0,
        resources=scaling.worker_resources if heavy else scaling.actor_resources,
        max_retries=scaling.max_failures,
    )  # beside the actors, where they have machines of their own: without a CPU booked it could land on a cluster's head
    return Pending(plans, task.remote(config, data, run, plans))


def rows(data: TaskData, run: RunDirectory, pending: Pending | None, pool: RolloutPool, seeds: Sequence[int]) -> list[Row]:
    """Rows of the trained populations on episodes of the given seeds; a policy that diverged has none, and is named."""
    if pending is None:
        return []
    try:
        ray.get(pending.result)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{data.task.name}: training the baselines failed ({reason})") from error
    found = []
    for planned in pending.plans:
        path = run.baseline(data.task.name, planned.algorithm).population
        found += _rows(data, run, planned, path, pool, seeds)
    return found


def _rows(
    data: TaskData, run: RunDirectory, planned: BaselinePlan, path: Path, pool: RolloutPool, seeds: Sequence[int]
) -> list[Row]:
    policies, meta = load_population(path)
    sound = [place for place, member in enumerate(planned.places) if meta["finite"][member]]
    if len(sound) < len(planned.places):
        console.print(f"[red]{data.task.name}: {planned.algorithm} diverged (non-finite weights) and is left out in part")
    if not sound:
        return []
    chosen = policies.select([planned.places[place] for place in sound])
    infos = [planned.infos[place] for place in sound]
    row_members = [planned.row_members[place] for place in sound]
    chosen = baseline_class(planned.algorithm).for_limits(chosen, data.episodes, row_members)
    stats = pool.evaluate(chosen, data.task, seeds)
    return score(run, data, chosen, infos, stats, [_label(info) for info in infos])
