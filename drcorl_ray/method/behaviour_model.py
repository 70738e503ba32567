"""The conditional diffusion model of the data's actions: its labels (D7), its loss, and its part of the policy gradient.

Shapes: P members, B rows of a minibatch, S observation, A action. The four inputs of a label are (shown, √cost rate, shown,
standardised reward rate); a rate that is not shown is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method import diffusion
from drcorl_ray.method.networks import NoiseNetwork, Weights
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.train_state import TrainState


def row_conditions(batch: Batch, spec: DataSpec, draws: Draws, dropout: float) -> Tensor:
    """Return the rows' labels [P, B, 4]; each of the two rates is hidden with probability `dropout`."""
    rows, dtype = batch.rewards.shape[1], batch.rewards.dtype
    shown = draws.keep(Stream.CONDITION_DROPOUT, 1.0 - dropout, rows, 2).to(dtype)
    reward = (batch.reward_rates - spec.reward_rate_mean) / spec.reward_rate_std
    labels = torch.stack([batch.cost_rates.sqrt(), reward], dim=-1) * shown
    return torch.stack([shown[..., 0], labels[..., 0], shown[..., 1], labels[..., 1]], dim=-1)


def noise_loss(noise: TrainState, batch: Batch, conditions: Tensor, draws: Draws, dropout: float) -> Tensor:
    """Return the diffusion loss [P] on a minibatch (Eq. 5)."""
    network = noise.network
    assert isinstance(network, NoiseNetwork)
    (rows, actions), dtype = batch.actions.shape[1:], batch.actions.dtype
    times = diffusion.spread(draws.uniform(Stream.DIFFUSION_TIME, rows, dtype=dtype), diffusion.TRAINING_TIMES)
    z = draws.normal(Stream.DIFFUSION_NOISE, rows, actions, dtype=dtype)
    noisy = diffusion.perturb(batch.actions, z, times)
    masks = network.dropout_masks(draws, rows, dropout, dtype)
    return diffusion.diffusion_loss(network(noise.weights, noisy, times, batch.observations, conditions, masks), z)


def behaviour_directions(
    network: NoiseNetwork,
    weights: Weights,
    conditions: Tensor,
    observations: Tensor,
    actions: Tensor,
    std: Tensor,
    draws: Draws,
) -> tuple[Tensor, Tensor]:
    """Return the ascent directions of log μ for actions and std, [P, B, A] each, at drawn times and noise (Eq. 8-9).

    conditions: [P, B, 4]; observations: [P, B, S]; actions, std: [P, B, A].
    """
    (rows, size), dtype = actions.shape[1:], actions.dtype
    times = diffusion.spread(draws.uniform(Stream.REGULARISER_TIME, rows, dtype=dtype), diffusion.REGULARISER_TIMES)
    noise = draws.normal(Stream.REGULARISER_NOISE, rows, size, dtype=dtype)
    return diffusion.behaviour_direction(
        lambda noisy, t: network(weights, noisy, t, observations, conditions), actions, std, times, noise
    )
