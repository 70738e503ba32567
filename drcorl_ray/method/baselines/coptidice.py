"""COptiDICE (Lee et al. 2022): the stationary distribution close to the data's with the highest reward within a cost bound.

ν is the dual function of the reward, and w the ratio of the optimal distribution to the data's. λ is the price of the cost.
χ and the temperature τ give an upper bound on the cost. The policy imitates the data's actions, weighted by w.

Shapes: P members, B rows of a minibatch, S observation, A action.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drcorl_ray.method.baselines.base import Baseline, Losses, frozen
from drcorl_ray.method.baselines.parts import Scalar, SquashedGaussian, log_likelihood
from drcorl_ray.method.networks import MLP
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.policy.population import PopulationPolicy

_LEAST = 1e-10  # keeps ln w finite


def soft_chi(ratio: Tensor) -> Tensor:
    """Return the divergence's f(w), elementwise: w·(ln w − 1) + 1 below 1, ½(w − 1)² above."""
    below = ratio * (ratio.clamp(min=_LEAST).log() - 1.0) + 1.0
    return torch.where(ratio < 1.0, below, 0.5 * (ratio - 1.0).square())


def soft_chi_slope_inverse(slope: Tensor) -> Tensor:
    """Return (f′)⁻¹(y), elementwise: e^y below 0, y + 1 above."""
    return torch.where(slope < 0.0, slope.clamp(max=0.0).exp(), slope.clamp(min=0.0) + 1.0)


def tilted(values: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [P, B] ∝ exp(values/τ) with mean 1, and their KL divergence from uniform weights [P]; τ: [P]."""
    logits = values / temperature[:, None]
    log_weights = logits.log_softmax(1) + math.log(values.shape[1])
    return log_weights.exp(), (log_weights.exp() * log_weights).mean(1)


class COptiDICE(Baseline):
    def _start(self) -> None:
        spec, hidden = self.spec, tuple(self.shared.hidden)
        self._add("nu", MLP(spec.observation_size, hidden, 1))
        self._add("chi", MLP(spec.observation_size, hidden, 1))
        self._add("actor", SquashedGaussian(spec.observation_size, hidden, spec.action_size))
        self._add("price", Scalar(1.0))
        self._add("temperature", Scalar(1.0))

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        gamma, alpha = self.shared.discount, self.hyper["alpha"][:, None]
        going_on = gamma * (1.0 - batch.terminals)
        index = draws.integers(Stream.INITIAL_ROWS, batch.rewards.shape[1], len(self.starts))
        starts = self.starts[index]
        price, temperature = (F.softplus(self.networks[name].weights["value"][:, 0]) for name in ("price", "temperature"))

        # ν, and the ratio w.
        nu, nu_next, nu_start = self._values("nu", batch, starts)
        penalised = batch.rewards * self.reward_scale - price.detach()[:, None] * batch.costs
        advantage = penalised + going_on * nu_next - nu
        ratio = soft_chi_slope_inverse(advantage / alpha)
        values = {"nu": (1.0 - gamma) * nu_start.mean(1) + (ratio * advantage - alpha * soft_chi(ratio)).mean(1)}
        ratio = ratio.detach()

        # χ and τ: the upper bound on the cost.
        chi, chi_next, chi_start = self._values("chi", batch, starts)
        exponent = (1.0 - gamma) * chi_start + ratio * (batch.costs + going_on * chi_next - chi)
        weights, divergence = tilted(exponent.detach(), temperature.detach())
        cost_bound = (weights * ratio * batch.costs).mean(1)
        values["chi"] = (weights * exponent).mean(1)
        values["temperature"] = temperature * (self.hyper["cost_bound"] - divergence)

        # Price λ. The limit is per step: (1 − γ) times the cost-to-go.
        values["price"] = price * ((1.0 - gamma) * self.cost_threshold - cost_bound)

        # Policy.
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, batch.observations)
        likelihood = log_likelihood(mean, log_std, batch.actions)
        values["actor"] = -(ratio * likelihood).mean(1)
        metrics = {
            "adaptation/cost_estimate": cost_bound * self.spec.episode_length,
            "adaptation/multiplier": price.detach(),
            "baseline/ratio": ratio.mean(1),
            "baseline/temperature": temperature.detach(),
        }
        return Losses(values, metrics=metrics)

    def _values(self, name: str, batch: Batch, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the function's values at s, s' and initial states [P, B, S], [P, B] each."""
        function = self.networks[name]
        states = (batch.observations, batch.next_observations, starts)
        value, next_value, start_value = (function.network(function.weights, x).squeeze(-1) for x in states)
        return value, next_value, start_value

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(frozen(actor), observations)[0].tanh()

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")
