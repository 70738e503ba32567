"""The baselines that a run is compared with: which populations, and how one of them is trained."""

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

_REPORTS = 200  # a training; its state may be large


@dataclass(frozen=True)
class BaselinePlan:
    """One algorithm's population, and its rows in the results.

    members: to train, [P]. Of each row: its info; its member with the row's cost limit; its place among `members`.
    """

    algorithm: str
    members: tuple[BaselineMember, ...]
    infos: tuple[RowInfo, ...]
    row_members: tuple[BaselineMember, ...]
    places: tuple[int, ...]


def plan(config: Config, data: TaskData, members: Sequence[MemberSettings]) -> list[BaselinePlan]:
    """Each algorithm of evaluation.baselines, but the run's own, at every seed and cost limit of the members.

    Algorithms that ignore the cost limit are trained once a seed; CDT receives the limit at evaluation time. A limit at
    which the data has nothing to learn from is left out.
    """
    cells = sorted({(member.seed, member.cost_limit) for member in members})
    others = [name for name in config.evaluation.baselines if name != config.run.algorithm]
    return [found for name in others if (found := _plan(config, data, name, cells)).members]


def _plan(config: Config, data: TaskData, name: str, cells: Sequence[tuple[int | None, float]]) -> BaselinePlan:
    agnostic, learner = get_algorithm(name).limit_agnostic, baseline_class(name)
    places: dict[tuple[int | None, float | None], int] = {}
    members: list[BaselineMember] = []
    row_members: list[BaselineMember] = []
    infos, chosen = [], []
    for seed, limit in cells:
        if not learner.can_learn(data.episodes, limit):
            continue
        member = cast("BaselineMember", config.member_with({"seed": seed, "cost_limit": limit}, name))
        key = (seed, None if agnostic else limit)
        if key not in places:
            places[key] = len(members)
            members.append(member)
        infos.append(RowInfo(name, row_settings(name, member), member.seed, limit, details={"baseline": True}))
        row_members.append(member)
        chosen.append(places[key])
    return BaselinePlan(name, tuple(members), tuple(infos), tuple(row_members), tuple(chosen))


def _device(config: Config, plans: Sequence[BaselinePlan]) -> str:
    """The GPU where the run has one and an algorithm is worth it."""
    heavy = any(not get_algorithm(each.algorithm).light for each in plans)
    return "cuda" if config.scaling.use_gpu and heavy else "cpu"


def train(config: Config, data: TaskData, run: RunDirectory, plans: Sequence[BaselinePlan]) -> None:
    """Train each algorithm's population and save it in its folder; UserError where a member has no rows to learn from."""
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    device = _device(config, plans)
    replay = Replay(data.manifest, device=device)
    replay.insert(read_store(data.store))
    for each in plans:
        if not run.baseline(data.task.name, each.algorithm).population.exists():
            _train_one(config, data, run, each, replay, Placement(device))


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
