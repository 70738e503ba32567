"""A run that takes seconds: few PointCircle episodes, tiny networks, few steps."""

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
from drcorl_ray.evaluation.rollout import Rollouts, roll_out_in
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.replay import Replay
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.envs import make_simulator
from drcorl_ray.tasks.envs.point_circle_data import generate_dataset
from drcorl_ray.training.build import Placement, build_learner, build_pretrainer, build_runner
from drcorl_ray.training.online import OnlineEvaluation, Roller
from drcorl_ray.training.pretrained import Pretrained, artifact_path, pretrain_seeds, save_artifacts

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
    """Arguments of a launch script that keeps everything below `folder`."""
    dataset = folder / "tiny.hdf5"
    if not dataset.exists():
        write_dataset(dataset, generate_dataset(0, episodes=20))
    return [*TINY, f"data.dataset={dataset}", f"run.dir={folder / 'run'}", f"run.storage={folder / 'shared'}", *overrides]


def tiny_config(folder: Path, *overrides: str) -> Config:
    return load_config(tiny_arguments(folder, *overrides))


def plain_pretrainer(config: Config, data: TaskData) -> Pretrainer:
    """Pretraining without Ray: a loop in this process."""
    pretrainer = build_pretrainer(config, data, pretrain_seeds(config.members()), Placement())
    build_runner(pretrainer, whole_replay(data).sample, config.pretrain.batch_size, Placement(), config.scaling).advance(
        0, pretrainer.total_steps
    )
    return pretrainer


def pretrain_beforehand(config: Config) -> None:
    """Make the artifacts of a run in this process: a test of what comes after saves a Ray Train job."""
    data = TaskData.open(task_store(config, config.tasks[0]))
    pretrainer = plain_pretrainer(config, data)
    seeds = pretrainer.seeds.tolist()
    save_artifacts({seed: artifact_path(config.run.storage_folder, data, config.pretrain, seed) for seed in seeds}, pretrainer)


def whole_replay(data: TaskData) -> Replay:
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    return replay


def plain_learner(config: Config, data: TaskData) -> Learner:
    """The same training without Ray: two loops in this process."""
    replay, members, pretrainer = whole_replay(data), config.members(), plain_pretrainer(config, data)
    seeds = pretrainer.seeds.tolist()
    learner = build_learner(config, data, members, Pretrained(tuple(seeds), pretrainer.result()), Placement())
    with tempfile.TemporaryDirectory() as folder:
        roller = Roller(config, learner, data.task, Path(folder), HerePool())
        online = OnlineEvaluation(config, learner, learner.total_steps, roller, lambda evidence: evidence)
        build_runner(learner, replay.sample, config.extract.batch_size, Placement(), config.scaling).advance(
            0, learner.total_steps, online.before
        )
    return learner


class HerePool:
    """The pool's `start` in this process, an episode at a time; `kill_at` ends it before that many episodes have begun."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.begun: list[tuple[int, int]] = []  # (member of the evaluated ones, seed)
        self.evaluations: list[np.ndarray] = []
        self._kill_at = kill_at

    def start(self, policies, task, seeds, *, record, charge) -> Future[Rollouts]:
        self.evaluations.append(policies.weights[0].copy())
        whole, simulator = Rollouts.empty(policies.members, seeds), make_simulator(task)
        for member in range(policies.members):
            for episode, seed in enumerate(seeds):
                if charge([member], 1) == [1]:
                    if self._kill_at == len(self.begun):
                        raise Killed
                    self.begun.append((member, seed))
                    part = roll_out_in(simulator, policies.select([member]), task, [seed], int(episode < record))
                    whole.store(slice(member, member + 1), slice(episode, episode + 1), part)
        done: Future[Rollouts] = Future()
        done.set_result(whole)
        return done


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def plain_policies(config: Config, data: TaskData) -> PopulationPolicy:
    return plain_learner(config, data).policies()
