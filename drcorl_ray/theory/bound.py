"""Proposition 3.1: the cost of a policy near the behaviour policy is bounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drcorl_ray.theory.cmdp import CMDP


@dataclass(frozen=True)
class CostBound:
    """V_c(π̃), V_c(π_b) and two forms of the bound of Eq. 13.

    printed: as in the paper, where ε_adv may be negative. proved: with |ε_adv|, as in the proof.
    """

    value: float
    behaviour: float
    printed: float
    proved: float


def cost_bound(cmdp: CMDP, policy: np.ndarray, behaviour: np.ndarray) -> CostBound:
    """Compute both sides of Eq. 13 for a policy π̃ and the behaviour policy π_b, each [S, A] without zeros."""
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


def near(generator: np.random.Generator, behaviour: np.ndarray, distance: float) -> np.ndarray:
    """Draw a random policy [S, A] with |ln π/π_b| of about `distance` (Assumption A.1)."""
    unnormalised = behaviour * np.exp(distance * generator.standard_normal(behaviour.shape))
    return unnormalised / unnormalised.sum(1, keepdims=True)
