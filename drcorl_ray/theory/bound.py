"""Proposition 3.1: near the behaviour policy the cost is near the behaviour's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drcorl_ray.theory.cmdp import CMDP


@dataclass(frozen=True)
class CostBound:
    """V_c(π̃), V_c(π_b), and the bounds of Eq. 13: as printed, where ε_adv may be negative, and with |ε_adv| as proved."""

    value: float
    behaviour: float
    printed: float
    proved: float


def cost_bound(cmdp: CMDP, policy: np.ndarray, behaviour: np.ndarray) -> CostBound:
    """Both sides of Eq. 13 for a policy π̃ and the behaviour π_b, [S, A] each with no zeros."""
    ratio = np.log(policy / behaviour)
    distance = max(float((policy * ratio).sum(1).max()), float(-(behaviour * ratio).sum(1).min()))
    q = cmdp.q_values(policy, cmdp.costs)
    advantage = (behaviour * (q - (policy * q).sum(1, keepdims=True))).sum(1)
    base, gamma = cmdp.value(behaviour, cmdp.costs), cmdp.discount
    printed, proved = (
        base + (cmdp.costs.max() + gamma * worst) * np.sqrt(2.0 * distance) / (1.0 - gamma) ** 2
        for worst in (float(advantage.max()), float(np.abs(advantage).max()))
    )
    return CostBound(cmdp.value(policy, cmdp.costs), base, printed, proved)


def near(generator: np.random.Generator, behaviour: np.ndarray, reach: float) -> np.ndarray:
    """A random policy with |ln π/π_b| of about `reach` (Assumption A.1)."""
    raised = behaviour * np.exp(reach * generator.standard_normal(behaviour.shape))
    return raised / raised.sum(1, keepdims=True)
