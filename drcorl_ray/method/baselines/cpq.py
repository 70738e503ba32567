"""CPQ, constraints-penalised Q-learning (Xu, Zhan and Zhu 2022).

A VAE detects out-of-distribution actions, and the cost critic is raised on them. The reward critic does not bootstrap from a
next action whose cost-to-go is over the limit, and the policy's objective leaves out its own actions over the limit.

Shapes: P members, B rows of a minibatch, S observation, A action.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from drcorl_ray.method.baselines.base import Baseline, Losses, frozen, repeated
from drcorl_ray.method.baselines.parts import SquashedGaussian, divergence, vae_loss
from drcorl_ray.method.critics import ensemble_q
from drcorl_ray.method.interfaces import Metrics
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.population import PopulationPolicy

_OUTSIDE = 0.75  # quantile of the latent's KL above which a sampled action counts as out-of-distribution
_LOG_WEIGHT_RANGE = (-5.0, 5.0)
_WEIGHT_RATE = 1e-4
_ACTOR_RATE = 0.1  # share of the critics' learning rate: the policy must not run ahead of the cost critics


class CPQ(Baseline):
    statistic_names = ("outside",)

    def _start(self) -> None:
        self.vae = self._add_vae_and_critics()
        spec, hidden = self.spec, tuple(self.shared.hidden)
        self._add("actor", SquashedGaussian(spec.observation_size, hidden, spec.action_size))
        self.scalars["log_weight"] = torch.zeros_like(self.hyper["cost_limit"])

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        observations, (rows, size) = batch.observations, batch.actions.shape[1:]
        q_reward, q_cost, actor = (self.networks[name] for name in ("q_reward", "q_cost", "actor"))
        threshold = self.cost_threshold[:, None]
        with torch.no_grad():
            noise = draws.normal(Stream.NEXT_POLICY_NOISE, rows, size, dtype=observations.dtype)
            next_actions = actor.network.sample(actor.weights, batch.next_observations, noise).tanh()
            next_r = ensemble_q(q_reward, q_reward.target, batch.next_observations, next_actions).amin(1)
            next_c = ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions).amin(1)
            discount = self.shared.discount * (1.0 - batch.terminals)
            reward_target = batch.rewards * self.reward_scale + discount * (next_c <= threshold) * next_r
            cost_target = batch.costs + discount * next_c

        # Behaviour model.
        values = {"vae": vae_loss(self.vae, self.networks, batch, draws, self.shared.vae_divergence)}

        # Reward and cost critics.
        values |= self.critic_losses(batch, reward_target, cost_target)
        outside = self._cost_outside(batch, draws)
        values["outside"] = -self.scalars["log_weight"].exp() * outside

        # Policy.
        noise = draws.normal(Stream.POLICY_NOISE, rows, size, dtype=observations.dtype)
        actions = actor.network.sample(actor.weights, observations, noise).tanh()
        q_r = ensemble_q(q_reward, frozen(q_reward), observations, actions).amin(1)
        q_c = ensemble_q(q_cost, frozen(q_cost), observations, actions).amin(1).detach()
        values["actor"] = -((q_c <= threshold) * q_r).mean(-1)
        metrics = {
            "critic/q_reward": q_r.detach().mean(-1),
            "critic/q_cost": q_c.mean(-1),
            "adaptation/cost_estimate": self.episode_cost(q_c),
            "baseline/allowed": (q_c <= threshold).to(q_c.dtype).mean(-1),
        }
        return Losses(values, {"outside": outside.detach()}, metrics)

    def _cost_outside(self, batch: Batch, draws: Draws) -> Tensor:
        """Return the mean cost-to-go [P], by the trained critics, of the policy's out-of-distribution actions.

        They are the quarter of `sampled_actions` actions per row with the largest KL of the VAE's latent from its prior.
        """
        count, size = self.shared.sampled_actions, self.spec.action_size
        actor, encoder, q_cost = (self.networks[name] for name in ("actor", "encoder", "q_cost"))
        states = repeated(batch.observations, count)
        with torch.no_grad():
            noise = draws.normal(Stream.LATENT, batch.rewards.shape[1], count, size, dtype=states.dtype).flatten(1, 2)
            actions = actor.network.sample(actor.weights, states, noise).tanh()
            distance = divergence(*self.vae.encode(encoder.weights, states, actions))
            outside = (distance >= torch.quantile(distance, _OUTSIDE, dim=1, keepdim=True)).to(states.dtype)
        q = ensemble_q(q_cost, q_cost.weights, states, actions).amin(1)
        return (outside * q).sum(1) / outside.sum(1)

    def _descend(self, network: TrainState, gradient: Tensor, step: Tensor) -> None:
        rate = _ACTOR_RATE if network is self.networks["actor"] else 1.0
        network.descend(gradient, rate * self.hyper["learning_rate"])

    def adjust(self, statistics: Mapping[str, Tensor]) -> Metrics:
        """Raise the penalty's weight until out-of-distribution actions cost `ood_scale` times the limit's cost-to-go."""
        log_weight = self.scalars["log_weight"]
        missing = self.hyper["ood_scale"] * self.cost_threshold - statistics["outside"]
        log_weight.add_(_WEIGHT_RATE * log_weight.exp() * missing).clamp_(*_LOG_WEIGHT_RANGE)
        return {"baseline/outside_cost": statistics["outside"], "baseline/outside_weight": log_weight.exp()}

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(actor.weights, observations)[0].tanh()

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")
