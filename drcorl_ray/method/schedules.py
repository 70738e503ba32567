"""Schedules of β (§5.3), of the slack (App. D.2) and of learning rates; all elementwise on tensors or numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA_SCHEDULES = ("constant", "sqrt", "linear")


def beta(kind: Tensor, beta_0: Tensor, beta_1: Tensor, epoch: float) -> Tensor:
    """β [P] at an epoch: constant β₀, √(β₀ + β₁t) or β₀ + β₁t, by kind [P] (an index into BETA_SCHEDULES)."""
    line = beta_0 + beta_1 * epoch
    return torch.where(kind == 0, beta_0, torch.where(kind == 1, line.sqrt(), line))


def slack(start: Tensor, shrink: Tensor, progress: float) -> Tensor:
    """Slack [P] that loses the share `shrink` linearly while progress goes from 0 to 1."""
    return start * (1.0 - shrink * progress)


def cosine(progress: float, final: float) -> float:
    """Factor that falls from 1 to `final` along half a cosine while progress goes from 0 to 1."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
