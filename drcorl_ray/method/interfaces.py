"""The interfaces of everything that is trained: `Stage` for steps, `Population` for policies, `OnlineLearner` for rollouts.

Shapes: P members, N weights of one member's policy, B rows of a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from drcorl_ray.method.online_data import OnlineData, OnlineResult
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.policy.population import PopulationPolicy

Metrics = dict[str, Tensor]
"""Values [P] by metric name, detached."""

Sampler = Callable[[Draws, int], Batch]
"""Returns a minibatch of the given number of rows. It must not wait for the host."""


class Stage(Protocol):
    """A training that a `Runner` advances: pretraining, extraction or a baseline's training.

    All steps of one kind are the same tensor operations, so a CUDA graph of one of them replays them all.
    """

    @property
    def total_steps(self) -> int: ...

    def step_kind(self, step: int) -> str:
        """Return the kind of a step, e.g. "critics" or "policy"."""
        ...

    def prepare(self, step: int) -> None:
        """Do the host-side work before a step."""
        ...

    def draws(self, step: int | Tensor) -> Draws:
        """Return the random numbers of a step."""
        ...

    def sampler(self, replay: Replay) -> Sampler:
        """Return how the stage draws its minibatches from a replay."""
        ...

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """Return all tensors that are averaged over the workers, in the order of `update`, and metrics [P]; change nothing."""
        ...

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Make every decision and change of a step from the averaged tensors; metrics [P]. step: scalar, on the device."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that a resumed training needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        ...


class Population(Stage, Protocol):
    """P policies in training, each with its own hyper-parameters and seed: DRCORL's learner, or a baseline."""

    def policies(self) -> PopulationPolicy:
        """Return the deterministic policies as numpy arrays."""
        ...

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """Return the estimated episode cost's mean and std over the cost critics, [P] each; NaN without critics."""
        ...

    def finite(self) -> Tensor:
        """Return which members have only finite weights, [P] bool."""
        ...

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        ...

    def join(self, other: Any) -> None:
        """Append the members of another population of the same algorithm, at the same step."""
        ...

    def as_online(self) -> OnlineLearner | None:
        """Return the population itself if at least one member uses rollouts during training, else None."""
        ...


class OnlineLearner(Population, Protocol):
    """A population in which at least one member's cost estimate comes from rollouts."""

    @property
    def online(self) -> OnlineData:
        """The results of rollouts so far; part of the state."""
        ...

    @property
    def average(self) -> Tensor:
        """Weights [P, N] of the averaged policies, which are evaluated and saved."""
        ...

    def policies(self, parameters: Tensor | None = None) -> PopulationPolicy:
        """Return the deterministic policies with the given weights [P, N], or else with the averaged ones."""
        ...

    def observe(self, result: OnlineResult) -> None:
        """Use the result of an online evaluation from now on."""
        ...
