"""Small populations of baselines on hand-made tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.config import Config
from drcorl_ray.data.spec import DataSpec, EpisodeTotals
from drcorl_ray.method.baselines import Baseline, Dataset
from drcorl_ray.method.baselines.cdt import CDT
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.runner import Sampler
from drcorl_ray.method.train_state import Reduce, no_reduce
from drcorl_ray.training.baselines import make_baseline
from tests.helpers.learners import make_spec, sampler, small_config, take_step

SMALL = (
    "baseline.steps=20", "baseline.batch_size=16", "baseline.hidden=[16,16]", "baseline.vae_hidden=16",
    "baseline.sampled_actions=4", "baseline.cdt.context=3", "baseline.cdt.embedding=16",
    "baseline.cdt.blocks=2", "baseline.cdt.heads=2",
    "baseline.cdt.warm_up=5",
)  # fmt: skip


def baseline_config(*overrides: str) -> Config:
    return small_config(*SMALL, *overrides)


def make_population(
    algorithm: str,
    config: Config,
    members: list[dict],
    spec: DataSpec | None = None,
    dtype: torch.dtype = torch.float64,
    episodes: EpisodeTotals | None = None,
    **kw,
) -> Baseline:
    spec = spec or make_spec(3, 2)
    generator = torch.Generator().manual_seed(1)
    starts, states = (torch.randn(n, spec.observation_size, generator=generator, dtype=dtype) for n in (5, 32))
    episodes = episodes or EpisodeTotals(
        np.array([1.0, 3.0, 2.0, 0.5]), np.array([4.0, 30.0, 8.0, 0.0]), np.array([10, 10, 10, 10])
    )
    dataset = Dataset(spec, episodes, starts, states)
    return make_baseline(
        algorithm, config, dataset, [config.member_with(member, algorithm) for member in members], dtype=dtype, **kw
    )


def train(
    learner: Baseline, table: dict[str, Tensor], start: int, stop: int, rows: int = 16, reduce: Reduce = no_reduce
) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    for step in range(start, stop):
        metrics = take_step(learner, feed(learner, table), rows, step, reduce)
    return metrics


def feed(learner: Any, table: dict[str, Tensor], moved: Callable[[Any], Any] = lambda x: x) -> Sampler:
    """Return a sampler of a table's rows, or for CDT of windows of its rows; moved: moves it to the learner's device."""
    history = learner.history(table["rewards"], table["costs"]) if isinstance(learner, CDT) else None
    history, table = moved((history, table))
    if history is None:
        return sampler(table)
    at = lambda index: Batch(**{name: column[index] for name, column in table.items()})  # noqa: E731
    return lambda draws, windows: history.sample(at, draws, windows)


def bandit(rows: int = 4000, seed: int = 0, spread: float | None = None, cost_from: float = 0.0) -> dict[str, Tensor]:
    """Return a table of one-step episodes whose state does not matter: action a earns a and costs max(a − cost_from, 0).

    The data's actions are uniform on [−1, 1], or normal around 0.2 with the given std `spread`.
    """
    generator = torch.Generator().manual_seed(seed)
    actions = 2.0 * torch.rand(rows, 1, generator=generator) - 1.0
    if spread is not None:
        actions = (0.2 + spread * torch.randn(rows, 1, generator=generator)).clamp(-1.0, 1.0)
    states, zeros = 0.1 * torch.randn(rows, 1, generator=generator), torch.zeros(rows)
    return {
        "observations": states, "actions": actions, "next_observations": states, "rewards": actions[:, 0],
        "costs": (actions[:, 0] - cost_from).clamp(min=0.0), "terminals": torch.ones(rows), "reward_rates": zeros,
        "cost_rates": zeros,
    }  # fmt: skip


BANDIT = make_spec(1, 1, episode_length=1, return_min=-150.0, return_max=150.0)  # rewards are scaled by 1


def bandit_actions(
    algorithm: str,
    members: list[dict],
    steps: int,
    *overrides: str,
    table: dict[str, Tensor] | None = None,
    rows: int = 64,
) -> tuple[Baseline, Tensor]:
    """Train a population on the bandit; return it and each member's action, [P]."""
    config = baseline_config("baseline.hidden=[32,32]", "baseline.vae_hidden=32", "baseline.target_step=0.02", *overrides)
    table = bandit() if table is None else table
    learner = make_population(algorithm, config, members, BANDIT, torch.float32)
    learner.starts = table["observations"]
    train(learner, table, 0, steps, rows=rows)
    return learner, learner.actions(torch.zeros(len(members), 1, 1)).flatten().detach()
