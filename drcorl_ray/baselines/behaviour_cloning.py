"""Behaviour cloning, of all the data (`bc`) or of the episodes within a cost limit (`bc_safe`), as one population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drcorl_ray.config import PretrainConfig
from drcorl_ray.data.replay import Replay, subset
from drcorl_ray.data.store import read_store
from drcorl_ray.method.optim import Trainable, flat_gradients
from drcorl_ray.method.policy import Actor, regression_loss, snapshot
from drcorl_ray.method.random import Draws
from drcorl_ray.method.schedules import cosine
from drcorl_ray.policy import PopulationPolicy
from drcorl_ray.stages import TaskData


@dataclass(frozen=True)
class Clone:
    """One cloned policy: seed, and the largest episode cost of what it imitates (None: all episodes)."""

    seed: int
    cost_limit: float | None


def clone(data: TaskData, config: PretrainConfig, clones: Sequence[Clone], threads: int = 1) -> PopulationPolicy:
    """Regress the actor on the actions of each clone's episodes, as many steps as a phase of pretraining.

    UserError where no episode is within a clone's limit.
    """
    torch.set_num_threads(threads)
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    costs = replay.episode_costs
    rows = subset(torch.stack([costs <= (torch.inf if c.cost_limit is None else c.cost_limit) for c in clones]))
    seeds = torch.tensor([c.seed for c in clones])
    network = Actor(data.spec.observation_size, tuple(config.actor_hidden), data.spec.action_size)
    actor = Trainable(network, network.layout.initialise(seeds, 1))
    for step in range(config.steps):
        batch = replay.sample(Draws(seeds, step), config.batch_size, rows)
        mean, log_std = network(actor.weights, batch.observations)
        (gradient,) = flat_gradients(regression_loss(mean, log_std, batch.actions).sum(), [actor])
        progress = torch.tensor(step / config.steps, dtype=torch.float64)
        actor.descend(gradient, config.learning_rate * cosine(progress, config.final_learning_rate))
    return snapshot(network, network.layout.split(actor.flat), data.spec.observation_mean, data.spec.observation_std)
