"""Behaviour cloning: of all the data (`bc`), of its episodes within the limit (`bc_safe`), of its best ones (`bc_reward`), or
of those that earn the most for what they cost (`bc_frontier`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.method.actor import Actor, regression_loss
from drcorl_ray.method.baselines.base import Baseline, Losses
from drcorl_ray.method.hyperparameters import BEST_EPISODES
from drcorl_ray.method.protocols import Sampler
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay, subset
from drcorl_ray.method.schedules import cosine
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.population import PopulationPolicy

FRONTIER = 0.1  # share of the data's range of returns: largest distance of an episode from the frontier


class Cloning(Baseline):
    """Regression on the actions of each member's episodes, with the actor, the steps and the rates of pretraining."""

    @classmethod
    def chosen(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        """Which episodes it imitates, [E] bool."""
        return np.ones(len(episodes.costs), bool)

    @classmethod
    def can_learn(cls, episodes: EpisodeTotals, cost_limit: float) -> bool:
        return bool(cls.chosen(episodes, cost_limit).any())

    def _start(self) -> None:
        spec = self.spec
        self._add("actor", Actor(spec.observation_size, tuple(self.pretrain.actor_hidden), spec.action_size))

    def sampler(self, replay: Replay) -> Sampler:
        """Rows of each member's own episodes; UserError names a member without any."""
        episodes = self.data.episodes
        limits = self.hyper["cost_limit"].tolist()
        chosen = [np.repeat(self.chosen(episodes, limit), episodes.lengths) for limit in limits]
        rows = subset(torch.from_numpy(np.stack(chosen)).to(self.device))
        return lambda draws, count: replay.sample(draws, count, rows)

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, batch.observations)
        return Losses({"actor": regression_loss(mean, log_std, batch.actions)})

    def _descend(self, part: TrainState, gradient: Tensor, step: Tensor) -> None:
        progress = step.double() / self.total_steps
        part.descend(gradient, self.hyper["learning_rate"] * cosine(progress, self.pretrain.final_learning_rate))

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(actor.weights, observations)[0]

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")


class SafeCloning(Cloning):
    """Of the episodes within the limit: none where the data has no such episode."""

    @classmethod
    def chosen(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        return episodes.costs <= np.float32(cost_limit)


class RewardCloning(Cloning):
    """Of the tenth of the episodes with the highest return."""

    @classmethod
    def chosen(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        return episodes.returns >= np.quantile(episodes.returns, 1.0 - BEST_EPISODES)


class FrontierCloning(Cloning):
    """Of the episodes whose return is close to the highest at no more cost."""

    @classmethod
    def chosen(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        order = np.argsort(episodes.costs, kind="stable")
        best = np.maximum.accumulate(episodes.returns[order])
        of_cost = best[np.searchsorted(episodes.costs[order], episodes.costs, side="right") - 1]
        return episodes.returns >= of_cost - FRONTIER * np.ptp(episodes.returns)
