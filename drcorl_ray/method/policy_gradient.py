"""The parts of the policy gradient (Eq. 23): ascent directions of the reward, of the cost and of log μ.

P members, B rows of a minibatch, A actions, N weights of one member's policy.
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
    """∇_a min Q_r and ∇_a of the cost's upper bound (Eq. 24), [P, B, A] each, from the target critics."""
    at = actions.detach().requires_grad_()
    q_r = critics.ensemble_q(q_reward, q_reward.target, observations, at).amin(1)
    q_c = critics.ensemble_q(q_cost, q_cost.target, observations, at)
    q_c = critics.upper_confidence_bound(q_c, used, k=k)
    (for_reward,) = torch.autograd.grad(q_r.sum(), at)
    (for_cost,) = torch.autograd.grad(q_c.sum(), at)
    return for_reward, for_cost


def policy_gradients(actor: TrainState, surrogates: Sequence[Tensor]) -> list[Tensor]:
    """Gradients [P, N] of each surrogate [P, B], averaged over the rows, with respect to the actor's weights."""
    leaves = list(actor.weights.values())
    gradients = [torch.autograd.grad(each.mean(-1).sum(), leaves, retain_graph=True) for each in surrogates]
    return [torch.cat([g.flatten(1) for g in gradient], dim=1) for gradient in gradients]
