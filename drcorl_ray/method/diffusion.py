"""The behaviour model: a variance-preserving diffusion SDE on actions (§3.1, Eq. 3-5) and its score (Eq. 9).

Time t ∈ (0, 1]; t = 0 is data. a_t = α(t)·a + σ(t)·z with z ~ N(0, I) and α² + σ² = 1.
Shapes: P members, B rows of a minibatch, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0
TRAINING_TIMES = (1e-3, 1.0)
REGULARISER_TIMES = (0.02, 0.98)

NoisePrediction = Callable[[Tensor, Tensor], Tensor]


def marginal(times: Tensor) -> tuple[Tensor, Tensor]:
    """Return α(t) = exp(−t²(β₁ − β₀)/4 − tβ₀/2) and σ(t) = √(1 − α²), both in the shape of `times`."""
    log_alpha = -0.25 * times.square() * (BETA_MAX - BETA_MIN) - 0.5 * times * BETA_MIN
    return log_alpha.exp(), (-torch.expm1(2.0 * log_alpha)).sqrt()


def perturb(actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Return a_t = α(t)·a + σ(t)·z [..., A]; actions and noise [..., A], times [...]."""
    alpha, sigma = marginal(times)
    return alpha.unsqueeze(-1) * actions + sigma.unsqueeze(-1) * noise


def spread(uniform: Tensor, interval: tuple[float, float]) -> Tensor:
    """Scale uniform numbers on [0, 1) to an interval of times."""
    return interval[0] + (interval[1] - interval[0]) * uniform


def diffusion_loss(noise_prediction: Tensor, noise: Tensor) -> Tensor:
    """Return Eq. 5 with w(t) = 1, [P]: ‖ε_ψ − z‖² of predictions and noise [P, B, A], summed over A, averaged over B."""
    return (noise_prediction - noise).square().sum(-1).mean(-1)


def behaviour_direction(
    predict: NoisePrediction, actions: Tensor, std: Tensor, times: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ascent directions on the negative reverse KL to the behaviour (Eq. 8-9) for the actions and their std, [P, B, A].

    The limit t → 0 of Eq. 23 is estimated over random t with the weight w(t) = σ(t)². The score is −ε_ψ/σ (the + in the paper
    is a typo), and z is a zero-mean baseline, so the direction for the actions is −w·(ε_ψ(a_t, t) − z). The entropy term is
    exact at the same t and weight: w·α·σ·s/(α²s² + σ²). A Gaussian behaviour is thereby a fixed point in mean and std (D18).
    No gradient is recorded.
    """
    with torch.no_grad():
        alpha, sigma = (scale.unsqueeze(-1) for scale in marginal(times))
        weight = sigma.square()
        for_actions = -weight * (predict(perturb(actions, noise, times), times) - noise)
        for_std = weight * alpha * sigma * std / (alpha.square() * std.square() + sigma.square())
        return for_actions, for_std


def sample(predict: NoisePrediction, noise: Tensor, steps: int) -> Tensor:
    """Sample actions [P, B, A] by DDIM: denoise `noise` [P, B, A] deterministically from t = 1 in `steps` steps."""
    grid = torch.linspace(TRAINING_TIMES[1], TRAINING_TIMES[0], steps + 1, dtype=noise.dtype, device=noise.device)
    noisy = noise
    with torch.no_grad():
        for now, after in pairwise(grid):
            epsilon = predict(noisy, now.expand(noise.shape[:-1]))
            (alpha, sigma), (next_alpha, next_sigma) = marginal(now), marginal(after)
            noisy = next_alpha * (noisy - sigma * epsilon) / alpha + next_sigma * epsilon
    return noisy
