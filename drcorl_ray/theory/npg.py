"""Algorithm 3 with natural policy gradients of a softmax policy (Eq. 14, 36), and the weighted policy of Eq. 46.

The natural gradient of V(ρ) is the advantage / (1 − γ) (Kakade 2001), so Eq. 12 mixes advantages. With noise, the algorithm
uses critics with the error ε_offline; the reported values of its policies are always exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from drcorl_ray.theory.cmdp import CMDP

Region = Literal["safe", "align", "conflict", "unsafe"]


@dataclass(frozen=True)
class Step:
    """An iteration: the region of its policy, the policy's weight in π̃ (Eq. 46), and its exact values V_r(ρ) and V_c(ρ)."""

    region: Region
    weight: float
    reward_value: float
    cost_value: float


@dataclass(frozen=True)
class Outcome:
    """The T iterations, and the weighted policy's gap V_r* − E[V_r(π̃)] and violation E[V_c(π̃)] − b."""

    steps: tuple[Step, ...]
    gap: float
    violation: float

    @property
    def shares(self) -> dict[str, float]:
        """The share of the iterations in each region."""
        regions = [step.region for step in self.steps]
        return {name: regions.count(name) / len(regions) for name in ("safe", "align", "conflict", "unsafe")}


def safe_adaptation(
    cmdp: CMDP,
    budget: float,
    iterations: int,
    *,
    noise: float = 0.0,
    seed: int = 0,
    learning_rate: float = 10.0,
    slack: float = 0.5,
) -> Outcome:
    """Run Algorithm 3 for T iterations from the uniform policy.

    The theorem's choices are used: η = learning_rate·(1 − γ)/√T, h⁺ = slack/√T and h⁻ = 0. noise: ε_offline, the mean absolute
    error of a critic's entry. The errors are Gaussian, independent between entries and equal in all iterations, like the
    errors of critics trained on a fixed dataset.
    """
    generator = np.random.default_rng(seed)
    best, _ = cmdp.optimum(budget)
    rate, slack_plus = learning_rate * (1.0 - cmdp.discount) / np.sqrt(iterations), slack / np.sqrt(iterations)
    errors = noise * np.sqrt(np.pi / 2.0) * generator.standard_normal((2, *cmdp.rewards.shape))
    logits = np.zeros_like(cmdp.rewards)
    steps = []
    for _ in range(iterations):
        policy = softmax(logits)
        exact = [cmdp.q_values(policy, signal) for signal in (cmdp.rewards, cmdp.costs)]
        seen_r, seen_c = (q + error for q, error in zip(exact, errors, strict=True))
        estimate = float(cmdp.start @ (policy * seen_c).sum(1))
        region, weight, direction = adapted(
            natural_gradient(seen_r, policy, cmdp), -natural_gradient(seen_c, policy, cmdp), estimate - budget, slack_plus
        )
        values = [float(cmdp.start @ (policy * q).sum(1)) for q in exact]
        steps.append(Step(region, weight, *values))
        logits = logits + rate * direction
    return Outcome(tuple(steps), *_weighted_values(steps, best, budget))


def natural_gradient(q: np.ndarray, policy: np.ndarray, cmdp: CMDP) -> np.ndarray:
    """Return F⁺∇V(ρ) of the softmax policy, which is A(s, a)/(1 − γ), [S, A]."""
    return (q - (policy * q).sum(1, keepdims=True)) / (1.0 - cmdp.discount)


def adapted(
    toward_reward: np.ndarray, toward_safety: np.ndarray, excess: float, slack_plus: float
) -> tuple[Region, float, np.ndarray]:
    """Return Algorithm 3's region at the estimated excess V_c − b, the iteration's weight, and the direction (Eq. 12).

    The weight is the share of the reward's gradient in the direction: 1 (safe), ½ (align), ½ − ⟨g_r, g_c⟩/(2‖g_r‖²)
    (conflict), 0 (unsafe). The paper's Eq. 46 omits the first and has the third without the factor 2.
    """
    if excess <= 0.0:
        return "safe", 1.0, toward_reward
    if excess > slack_plus:
        return "unsafe", 0.0, toward_safety
    dot = float((toward_reward * toward_safety).sum())
    if dot >= 0.0:
        return "align", 0.5, 0.5 * (toward_reward + toward_safety)
    share_r, share_c = (0.5 - dot / (2.0 * float((g * g).sum())) for g in (toward_reward, toward_safety))
    return "conflict", share_r, share_r * toward_reward + share_c * toward_safety


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _weighted_values(steps: list[Step], best: float, budget: float) -> tuple[float, float]:
    """Return the gap and the violation of π̃, NaN if all weights are 0.

    π̃ draws an iteration with probability proportional to its weight and follows its policy, so its values are weighted means.
    """
    weights = np.array([step.weight for step in steps])
    if not weights.sum():
        return float("nan"), float("nan")
    reward, cost = (
        np.average([getattr(step, f"{name}_value") for step in steps], weights=weights) for name in ("reward", "cost")
    )
    return best - float(reward), float(cost) - budget
