"""The offline estimate of a policy's episode cost from the cost critics (Eq. 24-25, App. B.1).

P members, E cost critics, K states per member, S observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from drcorl_ray.method import critics
from drcorl_ray.method.train_state import TrainState

_ROWS_AT_ONCE = 256


class Horizon(TypedDict):
    """Discount of the cost critics and length of an episode in steps: what turns Q_c into an episode cost."""

    discount: float
    episode_length: int


def upper_estimate(
    q_cost: TrainState, used: Tensor, states: Tensor, actions: Tensor, *, k: Tensor, discount: float, episode_length: int
) -> Tensor:
    """Mean over states [P, K, S] of the critics' upper bound with actions [P, K, A], as an episode cost [P]."""
    q = critics.ensemble_q(q_cost, q_cost.target, states, actions)
    bound = critics.upper_confidence_bound(q, used, k=k)
    return critics.episodic_cost(bound, discount=discount, episode_length=episode_length)


def estimate_moments(
    q_cost: TrainState,
    used: Tensor,
    states: Tensor,
    act: Callable[[Tensor], Tensor],
    *,
    discount: float,
    episode_length: int,
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the estimated episode cost over states [P, K, S], [P] each.

    The estimate with any k is mean + k · deviation. act: the policies, [P, B, S] → [P, B, A].
    """
    parts = [
        critics.ensemble_moments(critics.ensemble_q(q_cost, q_cost.target, some, act(some)), used)
        for some in states.split(_ROWS_AT_ONCE, dim=1)
    ]
    mean, deviation = (
        critics.episodic_cost(torch.cat(part, dim=-1), discount=discount, episode_length=episode_length)
        for part in zip(*parts, strict=True)
    )
    return mean, deviation


def running_mean(average: Tensor, count: Tensor, value: Tensor, *, decay: float) -> Tensor:
    """Update the exponential average [P] of `count` values in place and return it without its start-up bias (D16)."""
    count += 1
    average.lerp_(value, 1.0 - decay)
    return average / (1.0 - decay**count).to(average.dtype)
