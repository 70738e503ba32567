"""The members' hyper-parameters as tensors, and the condition that a member gives the behaviour model. Shapes: P members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec, EpisodeTotals
from drcorl_ray.method.actor import POLICY_CLASSES
from drcorl_ray.method.adaptation import ADAPTATIONS
from drcorl_ray.method.schedules import BETA_SCHEDULES

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import MemberConfig, PretrainConfig

BEST_EPISODES = 0.1  # share of the episodes within the limit from which the condition is taken

_CODES = {"adaptation": ADAPTATIONS, "policy_class": POLICY_CLASSES, "beta_schedule": BETA_SCHEDULES}
_COUNTS = ("cost_ensemble", "seed")


@dataclass(frozen=True)
class Hyperparameters:
    """MemberConfig as tensors [P]: floats in the learner's dtype, counts as int64, choices as indices into their tables."""

    cost_limit: Tensor
    k: Tensor
    cost_ensemble: Tensor
    beta_schedule: Tensor
    beta_0: Tensor
    beta_1: Tensor
    alpha: Tensor
    slack_plus: Tensor
    slack_minus: Tensor
    slack_shrink: Tensor
    adaptation: Tensor
    pid_proportional: Tensor
    pid_integral: Tensor
    pid_derivative: Tensor
    actor_learning_rate: Tensor
    critic_learning_rate: Tensor
    policy_class: Tensor
    seed: Tensor

    @classmethod
    def from_config(
        cls, members: Sequence[MemberConfig], pretrain: PretrainConfig, device: torch.device | str, dtype: torch.dtype
    ) -> Hyperparameters:
        """Convert the members' settings; UserError if a member uses more cost critics than were pretrained."""

        def tensor(name: str) -> Tensor:
            values = [getattr(member, name) for member in members]
            if name in _CODES:
                return torch.tensor([_CODES[name].index(value) for value in values], device=device)
            if name == "cost_ensemble":
                values = [pretrain.cost_critics_for(value) for value in values]
            return torch.tensor(values, device=device, dtype=torch.int64 if name in _COUNTS else dtype)

        return cls(**{field.name: tensor(field.name) for field in fields(cls)})

    def select(self, index: Tensor) -> Hyperparameters:
        return Hyperparameters(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def join(self, other: Hyperparameters) -> Hyperparameters:
        return Hyperparameters(**{name: torch.cat([tensor, vars(other)[name]]) for name, tensor in vars(self).items()})


def behaviour_condition(
    spec: DataSpec, quantile: float | None, cost_limit: float, episodes: EpisodeTotals, reward_rates: np.ndarray
) -> np.ndarray:
    """Return the condition [4] for the behaviour model: [1, √cost rate, 1, standardised reward rate], or zeros (D7).

    Each 1 marks that the next number is given. The cost rate is 0. The reward rate is a quantile of the rates `reward_rates`
    [N] in the best episodes: the tenth with the highest returns among those within the cost limit, or among the tenth with
    the lowest costs if fewer are within it. quantile None: no condition, zeros.
    """
    if quantile is None:
        return np.zeros(4, np.float32)
    within = np.flatnonzero(episodes.costs <= max(cost_limit, float(np.quantile(episodes.costs, BEST_EPISODES))))
    count = math.ceil(BEST_EPISODES * len(within))
    best = within[np.argsort(-episodes.returns[within], kind="stable")[:count]]
    rates = np.split(reward_rates, episodes.ends[:-1])
    rate = float(np.quantile(np.concatenate([rates[episode] for episode in best]), quantile))
    return np.array([1.0, 0.0, 1.0, (rate - spec.reward_rate_mean) / spec.reward_rate_std], np.float32)
