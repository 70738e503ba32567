"""What the learner must know of a task's data, and its members' hyper-parameters as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.config import MemberConfig
from drcorl_ray.method.adaptation import ADAPTATIONS
from drcorl_ray.method.policy import POLICY_CLASSES
from drcorl_ray.method.schedules import BETA_SCHEDULES

REWARD_RANGE = 1000.0  # the data's return range after scaling, so that β does not depend on the task's reward unit
LOW_COST_RATE = 0.01  # cost per step below which a row counts as safe behaviour

_CODES = {"adaptation": ADAPTATIONS, "policy_class": POLICY_CLASSES, "beta_schedule": BETA_SCHEDULES}


@dataclass(frozen=True)
class DataSpec:
    """Sizes, units and statistics of one task's dataset.

    return_min, return_max: extreme episode returns. mean_cost, max_cost: per step. reward_rate_*: of the reward rates.
    """

    observation_size: int
    action_size: int
    episode_length: int
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    return_min: float
    return_max: float
    mean_cost: float
    max_cost: float
    reward_rate_mean: float
    reward_rate_std: float

    @property
    def reward_scale(self) -> float:
        return REWARD_RANGE / (self.return_max - self.return_min)


@dataclass(frozen=True)
class Hyperparameters:
    """MemberConfig as tensors [P] (floats in the learner's dtype; choices as indices into their tables)."""

    cost_limit: Tensor
    k: Tensor
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
    def of(cls, members: Sequence[MemberConfig], device: torch.device | str, dtype: torch.dtype) -> Hyperparameters:
        def tensor(name: str) -> Tensor:
            values = [getattr(member, name) for member in members]
            if name in _CODES:
                return torch.tensor([_CODES[name].index(value) for value in values], device=device)
            return torch.tensor(values, device=device, dtype=torch.int64 if name == "seed" else dtype)

        return cls(**{field.name: tensor(field.name) for field in fields(cls)})

    def select(self, index: Tensor) -> Hyperparameters:
        return Hyperparameters(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def join(self, other: Hyperparameters) -> Hyperparameters:
        return Hyperparameters(**{name: torch.cat([tensor, vars(other)[name]]) for name, tensor in vars(self).items()})


def behaviour_condition(
    spec: DataSpec, quantile: float | None, reward_rates: np.ndarray, cost_rates: np.ndarray
) -> np.ndarray:
    """What a member asks of the behaviour model: [shown, √cost rate, shown, standardised reward rate], zeros for nothing (D7).

    The cost rate asked for is 0; the reward rate is a quantile of the rates among low-cost rows (the safest tenth of the
    data where no row is below LOW_COST_RATE). reward_rates, cost_rates: [N], per step.
    """
    if quantile is None:
        return np.zeros(4, np.float32)
    low_cost = cost_rates <= max(LOW_COST_RATE, float(np.quantile(cost_rates, 0.1)))
    rate = float(np.quantile(reward_rates[low_cost], quantile))
    return np.array([1.0, 0.0, 1.0, (rate - spec.reward_rate_mean) / spec.reward_rate_std], np.float32)


def estimation_rows(
    states: str, cost_limit: float, episode_length: int, reward_rates: np.ndarray, cost_rates: np.ndarray
) -> np.ndarray:
    """Mask [N] of the rows on whose states a member's cost is estimated (D15).

    all: every row, as printed. low_cost: stretches whose cost rate is within the limit's (of at least 1 an episode) and
    whose reward rate is in the upper 30 % of those; the tenth of lowest cost rate stands in where no row is within.
    """
    if states == "all":
        return np.ones(len(cost_rates), bool)
    ceiling = max(max(cost_limit, 1.0) / episode_length, float(np.quantile(cost_rates, 0.1)))
    low_cost = cost_rates <= ceiling
    return low_cost & (reward_rates >= np.quantile(reward_rates[low_cost], 0.7))
