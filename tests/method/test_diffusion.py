"""Schedule identities (T3), and the regularised optimum in closed form (T2)."""

import pytest
import torch

from drcorl_ray.method import diffusion
from drcorl_ray.method.networks import NoiseNetwork
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.train_state import TrainState, flat_gradients

TIMES = torch.linspace(1e-3, 1, 500, dtype=torch.float64)
WIDE = Draws(torch.tensor([0]), 0)


def test_variance_is_preserved_and_the_schedule_monotone():
    alpha, sigma = diffusion.marginal(TIMES)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(TIMES), rtol=0, atol=1e-14)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert sigma[0] < 0.02
    assert alpha[-1] < 0.01


def test_derivative_of_log_alpha_is_minus_half_the_linear_rate():
    times = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(diffusion.marginal(times)[0].log().sum(), times)
    rate = diffusion.BETA_MIN + (diffusion.BETA_MAX - diffusion.BETA_MIN) * TIMES
    torch.testing.assert_close(slope, -0.5 * rate, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_is_recovered_from_the_signal_to_noise_ratio(dtype):
    alpha, sigma = diffusion.marginal(TIMES.to(dtype))
    assert alpha.dtype == sigma.dtype == dtype
    log_snr = (2 * (alpha.log() - sigma.log())).double()
    log_alpha = -0.5 * torch.nn.functional.softplus(-log_snr)
    a, b = (diffusion.BETA_MAX - diffusion.BETA_MIN) / 4, diffusion.BETA_MIN / 2
    times = (-b + (b * b - 4 * a * log_alpha).sqrt()) / (2 * a)
    torch.testing.assert_close(times, TIMES, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=0)


def gaussian_noise(mean: torch.Tensor, std: float):
    """The optimal noise prediction for behaviour a ~ N(mean, std²)."""

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (scale.unsqueeze(-1) for scale in diffusion.marginal(times))
        return sigma * (noisy - alpha * mean) / (alpha.square() * std**2 + sigma.square())

    return predict


def times_and_noise(rows: int, step: int = 0):
    draws = Draws(torch.tensor([0]), step)
    times = diffusion.spread(draws.uniform(Stream.REGULARISER_TIME, rows, dtype=torch.float64), diffusion.REGULARISER_TIMES)
    return times, draws.normal(Stream.REGULARISER_NOISE, rows, 1, dtype=torch.float64)


def stiffness(std: float) -> float:
    """c = E_t[w α σ / (α²s² + σ²)] by quadrature, w = σ²: the regulariser's gradient is c (a − m)."""
    low, high = diffusion.REGULARISER_TIMES
    times = torch.linspace(low, high, 200_001, dtype=torch.float64)
    alpha, sigma = diffusion.marginal(times)
    return float((sigma**3 * alpha / (alpha**2 * std**2 + sigma**2)).mean())


def test_behaviour_direction_is_the_closed_form_and_z_only_cuts_its_variance():
    behaviour_mean, std = torch.tensor(0.3, dtype=torch.float64), 0.4
    times, noise = times_and_noise(200_000)
    actions = torch.full_like(noise, -0.5)
    predict = gaussian_noise(behaviour_mean, std)
    direction, _ = diffusion.behaviour_direction(predict, actions, torch.zeros_like(actions), times, noise)
    expected = -stiffness(std) * (actions[0, 0] - behaviour_mean)
    assert float(direction.mean()) == pytest.approx(float(expected), rel=5e-3)
    assert expected > 0  # with Q ≡ 0 the policy climbs log μ: the paper's sign would push it away
    weight = diffusion.marginal(times)[1].square().unsqueeze(-1)
    without_baseline = direction - weight * noise
    assert float(without_baseline.mean()) == pytest.approx(float(expected), abs=5 * float(without_baseline.std()) / 447)
    assert direction.var() < 0.2 * without_baseline.var()


@pytest.mark.parametrize(("beta", "curvature"), [(0.0, 1.0), (0.05, 2.0), (0.5, 2.0), (1e6, 1.0)])
def test_dirac_policy_converges_to_the_regularised_optimum(beta, curvature):
    """Behaviour N(m, s²), Q = −κ/2 (a − a*)²: a fixed point is (c·m + βκ·a*)/(c + βκ)."""
    mean, std, best = torch.tensor(0.3, dtype=torch.float64), 0.4, -0.6
    predict, c = gaussian_noise(mean, std), stiffness(std)
    action = torch.zeros(1, 4096, 1, dtype=torch.float64)
    pull = beta * curvature
    for step in range(300):
        times, noise = times_and_noise(4096, step)
        direction, _ = diffusion.behaviour_direction(predict, action, torch.zeros_like(action), times, noise)
        ascent = direction.mean() - pull * (action[0, 0, 0] - best)
        action += 0.5 / (c + pull) * ascent
    expected = (c * float(mean) + pull * best) / (c + pull)
    assert float(action[0, 0, 0]) == pytest.approx(expected, abs=5e-3)


def test_gaussian_policy_recovers_the_behaviours_mean_and_std():
    """Q ≡ 0: the reverse KL of Eq. 8 is zero at the behaviour itself, in the mean and in the std (D18)."""
    behaviour_mean, behaviour_std = torch.tensor(0.3, dtype=torch.float64), 0.25
    predict = gaussian_noise(behaviour_mean, behaviour_std)
    mean, log_std = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for step in range(1500):
        times, noise = times_and_noise(2048, step)
        xi = Draws(torch.tensor([0]), step).normal(Stream.POLICY_NOISE, 2048, 1, dtype=torch.float64)
        std = log_std.exp().expand_as(xi)
        for_action, for_std = diffusion.behaviour_direction(predict, mean + std * xi, std, times, noise)
        mean = mean + 0.5 * for_action.mean()
        log_std = log_std + 2.0 * (std * (for_action * xi + for_std)).mean()
    assert float(mean) == pytest.approx(0.3, abs=0.02)
    assert float(log_std.exp()) == pytest.approx(behaviour_std, rel=0.05)


def test_behaviour_direction_is_not_differentiated():
    times, noise = times_and_noise(8)
    actions = torch.zeros_like(noise).requires_grad_()
    predict = gaussian_noise(torch.tensor(0.0, dtype=torch.float64), 0.3)
    direction, for_std = diffusion.behaviour_direction(predict, actions, torch.ones_like(noise), times, noise)
    assert not direction.requires_grad
    assert not for_std.requires_grad


def test_a_noise_network_learns_two_points_and_samples_land_on_both():
    points = torch.tensor([[-0.6, 0.2], [0.5, -0.4]], dtype=torch.float32)
    network = NoiseNetwork(observations=1, actions=2, conditions=1, width=32, blocks=2, expansion=2)
    seeds = torch.tensor([0])
    noise_net = TrainState(network, network.layout.initialise(seeds, 0))
    nothing = torch.zeros(1, 256, 1)
    for step in range(1200):
        draws = Draws(seeds, step)
        actions = points[draws.integers(Stream.ROWS, 256, 2)]
        times = diffusion.spread(draws.uniform(Stream.DIFFUSION_TIME, 256), diffusion.TRAINING_TIMES)
        z = draws.normal(Stream.DIFFUSION_NOISE, 256, 2)
        prediction = network(noise_net.weights, diffusion.perturb(actions, z, times), times, nothing, nothing)
        (gradient,) = flat_gradients(diffusion.diffusion_loss(prediction, z).sum(), [noise_net])
        noise_net.descend(gradient, 2e-3 * (1 - step / 1200))
    start = Draws(seeds, 0).normal(Stream.SAMPLING_NOISE, 256, 2)
    samples = diffusion.sample(lambda a, t: network(noise_net.weights, a, t, nothing, nothing), start, steps=30)
    distances = torch.cdist(samples[0], points)
    nearest, which = distances.min(1)
    assert nearest.quantile(0.9) < 0.1
    assert 0.3 < which.double().mean() < 0.7
