"""CDT, the constrained decision transformer (Liu et al. 2023): actions given the cost and the return that are still to come.

Its weights know no limit: a limit, and the return to go with it, is asked for when it acts.
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
from drcorl_ray.method.protocols import Sampler
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.policy.transformer import TransformerPolicy

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import BaselineMember

_COST_WEIGHT = 0.02
_WEIGHT_DECAY = 1e-4
_LARGEST_GRADIENT = 0.25
_TEMPERATURE, _TEMPERATURE_RATE = 0.1, 1e-4
_ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e)  # of a standard normal


def target(episodes: EpisodeTotals, cost_limit: float, share: float) -> tuple[float, float]:
    """(cost, return) to ask for: the limit, and a share of the way from the worst to the best return within it.

    Where no episode is within the limit, those of the lowest cost stand in.
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
        """Windows of whole episodes."""
        history = self.history(replay.rewards, replay.costs)
        return lambda draws, windows: history.sample(replay.at, draws, windows)

    def history(self, rewards: Tensor, costs: Tensor) -> History:
        """The rows [N] of the episodes that it was told of."""
        return History(self.data.episodes, rewards, costs, steps=self.own.context, augmented=self.own.augmented)

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        assert isinstance(batch, Windows)
        steps, part = self.own.context, self.networks["transformer"]
        actions, costs, valid = (x.unflatten(1, (-1, steps)) for x in (batch.actions, batch.costs, batch.valid))
        context = Context(
            scaled(batch.to_go, self.units).unflatten(1, (-1, steps)),
            batch.observations.unflatten(1, (-1, steps)),
            actions,
            batch.times.unflatten(1, (-1, steps)),
            valid,
        )
        masks = part.network.masks(draws, actions.shape[1], steps, self.own.dropout, actions.dtype)
        mean, log_std, cost_logit = part.network(part.weights, context, masks)
        squares = ((actions - mean) / log_std.exp()).square()
        likelihood = _of_steps(-(0.5 * squares + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1), valid)
        entropy = _of_steps((log_std + _ENTROPY).sum(-1), valid)
        known = F.binary_cross_entropy_with_logits(cost_logit, (costs > 0).to(cost_logit.dtype), reduction="none")
        temperature = self.networks["temperature"].weights["value"][:, 0].exp()
        values = {
            "actor": -(likelihood + temperature.detach() * entropy),
            "next_cost": _COST_WEIGHT * _of_steps(known, valid),
            "temperature": temperature * (entropy.detach() + self.spec.action_size),
        }
        metrics = {"baseline/likelihood": likelihood.detach(), "baseline/entropy": entropy.detach()}
        return Losses(values, metrics=metrics | {"baseline/temperature": temperature.detach()})

    def _descend(self, part: TrainState, gradient: Tensor, step: Tensor) -> None:
        if part is self.networks["temperature"]:
            part.descend(gradient, _TEMPERATURE_RATE)
            return
        norm = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (_LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0)
        warm = ((step + 1) / self.own.warm_up).clamp(max=1.0).to(self.dtype)
        part.descend(gradient, self.hyper["learning_rate"] * warm, _WEIGHT_DECAY)

    def actions(self, observations: Tensor) -> Tensor:
        """Of episodes' first steps."""
        part, shape = self.networks["transformer"], observations.shape[:2]
        asked = torch.from_numpy(self._targets()).to(observations)[:, None, None].expand(*shape, 1, 2)
        context = Context(
            scaled(asked, self.units),
            observations.unsqueeze(2),
            observations.new_zeros(*shape, 1, self.spec.action_size),
            torch.zeros(*shape, 1, dtype=torch.int64, device=observations.device),
            torch.ones(*shape, 1, dtype=torch.bool, device=observations.device),
        )
        return part.network(part.weights, context)[0].squeeze(2).clamp(-1.0, 1.0)

    def _targets(self) -> np.ndarray:
        limits, shares = (self.hyper[name].tolist() for name in ("cost_limit", "target_return"))
        pairs = zip(limits, shares, strict=True)
        return np.array([target(self.data.episodes, limit, share) for limit, share in pairs], np.float32)

    def policies(self) -> TransformerPolicy:
        weights = self.networks["transformer"].weights
        mean, std = (np.asarray(x, np.float32) for x in (self.spec.observation_mean, self.spec.observation_std))
        copied = {name: x.detach().to("cpu", torch.float32, copy=True).numpy() for name, x in weights.items()}
        context = min(self.own.context, self.spec.episode_length)  # no history is longer
        return TransformerPolicy(mean, std, copied, self._targets(), self.own.heads, context, self.units)


def _of_steps(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over windows of the mean over a window's own steps, [P, B, T] → [P]: the same for any number of workers."""
    return ((values * valid).sum(-1) / valid.sum(-1)).mean(-1)
