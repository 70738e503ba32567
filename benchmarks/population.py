"""Populations of the paper's sizes on random transitions, for the benchmarks; runs without pydantic, Ray and simulators.

`settings.json` holds the sections of `Config` that a learner reads; `python -m benchmarks.population` regenerates it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method.estimation_states import HOP, ROWS, STRETCH, EstimationStates
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Replay

SETTINGS = Path(__file__).with_name("settings.json")
PAPER_SIZES = ("pretrain.noise_width=256", "pretrain.noise_expansion=4", "pretrain.critic_hidden=[256,256]")
OBSERVATIONS, ACTIONS, EPISODE_LENGTH = 17, 6, 1000  # HalfCheetah and Walker2d

SPEC = DataSpec(
    observation_size=OBSERVATIONS, action_size=ACTIONS, episode_length=EPISODE_LENGTH,
    observation_mean=(0.0,) * OBSERVATIONS, observation_std=(1.0,) * OBSERVATIONS, return_min=0.0, return_max=1000.0,
    mean_cost=0.1, max_cost=1.0, reward_rate_mean=0.5, reward_rate_std=0.1,
)  # fmt: skip


class Settings:
    """The sections `pretrain`, `extract`, `member` and `evaluation`, with the given keys of each replaced."""

    def __init__(self, **sections: dict[str, Any]) -> None:
        stored = json.loads(SETTINGS.read_text())
        for name in stored:
            setattr(self, name, SimpleNamespace(**(stored[name] | sections.get(name, {}))))
        self.pretrain.cost_critics_for = lambda count: count or self.pretrain.cost_ensemble


def make_replay(rows: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Replay:
    manifest: Any = SimpleNamespace(
        rows=rows, observation_size=OBSERVATIONS, action_size=ACTIONS,
        observation_mean=SPEC.observation_mean, observation_std=SPEC.observation_std,
    )  # fmt: skip
    replay = Replay(manifest, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(rows, *shape, generator=generator)  # noqa: E731
    columns = {
        "observations": normal(OBSERVATIONS), "actions": normal(ACTIONS).tanh(), "next_observations": normal(OBSERVATIONS),
        "rewards": normal() + 0.5, "costs": (normal() > 1.0).float(), "terminals": (normal() > 3.0).float(),
        "reward_rates": 0.5 + 0.1 * normal(), "cost_rates": 0.1 * normal().abs(),
        "episode_returns": normal(), "episode_costs": normal(),
    }  # fmt: skip
    replay.insert(columns | {"rows": torch.arange(rows)})
    return replay


def make_pretrainer(settings: Settings, seeds: Sequence[int], device: str = "cpu", **kw: Any) -> Pretrainer:
    return Pretrainer(SPEC, settings.pretrain, seeds, device=device, **kw)  # pyright: ignore


def make_learner(
    settings: Settings, members: int, device: str = "cpu", dtype: torch.dtype = torch.float32, estimation_states: int = ROWS
) -> Learner:
    """Make members of one pretraining that differ in their seeds; the weights are untrained."""
    pretrained = make_pretrainer(settings, [0], dtype=torch.float32).result()
    varied = [SimpleNamespace(**vars(settings.member) | {"seed": seed}) for seed in range(members)]
    return Learner(
        SPEC, settings.pretrain, settings.extract, varied, pretrained,  # pyright: ignore
        evaluation=settings.evaluation, sources=[0] * members,
        conditions=torch.tensor([[1.0, 0.0, 1.0, 0.5]]).repeat(members, 1),
        estimation_states=make_estimation_states(estimation_states), device=device, dtype=dtype,
    )  # fmt: skip


def make_estimation_states(rows: int) -> EstimationStates:
    [numbers] = Draws(torch.tensor([0]), 0).normal(Stream.ROWS, rows, OBSERVATIONS + ACTIONS)
    observations, actions = numbers.split([OBSERVATIONS, ACTIONS], dim=-1)
    stretch = STRETCH // HOP
    ends = torch.arange(stretch, rows)
    return EstimationStates(observations, actions.tanh(), ends, ends * 4 // rows, stretch)


def named(learner: Learner, part: str) -> dict[str, Tensor]:
    """Return a network's weights by name, [G, *shape]."""
    return {name: weight.detach() for name, weight in learner.networks[part].weights.items()}


def stored_settings() -> dict[str, dict[str, Any]]:
    """Return the content of `settings.json`: the default configuration with the paper's sizes."""
    from drcorl_ray.config.loading import load_config

    config = load_config(list(PAPER_SIZES))
    return {name: getattr(config, name).model_dump() for name in ("pretrain", "extract", "member", "evaluation")}


if __name__ == "__main__":
    SETTINGS.write_text(json.dumps(stored_settings(), indent=1) + "\n")
