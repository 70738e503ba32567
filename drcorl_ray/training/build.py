"""The two stages of a run without Ray: what a task's store tells the learner, how a stage is built, what it leaves.

Ray Train (train.py) and Ray Tune (search/pack.py) only add shards, reports and restarts around this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.config import (
    Config,
    EvaluationConfig,
    ExtractConfig,
    MemberConfig,
    MemberSettings,
    PretrainConfig,
    ScalingConfig,
)
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.method.baselines import Baseline, Dataset
from drcorl_ray.method.estimation_states import NEAREST, EstimationStates, candidate_segments
from drcorl_ray.method.hyperparameters import behaviour_condition
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.protocols import Population, Stage
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import Runner, cuda_graphs
from drcorl_ray.method.train_state import Reduce, no_reduce
from drcorl_ray.training.baselines import make_baseline
from drcorl_ray.training.pretrained import Pretrained, _seed, load_pretrained

ESTIMATION_STATES = 2048


@dataclass(frozen=True)
class Placement:
    """Where a stage runs: its device, and its part of the global minibatch among the data-parallel workers."""

    device: str = "cpu"
    rank: int = 0
    workers: int = 1
    reduce: Reduce = no_reduce

    def rows(self, batch_size: int) -> int:
        return batch_size // self.workers


def build_pretrainer(config: PretrainConfig, data: TaskData, seeds: Sequence[int], placement: Placement) -> Pretrainer:
    first_row = placement.rank * placement.rows(config.batch_size)
    return Pretrainer(data.spec, config, seeds, device=placement.device, first_row=first_row)


def build_population(
    config: Config, data: TaskData, members: Sequence[MemberSettings], weights: Sequence[Path], placement: Placement
) -> Population:
    """A population of run.algorithm at its start; weights: files that DRCORL's members start from."""
    if get_algorithm(config.run.algorithm).pretrained:
        pretrained = load_pretrained(weights)
        return build_learner(config.pretrain, config.extract, config.evaluation, data, members, pretrained, placement)
    return build_baseline(config, data, config.run.algorithm, members, placement)


def build_baseline(
    config: Config, data: TaskData, algorithm: str, members: Sequence[MemberSettings], placement: Placement
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


def build_learner(
    pretrain: PretrainConfig,
    extract: ExtractConfig,
    evaluation: EvaluationConfig,
    data: TaskData,
    members: Sequence[MemberSettings],
    pretrained: Pretrained,
    placement: Placement,
) -> Learner:
    """A population at the start of extraction; `pretrained` must hold every member's seed."""
    members = cast("Sequence[MemberConfig]", members)
    conditions = [
        behaviour_condition(data.spec, member.behaviour_reward_quantile, member.cost_limit, data.episodes, data.reward_rates)
        for member in members
    ]
    return Learner(
        data.spec,
        pretrain,
        extract,
        members,
        pretrained.tensors,
        evaluation=evaluation,
        sources=[pretrained.seeds.index(_seed(member)) for member in members],
        conditions=torch.from_numpy(np.stack(conditions)),
        estimation_states=_estimation_states(extract, data),
        device=placement.device,
        first_row=placement.rank * placement.rows(extract.batch_size),
    )


def _estimation_states(extract: ExtractConfig, data: TaskData) -> EstimationStates:
    """Where costs are estimated: on the states a policy would come to, or on an even selection of all (D15)."""
    if extract.estimate_states == "all":
        rows = np.linspace(0, data.manifest.rows - 1, ESTIMATION_STATES).round().astype(int)
        ends, phases, stretch, nearest = np.arange(ESTIMATION_STATES), np.zeros(ESTIMATION_STATES, int), 0, None
    else:
        rows, ends, phases, stretch = candidate_segments(data.episodes.lengths, data.task.episode_length)
        nearest = NEAREST
    wanted, place = np.unique(rows, return_inverse=True)
    columns = read_store(data.store, ("observations", "actions"), wanted)
    mean, std = (np.array(values, np.float32) for values in (data.spec.observation_mean, data.spec.observation_std))
    return EstimationStates(
        torch.from_numpy(((columns["observations"] - mean) / std)[place]),
        torch.from_numpy(columns["actions"][place]),
        torch.from_numpy(ends),
        torch.from_numpy(phases),
        stretch,
        nearest,
    )


def build_runner(stage: Stage, replay: Replay, batch_size: int, placement: Placement, scaling: ScalingConfig) -> Runner:
    """What advances the stage: on a GPU by CUDA graphs, unless its steps wait for other workers; else step by step.

    batch_size: of the global minibatch, which the data-parallel workers split.
    """
    alone_on_gpu = placement.device.startswith("cuda") and placement.workers == 1
    return Runner(
        stage,
        stage.sampler(replay),
        placement.rows(batch_size),
        device=placement.device,
        reduce=placement.reduce,
        capture=cuda_graphs() if alone_on_gpu else None,
        fused=scaling.fused,
        precision=scaling.precision,
    )
