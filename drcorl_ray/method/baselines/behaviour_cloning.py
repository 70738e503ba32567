"""Behaviour cloning of all episodes (`bc`), of those within the cost limit (`bc_safe`), of those with the highest returns
(`bc_reward`), or of those with a high return for their cost (`bc_frontier`).

Shapes: P members, B rows of a minibatch, E episodes of the dataset.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.method.actor import Actor, regression_loss
from drcorl_ray.method.baselines.base import Baseline, Losses
from drcorl_ray.method.hyperparameters import BEST_EPISODES
from drcorl_ray.method.interfaces import Sampler
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay, subset
from drcorl_ray.method.schedules import cosine
from drcorl_ray.method.train_state import TrainState
from drcorl_ray.policy.population import PopulationPolicy

FRONTIER = 0.1  # share of the data's range of returns: largest distance of an episode from the frontier


class Cloning(Baseline):
    """Regression on the actions of each member's episodes, with the network, steps and learning rates of pretraining."""

    @classmethod
    def selected(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        """Return the mask [E] of the episodes that are imitated."""
        return np.ones(len(episodes.costs), bool)

    @classmethod
    def can_learn(cls, episodes: EpisodeTotals, cost_limit: float) -> bool:
        return bool(cls.selected(episodes, cost_limit).any())

    def _start(self) -> None:
        spec = self.spec
        self._add("actor", Actor(spec.observation_size, tuple(self.pretrain.actor_hidden), spec.action_size))

    def sampler(self, replay: Replay) -> Sampler:
        """Draw rows of each member's own episodes; UserError naming a member that has none."""
        episodes = self.data.episodes
        limits = self.hyper["cost_limit"].tolist()
        masks = [np.repeat(self.selected(episodes, limit), episodes.lengths) for limit in limits]
        rows = subset(torch.from_numpy(np.stack(masks)).to(self.device))
        return lambda draws, count: replay.sample(draws, count, rows)

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, batch.observations)
        return Losses({"actor": regression_loss(mean, log_std, batch.actions)})

    def _descend(self, network: TrainState, gradient: Tensor, step: Tensor) -> None:
        progress = step.double() / self.total_steps
        network.descend(gradient, self.hyper["learning_rate"] * cosine(progress, self.pretrain.final_learning_rate))

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(actor.weights, observations)[0]

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")


class SafeCloning(Cloning):
    """Cloning of the episodes within the cost limit; a dataset without such episodes is refused."""

    @classmethod
    def selected(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        return episodes.costs <= np.float32(cost_limit)


class RewardCloning(Cloning):
    """Cloning of the tenth of the episodes with the highest return."""

    @classmethod
    def selected(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        return episodes.returns >= np.quantile(episodes.returns, 1.0 - BEST_EPISODES)


class FrontierCloning(Cloning):
    """Cloning of the episodes whose return is close to the highest return at the same or a lower cost."""

    @classmethod
    def selected(cls, episodes: EpisodeTotals, cost_limit: float) -> np.ndarray:
        order = np.argsort(episodes.costs, kind="stable")
        best = np.maximum.accumulate(episodes.returns[order])
        frontier = best[np.searchsorted(episodes.costs[order], episodes.costs, side="right") - 1]
        return episodes.returns >= frontier - FRONTIER * np.ptp(episodes.returns)
