"""How long a policy takes to act, beside sampling from a diffusion model (Fig. 2): plain torch and numpy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from drcorl_ray.method.diffusion import sample
from drcorl_ray.method.networks import NoiseNetwork, Weights

STATES = 1000  # single-state actions, as in the paper's Fig. 2
DENOISING_STEPS = (5, 15, 50)

Act = Callable[[np.ndarray], object]


def one_by_one(act: Act, states: np.ndarray) -> None:
    for state in states:
        act(state)


def seconds_per_thousand(act: Act, states: np.ndarray, repeats: int = 3) -> float:
    """Seconds for 1,000 single-state actions, of the quickest of some rounds over states [n, S]."""
    one_by_one(act, states[: max(1, len(states) // 10)])
    took = []
    for _ in range(repeats):
        begin = time.perf_counter()
        one_by_one(act, states)
        took.append(time.perf_counter() - begin)
    return min(took) * STATES / len(states)


def diffusion_policy(network: NoiseNetwork, weights: Weights, steps: int, device: torch.device | str = "cpu") -> Act:
    """Samples an action for a state [S] from a behaviour model: the speed of diffusers, without a claim of quality."""
    asked = torch.zeros(1, 1, network.conditions, device=device)

    def act(state: np.ndarray) -> np.ndarray:
        observation = torch.from_numpy(state).to(device)[None, None]
        start = torch.randn(1, 1, network.actions, device=device)
        predict = lambda noisy, times: network(weights, noisy, times, observation, asked)  # noqa: E731
        return sample(predict, start, steps)[0, 0].cpu().numpy()

    return act
