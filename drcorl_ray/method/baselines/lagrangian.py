"""BCQ-Lag and BEAR-Lag: Q-learning close to the data's actions (Fujimoto et al. 2019, Kumar et al. 2019), with a cost critic
whose weight in the policy's objective is a PID-controlled multiplier (Stooke et al. 2020).

Shapes: P members, B rows of a minibatch, M = `sampled_actions`, S observation, A action.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.method.adaptation import Multiplier
from drcorl_ray.method.baselines.base import Baseline, Losses, frozen, repeated
from drcorl_ray.method.baselines.parts import SquashedGaussian, mmd, soft_clipped, vae_loss
from drcorl_ray.method.critics import ensemble_q
from drcorl_ray.method.interfaces import Metrics
from drcorl_ray.method.networks import MLP
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.mlp import MLPPolicy, Perturbation
from drcorl_ray.policy.population import PopulationPolicy

_LOG_WEIGHT_RANGE = (-5.0, 5.0)


class Lagrangian(Baseline):
    """The common part: the VAE, twin critics that bootstrap from the best of M sampled next actions, and the multiplier."""

    statistic_names = ("excess",)

    def _start(self) -> None:
        self.vae = self._add_vae_and_critics()
        self._add_actor()
        start = Multiplier.start(self.hyper["cost_limit"])
        self.scalars |= {f"multiplier.{name}": x for name, x in vars(start).items()}

    @abstractmethod
    def _add_actor(self) -> None: ...

    @abstractmethod
    def _next_actions(self, states: Tensor, draws: Draws, rows: int) -> Tensor:
        """Return the target policy's actions [P, B · M, A] for repeated states [P, B · M, S]; rows: B."""

    @abstractmethod
    def _policy(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Return the actions [P, B, A] of the policy's objective, a penalty on them [P], and statistics for `adjust` [P]."""

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        observations, rows = batch.observations, batch.rewards.shape[1]
        q_reward, q_cost = self.networks["q_reward"], self.networks["q_cost"]
        with torch.no_grad():
            next_states = repeated(batch.next_observations, self.shared.sampled_actions)
            next_actions = self._next_actions(next_states, draws, rows)
            discount = self.shared.discount * (1.0 - batch.terminals)
            next_r, next_c = (self._next_value(critic, next_states, next_actions) for critic in (q_reward, q_cost))
            reward_target = batch.rewards * self.reward_scale + discount * next_r
            cost_target = batch.costs + discount * next_c

        # Behaviour model.
        values = {"vae": vae_loss(self.vae, self.networks, batch, draws, self.shared.vae_divergence)}

        # Reward and cost critics.
        values |= self.critic_losses(batch, reward_target, cost_target)

        # Policy.
        actions, penalty, statistics = self._policy(batch, draws)
        q_r = ensemble_q(q_reward, frozen(q_reward), observations, actions).amin(1)
        q_c = ensemble_q(q_cost, frozen(q_cost), observations, actions).amin(1)
        excess = (q_c - self.cost_threshold[:, None]).mean(-1)
        values["actor"] = self.scalars["multiplier.value"] * excess - q_r.mean(-1) + penalty
        metrics = {
            "critic/q_reward": q_r.detach().mean(-1),
            "critic/q_cost": q_c.detach().mean(-1),
            "adaptation/cost_estimate": self.episode_cost(q_c.detach()),
        }
        return Losses(values, {"excess": excess.detach(), **statistics}, metrics)

    def _next_value(self, critic: TrainState, states: Tensor, actions: Tensor) -> Tensor:
        """Return the largest soft-clipped target Q [P, B] over the M next actions; for the cost, that of the worst action."""
        q = ensemble_q(critic, critic.target, states, actions)
        return soft_clipped(q, self.shared.clip_weight).unflatten(1, (-1, self.shared.sampled_actions)).amax(-1)

    def adjust(self, statistics: Mapping[str, Tensor]) -> Metrics:
        multiplier = Multiplier(*(self.scalars[f"multiplier.{name}"] for name in ("value", "integral", "previous_cost")))
        gains = {name: self.hyper[f"pid_{name}"] for name in ("proportional", "integral", "derivative")}
        multiplier.update(1.0 + statistics["excess"], **gains)
        return {"adaptation/multiplier": multiplier.value.clone()}


class BCQLag(Lagrangian):
    """A policy that decodes actions from the VAE and perturbs them by at most Φ; deterministically it decodes latent 0."""

    def _add_actor(self) -> None:
        size = self.spec.action_size
        self._add("actor", MLP(self.spec.observation_size + size, tuple(self.shared.hidden), size), tracked=True)

    def _moved(self, weights: Mapping[str, Tensor], states: Tensor, actions: Tensor) -> Tensor:
        change = self.networks["actor"].network(weights, torch.cat([states, actions], dim=-1)).tanh()
        return (actions + self.hyper["perturbation"][:, None, None] * change).clamp(-1.0, 1.0)

    def _decoded(self, states: Tensor, latent: Tensor) -> Tensor:
        return self.vae.decode(frozen(self.networks["decoder"]), states, latent).tanh()

    def _next_actions(self, states: Tensor, draws: Draws, rows: int) -> Tensor:
        latent = self.vae.prior(draws, Stream.NEXT_LATENT, rows, self.shared.sampled_actions, states.dtype)
        return self._moved(self.networks["actor"].target, states, self._decoded(states, latent))

    def _policy(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        states = batch.observations
        latent = self.vae.prior(draws, Stream.LATENT, states.shape[1], 1, states.dtype)
        actions = self._moved(self.networks["actor"].weights, states, self._decoded(states, latent))
        return actions, torch.zeros_like(self.hyper["cost_limit"]), {}

    def actions(self, observations: Tensor) -> Tensor:
        latent = observations.new_zeros(*observations.shape[:2], self.vae.latent)
        return self._moved(self.networks["actor"].weights, observations, self._decoded(observations, latent))

    def policies(self) -> PopulationPolicy:
        """Return the decoder at the latent 0, without the first layer's weights of the latent, and the perturbation."""
        spec = self.spec

        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()

        def layers(name: str, kind: str) -> tuple[np.ndarray, ...]:
            return tuple(array(x) for key, x in self.networks[name].weights.items() if key.endswith(kind))

        first, *later = layers("decoder", "weight")
        first = np.ascontiguousarray(first[:, : spec.observation_size])
        scale = array(self.hyper["perturbation"])
        return MLPPolicy(
            np.asarray(spec.observation_mean, np.float32),
            np.asarray(spec.observation_std, np.float32),
            (first, *later),
            layers("decoder", "bias"),
            Perturbation(layers("actor", "weight"), layers("actor", "bias"), scale),
        )


class BEARLag(Lagrangian):
    """A squashed Gaussian policy; a dual weight keeps its samples within an MMD of ε from the VAE's."""

    statistic_names = ("excess", "distance")

    def _add_actor(self) -> None:
        spec = self.spec
        network = SquashedGaussian(spec.observation_size, tuple(self.shared.hidden), spec.action_size)
        self._add("actor", network, tracked=True)
        self.scalars["log_weight"] = torch.zeros_like(self.hyper["cost_limit"])

    def _samples(self, weights: Mapping[str, Tensor], states: Tensor, draws: Draws, stream: Stream) -> Tensor:
        """Return actions before the tanh, [P, B · M, A], for repeated states [P, B · M, S]."""
        rows = states.shape[1] // self.shared.sampled_actions
        noise = draws.normal(stream, rows, self.shared.sampled_actions, self.spec.action_size, dtype=states.dtype)
        return self.networks["actor"].network.sample(weights, states, noise.flatten(1, 2))

    def _next_actions(self, states: Tensor, draws: Draws, rows: int) -> Tensor:
        return self._samples(self.networks["actor"].target, states, draws, Stream.NEXT_POLICY_NOISE).tanh()

    def _policy(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        count, rows = self.shared.sampled_actions, batch.rewards.shape[1]
        states = repeated(batch.observations, count)
        latent = self.vae.prior(draws, Stream.LATENT, rows, count, states.dtype)
        behaviour = self.vae.decode(frozen(self.networks["decoder"]), states, latent).unflatten(1, (rows, count))
        policy = self._samples(self.networks["actor"].weights, states, draws, Stream.POLICY_NOISE).unflatten(1, (rows, count))
        distance = mmd(behaviour, policy, self.hyper["mmd_sigma"]).mean(-1)
        penalty = self.scalars["log_weight"].exp() * (distance - self.hyper["mmd_limit"])
        return policy[:, :, 0].tanh(), penalty, {"distance": distance.detach()}

    def adjust(self, statistics: Mapping[str, Tensor]) -> Metrics:
        log_weight, limit = self.scalars["log_weight"], self.hyper["mmd_limit"]
        change = self.hyper["learning_rate"] * log_weight.exp() * (statistics["distance"] - limit)
        log_weight.add_(change).clamp_(*_LOG_WEIGHT_RANGE)
        metrics = {"baseline/mmd": statistics["distance"], "baseline/mmd_weight": log_weight.exp()}
        return super().adjust(statistics) | metrics

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(actor.weights, observations)[0].tanh()

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")
