"""The baselines that a run is compared with: one population each, trained beside the run and shown in its results.

A separate Ray task trains them. Its states are in RUN/baselines/TASK-ALGORITHM: a killed training resumes, a finished one is
not repeated.
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
    """Populations that a Ray task is training; result: the task's object reference."""

    plans: tuple[BaselinePlan, ...]
    result: Any


def start(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberSettings], cpus: float = 0.0
) -> Pending | None:
    """Start to train the run's baselines beside the main job; None if it has none.

    cpus: CPUs that the task books. Book none if a Ray Train job follows: it would wait for them until it gives up.
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
    )  # light ones run on the actors' machines: without booked CPUs the task could otherwise run on a cluster's head
    return Pending(plans, task.remote(config, data, run, plans))


def rows(data: TaskData, run: RunDirectory, pending: Pending | None, pool: RolloutPool, seeds: Sequence[int]) -> list[Row]:
    """Return the rows of the trained populations on episodes of the given seeds.

    A policy that diverged has no row; a message names its algorithm. UserError if the training failed.
    """
    if pending is None:
        return []
    try:
        ray.get(pending.result)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{data.task.name}: training the baselines failed ({reason})") from error
    evaluated = []
    for planned in pending.plans:
        path = run.baseline(data.task.name, planned.algorithm).population
        evaluated += _rows(data, run, planned, path, pool, seeds)
    return evaluated


def _rows(
    data: TaskData, run: RunDirectory, planned: BaselinePlan, path: Path, pool: RolloutPool, seeds: Sequence[int]
) -> list[Row]:
    policies, meta = load_population(path)
    finite_rows = [row for row, member in enumerate(planned.places) if meta["finite"][member]]
    if len(finite_rows) < len(planned.places):
        console.print(
            f"[red]{data.task.name}: members of {planned.algorithm} diverged (non-finite weights); their rows are left out"
        )
    if not finite_rows:
        return []
    chosen = policies.select([planned.places[row] for row in finite_rows])
    infos = [planned.infos[row] for row in finite_rows]
    row_members = [planned.row_members[row] for row in finite_rows]
    chosen = baseline_class(planned.algorithm).for_limits(chosen, data.episodes, row_members)
    stats = pool.evaluate(chosen, data.task, seeds)
    return score(run, data, chosen, infos, stats, [_label(info) for info in infos])
