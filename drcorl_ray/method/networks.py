"""Networks as functions of named weights, with the population in the leading dimension.

A network object holds the architecture only. The weights of G networks (G = P members, or P · E for ensembles of E critics)
are one flat buffer [G, N], viewed as named tensors [G, *shape]. Inputs are [G, B, features]: each network has its own
minibatch of B rows, and one batched matrix product serves all of them. The output has the dtype of the inputs, whatever the
precision of the products. Other axes: S observation, A action, C condition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from drcorl_ray.method.random import Draws, Stream

Weights = Mapping[str, Tensor]

TIME_FEATURES = 64
TIME_EMBEDDING = 128
_FOURIER_SCALE = 4.0


@dataclass(frozen=True)
class Entry:
    """A named tensor of a layout. Initial values are uniform on ±bound, or `constant` if the bound is 0."""

    shape: tuple[int, ...]
    bound: float = 0.0
    constant: float = 0.0


class Layout(dict[str, Entry]):
    """The names, shapes and initial values of a network's weights, in the order of the buffer."""

    @cached_property
    def size(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.values())

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return named views [G, *shape] of a buffer [G, N]; they share its storage."""
        views, start = {}, 0
        for name, entry in self.items():
            end = start + math.prod(entry.shape)
            views[name] = flat[:, start:end].unflatten(1, entry.shape)
            start = end
        return views

    def initialise(self, seeds: Tensor, network: int, copies: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return initial values [P · copies, N]; they depend only on the member's seed [P] and the network's number."""
        uniform = Draws(seeds, network).uniform(Stream.INITIALISATION, copies, self.size, dtype=dtype).flatten(0, 1)
        flat = 2.0 * uniform - 1.0
        for name, view in self.split(flat).items():
            view.mul_(self[name].bound).add_(self[name].constant)
        return flat


def linear(inputs: int, outputs: int, name: str) -> dict[str, Entry]:
    bound = 1.0 / math.sqrt(inputs)
    return {f"{name}.weight": Entry((inputs, outputs), bound), f"{name}.bias": Entry((outputs,), bound)}


def norm(width: int, name: str) -> dict[str, Entry]:
    return {f"{name}.gain": Entry((width,), constant=1.0), f"{name}.shift": Entry((width,))}


def apply_linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"].unsqueeze(1)
    if weight.shape[-1] == 1:  # a matrix-vector product rounds differently for one network and for several
        return (x * weight.mT).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, x, weight)


def apply_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    gain, shift = weights[f"{name}.gain"].unsqueeze(1), weights[f"{name}.shift"].unsqueeze(1)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), gain)


@dataclass(frozen=True)
class MLP:
    """A ReLU network [G, B, inputs] → [G, B, outputs].

    layer_norm: apply LayerNorm before each activation. positive: apply softplus to the outputs.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    layer_norm: bool = False
    positive: bool = False

    @cached_property
    def layout(self) -> Layout:
        layout = Layout()
        widths = (self.inputs, *self.hidden, self.outputs)
        for layer, (width, next_width) in enumerate(pairwise(widths)):
            layout.update(linear(width, next_width, f"layers.{layer}"))
            if self.layer_norm and layer < len(self.hidden):
                layout.update(norm(next_width, f"norms.{layer}"))
        return layout

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        dtype = x.dtype
        for layer in range(len(self.hidden)):
            x = apply_linear(weights, f"layers.{layer}", x)
            if self.layer_norm:
                x = apply_norm(weights, f"norms.{layer}", x)
            x = F.relu(x)
        x = apply_linear(weights, f"layers.{len(self.hidden)}", x).to(dtype)
        return F.softplus(x) if self.positive else x


@dataclass(frozen=True)
class NoiseNetwork:
    """ε_ψ(a_t, t | s, condition): a residual MLP with LayerNorm, Mish and a Gaussian-Fourier embedding of t (§3.1).

    Each block is width → expansion · width → width. Dropout is applied after the LayerNorm of a block's input.
    """

    observations: int
    actions: int
    conditions: int
    width: int
    blocks: int
    expansion: int

    @cached_property
    def layout(self) -> Layout:
        inputs = TIME_EMBEDDING + self.observations + self.actions + self.conditions
        layout = Layout(linear(TIME_FEATURES, TIME_EMBEDDING, "time.0") | linear(TIME_EMBEDDING, TIME_EMBEDDING, "time.1"))
        layout.update(linear(inputs, self.width, "input"))
        for block in range(self.blocks):
            layout.update(norm(self.width, f"blocks.{block}.norm"))
            layout.update(linear(self.width, self.expansion * self.width, f"blocks.{block}.0"))
            layout.update(linear(self.expansion * self.width, self.width, f"blocks.{block}.1"))
        layout.update(linear(self.width, self.actions, "output"))
        return layout

    def dropout_masks(self, draws: Draws, rows: int, dropout: float, dtype: torch.dtype) -> Tensor | None:
        """Return scaled dropout masks [P, B, blocks, width], or None without dropout."""
        if dropout == 0.0:
            return None
        keep = draws.keep(Stream.DROPOUT, 1.0 - dropout, rows, self.blocks, self.width)
        return keep.to(dtype) / (1.0 - dropout)

    def __call__(
        self,
        weights: Weights,
        noisy_actions: Tensor,
        times: Tensor,
        observations: Tensor,
        conditions: Tensor,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise [G, B, A] from a_t [G, B, A], t [G, B], s [G, B, S] and conditions [G, B, C]."""
        time = F.mish(apply_linear(weights, "time.0", fourier_features(times)))
        time = apply_linear(weights, "time.1", time)
        x = apply_linear(weights, "input", torch.cat([time, noisy_actions, observations, conditions], dim=-1))
        for block in range(self.blocks):
            hidden = apply_norm(weights, f"blocks.{block}.norm", x)
            if masks is not None:
                hidden = hidden * masks[:, :, block]
            hidden = F.mish(apply_linear(weights, f"blocks.{block}.0", hidden))
            x = x + apply_linear(weights, f"blocks.{block}.1", hidden)
        return apply_linear(weights, "output", F.mish(x)).to(noisy_actions.dtype)


def fourier_features(times: Tensor) -> Tensor:
    """Return sin and cos of 2πft, [..., TIME_FEATURES]; the frequencies f are quantiles of a half-normal distribution."""
    half = TIME_FEATURES // 2
    quantiles = 0.5 + 0.5 * (torch.arange(half, device=times.device, dtype=torch.float64) + 0.5) / half
    frequencies = (_FOURIER_SCALE * torch.special.ndtri(quantiles)).to(times.dtype)
    phases = 2.0 * math.pi * times.unsqueeze(-1) * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=-1)
