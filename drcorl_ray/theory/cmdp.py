"""Finite constrained Markov decision processes: values, occupancies and the exact optimum by a linear program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True)
class CMDP:
    """transitions [S, A, S], rewards and costs [S, A] in [0, 1], start [S], discount γ.

    A policy is [S, A], its rows sum to 1. Values are discounted sums, not scaled by 1 − γ.
    """

    transitions: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    start: np.ndarray
    discount: float

    def q_values(self, policy: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Q^π [S, A] of rewards or costs [S, A]."""
        states = len(self.start)
        chain = np.einsum("sa,san->sn", policy, self.transitions)
        values = np.linalg.solve(np.eye(states) - self.discount * chain, (policy * signal).sum(1))
        return signal + self.discount * self.transitions @ values

    def value(self, policy: np.ndarray, signal: np.ndarray) -> float:
        """V^π(ρ)."""
        return float(self.start @ (policy * self.q_values(policy, signal)).sum(1))

    def optimum(self, budget: float | None = None) -> tuple[float, np.ndarray]:
        """The largest V_r(ρ) of a policy with V_c(ρ) ≤ budget (None: any), and that policy; ValueError where there is none.

        Over occupancies x(s, a) ≥ 0 with Σ_a x(s, a) = ρ(s) + γ Σ P(s|s', a')·x(s', a').
        """
        states, actions = self.rewards.shape
        flow = np.repeat(np.eye(states), actions, axis=1)
        flow = flow - self.discount * self.transitions.reshape(states * actions, states).T
        limit = {} if budget is None else {"A_ub": self.costs.ravel()[None], "b_ub": [budget]}
        found = linprog(-self.rewards.ravel(), A_eq=flow, b_eq=self.start, method="highs", **limit)
        if not found.success:
            raise ValueError(f"no policy costs at most {budget} ({found.message})")
        occupancy = found.x.reshape(states, actions).clip(min=0.0)
        reached = occupancy.sum(1, keepdims=True)
        uniform = np.full_like(occupancy, 1.0 / actions)
        return -float(found.fun), np.divide(occupancy, reached, out=uniform, where=reached > 1e-12)


def random_cmdp(seed: int, states: int = 8, actions: int = 4, discount: float = 0.8) -> CMDP:
    """Dirichlet transitions; rewards uniform, and costs that lean to where rewards are, so that a budget binds."""
    generator = np.random.default_rng(seed)
    transitions = generator.dirichlet(np.full(states, 0.5), (states, actions))
    rewards = generator.uniform(size=(states, actions))
    costs = 0.7 * rewards + 0.3 * generator.uniform(size=(states, actions))
    return CMDP(transitions, rewards, costs, generator.dirichlet(np.ones(states)), discount)


def random_policy(generator: np.random.Generator, states: int, actions: int) -> np.ndarray:
    return generator.dirichlet(np.ones(actions), states)
