"""The networks and losses that baselines share, against closed forms and second implementations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from drcorl_ray.method.baselines.parts import VAE, SquashedGaussian, divergence, log_likelihood, mmd, soft_clipped, vae_loss
from drcorl_ray.method.random import Draws
from drcorl_ray.method.train_state import TrainState
from tests.helpers.learners import make_table, sampler


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mmd_is_the_double_sum_over_samples():
    """Fault: another member's σ; a kernel of the distance instead of its square."""
    one, other, sigma = normal(2, 3, 4, 2), normal(2, 3, 5, 2, seed=1), torch.tensor([0.7, 20.0], dtype=torch.float64)
    distance = mmd(one, other, sigma)
    for member in range(2):
        for row in range(3):

            def mean(x: torch.Tensor, y: torch.Tensor, s: float = float(sigma[member])) -> float:
                return float(np.mean([math.exp(-float(((a - b) ** 2).sum()) / (2 * s)) for a in x for b in y]))

            x, y = one[member, row], other[member, row]
            squared = mean(x, x) + mean(y, y) - 2 * mean(x, y)
            assert math.isclose(float(distance[member, row]), math.sqrt(squared + 1e-6), rel_tol=1e-9)


def test_mmd_of_a_sample_to_itself_is_zero_up_to_its_floor_and_has_a_gradient():
    same = normal(1, 2, 4, 2).requires_grad_()
    distance = mmd(same, same, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(distance, torch.full_like(distance, 1e-3))
    distance.sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_the_divergence_is_the_kl_to_the_prior():
    mean, log_std = normal(2, 3, 4), 0.3 * normal(2, 3, 4, seed=1)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))).mean(-1)
    torch.testing.assert_close(divergence(mean, log_std), expected)


def test_the_likelihood_is_a_squashed_gaussians_up_to_a_constant():
    mean, log_std, actions = normal(1, 6, 2), 0.4 * normal(1, 6, 2, seed=1), normal(1, 6, 2, seed=2).tanh() * 0.9
    squashed = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform()])
    other_mean = mean + 0.5
    other = TransformedDistribution(Independent(Normal(other_mean, log_std.exp()), 1), [TanhTransform()])
    expected = squashed.log_prob(actions) - other.log_prob(actions)
    torch.testing.assert_close(log_likelihood(mean, log_std, actions) - log_likelihood(other_mean, log_std, actions), expected)
    at_the_edge = log_likelihood(mean, log_std, torch.ones_like(actions))
    assert at_the_edge.isfinite().all()


def test_soft_clipping_by_hand():
    twins = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])
    assert soft_clipped(twins, 0.75).tolist() == [[1.5, 2.0]]
    assert soft_clipped(twins, 1.0).tolist() == [[1.0, 1.0]]


def test_a_vae_learns_the_behaviours_actions():
    """Its divergence is smaller for the behaviour's actions than for others, which CPQ relies on."""
    vae = VAE(3, 2, 32)
    seeds, table = torch.tensor([0, 1]), make_table(500, 3, 2, torch.float32)
    table["actions"] = 0.8 * torch.tanh(table["observations"][:, :2])
    parts = {
        name: TrainState(network, network.layout.initialise(seeds, number))
        for number, (name, network) in enumerate((("encoder", vae.encoder), ("decoder", vae.decoder)))
    }
    first = last = torch.zeros(2)
    for step in range(400):
        draws = Draws(seeds, step)
        batch = sampler(table)(draws, 64)
        last = vae_loss(vae, parts, batch, draws, 0.05)
        first = last.detach() if step == 0 else first
        leaves = [leaf for part in parts.values() for leaf in part.weights.values()]
        gradients = iter(torch.autograd.grad(last.sum(), leaves))
        for part in parts.values():
            part.descend(torch.cat([next(gradients).flatten(1) for _ in part.weights], dim=1), 3e-3)
    assert (last < 0.2 * first).all()
    states, rows = table["observations"].expand(2, -1, -1), table["actions"].expand(2, -1, -1)
    decoded = vae.decode(parts["decoder"].weights, states, torch.zeros(2, 500, vae.latent)).tanh()
    assert ((decoded - rows).square().mean((1, 2)) < 0.02).all()
    near, far = (divergence(*vae.encode(parts["encoder"].weights, states, actions)) for actions in (rows, -rows.sign()))
    assert (near.mean(1) < 0.5 * far.mean(1)).all()


def test_samples_before_the_tanh_have_the_networks_moments():
    network = SquashedGaussian(3, (8,), 2)
    weights = network.layout.split(network.layout.initialise(torch.tensor([4]), 1, dtype=torch.float64))
    states = normal(1, 1, 3).expand(1, 20000, 3)
    samples = network.sample(weights, states, normal(1, 20000, 2, seed=3))
    mean, log_std = network(weights, states[:, :1])
    torch.testing.assert_close(samples.mean(1), mean[:, 0], atol=0.03, rtol=0.0)
    torch.testing.assert_close(samples.std(1), log_std[:, 0].exp(), atol=0.03, rtol=0.0)
