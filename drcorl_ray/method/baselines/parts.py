"""Networks and losses that several baselines share.

Shapes: P members, G networks, E critics of an ensemble, B rows of a minibatch, A action; values are [P, B], ensembles
[P, E, B], actions [P, B, A].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from drcorl_ray.method.actor import TwoHeads
from drcorl_ray.method.networks import MLP, Entry, Layout, Weights
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.train_state import TrainState

_LOG_STD_RANGE = (-20.0, 2.0)
_LATENT_LOG_STD_RANGE = (-4.0, 15.0)
_LATENT_CLIP = 0.5  # latents are decoded only from the middle of the prior, where the decoder has seen data


@dataclass(frozen=True)
class SquashedGaussian(TwoHeads):
    """The policy tanh(N(μ(s), σ(s)²)); its deterministic action is tanh μ(s)."""

    def __call__(self, weights: Weights, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ before the tanh, [G, B, A] each."""
        mean, log_std = self.mlp(weights, observations).chunk(2, dim=-1)
        return mean, log_std.clamp(*_LOG_STD_RANGE)

    def sample(self, weights: Weights, observations: Tensor, noise: Tensor) -> Tensor:
        """Return reparameterised actions before the tanh, [G, B, A], for standard normal noise of the same shape."""
        mean, log_std = self(weights, observations)
        return mean + log_std.exp() * noise


def log_likelihood(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Return log π(a|s) [P, B] of a squashed Gaussian, without terms independent of π; |a| is clamped to 1 − 10⁻³."""
    raw = actions.clamp(-1.0 + 1e-3, 1.0 - 1e-3).atanh()
    return -(0.5 * ((raw - mean) / log_std.exp()).square() + log_std).sum(-1)


@dataclass(frozen=True)
class VAE:
    """A conditional variational auto-encoder of the behaviour: q(z|s, a), and a decoder to actions before the tanh."""

    observations: int
    actions: int
    width: int

    @property
    def latent(self) -> int:
        return 2 * self.actions

    @cached_property
    def encoder(self) -> MLP:
        return MLP(self.observations + self.actions, (self.width, self.width), 2 * self.latent)

    @cached_property
    def decoder(self) -> MLP:
        return MLP(self.observations + self.latent, (self.width, self.width), self.actions)

    def encode(self, weights: Weights, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log σ of the latent, [G, B, 2A] each."""
        mean, log_std = self.encoder(weights, torch.cat([observations, actions], dim=-1)).chunk(2, dim=-1)
        return mean, log_std.clamp(*_LATENT_LOG_STD_RANGE)

    def decode(self, weights: Weights, observations: Tensor, latent: Tensor) -> Tensor:
        """Return actions before the tanh, [G, B, A]."""
        return self.decoder(weights, torch.cat([observations, latent], dim=-1))

    def prior(self, draws: Draws, stream: Stream, rows: int, times: int, dtype: torch.dtype) -> Tensor:
        """Draw latents to decode, [P, rows · times, 2A]: standard normal, clamped to ±0.5."""
        return draws.normal(stream, rows, times, self.latent, dtype=dtype).clamp(-_LATENT_CLIP, _LATENT_CLIP).flatten(1, 2)


def divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, σ²) ‖ N(0, 1)) [P, B], averaged over the entries of the latent."""
    return 0.5 * (mean.square() + (2.0 * log_std).exp() - 2.0 * log_std - 1.0).mean(-1)


def vae_loss(vae: VAE, parts: Mapping[str, TrainState], batch: Batch, draws: Draws, weight: float) -> Tensor:
    """Return the reconstruction error of the data's actions by `parts` "encoder" and "decoder", plus weight · KL; [P]."""
    mean, log_std = vae.encode(parts["encoder"].weights, batch.observations, batch.actions)
    noise = draws.normal(Stream.RECONSTRUCTION, mean.shape[1], vae.latent, dtype=mean.dtype)
    decoded = vae.decode(parts["decoder"].weights, batch.observations, mean + log_std.exp() * noise).tanh()
    return (decoded - batch.actions).square().mean((1, 2)) + weight * divergence(mean, log_std).mean(-1)


def soft_clipped(q: Tensor, weight: float) -> Tensor:
    """Return weight · min + (1 − weight) · max of twin Qs [P, 2, B], [P, B] (BCQ, Eq. 13)."""
    return weight * q.amin(1) + (1.0 - weight) * q.amax(1)


def mmd(one: Tensor, other: Tensor, sigma: Tensor) -> Tensor:
    """Return the MMD [P, B] between samples [P, B, N, A] and [P, B, M, A] by the kernel exp(−d²/2σ), σ [P] (BEAR, §4.3)."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.unsqueeze(3) - y.unsqueeze(2)).square().sum(-1)
        return (-squared / (2.0 * sigma[:, None, None, None])).exp().mean((2, 3))

    return (kernel(one, one) + kernel(other, other) - 2.0 * kernel(one, other) + 1e-6).clamp(min=1e-6).sqrt()


@dataclass(frozen=True)
class Scalar:
    """One number per member, trained like a network: `TrainState.weights["value"]` is [P, 1]."""

    start: float

    @property
    def layout(self) -> Layout:
        return Layout({"value": Entry((1,), constant=self.start)})
