"""Finite constrained Markov decision processes (CMDPs): values, occupancies, and the exact optimum by a linear program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


@dataclass(frozen=True)
class CMDP:
    """A finite CMDP with S states and A actions.

    transitions: P(s'|s, a) [S, A, S]. rewards, costs: [S, A] in [0, 1]. start: the start distribution ρ [S]. discount: γ.
    A policy is [S, A] with rows that sum to 1. Values are discounted sums, not scaled by 1 − γ.
    """

    transitions: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    start: np.ndarray
    discount: float

    def q_values(self, policy: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Return Q^π [S, A]; `signal` [S, A] is the rewards or the costs."""
        states = len(self.start)
        chain = np.einsum("sa,san->sn", policy, self.transitions)
        values = np.linalg.solve(np.eye(states) - self.discount * chain, (policy * signal).sum(1))
        return signal + self.discount * self.transitions @ values

    def value(self, policy: np.ndarray, signal: np.ndarray) -> float:
        """Return V^π(ρ); `signal` [S, A] is the rewards or the costs."""
        return float(self.start @ (policy * self.q_values(policy, signal)).sum(1))

    def optimum(self, budget: float | None = None) -> tuple[float, np.ndarray]:
        """Return the largest V_r(ρ) over all policies with V_c(ρ) ≤ budget (None: no limit), and a policy that attains it.

        The linear program is over occupancies x(s, a) ≥ 0 with Σ_a x(s, a) = ρ(s) + γ Σ P(s|s', a')·x(s', a'). Raise
        ValueError if no policy satisfies the budget.
        """
        states, actions = self.rewards.shape
        flow = np.repeat(np.eye(states), actions, axis=1)
        flow = flow - self.discount * self.transitions.reshape(states * actions, states).T
        limit = {} if budget is None else {"A_ub": self.costs.ravel()[None], "b_ub": [budget]}
        solution = linprog(-self.rewards.ravel(), A_eq=flow, b_eq=self.start, method="highs", **limit)
        if not solution.success:
            raise ValueError(f"no policy costs at most {budget} ({solution.message})")
        occupancy = solution.x.reshape(states, actions).clip(min=0.0)
        visits = occupancy.sum(1, keepdims=True)
        uniform = np.full_like(occupancy, 1.0 / actions)
        return -float(solution.fun), np.divide(occupancy, visits, out=uniform, where=visits > 1e-12)


def random_cmdp(seed: int, states: int = 8, actions: int = 4, discount: float = 0.8) -> CMDP:
    """Draw a CMDP with Dirichlet transitions, uniform rewards, and costs that follow the rewards, so that a budget binds."""
    generator = np.random.default_rng(seed)
    transitions = generator.dirichlet(np.full(states, 0.5), (states, actions))
    rewards = generator.uniform(size=(states, actions))
    costs = 0.7 * rewards + 0.3 * generator.uniform(size=(states, actions))
    return CMDP(transitions, rewards, costs, generator.dirichlet(np.ones(states)), discount)


def random_policy(generator: np.random.Generator, states: int, actions: int) -> np.ndarray:
    return generator.dirichlet(np.ones(actions), states)
