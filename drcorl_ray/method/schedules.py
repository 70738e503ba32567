"""Schedules of β (§5.3), of the slack (App. D.2) and of learning rates.

Progress is a scalar tensor on the device, so that a captured CUDA graph reads its current value at each replay.
Shapes: P members.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA_SCHEDULES = ("constant", "sqrt", "linear")


def beta(kind: Tensor, beta_0: Tensor, beta_1: Tensor, epoch: Tensor | float) -> Tensor:
    """Return β [P] at epoch t: β₀, √(β₀ + β₁t) or β₀ + β₁t, by kind [P] (an index into BETA_SCHEDULES)."""
    linear = beta_0 + beta_1 * epoch
    return torch.where(kind == 0, beta_0, torch.where(kind == 1, linear.sqrt(), linear))


def slack(start: Tensor, shrink: Tensor, progress: Tensor | float) -> Tensor:
    """Return the slack [P], which shrinks linearly from `start` to start · (1 − shrink) as progress goes from 0 to 1."""
    return start * (1.0 - shrink * progress)


def cosine(progress: Tensor, final: float) -> Tensor:
    """Return a factor that falls from 1 to `final` along half a cosine as progress goes from 0 to 1."""
    return final + (1.0 - final) * 0.5 * (1.0 + (math.pi * progress).cos())
