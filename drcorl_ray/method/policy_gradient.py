"""The parts of the policy gradient (Eq. 23): ascent directions of the reward, of the cost and of log μ.

Shapes: P members, B rows of a minibatch, S observation, A action, E cost critics, N weights of one member's policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drcorl_ray.method import critics
from drcorl_ray.method.train_state import TrainState


def action_gradients(
    q_reward: TrainState, q_cost: TrainState, used: Tensor, observations: Tensor, actions: Tensor, *, k: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ∇_a of min Q_r and of the cost's upper bound (Eq. 24), [P, B, A] each, from the target critics.

    used: mask of the cost critics in use [P, E, 1]. k: [P].
    """
    leaf = actions.detach().requires_grad_()

    # Reward.
    q_r = critics.ensemble_q(q_reward, q_reward.target, observations, leaf).amin(1)
    (by_reward,) = torch.autograd.grad(q_r.sum(), leaf)

    # Cost.
    q_c = critics.ensemble_q(q_cost, q_cost.target, observations, leaf)
    (by_cost,) = torch.autograd.grad(critics.upper_confidence_bound(q_c, used, k=k).sum(), leaf)
    return by_reward, by_cost


def policy_gradients(actor: TrainState, surrogates: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient [P, N] of each surrogate [P, B], averaged over the rows, by the actor's weights."""
    leaves = list(actor.weights.values())
    gradients = [torch.autograd.grad(surrogate.mean(-1).sum(), leaves, retain_graph=True) for surrogate in surrogates]
    return [torch.cat([g.flatten(1) for g in gradient], dim=1) for gradient in gradients]
