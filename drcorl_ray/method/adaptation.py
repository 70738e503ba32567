"""Safe adaptation: which gradient a member follows, decided by its cost estimate (Algorithms 2 and 3, Eq. 12, Eq. 22).

Control flow is masks over the population: every rule yields weights of the reward and cost gradients and a mask of the
members whose two gradients are to be manipulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ADAPTATIONS = ("gradient_manipulation", "crpo", "lagrangian")
REGIONS = ("safe", "band", "unsafe")


@dataclass(frozen=True)
class Decision:
    """reward_weight, cost_weight [P]: the step follows weight_r·∇Q_r − weight_c·∇Q_c, or Eq. 12 where `band` [P] is true.

    region: [P] index into REGIONS.
    """

    reward_weight: Tensor
    cost_weight: Tensor
    band: Tensor
    region: Tensor


def decide(
    cost: Tensor,
    rule: Tensor,
    multiplier: Tensor,
    *,
    slack_plus: Tensor,
    slack_minus: Tensor,
    cost_step_reward_weight: float,
) -> Decision:
    """The step of each member for its normalised cost C [P] (Eq. 26); rule [P] indexes ADAPTATIONS.

    gradient_manipulation: reward while C ≤ 1 − h⁻, Eq. 12 while C ≤ 1 + h⁺, cost beyond. crpo: reward while C ≤ 1 + h, cost
    beyond. lagrangian: Q_r − λQ_c always; its region only reports C ≤ 1. A cost step keeps `cost_step_reward_weight` of the
    reward's gradient (0 in the print, D13).
    """
    manipulation, crpo, lagrangian = (rule == index for index in range(len(ADAPTATIONS)))
    upper = torch.where(lagrangian, torch.ones_like(cost), 1.0 + slack_plus)
    lower = torch.where(manipulation, 1.0 - slack_minus, upper)
    unsafe = ~(cost <= upper)
    band = ~unsafe & ~(cost <= lower)
    pays_cost = unsafe & (manipulation | crpo)
    reward_weight = torch.where(pays_cost, torch.full_like(cost, cost_step_reward_weight), torch.ones_like(cost))
    cost_weight = torch.where(lagrangian, multiplier, pays_cost.to(cost.dtype))
    return Decision(reward_weight, cost_weight, band, band.long() + 2 * unsafe.long())


def combine(reward: Tensor, cost: Tensor, behaviour: Tensor, decision: Decision) -> tuple[Tensor, Tensor]:
    """The members' ascent directions [P, N], and whether their reward and cost gradients conflict [P] (Eq. 12, 20-23).

    reward, cost, behaviour: weighted ascent directions [P, N] of Q_r, of Q_c and of log μ.
    """
    single = decision.reward_weight[:, None] * reward - decision.cost_weight[:, None] * cost + behaviour
    gradient_r, gradient_c = reward + behaviour, behaviour - cost
    both = manipulate(gradient_r, gradient_c)
    return torch.where(decision.band[:, None], both, single), (gradient_r * gradient_c).sum(-1) < 0


def manipulate(gradient_r: Tensor, gradient_c: Tensor) -> Tensor:
    """Eq. 12 on whole policy gradients [P, N], per member: the mean of both, each freed of its conflict with the other."""
    dot = (gradient_r * gradient_c).sum(-1, keepdim=True)
    conflict = dot < 0
    tiny = torch.finfo(dot.dtype).tiny
    square_r, square_c = (g.square().sum(-1, keepdim=True).clamp(min=tiny) for g in (gradient_r, gradient_c))
    scale_r = torch.where(conflict, dot / square_c, torch.zeros_like(dot))
    scale_c = torch.where(conflict, dot / square_r, torch.zeros_like(dot))
    return 0.5 * ((gradient_r - scale_r * gradient_c) + (gradient_c - scale_c * gradient_r))


@dataclass
class Multiplier:
    """The PID-controlled multiplier λ ≥ 0 of Eq. 22 (Stooke et al. 2020); all tensors [P]."""

    value: Tensor
    integral: Tensor
    previous_cost: Tensor

    @classmethod
    def start(cls, like: Tensor) -> Multiplier:
        """λ = 0 with an empty history (no cost seen: nothing has risen yet)."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.full_like(like, torch.inf))

    def update(self, cost: Tensor, *, proportional: Tensor, integral: Tensor, derivative: Tensor) -> None:
        """One control step on the normalised cost: error C − 1, integral kept ≥ 0, derivative of a rising cost alone."""
        error = cost - 1.0
        rise = (cost - self.previous_cost).clamp(min=0.0)
        self.integral.add_(error).clamp_(min=0.0)
        self.value.copy_((proportional * error + integral * self.integral + derivative * rise).clamp(min=0.0))
        self.previous_cost.copy_(cost)

    def select(self, index: Tensor) -> Multiplier:
        return Multiplier(self.value[index], self.integral[index], self.previous_cost[index])

    def join(self, other: Multiplier) -> Multiplier:
        return Multiplier(*(torch.cat([mine, vars(other)[name]]) for name, mine in vars(self).items()))
