"""Critic losses, per member and pure: IQL for the reward (Eq. 17-18), a pessimistic ensemble for the cost (Eq. 19, 24-25).

Shapes: values and rewards [P, B], ensembles [P, E, B]. There is no [B, 1] anywhere. Targets must be detached by the caller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drcorl_ray.method.networks import Weights
from drcorl_ray.method.train_state import Trainable


def ensemble_q(critic: Trainable, weights: Weights, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_i(s, a) of every critic of every member, [P, E, B], for s [P, B, S] and a [P, B, A]."""
    inputs = torch.cat([observations, actions], dim=-1)
    inputs = inputs.unsqueeze(1).expand(-1, critic.copies, -1, -1).flatten(0, 1)
    return critic.network(weights, inputs).squeeze(-1).unflatten(0, (-1, critic.copies))


def expectile_loss(difference: Tensor, *, expectile: float) -> Tensor:
    """L₂^τ(u) = |τ − 1(u < 0)|·u², elementwise (Eq. 17)."""
    return torch.where(difference < 0, 1.0 - expectile, expectile) * difference.square()


def value_loss(target_q: Tensor, value: Tensor, *, expectile: float) -> Tensor:
    """Eq. 17: expectile regression of V(s) [P, B] on min of the two target Qs [P, 2, B]; → [P]."""
    return expectile_loss(target_q.amin(1) - value, expectile=expectile).mean(-1)


def q_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of an ensemble [P, E, B] to targets [P, E, B] or [P, 1, B], averaged over B, summed over E; → [P]."""
    return (target - q).square().mean(-1).sum(-1)


def reward_target(rewards: Tensor, terminals: Tensor, next_values: Tensor, *, discount: float) -> Tensor:
    """R + γ(1 − d)V(s'), [P, 1, B] for the twin Qs (Eq. 18): a terminal cuts the bootstrap, a timeout does not."""
    return (rewards + discount * (1.0 - terminals) * next_values).unsqueeze(1)


def cost_target(
    costs: Tensor, terminals: Tensor, next_q: Tensor, *, discount: float, ceiling: float | None, terminal_value: float
) -> Tensor:
    """C + γ(1 − d)Q_c(s', a'), each critic on its own target [P, E, B] (Eq. 19, whose print says r).

    ceiling: upper end of the clamp [0, ceiling] on the bootstrap, None for no clamp (D10). terminal_value: what follows a
    terminal, 0 in the print (D11).
    """
    if ceiling is not None:
        next_q = next_q.clamp(0.0, ceiling)
    terminals = terminals.unsqueeze(1)
    return costs.unsqueeze(1) + discount * ((1.0 - terminals) * next_q + terminals * terminal_value)


def pessimism(q_of_policy: Tensor, *, alpha: Tensor | float) -> Tensor:
    """−α·Q_c(s, π(s)), the loss's second term (Eq. 19): minimising it raises the estimate on the policy's actions; → [P]."""
    return -alpha * q_of_policy.mean(-1).sum(-1)


def in_use(counts: Tensor, critics: int) -> Tensor:
    """Which of E critics a member uses: its first `counts` [P]; → [P, E, 1] bool."""
    return (torch.arange(critics, device=counts.device) < counts[:, None]).unsqueeze(-1)


def ensemble_moments(q: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std of an ensemble [P, E, B] over the critics in use [P, E, 1]; → [P, B] each, of one critic 0."""
    counts = used.sum(1, dtype=q.dtype)
    mean = (q * used).sum(1) / counts
    q = torch.where(used, q, mean.unsqueeze(1))  # leaves the mean, and adds nothing to the sum of squared deviations
    return q.mean(1), q.std(1, correction=0) * (q.shape[1] / counts).sqrt()


def upper_confidence_bound(q: Tensor, used: Tensor, *, k: Tensor) -> Tensor:
    """Eq. 24: mean + k·std over the critics in use [P, E, 1] of an ensemble [P, E, B], k [P]; → [P, B]."""
    mean, std = ensemble_moments(q, used)
    return mean + k[:, None] * std


def episodic_cost(q_cost: Tensor, *, discount: float, episode_length: int) -> Tensor:
    """App. B.1: V̂_c·(1 − γ)·L, the mean of [P, B] state estimates as an undiscounted episode cost; → [P]."""
    return q_cost.mean(-1) * (1.0 - discount) * episode_length
