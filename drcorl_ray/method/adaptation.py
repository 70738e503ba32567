"""Safe adaptation: each member's cost estimate decides which gradient it follows (Algorithms 2 and 3, Eq. 12, Eq. 22).

Control flow is expressed by masks over the population: every rule yields weights of the reward and cost gradients, and a mask
of the members that combine the two by gradient manipulation. Shapes: P members, N policy weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ADAPTATIONS = ("gradient_manipulation", "crpo", "lagrangian")
REGIONS = ("safe", "band", "unsafe")


@dataclass(frozen=True)
class Decision:
    """The policy step of each member.

    reward_weight, cost_weight: the step follows reward_weight·∇Q_r − cost_weight·∇Q_c, [P]. band: members that follow Eq. 12
    instead, [P] bool. region: index into REGIONS, [P].
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
    """Choose each member's step by its normalised cost C [P] (Eq. 26); rule [P] is an index into ADAPTATIONS.

    gradient_manipulation: a reward step if C ≤ 1 − h⁻, Eq. 12 if C ≤ 1 + h⁺, else a cost step. crpo: a reward step if
    C ≤ 1 + h⁺, else a cost step. lagrangian: always Q_r − λQ_c; its region only reports whether C ≤ 1. A cost step keeps the
    reward's gradient with the weight `cost_step_reward_weight` (0 in the paper, D13). A NaN cost counts as unsafe.
    """
    manipulation, crpo, lagrangian = (rule == index for index in range(len(ADAPTATIONS)))
    upper = torch.where(lagrangian, torch.ones_like(cost), 1.0 + slack_plus)
    lower = torch.where(manipulation, 1.0 - slack_minus, upper)
    unsafe = ~(cost <= upper)
    band = ~unsafe & ~(cost <= lower)
    cost_step = unsafe & (manipulation | crpo)
    reward_weight = torch.where(cost_step, torch.full_like(cost, cost_step_reward_weight), torch.ones_like(cost))
    cost_weight = torch.where(lagrangian, multiplier, cost_step.to(cost.dtype))
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
    """Combine each member's whole policy gradients [P, N] by Eq. 12.

    If they conflict, each loses its projection on the other; the result is their mean [P, N].
    """
    dot = (gradient_r * gradient_c).sum(-1, keepdim=True)
    conflict = dot < 0
    tiny = torch.finfo(dot.dtype).tiny
    square_r, square_c = (g.square().sum(-1, keepdim=True).clamp(min=tiny) for g in (gradient_r, gradient_c))
    scale_r = torch.where(conflict, dot / square_c, torch.zeros_like(dot))
    scale_c = torch.where(conflict, dot / square_r, torch.zeros_like(dot))
    return 0.5 * ((gradient_r - scale_r * gradient_c) + (gradient_c - scale_c * gradient_r))


@dataclass
class Multiplier:
    """The PID-controlled multiplier λ ≥ 0 of Eq. 22 (Stooke et al. 2020); all tensors are [P]."""

    value: Tensor
    integral: Tensor
    previous_cost: Tensor

    @classmethod
    def start(cls, like: Tensor) -> Multiplier:
        """Return λ = 0 with an empty history; the first cost counts as not risen."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.full_like(like, torch.inf))

    def update(self, cost: Tensor, *, proportional: Tensor, integral: Tensor, derivative: Tensor) -> None:
        """Take a control step on the normalised cost C [P]: error C − 1, integral ≥ 0, derivative only of a rising cost."""
        error = cost - 1.0
        rise = (cost - self.previous_cost).clamp(min=0.0)
        self.integral.add_(error).clamp_(min=0.0)
        self.value.copy_((proportional * error + integral * self.integral + derivative * rise).clamp(min=0.0))
        self.previous_cost.copy_(cost)

    def select(self, index: Tensor) -> Multiplier:
        return Multiplier(self.value[index], self.integral[index], self.previous_cost[index])

    def join(self, other: Multiplier) -> Multiplier:
        return Multiplier(*(torch.cat([mine, vars(other)[name]]) for name, mine in vars(self).items()))
