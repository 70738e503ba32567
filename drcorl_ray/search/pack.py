"""The work of a Tune trial: train one pack of members on one task, then evaluate them in simulator episodes.

The state is in RUN/packs/STUDY-NUMBER/TASK. If a trial is killed and started again, by Tune or by a resumed search, it
continues from its last report. A finished trial is not trained again.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drcorl_ray.config import Config, MemberSettings
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import join_curve_points, save_curve_point
from drcorl_ray.evaluation.pool import LocalRolloutPool, RolloutPool
from drcorl_ray.evaluation.scoring import mean_scores
from drcorl_ray.evaluation.seeds import SEARCH_SEEDS, episode_seeds
from drcorl_ray.io.files import write_json
from drcorl_ray.method.interfaces import Population
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import Runner
from drcorl_ray.policy.loading import load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import TrainingFolder
from drcorl_ray.runs.metrics_log import MetricsLog, join_logs
from drcorl_ray.search.plan import Member, Pack, read_pack
from drcorl_ray.tasks.registry import Task
from drcorl_ray.training import loop
from drcorl_ray.training.build import Placement, build_population, build_runner
from drcorl_ray.training.checkpoint import States, save_state
from drcorl_ray.training.online import online_evaluation

Report = Callable[[int], None]


@dataclass(frozen=True)
class PackTrainer:
    """Trains and evaluates packs of a search.

    stores: {task name: (task, folder of its store)}; the task itself is included because a user's own task is registered only
    in the driver. weights: {task name: files of its pretrained weights}.
    """

    config: Config
    run: RunDirectory
    stores: Mapping[str, tuple[Task, Path]]
    weights: Mapping[str, tuple[Path, ...]]

    def __call__(self, study: str, number: int, task: str, report: Report) -> None:
        """Train a pack on a task and write its result file; `report` is called with the step at each report."""
        pack = read_pack(self.run.pack(study, number))
        folder = self.run.pack(study, number).task(task)
        if not folder.result.exists():
            began = time.time()
            data, replay = self.open(task)
            if not folder.population.exists():
                self._train(pack, data, replay, folder, report)
            scores = self._evaluate(pack, data, folder)
            write_json(folder.result, scores | {"began": began, "ended": time.time()})

    def open(self, task: str) -> tuple[TaskData, Replay]:
        """Return a task's data and its resident replay; the process caches the last task for its next trial."""
        return _task_data(*self.stores[task], self._placement.device)

    def build(self, data: TaskData, members: Sequence[MemberSettings], device: str | None = None) -> Population:
        """Return an untrained population with the pretrained weights, on `device` or else on the device that trains packs."""
        placement = Placement(device or self._placement.device)
        return build_population(self.config, data, members, self.weights[data.task.name], placement)

    def runner(self, learner: Population, replay: Replay) -> Runner:
        """Return the runner that advances a learner on a replay."""
        torch.set_num_threads(max(1, int(self.config.scaling.cpus_per_worker)))
        return build_runner(learner, replay, self.config.training.batch_size, self._placement, self.config.scaling)

    def members(self, members: Sequence[Member]) -> list[MemberSettings]:
        """Return the complete settings of members."""
        return [self.config.member_with(member.params) for member in members]

    @property
    def _placement(self) -> Placement:
        return Placement("cuda" if self.config.scaling.use_gpu else "cpu")

    def _train(self, pack: Pack, data: TaskData, replay: Replay, folder: TrainingFolder, report: Report) -> None:
        """Train a pack to its end; if it does not fit into the device's memory, train one half after the other.

        A member's training does not depend on the other members, so the result is the same.
        """
        parts, name = _halves(pack, folder), _name(pack, data)
        if not parts[0][1].metrics.exists():
            try:
                self._train_at_once(pack, data, replay, folder, report)
                return
            except torch.OutOfMemoryError as error:
                if len(pack.members) == 1:
                    raise UserError(f"{name}: one member is too large for the memory; lower extract.batch_size") from error
            self.run.note(f"{name}: {len(pack.members)} members are too large for the memory; training half of them at a time")
        for part, half in parts:
            _free_memory()
            self._train(part, data, replay, half, report)
        self._join(pack, data, folder, parts)

    def _train_at_once(self, pack: Pack, data: TaskData, replay: Replay, folder: TrainingFolder, report: Report) -> None:
        config, states, points = self.config, States(folder), self.config.curve_steps()
        learner, step = self._learner(pack, data, replay, states)
        log = MetricsLog(folder.metrics, data.task.name, f"{pack.study} pack {pack.number}", pack.stop, step)

        def save_point(step: int) -> None:
            if step in points:
                save_curve_point(self.run.pack_curve(folder, step), learner)

        with online_evaluation(
            config.evaluation, config.training, learner, data.task, folder.online, pack.stop, self._new_pool
        ) as before_step:
            loop.train(
                learner,
                self.runner(learner, replay),
                step,
                pack.stop,
                report_steps=config.scaling.report_steps,
                log=log,
                states=states,
                before_step=before_step,
                before_save=save_point,
                after_report=report,
            )
        loop.save_last(folder.population, learner)

    def _learner(self, pack: Pack, data: TaskData, replay: Replay, states: States) -> tuple[Population, int]:
        """Return the pack's learner and its step: its last state, else its members' sources, else the pretrained weights."""
        learner = self.build(data, self.members(pack.members))
        step = loop.resume(learner, states, self.run, _name(pack, data), pack.start)
        if step == 0 and pack.sources():
            sources = [self._source(pack.study, number, data, replay) for number in pack.sources()]
            for source, indices in zip(sources, pack.sources().values(), strict=True):
                source.select(indices)
            learner.load_state_dict(_joined(sources).state_dict())
        return learner, step or pack.start

    def _source(self, study: str, number: int, data: TaskData, replay: Replay) -> Population:
        """Return a trained pack's learner in host memory; if its last state is damaged, resume from an earlier one."""
        pack, folder = read_pack(self.run.pack(study, number)), self.run.pack(study, number).task(data.task.name)
        learner = self.build(data, self.members(pack.members), "cpu")
        step, damages = States(folder).load(learner)
        if step != pack.stop:
            self.run.note(f"{_name(pack, data)}: {'; '.join(damages) or 'its last state is missing'}; trained again")
            self._train(pack, data, replay, folder, lambda step: None)
            States(folder).load(learner)
        return learner

    def _join(self, pack: Pack, data: TaskData, folder: TrainingFolder, halves: Sequence[tuple[Pack, TrainingFolder]]) -> None:
        """Join two trained halves into the files that a pack trained at once would have written."""
        learners = [self.build(data, self.members(part.members), "cpu") for part, _ in halves]
        for learner, (_, half) in zip(learners, halves, strict=True):
            States(half).load(learner)
        whole = _joined(learners)
        for step in self.config.curve_steps():
            if pack.start < step <= pack.stop:
                whole_point, *points = [self.run.pack_curve(part, step) for part in (folder, *(half for _, half in halves))]
                join_curve_points(whole_point, points)
        join_logs(folder.metrics, [half.metrics for _, half in halves])
        save_state(folder.state, whole, pack.stop)
        loop.save_last(folder.population, whole)

    def _evaluate(self, pack: Pack, data: TaskData, folder: TrainingFolder) -> dict[str, Any]:
        """Return each member's scores on the search's episodes; None for a member that is not finite."""
        policies, meta = load_population(folder.population)
        finite = np.flatnonzero(meta["finite"]).tolist()
        seeds = episode_seeds(SEARCH_SEEDS, self.config.search.episodes)
        results: list[dict[str, Any]] = [
            {"number": member.number, "params": member.params, "normalized_reward": None, "normalized_cost": None}
            for member in pack.members
        ]
        if finite:
            with self._evaluation_pool() as pool:
                stats = pool.evaluate(policies.select(finite), data.task, seeds)
            members = self.members(pack.members)
            rewards, costs = mean_scores(data, stats, [members[member].cost_limit for member in finite])
            for index, member in enumerate(finite):
                results[member] |= {
                    "normalized_reward": float(rewards[index]),
                    "normalized_cost": float(costs[index]),
                    "returns": stats.returns[index].tolist(),
                    "costs": stats.costs[index].tolist(),
                    "lengths": stats.lengths[index].tolist(),
                }
        return {"members": results, "seeds": seeds}

    def _new_pool(self) -> RolloutPool:
        return RayRolloutPool.from_config(self.config.evaluation.actors, self.config.scaling)

    def _evaluation_pool(self) -> RolloutPool:
        """Return Ray actors if they have their own CPUs or a GPU would wait for this process; else a pool in this process."""
        scaling = self.config.scaling
        return self._new_pool() if scaling.use_gpu or scaling.cpus_per_actor else LocalRolloutPool()


def _name(pack: Pack, data: TaskData) -> str:
    return f"{data.task.name}, {pack.study} pack {pack.number}"


def _halves(pack: Pack, folder: TrainingFolder) -> list[tuple[Pack, TrainingFolder]]:
    """Return both halves of a pack, each with the folder in which it is trained if the whole is too large."""
    middle = -(-len(pack.members) // 2)
    first, second = replace(pack, members=pack.members[:middle]), replace(pack, members=pack.members[middle:])
    return list(zip((first, second), folder.halves(), strict=True))


def _joined(learners: Sequence[Population]) -> Population:
    first, *others = learners
    for other in others:
        first.join(other)  # type: ignore[arg-type]  # all are of one algorithm
    return first


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@functools.lru_cache(maxsize=1)
def _task_data(task: Task, store: Path, device: str) -> tuple[TaskData, Replay]:
    data = TaskData.open(store, task)
    replay = Replay(data.manifest, device=device)
    replay.insert(read_store(store))
    return data, replay
