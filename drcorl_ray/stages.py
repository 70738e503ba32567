"""The two stages of a run without Ray: what a task's store tells the learner, how a stage is built, what it leaves.

Ray Train (train.py) and Ray Tune (search/pack.py) only add shards, reports and restarts around this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.baselines import Baseline, Dataset, make_baseline
from drcorl_ray.checkpoint import load_arrays, save_arrays
from drcorl_ray.config import Config, MemberConfig, PretrainConfig, ScalingConfig
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.store import Manifest, load_manifest, read_store
from drcorl_ray.errors import UserError
from drcorl_ray.method.estimation import NEAREST, Footprints, trace
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.optim import Reduce, alone
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.runner import Runner, Sampler, cuda_graphs
from drcorl_ray.method.spec import DataSpec, Episodes, behaviour_condition
from drcorl_ray.metrics import EpisodeStats, normalized_cost, normalized_reward
from drcorl_ray.tasks import Task, get_task

ARTIFACT_SCHEMA = 3
ESTIMATION_STATES = 2048

Population = Learner | Baseline
Stage = Pretrainer | Population


@dataclass(frozen=True)
class Placement:
    """Where a stage runs: its device, and its part of the global minibatch among the data-parallel workers."""

    device: str = "cpu"
    rank: int = 0
    workers: int = 1
    reduce: Reduce = alone

    def rows(self, batch_size: int) -> int:
        return batch_size // self.workers


@dataclass(frozen=True)
class TaskData:
    """One task's store, opened: its manifest, its statistics, its episodes, and the reward rates [N] per step."""

    task: Task
    store: Path
    manifest: Manifest
    spec: DataSpec
    episodes: Episodes
    reward_rates: np.ndarray

    @classmethod
    def open(cls, store: Path, task: Task | None = None) -> TaskData:
        """task: the store's own, given where it may not be registered (in another process)."""
        manifest = load_manifest(store)
        task = task or get_task(manifest.task)
        scalars = read_store(store, ("reward_rates", "costs"))
        rates = scalars["reward_rates"]
        if manifest.max_return <= manifest.min_return:
            raise UserError(
                f"{store}: every episode has the return {manifest.max_return}; rewards cannot be normalised (Eq. 26)"
            )
        spec = DataSpec(
            observation_size=manifest.observation_size,
            action_size=manifest.action_size,
            episode_length=task.episode_length,
            observation_mean=manifest.observation_mean,
            observation_std=manifest.observation_std,
            return_min=manifest.min_return,
            return_max=manifest.max_return,
            mean_cost=manifest.mean_cost,
            max_cost=float(scalars["costs"].max()),
            reward_rate_mean=float(rates.mean()),
            reward_rate_std=float(rates.std()) + 1e-6,
        )
        episodes = Episodes(
            np.array(manifest.episode_returns), np.array(manifest.episode_costs), np.array(manifest.episode_lengths)
        )
        return cls(task, store, manifest, spec, episodes, rates)


