"""CDT, the constrained decision transformer (Liu et al. 2023): actions conditioned on the cost to go and the return to go.

The weights do not depend on the cost limit. The policy receives the limit and a target return at evaluation time.

Shapes: P members, B windows of a minibatch, T steps of a window (`context`), S observation, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.method.baselines.base import Baseline, Losses
from drcorl_ray.method.baselines.parts import Scalar
from drcorl_ray.method.baselines.transformer import CausalTransformer, Context, scaled
from drcorl_ray.method.baselines.windows import History, Windows
from drcorl_ray.method.interfaces import Sampler
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.policy.transformer import TransformerPolicy

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import BaselineMember

_COST_WEIGHT = 0.02  # of the cost prediction in the loss
_WEIGHT_DECAY = 1e-4
_LARGEST_GRADIENT = 0.25
_TEMPERATURE, _TEMPERATURE_RATE = 0.1, 1e-4
_ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e)  # of a standard normal


def target(episodes: EpisodeTotals, cost_limit: float, share: float) -> tuple[float, float]:
    """Return the target (cost, return) of an episode: the limit, and a point between the worst and best return within it.

    share: 0 for the worst return, 1 for the best. If no episode is within the limit, those with the lowest cost are used.
    """
    within = episodes.returns[episodes.costs <= max(cost_limit, float(episodes.costs.min()))]
    return cost_limit, float(within.min() + share * (within.max() - within.min()))


class CDT(Baseline):
    @classmethod
    def for_limits(
        cls, policies: PopulationPolicy, episodes: EpisodeTotals, members: Sequence[BaselineMember]
    ) -> PopulationPolicy:
        targets = [target(episodes, member.cost_limit, getattr(member, "cdt.target_return")) for member in members]
        return policies.with_arrays(policies.arrays() | {"target": np.array(targets, np.float32)})

    def _start(self) -> None:
        spec, own = self.spec, self.own
        network = CausalTransformer(
            spec.observation_size, spec.action_size, spec.episode_length, own.embedding, own.blocks, own.heads
        )
        self._add("transformer", network)
        self._add("temperature", Scalar(math.log(_TEMPERATURE)))
        self.units = (max(1.0, float(self.data.episodes.costs.max())), spec.return_max - spec.return_min)

    def sampler(self, replay: Replay) -> Sampler:
        """Draw windows of `context` steps from whole episodes."""
        history = self.history(replay.rewards, replay.costs)
        return lambda draws, windows: history.sample(replay.at, draws, windows)

    def history(self, rewards: Tensor, costs: Tensor) -> History:
        """Return the windows of the dataset's episodes, whose rows have these rewards and costs, [number of rows] each."""
        return History(self.data.episodes, rewards, costs, steps=self.own.context, augmented=self.own.augmented)

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        assert isinstance(batch, Windows)
        steps, transformer = self.own.context, self.networks["transformer"]
        actions, costs, valid = (x.unflatten(1, (-1, steps)) for x in (batch.actions, batch.costs, batch.valid))
        context = Context(
            scaled(batch.to_go, self.units).unflatten(1, (-1, steps)),
            batch.observations.unflatten(1, (-1, steps)),
            actions,
            batch.times.unflatten(1, (-1, steps)),
            valid,
        )
        masks = transformer.network.masks(draws, actions.shape[1], steps, self.own.dropout, actions.dtype)
        mean, log_std, cost_logit = transformer.network(transformer.weights, context, masks)
        temperature = self.networks["temperature"].weights["value"][:, 0].exp()

        # Policy.
        squares = ((actions - mean) / log_std.exp()).square()
        likelihood = _mean_over_steps(-(0.5 * squares + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1), valid)
        entropy = _mean_over_steps((log_std + _ENTROPY).sum(-1), valid)
        values = {"actor": -(likelihood + temperature.detach() * entropy)}

        # Cost prediction: whether the step has a cost.
        cross_entropy = F.binary_cross_entropy_with_logits(cost_logit, (costs > 0).to(cost_logit.dtype), reduction="none")
        values["next_cost"] = _COST_WEIGHT * _mean_over_steps(cross_entropy, valid)

        # Entropy temperature.
        values["temperature"] = temperature * (entropy.detach() + self.spec.action_size)
        metrics = {"baseline/likelihood": likelihood.detach(), "baseline/entropy": entropy.detach()}
        return Losses(values, metrics=metrics | {"baseline/temperature": temperature.detach()})

    def _descend(self, network: TrainState, gradient: Tensor, step: Tensor) -> None:
        if network is self.networks["temperature"]:
            network.descend(gradient, _TEMPERATURE_RATE)
            return
        norm = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (_LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0)
        warm = ((step + 1) / self.own.warm_up).clamp(max=1.0).to(self.dtype)
        network.descend(gradient, self.hyper["learning_rate"] * warm, _WEIGHT_DECAY)

    def actions(self, observations: Tensor) -> Tensor:
        """Return the actions [P, B, A] at the first step of episodes that start with these observations [P, B, S]."""
        transformer, shape = self.networks["transformer"], observations.shape[:2]
        targets = torch.from_numpy(self._targets()).to(observations)[:, None, None].expand(*shape, 1, 2)
        context = Context(
            scaled(targets, self.units),
            observations.unsqueeze(2),
            observations.new_zeros(*shape, 1, self.spec.action_size),
            torch.zeros(*shape, 1, dtype=torch.int64, device=observations.device),
            torch.ones(*shape, 1, dtype=torch.bool, device=observations.device),
        )
        return transformer.network(transformer.weights, context)[0].squeeze(2).clamp(-1.0, 1.0)

    def _targets(self) -> np.ndarray:
        limits, shares = (self.hyper[name].tolist() for name in ("cost_limit", "target_return"))
        pairs = zip(limits, shares, strict=True)
        return np.array([target(self.data.episodes, limit, share) for limit, share in pairs], np.float32)

    def policies(self) -> TransformerPolicy:
        weights = self.networks["transformer"].weights
        mean, std = (np.asarray(x, np.float32) for x in (self.spec.observation_mean, self.spec.observation_std))
        arrays = {name: x.detach().to("cpu", torch.float32, copy=True).numpy() for name, x in weights.items()}
        context = min(self.own.context, self.spec.episode_length)  # no history is longer
        return TransformerPolicy(mean, std, arrays, self._targets(), self.own.heads, context, self.units)


def _mean_over_steps(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean [P] over windows of each window's mean over its valid steps, [P, B, T]; independent of the workers."""
    return ((values * valid).sum(-1) / valid.sum(-1)).mean(-1)
