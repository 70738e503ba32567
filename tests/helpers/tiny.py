"""Runs that take seconds: few PointCircle episodes, tiny networks, few steps."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from drcorl_ray.config import Config
from drcorl_ray.config.loading import load_config
from drcorl_ray.data.dsrl import write_dataset
from drcorl_ray.data.source import task_store
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.pool import BlockRunner, LocalRolloutPool
from drcorl_ray.evaluation.rollout import Rollouts
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.replay import Replay
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.folders import OnlineFolder
from drcorl_ray.tasks.envs.point_circle_data import generate_dataset
from drcorl_ray.tasks.registry import Task
from drcorl_ray.training.build import Placement, build_learner, build_pretrainer, build_runner
from drcorl_ray.training.online import OnlineEvaluation, Roller
from drcorl_ray.training.pretrained import Pretrained, pretrain_seeds, pretrained_path, save_pretrained

TINY = [
    "pretrain.steps=60",
    "pretrain.monte_carlo_steps=20",
    "pretrain.batch_size=32",
    "pretrain.noise_width=16",
    "pretrain.actor_hidden=[16,16]",
    "pretrain.critic_hidden=[16,16]",
    "extract.steps=60",
    "extract.critic_steps=20",
    "extract.batch_size=32",
    "extract.epoch_steps=10",
    "scaling.report_steps=20",
    "scaling.cpus_per_worker=0.5",
    "evaluation.episodes=3",
    "evaluation.curve_points=2",
    "evaluation.curve_episodes=2",
    "evaluation.actors=1",
    "search.configurations=5",
    "search.members_per_pack=2",
    "search.episodes=2",
    "search.winners=2",
    "search.fresh_episodes=3",
    "run.wandb=disabled",
]


def tiny_arguments(folder: Path, *overrides: str) -> list[str]:
    """Return arguments for a launch script that writes everything below `folder`."""
    dataset = folder / "tiny.hdf5"
    if not dataset.exists():
        write_dataset(dataset, generate_dataset(0, episodes=20))
    return [*TINY, f"data.dataset={dataset}", f"run.dir={folder / 'run'}", f"run.storage={folder / 'shared'}", *overrides]


def tiny_config(folder: Path, *overrides: str) -> Config:
    return load_config(tiny_arguments(folder, *overrides))


def plain_pretrainer(config: Config, data: TaskData) -> Pretrainer:
    """Pretrain without Ray, in this process."""
    pretrainer = build_pretrainer(config.pretrain, data, pretrain_seeds(config.members()), Placement())
    build_runner(pretrainer, whole_replay(data), config.pretrain.batch_size, Placement(), config.scaling).advance(
        0, pretrainer.total_steps
    )
    return pretrainer


def pretrain_beforehand(config: Config) -> None:
    """Make the pretrained weights of a run in this process, which saves a test of later stages a Ray Train job."""
    data = TaskData.open(task_store(config.tasks[0], config.data, config.run))
    pretrainer = plain_pretrainer(config, data)
    seeds = pretrainer.seeds.tolist()
    save_pretrained(
        {seed: pretrained_path(config.run.storage_folder, data, config.pretrain, seed) for seed in seeds}, pretrainer
    )


def whole_replay(data: TaskData) -> Replay:
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    return replay


def start_learner(config: Config, data: TaskData, members, pretrained: Pretrained, placement: Placement) -> Learner:
    return build_learner(config.pretrain, config.extract, config.evaluation, data, members, pretrained, placement)


def plain_learner(config: Config, data: TaskData) -> Learner:
    """Run the whole training without Ray, in this process."""
    replay, members, pretrainer = whole_replay(data), config.members(), plain_pretrainer(config, data)
    seeds = pretrainer.seeds.tolist()
    learner = build_learner(
        config.pretrain,
        config.extract,
        config.evaluation,
        data,
        members,
        Pretrained(tuple(seeds), pretrainer.result()),
        Placement(),
    )
    with tempfile.TemporaryDirectory() as folder:
        online = online_session(config, learner, data.task, Path(folder), HerePool(), learner.total_steps)
        build_runner(learner, replay, config.extract.batch_size, Placement(), config.scaling).advance(
            0, learner.total_steps, online.before
        )
    return learner


def online_session(config: Config, learner: Learner, task: Task, folder: Path, pool: HerePool, stop: int) -> OnlineEvaluation:
    """Return the online evaluation of a learner, without Ray."""
    settings, schedule = config.evaluation, config.training
    roller = Roller(settings, schedule.steps, learner, task, OnlineFolder(folder), pool)
    return OnlineEvaluation(settings, schedule, learner, stop, roller, lambda result: result)


class HerePool(LocalRolloutPool):
    """A pool in this process, one episode at a time; it raises Killed after `kill_at` episodes have begun."""

    def __init__(self, kill_at: int | None = None) -> None:
        super().__init__(size=1)
        self.begun: list[tuple[int, int]] = []  # (index among the evaluated members, seed)
        self.evaluations: list[np.ndarray] = []
        self._runner = _CountingRunner(self.begun, kill_at)

    def start(self, policies, task, seeds, *, record, charge) -> Future[Rollouts]:
        self.evaluations.append(policies.weights[0].copy())
        return super().start(policies, task, seeds, record=record, charge=charge)


class _CountingRunner(BlockRunner):
    def __init__(self, begun: list[tuple[int, int]], kill_at: int | None) -> None:
        super().__init__()
        self._begun, self._kill_at = begun, kill_at

    def run(self, policies, block, task, seeds, record) -> Rollouts:
        if self._kill_at == len(self._begun):
            raise Killed
        self._begun.append((block.members.start, seeds[block.episodes.start]))
        return super().run(policies, block, task, seeds, record)


class Killed(BaseException):
    """Simulates kill -9: no handler catches it."""


def plain_policies(config: Config, data: TaskData) -> PopulationPolicy:
    return plain_learner(config, data).policies()
