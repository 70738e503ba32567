"""A run that takes seconds: few PointCircle episodes, tiny networks, few steps."""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.config import Config
from drcorl_ray.config_file import load_config
from drcorl_ray.data.dsrl import write_dataset
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.store import read_store
from drcorl_ray.envs.point_circle_data import generate_dataset
from drcorl_ray.method.learner import Learner
from drcorl_ray.policy import PopulationPolicy
from drcorl_ray.stages import Placement, Pretrained, TaskData, advance, build_learner, build_pretrainer, pretrain_seeds

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


def plain_learner(config: Config, data: TaskData) -> Learner:
    """The same training without Ray: two loops in this process."""
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    members = config.members()
    seeds = pretrain_seeds(members)
    pretrainer = build_pretrainer(config, data, seeds, Placement())
    advance(pretrainer, replay.sample, config.pretrain.batch_size, 0, pretrainer.total_steps)
    learner = build_learner(config, data, members, Pretrained(tuple(seeds), pretrainer.result()), Placement())
    advance(learner, replay.sample, config.extract.batch_size, 0, learner.total_steps)
    return learner


def plain_policies(config: Config, data: TaskData) -> PopulationPolicy:
    return plain_learner(config, data).policies()
