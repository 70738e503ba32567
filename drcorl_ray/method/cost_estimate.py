"""The offline estimate of a policy's episode cost from the cost critics (Eq. 24-25, App. B.1).

Shapes: P members, E cost critics, K states per member, B rows, S observation, A action. `used` is the mask [P, E, 1] of the
cost critics in use.
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
    """Discount of the cost critics and length of an episode in steps, which convert Q_c into an episode cost."""

    discount: float
    episode_length: int


def upper_estimate(
    q_cost: TrainState, used: Tensor, states: Tensor, actions: Tensor, *, k: Tensor, discount: float, episode_length: int
) -> Tensor:
    """Return the mean over states [P, K, S] of the UCB at actions [P, K, A], as an episode cost [P]; k: [P]."""
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
    """Return the mean and std over the critics of the episode cost on states [P, K, S], [P] each.

    The estimate with any k is mean + k · std. act: the policies, [P, B, S] → [P, B, A].
    """
    parts = [
        critics.ensemble_moments(critics.ensemble_q(q_cost, q_cost.target, chunk, act(chunk)), used)
        for chunk in states.split(_ROWS_AT_ONCE, dim=1)
    ]
    mean, std = (
        critics.episodic_cost(torch.cat(part, dim=-1), discount=discount, episode_length=episode_length)
        for part in zip(*parts, strict=True)
    )
    return mean, std


def running_mean(average: Tensor, count: Tensor, value: Tensor, *, decay: float) -> Tensor:
    """Add a value [P] to the exponential average [P] of `count` values, in place; return it bias-corrected (D16)."""
    count += 1
    average.lerp_(value, 1.0 - decay)
    return average / (1.0 - decay**count).to(average.dtype)
