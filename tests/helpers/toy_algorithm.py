"""A user's own algorithm in one file: regression on the data's actions, scaled by a factor that may differ by member."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from drcorl_ray.config import Section
from drcorl_ray.config.algorithms import Algorithm, Marker
from drcorl_ray.method.actor import Actor, regression_loss
from drcorl_ray.method.baselines import Baseline, Losses
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch
from drcorl_ray.policy.population import PopulationPolicy


class ToySettings(Section):
    shrink: float = Field(default=0.5, ge=0.0, le=1.0, description="factor of the data's actions")
    width: int = Field(default=8, ge=1, description="width of the policy's hidden layer")


class Toy(Baseline):
    def _start(self) -> None:
        self._add("actor", Actor(self.spec.observation_size, (self.own.width,), self.spec.action_size))

    def losses(self, batch: Batch, draws: Draws) -> Losses:
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, batch.observations)
        return Losses({"actor": regression_loss(mean, log_std, self.hyper["shrink"][:, None, None] * batch.actions)})

    def actions(self, observations: Tensor) -> Tensor:
        actor = self.networks["actor"]
        return actor.network(actor.weights, observations)[0]

    def policies(self) -> PopulationPolicy:
        return self.snapshot("actor")


TOY = Algorithm(
    "toy", "Toy & Sons", "tests.helpers.toy_algorithm:Toy", "#123456", Marker("v", "triangle-down"), ToySettings, ("shrink",),
    steps=40, batch_size=16, learning_rate=1e-2,
)  # fmt: skip
