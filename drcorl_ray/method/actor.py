"""The three policy classes (App. D.1): N(m, diag σ(s)²), N(m, σ²I) and Dirac, with the mean squashed to the action box.

Shapes: P members, G networks, B rows of a minibatch, A action, C condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.method.networks import MLP, Layout, Weights
from drcorl_ray.policy.mlp import MLPPolicy
from drcorl_ray.policy.population import PopulationPolicy

POLICY_CLASSES = ("dirac", "gaussian", "gaussian_constant")
CONSTANT_STD = 0.1
_LOG_STD_START = -2.3
_LOG_STD_RANGE = (-5.0, 0.5)


@dataclass(frozen=True)
class TwoHeads:
    """An MLP with two outputs per action."""

    inputs: int
    hidden: tuple[int, ...]
    actions: int

    @cached_property
    def mlp(self) -> MLP:
        return MLP(self.inputs, self.hidden, 2 * self.actions)

    @property
    def layout(self) -> Layout:
        return self.mlp.layout


@dataclass(frozen=True)
class Actor(TwoHeads):
    """An MLP from the observation (in pretraining also the condition) to the mean and log σ(s)."""

    def __call__(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean in [-1, 1] and the state-dependent log σ, [G, B, A] each, for inputs [G, B, inputs]."""
        raw_mean, raw_log_std = self.mlp(weights, x).chunk(2, dim=-1)
        return raw_mean.tanh(), (raw_log_std + _LOG_STD_START).clamp(*_LOG_STD_RANGE)


def standard_deviation(log_std: Tensor, policy_class: Tensor) -> Tensor:
    """Return σ [P, B, A] by policy class [P] (an index into POLICY_CLASSES): 0, σ(s) or CONSTANT_STD."""
    kind = policy_class[:, None, None]
    constant = torch.where(kind == 2, CONSTANT_STD, 0.0).to(log_std.dtype)
    return torch.where(kind == 1, log_std.exp(), constant)


def regression_loss(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Return the behaviour-cloning loss [P] (D6) for inputs [P, B, A].

    It is the squared error of the mean plus the negative log-likelihood of σ(s), in which the mean is fixed.
    """
    squared_error = (mean - actions).square()
    negative_log_likelihood = 0.5 * squared_error.detach() * (-2.0 * log_std).exp() + log_std
    return (squared_error + negative_log_likelihood).sum(-1).mean(-1)


def fold_condition(layout: Layout, flat: Tensor, folded: Layout, conditions: Tensor) -> Tensor:
    """Fix the conditions [G, C] of an actor on [observation, condition]; return the weights of an actor on observations."""
    views = dict(layout.split(flat))
    weight, size = views["layers.0.weight"], folded["layers.0.weight"].shape[0]
    constant = torch.bmm(conditions.unsqueeze(1), weight[:, size:])
    views["layers.0.bias"] = views["layers.0.bias"] + constant.squeeze(1)
    views["layers.0.weight"] = weight[:, :size]
    return torch.cat([views[name].flatten(1) for name in folded], dim=1)


def snapshot(
    actor: Actor, weights: Mapping[str, Tensor], observation_mean: Sequence[float], observation_std: Sequence[float]
) -> PopulationPolicy:
    """Copy the population's deterministic policies to float32 numpy arrays: the half of the actor that computes the mean."""

    def layer(kind: str, index: int) -> np.ndarray:
        tensor = weights[f"layers.{index}.{kind}"].detach()
        tensor = tensor[..., : actor.actions] if index == len(actor.hidden) else tensor
        return tensor.to("cpu", torch.float32, copy=True).contiguous().numpy()

    layers = range(len(actor.hidden) + 1)
    return MLPPolicy(
        np.asarray(observation_mean, np.float32),
        np.asarray(observation_std, np.float32),
        tuple(layer("weight", index) for index in layers),
        tuple(layer("bias", index) for index in layers),
    )
