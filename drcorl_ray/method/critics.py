"""Critic losses as pure functions, per member: IQL for the reward (Eq. 17-18), a pessimistic ensemble for the cost (Eq. 19,
24-25).

Shapes: P members, E critics of an ensemble, B rows of a minibatch; values and rewards are [P, B], ensembles [P, E, B]. The
caller must detach the targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drcorl_ray.method.networks import Weights
from drcorl_ray.method.train_state import TrainState


def ensemble_q(critic: TrainState, weights: Weights, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_i(s, a) of every critic of every member, [P, E, B], for s [P, B, S] and a [P, B, A]."""
    inputs = torch.cat([observations, actions], dim=-1)
    inputs = inputs.unsqueeze(1).expand(-1, critic.copies, -1, -1).flatten(0, 1)
    return critic.network(weights, inputs).squeeze(-1).unflatten(0, (-1, critic.copies))


def expectile_loss(difference: Tensor, *, expectile: float) -> Tensor:
    """Return L₂^τ(u) = |τ − 1(u < 0)|·u², elementwise (Eq. 17)."""
    return torch.where(difference < 0, 1.0 - expectile, expectile) * difference.square()


def value_loss(target_q: Tensor, value: Tensor, *, expectile: float) -> Tensor:
    """Return the loss of Eq. 17 [P]: expectile regression of V(s) [P, B] on the minimum of the two target Qs [P, 2, B]."""
    return expectile_loss(target_q.amin(1) - value, expectile=expectile).mean(-1)


def q_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return the squared error [P] of an ensemble [P, E, B] to targets [P, E, B] or [P, 1, B]: mean over B, sum over E."""
    return (target - q).square().mean(-1).sum(-1)


def reward_target(rewards: Tensor, terminals: Tensor, next_values: Tensor, *, discount: float) -> Tensor:
    """Return R + γ(1 − d)V(s') [P, 1, B] for the twin Qs (Eq. 18): a terminal stops the bootstrap, a timeout does not."""
    return (rewards + discount * (1.0 - terminals) * next_values).unsqueeze(1)


def cost_target(
    costs: Tensor, terminals: Tensor, next_q: Tensor, *, discount: float, ceiling: float | None, terminal_value: float
) -> Tensor:
    """Return C + γ(1 − d)Q_c(s', a') [P, E, B]: each critic has its own target (Eq. 19, where the paper has r for C).

    ceiling: upper end of the clamp [0, ceiling] of the bootstrap, None for no clamp (D10). terminal_value: the value of the
    state after a terminal, 0 in the paper (D11).
    """
    if ceiling is not None:
        next_q = next_q.clamp(0.0, ceiling)
    terminals = terminals.unsqueeze(1)
    return costs.unsqueeze(1) + discount * ((1.0 - terminals) * next_q + terminals * terminal_value)


def pessimism(q_of_policy: Tensor, *, alpha: Tensor | float) -> Tensor:
    """Return −α·Q_c(s, π(s)) [P], the second term of Eq. 19; minimising it raises the estimate at the policy's actions."""
    return -alpha * q_of_policy.mean(-1).sum(-1)


def in_use(counts: Tensor, critics: int) -> Tensor:
    """Return which of the E critics each member uses, [P, E, 1] bool: its first `counts` [P]."""
    return (torch.arange(critics, device=counts.device) < counts[:, None]).unsqueeze(-1)


def ensemble_moments(q: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the population std, [P, B] each, of an ensemble [P, E, B] over the critics in use [P, E, 1].

    The std of a single critic is 0.
    """
    counts = used.sum(1, dtype=q.dtype)
    mean = (q * used).sum(1) / counts
    q = torch.where(used, q, mean.unsqueeze(1))  # keeps the mean and the sum of squared deviations
    return q.mean(1), q.std(1, correction=0) * (q.shape[1] / counts).sqrt()


def upper_confidence_bound(q: Tensor, used: Tensor, *, k: Tensor) -> Tensor:
    """Return Eq. 24, mean + k·std [P, B], of an ensemble [P, E, B] over the critics in use [P, E, 1]; k [P]."""
    mean, std = ensemble_moments(q, used)
    return mean + k[:, None] * std


def episodic_cost(q_cost: Tensor, *, discount: float, episode_length: int) -> Tensor:
    """Return V̂_c·(1 − γ)·L [P] (App. B.1): the mean of state estimates [P, B], scaled to an undiscounted episode cost."""
    return q_cost.mean(-1) * (1.0 - discount) * episode_length
