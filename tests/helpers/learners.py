"""Small populations on hand-made tables of transitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drcorl_ray.config import Config
from drcorl_ray.config.loading import load_config
from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method.estimation_states import EstimationStates
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.runner import Sampler, Stage
from drcorl_ray.method.train_state import Reduce, no_reduce, reduce_together

SMALL = [
    "pretrain.steps=4",
    "pretrain.monte_carlo_steps=2",
    "pretrain.batch_size=16",
    "pretrain.noise_width=16",
    "pretrain.actor_hidden=[16,16]",
    "pretrain.critic_hidden=[16,16]",
    "extract.steps=8",
    "extract.critic_steps=2",
    "extract.batch_size=16",
    "extract.epoch_steps=2",
    "extract.estimate_interval=2",
]


def small_config(*overrides: str) -> Config:
    return load_config([*SMALL, *overrides])


def make_spec(observations: int, actions: int, **changes: object) -> DataSpec:
    spec = DataSpec(
        observation_size=observations,
        action_size=actions,
        episode_length=100,
        observation_mean=(0.0,) * observations,
        observation_std=(1.0,) * observations,
        return_min=0.0,
        return_max=1000.0,
        mean_cost=0.1,
        max_cost=1.0,
        reward_rate_mean=0.0,
        reward_rate_std=1.0,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def make_table(rows: int, observations: int, actions: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A random but fixed table of transitions, columns as in Batch without the population's dimension."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "observations": normal(rows, observations),
        "actions": normal(rows, actions).tanh(),
        "next_observations": normal(rows, observations),
        "rewards": normal(rows),
        "costs": (normal(rows) > 1).to(dtype),
        "terminals": (normal(rows) > 1.5).to(dtype),
        "reward_rates": normal(rows),
        "cost_rates": normal(rows).abs() * 0.1,
    }


def sampler(table: dict[str, Tensor]):
    """sample(draws, rows) over a table, as Replay does it."""
    size = len(table["rewards"])

    def sample(draws: Draws, rows: int) -> Batch:
        index = draws.integers(Stream.ROWS, rows, size)
        return Batch(**{name: column[index] for name, column in table.items()})

    return sample


def take_step(stage: Stage, sample: Sampler, rows: int, step: int, reduce: Reduce = no_reduce) -> dict[str, Tensor]:
    """A step as `Runner` takes it, in plain sight."""
    step_kind, draws = stage.step_kind(step), stage.draws(step)
    stage.prepare(step)
    parts, metrics = stage.gradients(step_kind, sample(draws, rows), draws)
    return dict(metrics) | dict(stage.update(step_kind, reduce_together(parts, reduce), torch.tensor(step)))


def pretrain(config: Config, spec: DataSpec, table: dict[str, Tensor], seeds: Sequence[int], steps: int | None = None, **kw):
    pretrainer = Pretrainer(spec, config.pretrain, seeds, dtype=table["rewards"].dtype, **kw)
    sample = sampler(table)
    for step in range(pretrainer.total_steps if steps is None else steps):
        take_step(pretrainer, sample, config.pretrain.batch_size, step)
    return pretrainer


def make_learner(
    config: Config,
    spec: DataSpec,
    members: list[dict],
    pretrained: dict[str, Tensor],
    dtype: torch.dtype = torch.float64,
    **kw,
) -> Learner:
    settled = [config.member_with(member) for member in members]
    conditions = torch.tensor([[1.0, 0.0, 1.0, 0.5]]).repeat(len(members), 1)
    return Learner(
        spec,
        config.pretrain,
        config.extract,
        settled,
        pretrained,
        evaluation=config.evaluation,
        sources=[0] * len(members),
        conditions=conditions,
        estimation_states=make_estimation_states(spec, dtype),
        dtype=dtype,
        **kw,
    )


def make_estimation_states(spec: DataSpec, dtype: torch.dtype = torch.float64, nearest: int | None = 3) -> EstimationStates:
    """Forty states in two phases, each compared by the four before it."""
    [numbers] = Draws(torch.tensor([0]), 0).normal(Stream.ROWS, 40, spec.observation_size + spec.action_size, dtype=dtype)
    observations, actions = numbers.split([spec.observation_size, spec.action_size], dim=-1)
    ends = torch.arange(4, 40)
    return EstimationStates(observations, actions.tanh(), ends, ends // 20, stretch=4, nearest=nearest)


def extract(
    learner: Learner, table: dict[str, Tensor], start: int, stop: int, rows: int | None = None, reduce: Reduce = no_reduce
):
    sample = sampler(table)
    metrics = {}
    for step in range(start, stop):
        metrics = take_step(learner, sample, rows or learner.extract.batch_size, step, reduce)
    return metrics
