"""What a Tune trial does: train one pack of members on one task, then judge them by online episodes.

Its state lies in RUN/packs/STUDY-NUMBER/TASK: killed at any moment and started again, by Tune or by a resumed search, it goes
on from its last report, and a finished one is not trained again.
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

from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.rollout_pool import RolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import curve_steps, join_curve_points, save_curve_point
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.evaluation.scoring import mean_scores
from drcorl_ray.evaluation.seeds import SEARCH_SEEDS, episode_seeds
from drcorl_ray.io.files import write_json
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import Runner
from drcorl_ray.policy.loading import load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog, join_logs
from drcorl_ray.search.plan import ONLINE, POPULATION, RESULT, Member, Pack, pack_folder, read_pack
from drcorl_ray.tasks.registry import Task
from drcorl_ray.tasks.scores import EpisodeStats
from drcorl_ray.training.build import Placement, Population, build_population, build_runner, sampler_of
from drcorl_ray.training.checkpoint import States, save_state
from drcorl_ray.training.loop import report_intervals, save_last
from drcorl_ray.training.online import online_evaluation

Report = Callable[[int], None]


@dataclass(frozen=True)
class PackTrainer:
    """Trains and judges packs of a search.

    By task name: its store, with the task itself, since a user's own is registered in the driver alone; its artifacts.
    """

    config: Config
    run: RunDirectory
    stores: Mapping[str, tuple[Task, Path]]
    artifacts: Mapping[str, tuple[Path, ...]]

    def __call__(self, study: str, number: int, task: str, report: Report) -> None:
        """Leave the result of a pack on a task in its folder; `report` is called with the step at each report."""
        pack = read_pack(pack_folder(self.run.packs, study, number))
        folder = self._folder(pack.study, pack.number, task)
        if not (folder / RESULT).exists():
            began = time.time()
            data, replay = self.open(task)
            if not (folder / POPULATION).exists():
                self._train(pack, data, replay, folder, report)
            judged = self._judge(pack, data, folder)
            write_json(folder / RESULT, judged | {"began": began, "ended": time.time()})

    def open(self, task: str) -> tuple[TaskData, Replay]:
        """A task and its resident data; a process, which is used again, keeps the last task's."""
        return _task_data(*self.stores[task], self._placement.device)

    def build(self, data: TaskData, members: Sequence[MemberConfig], device: str | None = None) -> Population:
        """A population at its start, where packs are trained unless said otherwise."""
        placement = Placement(device or self._placement.device)
        return build_population(self.config, data, members, self.artifacts[data.task.name], placement)

    def runner(self, learner: Population, replay: Replay) -> Runner:
        torch.set_num_threads(max(1, int(self.config.scaling.cpus_per_worker)))
        sample, rows = sampler_of(learner, replay), self.config.training.batch_size
        return build_runner(learner, sample, rows, self._placement, self.config.scaling)

    def _folder(self, study: str, number: int, task: str) -> Path:
        return pack_folder(self.run.packs, study, number) / task

    def members(self, members: Sequence[Member]) -> list[MemberConfig]:
        return [self.config.member_with(member.params) for member in members]

    @property
    def _placement(self) -> Placement:
        return Placement("cuda" if self.config.scaling.use_gpu else "cpu")

    def _train(self, pack: Pack, data: TaskData, replay: Replay, folder: Path, report: Report) -> None:
        """Train a pack to its end; where that is too much for the device's memory, one half after the other.

        A member's training does not depend on those beside it, so the result is the same.
        """
        parts, name = _halves(pack, folder), _name(pack, data)
        if not (parts[0][1] / "metrics.jsonl").exists():
            try:
                self._train_at_once(pack, data, replay, folder, report)
                return
            except torch.OutOfMemoryError as error:
                if len(pack.members) == 1:
                    raise UserError(f"{name}: one member is too large for the memory; lower extract.batch_size") from error
            self.run.note(
                f"{name}: {len(pack.members)} members are too large for the memory; going on with half of them at a time"
            )
        for part, half in parts:
            _free_memory()
            self._train(part, data, replay, half, report)
        self._join(pack, data, folder, parts)

    def _train_at_once(self, pack: Pack, data: TaskData, replay: Replay, folder: Path, report: Report) -> None:
        config, name, states = self.config, str(folder.relative_to(self.run.packs)), States(folder)
        learner, step = self._learner(pack, data, replay, states)
        log = MetricsLog(folder / "metrics.jsonl", data.task.name, f"{pack.study} pack {pack.number}", pack.stop, step)
        keep = curve_steps(config)
        runner = self.runner(learner, replay)
        with online_evaluation(config, learner, data.task, folder / ONLINE, pack.stop) as before:
            for start, stop in report_intervals(step, pack.stop, config.scaling.report_steps):
                log.write(stop, runner.advance(start, stop, before))
                if stop in keep:
                    save_curve_point(self.run.curve(name, stop), learner)
                states.save(learner, stop)
                report(stop)
        save_last(folder / POPULATION, learner)

    def _learner(self, pack: Pack, data: TaskData, replay: Replay, states: States) -> tuple[Population, int]:
        """The pack's learner at the step to go on from: its own last state, its members' sources, or the pretraining."""
        learner = self.build(data, self.members(pack.members))
        step, damages = states.load(learner)
        for damage in damages:
            self.run.note(f"{_name(pack, data)}: {damage}; going on from step {step or pack.start}")
        if step == 0 and pack.sources():
            sources = [self._source(pack.study, number, data, replay) for number in pack.sources()]
            for source, places in zip(sources, pack.sources().values(), strict=True):
                source.select(places)
            learner.load_state_dict(_joined(sources).state_dict())
        return learner, step or pack.start

    def _source(self, study: str, number: int, data: TaskData, replay: Replay) -> Population:
        """A trained pack's learner, in the host's memory; where its last state is damaged, trained again from what is left."""
        pack, folder = read_pack(pack_folder(self.run.packs, study, number)), self._folder(study, number, data.task.name)
        learner = self.build(data, self.members(pack.members), "cpu")
        step, damages = States(folder).load(learner)
        if step != pack.stop:
            self.run.note(f"{_name(pack, data)}: {'; '.join(damages) or 'its last state is missing'}; made again")
            self._train(pack, data, replay, folder, lambda step: None)
            States(folder).load(learner)
        return learner

    def _join(self, pack: Pack, data: TaskData, folder: Path, halves: Sequence[tuple[Pack, Path]]) -> None:
        """Leave of a pack that was trained in halves what one leaves that was trained at once."""
        learners = [self.build(data, self.members(part.members), "cpu") for part, _ in halves]
        for learner, (_, half) in zip(learners, halves, strict=True):
            States(half).load(learner)
        whole = _joined(learners)
        for step in curve_steps(self.config):
            if pack.start < step <= pack.stop:
                names = [str(path.relative_to(self.run.packs)) for path in (folder, *(half for _, half in halves))]
                whole_point, *points = [self.run.curve(name, step) for name in names]
                join_curve_points(whole_point, points)
        join_logs(folder / "metrics.jsonl", [half / "metrics.jsonl" for _, half in halves])
        save_state(States(folder).newest, whole, pack.stop)
        save_last(folder / POPULATION, whole)

    def _judge(self, pack: Pack, data: TaskData, folder: Path) -> dict[str, Any]:
        """Each member's scores on the search's episodes, None for one that is not finite."""
        policies, meta = load_population(folder / POPULATION)
        finite = np.flatnonzero(meta["finite"]).tolist()
        seeds = episode_seeds(SEARCH_SEEDS, self.config.search.episodes)
        results: list[dict[str, Any]] = [
            {"number": member.number, "params": member.params, "normalized_reward": None, "normalized_cost": None}
            for member in pack.members
        ]
        if finite:
            stats = self._roll_out(policies.select(finite), data.task, seeds)
            members = self.members(pack.members)
            rewards, costs = mean_scores(data, stats, [members[member].cost_limit for member in finite])
            for place, member in enumerate(finite):
                results[member] |= {
                    "normalized_reward": float(rewards[place]),
                    "normalized_cost": float(costs[place]),
                    "returns": stats.returns[place].tolist(),
                    "costs": stats.costs[place].tolist(),
                    "lengths": stats.lengths[place].tolist(),
                }
        return {"members": results, "seeds": seeds}

    def _roll_out(self, policies: PopulationPolicy, task: Task, seeds: Sequence[int]) -> EpisodeStats:
        """`evaluate`; by actors where they have CPUs of their own or where the pack keeps a GPU waiting."""
        scaling = self.config.scaling
        if not scaling.use_gpu and scaling.cpus_per_actor == 0:
            return evaluate(policies, task, seeds)
        with RolloutPool.from_config(self.config) as pool:
            return pool.evaluate(policies, task, seeds)


def _name(pack: Pack, data: TaskData) -> str:
    return f"{data.task.name}, {pack.study} pack {pack.number}"


def _halves(pack: Pack, folder: Path) -> list[tuple[Pack, Path]]:
    """Both halves of a pack, each with the folder where it is trained if the whole is too large."""
    middle = -(-len(pack.members) // 2)
    first, second = replace(pack, members=pack.members[:middle]), replace(pack, members=pack.members[middle:])
    return [(first, folder / "first-half"), (second, folder / "second-half")]


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
