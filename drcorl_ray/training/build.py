"""Build the two stages of a training, pretraining and extraction, from a task's store and settings, without Ray.

Ray Train (distributed/ray_train.py) and Ray Tune (search/pack.py) add only shards, reports and restarts.
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
from drcorl_ray.method.interfaces import Population, Stage
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import Runner, cuda_graphs
from drcorl_ray.method.train_state import Reduce, no_reduce
from drcorl_ray.training.baselines import make_baseline
from drcorl_ray.training.pretrained import Pretrained, _seed, load_pretrained

ESTIMATION_STATES = 2048


@dataclass(frozen=True)
class Placement:
    """Where a stage runs: its device, its rank among the data-parallel workers, and the reduction over them."""

    device: str = "cpu"
    rank: int = 0
    workers: int = 1
    reduce: Reduce = no_reduce

    def rows(self, batch_size: int) -> int:
        """Return this worker's rows of a global minibatch."""
        return batch_size // self.workers


def build_pretrainer(config: PretrainConfig, data: TaskData, seeds: Sequence[int], placement: Placement) -> Pretrainer:
    first_row = placement.rank * placement.rows(config.batch_size)
    return Pretrainer(data.spec, config, seeds, device=placement.device, first_row=first_row)


def build_population(
    config: Config, data: TaskData, members: Sequence[MemberSettings], weights: Sequence[Path], placement: Placement
) -> Population:
    """Build a population of run.algorithm at its start. weights: files of the pretrained weights that DRCORL starts from."""
    if get_algorithm(config.run.algorithm).pretrained:
        pretrained = load_pretrained(weights)
        return build_learner(config.pretrain, config.extract, config.evaluation, data, members, pretrained, placement)
    return build_baseline(config, data, config.run.algorithm, members, placement)


def build_baseline(
    config: Config, data: TaskData, algorithm: str, members: Sequence[MemberSettings], placement: Placement
) -> Baseline:
    first_rows = data.episodes.ends - data.episodes.lengths
    dataset = Dataset(data.spec, data.episodes, _standardised(data, first_rows), _standardised(data, _even_rows(data)))
    first_row = placement.rank * placement.rows(config.training_of(algorithm).batch_size)
    return make_baseline(algorithm, config, dataset, members, device=placement.device, first_row=first_row)


def _even_rows(data: TaskData) -> np.ndarray:
    """Return ESTIMATION_STATES evenly spaced rows of the store, ascending."""
    return np.linspace(0, data.manifest.rows - 1, ESTIMATION_STATES).round().astype(int)


def _standardised(data: TaskData, rows: np.ndarray) -> Tensor:
    """Return the standardised observations of the given rows (ascending, repeats allowed), [n, S]."""
    distinct, inverse = np.unique(rows, return_inverse=True)
    mean, std = (np.array(values, np.float32) for values in (data.spec.observation_mean, data.spec.observation_std))
    observations = read_store(data.store, ("observations",), distinct)["observations"]
    return torch.from_numpy(((observations - mean) / std)[inverse])


def build_learner(
    pretrain: PretrainConfig,
    extract: ExtractConfig,
    evaluation: EvaluationConfig,
    data: TaskData,
    members: Sequence[MemberSettings],
    pretrained: Pretrained,
    placement: Placement,
) -> Learner:
    """Build a population at the start of extraction; `pretrained` must hold every member's seed."""
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
    """Return the estimation states: candidates like a policy's own states, or evenly spaced rows of the data (D15)."""
    if extract.estimate_states == "all":
        rows = _even_rows(data)
        ends, phases, stretch, nearest = np.arange(ESTIMATION_STATES), np.zeros(ESTIMATION_STATES, int), 0, None
    else:
        rows, ends, phases, stretch = candidate_segments(data.episodes.lengths, data.task.episode_length)
        nearest = NEAREST
    distinct, inverse = np.unique(rows, return_inverse=True)
    columns = read_store(data.store, ("observations", "actions"), distinct)
    mean, std = (np.array(values, np.float32) for values in (data.spec.observation_mean, data.spec.observation_std))
    return EstimationStates(
        torch.from_numpy(((columns["observations"] - mean) / std)[inverse]),
        torch.from_numpy(columns["actions"][inverse]),
        torch.from_numpy(ends),
        torch.from_numpy(phases),
        stretch,
        nearest,
    )


def build_runner(stage: Stage, replay: Replay, batch_size: int, placement: Placement, scaling: ScalingConfig) -> Runner:
    """Build the runner of a stage: CUDA graphs on a single GPU, otherwise one step at a time.

    With several workers a step waits for the other workers, which no graph can. batch_size: rows of the global minibatch,
    which the data-parallel workers split.
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
