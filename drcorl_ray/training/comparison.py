"""The baselines that a run is compared with: plan their populations and train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from drcorl_ray.config import BaselineMember, Config, MemberSettings
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.config.members import row_settings
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.scoring import RowInfo
from drcorl_ray.method.replay import Replay
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.training import loop
from drcorl_ray.training.baselines import baseline_class
from drcorl_ray.training.build import Placement, build_baseline, build_runner
from drcorl_ray.training.checkpoint import States

_REPORTS = 200  # at most, in a training: each saves a state, which may be large


@dataclass(frozen=True)
class BaselinePlan:
    """The population of one algorithm, and its rows in the results.

    members: the members to train, [P]. For each row of the results: infos, its fixed columns; row_members, the member with
    the row's cost limit; places, the index of the trained member in `members`.
    """

    algorithm: str
    members: tuple[BaselineMember, ...]
    infos: tuple[RowInfo, ...]
    row_members: tuple[BaselineMember, ...]
    places: tuple[int, ...]


def plan(config: Config, data: TaskData, members: Sequence[MemberSettings]) -> list[BaselinePlan]:
    """Plan each algorithm of evaluation.baselines, except run.algorithm, at every seed and cost limit of the members.

    Algorithms that ignore the cost limit are trained once per seed; CDT receives the limit at evaluation time. A limit for
    which an algorithm finds no data to learn from is left out.
    """
    cells = sorted({(member.seed, member.cost_limit) for member in members})
    others = [name for name in config.evaluation.baselines if name != config.run.algorithm]
    return [planned for name in others if (planned := _plan(config, data, name, cells)).members]


def _plan(config: Config, data: TaskData, name: str, cells: Sequence[tuple[int | None, float]]) -> BaselinePlan:
    agnostic, learner = get_algorithm(name).limit_agnostic, baseline_class(name)
    indices: dict[tuple[int | None, float | None], int] = {}
    members: list[BaselineMember] = []
    row_members: list[BaselineMember] = []
    infos, places = [], []
    for seed, limit in cells:
        if not learner.can_learn(data.episodes, limit):
            continue
        member = cast("BaselineMember", config.member_with({"seed": seed, "cost_limit": limit}, name))
        key = (seed, None if agnostic else limit)
        if key not in indices:
            indices[key] = len(members)
            members.append(member)
        infos.append(RowInfo(name, row_settings(name, member), member.seed, limit, details={"baseline": True}))
        row_members.append(member)
        places.append(indices[key])
    return BaselinePlan(name, tuple(members), tuple(infos), tuple(row_members), tuple(places))


def _device(config: Config, plans: Sequence[BaselinePlan]) -> str:
    """Return "cuda" if the run uses GPUs and an algorithm is heavy enough for one, else "cpu"."""
    heavy = any(not get_algorithm(planned.algorithm).light for planned in plans)
    return "cuda" if config.scaling.use_gpu and heavy else "cpu"


def train(config: Config, data: TaskData, run: RunDirectory, plans: Sequence[BaselinePlan]) -> None:
    """Train each algorithm's population and save it in its folder; UserError if a member has no rows to learn from."""
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    device = _device(config, plans)
    replay = Replay(data.manifest, device=device)
    replay.insert(read_store(data.store))
    for planned in plans:
        if not run.baseline(data.task.name, planned.algorithm).population.exists():
            _train_one(config, data, run, planned, replay, Placement(device))


def _train_one(
    config: Config, data: TaskData, run: RunDirectory, planned: BaselinePlan, replay: Replay, placement: Placement
) -> None:
    algorithm, folder = planned.algorithm, run.baseline(data.task.name, planned.algorithm)
    learner, states = build_baseline(config, data, algorithm, planned.members, placement), States(folder)
    step = loop.resume(learner, states, run, f"{data.task.name}, {algorithm}")
    log = MetricsLog(folder.metrics, data.task.name, algorithm, learner.total_steps, step)
    runner = build_runner(learner, replay, config.training_of(algorithm).batch_size, placement, config.scaling)
    interval = max(config.scaling.report_steps, learner.total_steps // _REPORTS)
    loop.train(learner, runner, step, learner.total_steps, report_steps=interval, log=log, states=states)
    loop.save_last(folder.population, learner)


def _label(info: RowInfo) -> str:
    return f"{info.algorithm}-limit-{info.cost_limit:g}-seed-{info.seed}"