def mean_scores(data: TaskData, stats: EpisodeStats, cost_limits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Each member's mean normalised reward and cost over its episodes (Eq. 26), [P] and [P]."""
    rewards = normalized_reward(stats.returns, data.spec.return_min, data.spec.return_max)
    return rewards.mean(1), normalized_cost(stats.costs, np.array(cost_limits)[:, None]).mean(1)


def report_intervals(step: int, total: int, report_steps: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of what is left from `step` to `total`, cut at the multiples of report_steps."""
    while step < total:
        stop = min(total, (step // report_steps + 1) * report_steps)
        yield step, stop
        step = stop


def build_pretrainer(config: Config, data: TaskData, seeds: Sequence[int], placement: Placement) -> Pretrainer:
    first_row = placement.rank * placement.rows(config.pretrain.batch_size)
    return Pretrainer(data.spec, config.pretrain, seeds, device=placement.device, first_row=first_row)


@dataclass(frozen=True)
class Pretrained:
    """What extraction starts from: `Pretrainer.result` of the given seeds, in that order."""

    seeds: tuple[int, ...]
    tensors: Mapping[str, Tensor]


def build_population(
    config: Config, data: TaskData, members: Sequence[MemberConfig], artifacts: Sequence[Path], placement: Placement
) -> Population:
    """A population of run.algorithm at its start; artifacts: the pretrained ones of DRCORL's members."""
    if config.run.algorithm == "drcorl":
        return build_learner(config, data, members, load_artifacts(artifacts), placement)
    return build_baseline(config, data, config.run.algorithm, members, placement)


def build_baseline(
    config: Config, data: TaskData, algorithm: str, members: Sequence[MemberConfig], placement: Placement
) -> Baseline:
    first = data.episodes.ends - data.episodes.lengths
    some = np.linspace(0, data.manifest.rows - 1, ESTIMATION_STATES).round().astype(int)
    told = Dataset(data.spec, data.episodes, *(_standardised(data, rows) for rows in (first, some)))
    first_row = placement.rank * placement.rows(config.training_of(algorithm).batch_size)
    return make_baseline(algorithm, config, told, members, device=placement.device, first_row=first_row)


def _standardised(data: TaskData, rows: np.ndarray) -> Tensor:
    """Observations of the given rows (ascending, repeats allowed), [n, S]."""
    wanted, place = np.unique(rows, return_inverse=True)
    mean, std = (np.array(values, np.float32) for values in (data.spec.observation_mean, data.spec.observation_std))
    observations = read_store(data.store, ("observations",), wanted)["observations"]
    return torch.from_numpy(((observations - mean) / std)[place])


def sampler_of(stage: Stage, replay: Replay) -> Sampler:
    """What the stage's steps learn from."""
    return stage.sampler(replay) if isinstance(stage, Baseline) else replay.sample


def build_learner(
    config: Config, data: TaskData, members: Sequence[MemberConfig], pretrained: Pretrained, placement: Placement
) -> Learner:
    """A population at the start of extraction; `pretrained` must hold every member's seed."""
    conditions = [
        behaviour_condition(data.spec, member.behaviour_reward_quantile, member.cost_limit, data.episodes, data.reward_rates)
        for member in members
    ]
    return Learner(
        data.spec,
        config.pretrain,
        config.extract,
        members,
        pretrained.tensors,
        evaluation=config.evaluation,
        sources=[pretrained.seeds.index(_seed(member)) for member in members],
        conditions=torch.from_numpy(np.stack(conditions)),
        footprints=_footprints(config, data),
        device=placement.device,
        first_row=placement.rank * placement.rows(config.extract.batch_size),
    )


def pretrain_seeds(members: Sequence[MemberConfig]) -> list[int]:
    """The seeds that must be pretrained for a population, each once."""
    return sorted({_seed(member) for member in members})


def _seed(member: MemberConfig) -> int:
    assert member.seed is not None  # settled by Config.member_with
    return member.seed


def _footprints(config: Config, data: TaskData) -> Footprints:
    """Where costs are estimated: on the states a policy would come to, or on an even selection of all (D15)."""
    if config.extract.estimate_states == "all":
        rows = np.linspace(0, data.manifest.rows - 1, ESTIMATION_STATES).round().astype(int)
        ends, phases, stretch, nearest = np.arange(ESTIMATION_STATES), np.zeros(ESTIMATION_STATES, int), 0, None
    else:
        rows, ends, phases, stretch = trace(data.episodes.lengths, data.task.episode_length)
        nearest = NEAREST
    wanted, place = np.unique(rows, return_inverse=True)
    columns = read_store(data.store, ("observations", "actions"), wanted)
    mean, std = (np.array(values, np.float32) for values in (data.spec.observation_mean, data.spec.observation_std))
    return Footprints(
        torch.from_numpy(((columns["observations"] - mean) / std)[place]),
        torch.from_numpy(columns["actions"][place]),
        torch.from_numpy(ends),
        torch.from_numpy(phases),
        stretch,
        nearest,
    )


def build_runner(stage: Stage, sample: Sampler, rows: int, placement: Placement, scaling: ScalingConfig) -> Runner:
    """How the stage is advanced here: on a GPU by CUDA graphs, unless its steps wait for other workers; else step by step."""
    alone_on_gpu = placement.device.startswith("cuda") and placement.workers == 1
    return Runner(
        stage,
        sample,
        rows,
        device=placement.device,
        reduce=placement.reduce,
        capture=cuda_graphs() if alone_on_gpu else None,
        fused=scaling.fused,
        precision=scaling.precision,
    )


def save_last(path: Path, learner: Population) -> None:
    """Write the finished population, with which of it is finite and what it took from rollouts."""
    finite = learner.finite()
    none = torch.zeros_like(finite, dtype=torch.int64)
    spent, taken = (learner.online.spent, learner.online.counts) if isinstance(learner, Learner) else (none, none)
    about = {"finite": finite, "online_episodes": spent, "appended_transitions": taken}
    learner.policies().save_population(path, {name: values.tolist() for name, values in about.items()})


def save_online_best(path: Path, learner: Learner) -> None:
    """Write the policies that did best in online evaluations, with whose they are; no file where no member had one."""
    evaluated = learner.online.best_cost.isfinite()
    if evaluated.any():
        policies = learner.policies(learner.online.best).select(evaluated.nonzero().flatten().tolist())
        policies.save_population(path, {"members": evaluated.nonzero().flatten().tolist()})


def artifact_path(root: Path, data: TaskData, config: PretrainConfig, seed: int, precision: str = "fp32") -> Path:
    """File of a pretrained artifact, named by all it depends on: store, pretraining settings, seed, precision, schema."""
    shards = [shard.sha256 for shard in data.manifest.shards]
    rounded = [] if precision == "fp32" else [precision]
    identity = json.dumps([ARTIFACT_SCHEMA, shards, config.model_dump(), seed, *rounded], sort_keys=True)
    return root / "pretrained" / f"{data.task.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def save_artifacts(paths: Mapping[int, Path], pretrainer: Pretrainer) -> None:
    """Write what extraction starts from, a file for each seed: {seed: path}."""
    seeds = pretrainer.seeds.tolist()
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in pretrainer.result().items()}
    for seed, path in paths.items():
        place = seeds.index(seed)
        rows = {name: array.reshape(len(seeds), -1, *array.shape[1:])[place] for name, array in arrays.items()}
        save_arrays(path, rows, {"artifact_schema": ARTIFACT_SCHEMA, "seed": seed})


def load_artifacts(paths: Sequence[Path]) -> Pretrained:
    """Read pretrained artifacts of one task and other seeds; UserError where one is missing or damaged."""
    parts = [load_arrays(path) for path in paths]
    names = parts[0][0].keys()
    tensors = {name: torch.from_numpy(np.concatenate([arrays[name] for arrays, _ in parts])) for name in names}
    return Pretrained(tuple(meta["seed"] for _, meta in parts), tensors)
