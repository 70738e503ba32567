"""What a Tune trial does: train one pack of members on one task, then judge them by online episodes.

Its state lies in RUN/packs/STUDY-NUMBER/TASK: killed at any moment and started again, by Tune or by a resumed search, it goes
on from its last report, and a finished one is not trained again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drcorl_ray.checkpoint import write_json
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.curves import curve_steps, save_curve_point
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.store import read_store
from drcorl_ray.experiment import SEARCH_SEEDS, episode_seeds
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.runner import Runner
from drcorl_ray.metrics import EpisodeStats
from drcorl_ray.online import online_evaluation
from drcorl_ray.policy import PopulationPolicy, load_population
from drcorl_ray.rollout import evaluate
from drcorl_ray.rollout_pool import RolloutPool
from drcorl_ray.run_directory import MetricsLog, RunDirectory
from drcorl_ray.search.plan import ONLINE, POPULATION, RESULT, STATE, Member, Pack, pack_folder, read_pack
from drcorl_ray.stages import (
    Placement,
    TaskData,
    build_learner,
    build_runner,
    load_artifacts,
    load_stage,
    mean_scores,
    report_intervals,
    save_last,
    save_stage,
)
from drcorl_ray.tasks import Task

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
            self._train(pack, data, replay, folder, report)
            judged = self._judge(pack, data, folder)
            write_json(folder / RESULT, judged | {"began": began, "ended": time.time()})

    def open(self, task: str) -> tuple[TaskData, Replay]:
        """A task and its resident data; a process, which is used again, keeps the last task's."""
        return _task_data(*self.stores[task], self._placement.device)

    def build(self, data: TaskData, members: Sequence[MemberConfig]) -> Learner:
        """A population at the start of extraction."""
        return build_learner(self.config, data, members, load_artifacts(self.artifacts[data.task.name]), self._placement)

    def runner(self, learner: Learner, replay: Replay) -> Runner:
        torch.set_num_threads(max(1, int(self.config.scaling.cpus_per_worker)))
        return build_runner(learner, replay.sample, self.config.extract.batch_size, self._placement, self.config.scaling)

    def _folder(self, study: str, number: int, task: str) -> Path:
        return pack_folder(self.run.packs, study, number) / task

    def members(self, members: Sequence[Member]) -> list[MemberConfig]:
        return [self.config.member_with(member.params) for member in members]

    @property
    def _placement(self) -> Placement:
        return Placement("cuda" if self.config.scaling.use_gpu else "cpu")

    def _train(self, pack: Pack, data: TaskData, replay: Replay, folder: Path, report: Report) -> None:
        config, name = self.config, str(folder.relative_to(self.run.packs))
        learner, step = self._learner(pack, data, folder)
        log = MetricsLog(folder / "metrics.jsonl", data.task.name, f"{pack.study} pack {pack.number}", pack.stop, step)
        keep = curve_steps(config)
        runner = self.runner(learner, replay)
        with online_evaluation(config, learner, data.task, folder / ONLINE, pack.stop) as before:
            for start, stop in report_intervals(step, pack.stop, config.scaling.report_steps):
                log.write(stop, runner.advance(start, stop, before))
                if stop in keep:
                    save_curve_point(self.run.curve(name, stop), learner)
                save_stage(folder / STATE, learner, stop)
                report(stop)
        save_last(folder / POPULATION, learner)

    def _learner(self, pack: Pack, data: TaskData, folder: Path) -> tuple[Learner, int]:
        """The pack's learner at the step to go on from: its own last report, its members' sources, or the pretraining."""

        def build(members: Sequence[Member]) -> Learner:
            return self.build(data, self.members(members))

        if (folder / STATE).exists():
            learner = build(pack.members)
            return learner, load_stage(folder / STATE, learner)
        survivors = []
        for number, places in pack.sources().items():
            source = build(read_pack(pack_folder(self.run.packs, pack.study, number)).members)
            load_stage(self._folder(pack.study, number, data.task.name) / STATE, source)
            source.select(places)
            survivors.append(source)
        if not survivors:
            return build(pack.members), 0
        learner = survivors[0]
        for other in survivors[1:]:
            learner.join(other)
        return learner, pack.start

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
        with RolloutPool.of(self.config) as pool:
            return pool.evaluate(policies, task, seeds)


@functools.lru_cache(maxsize=1)
def _task_data(task: Task, store: Path, device: str) -> tuple[TaskData, Replay]:
    data = TaskData.open(store, task)
    replay = Replay(data.manifest, device=device)
    replay.insert(read_store(store))
    return data, replay
