"""Inference time of policies and of sampling from a diffusion model (Fig. 2), in plain torch and numpy.

It is measured once, at the end of a run; results.json stores the seconds (`InferenceSeconds`) and the report shows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from drcorl_ray.method.architectures import CONDITIONS
from drcorl_ray.method.diffusion import sample
from drcorl_ray.method.networks import NoiseNetwork, Weights
from drcorl_ray.policy.loading import Policy, load_policy
from drcorl_ray.runs.schema import InferenceSeconds, Row

if TYPE_CHECKING:
    from drcorl_ray.config import PretrainConfig

STATES = 1000  # number of single-state actions, as in the paper's Fig. 2
DENOISING_STEPS = (5, 15, 50)
_SAMPLED = 50  # states for which a diffusion model is sampled

Act = Callable[[np.ndarray], object]


def inference_times(
    run: Path, rows: Sequence[Row], pretrain: PretrainConfig, baselines: Collection[str]
) -> list[InferenceSeconds]:
    """Measure one policy of each algorithm, and sampling from a noise network of the size in `pretrain`.

    The policies are those of the lowest cost limit at which the rows compare one of the `baselines` with another algorithm.
    Return an empty list if there is no such limit.
    """
    compared = _compared(rows, baselines)
    if not compared:
        return []
    policies = {algorithm: load_policy(run / row["policy"]) for algorithm, row in compared.items()}
    size = next(iter(policies.values())).population
    with _one_thread():
        times: list[InferenceSeconds] = [
            {
                "name": algorithm,
                "algorithm": algorithm,
                "policy": compared[algorithm]["policy"],
                "seconds": _policy_seconds(policy),
            }
            for algorithm, policy in policies.items()
        ]
        return times + _diffusion_times(pretrain, size.observation_size, size.action_size)


def _compared(rows: Sequence[Row], baselines: Collection[str]) -> dict[str, Row]:
    """Return {algorithm: its first row} at the lowest such cost limit; empty if there is none."""
    for limit in sorted({row["cost_limit"] for row in rows}):
        first: dict[str, Row] = {}
        for row in rows:
            if row["cost_limit"] == limit:
                first.setdefault(row["algorithm"], row)
        if len(first) > 1 and {*first} & {*baselines}:
            return first
    return {}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _policy_seconds(policy: Policy) -> float:
    size = policy.population.observation_size
    return seconds_per_thousand(policy.episode().act, _states(size, STATES // 4 if policy.population.memory else STATES))


def _diffusion_times(pretrain: PretrainConfig, observations: int, actions: int) -> list[InferenceSeconds]:
    network = NoiseNetwork(
        observations, actions, CONDITIONS, pretrain.noise_width, pretrain.noise_blocks, pretrain.noise_expansion
    )
    weights = network.layout.split(network.layout.initialise(torch.tensor([0]), 1))
    states = _states(observations, _SAMPLED)
    return [
        {
            "name": f"diffusion, {steps} steps",
            "algorithm": None,
            "policy": None,
            "seconds": seconds_per_thousand(diffusion_policy(network, weights, steps), states, 1),
        }
        for steps in DENOISING_STEPS
    ]


def _states(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)


def one_by_one(act: Act, states: np.ndarray) -> None:
    """Call `act` with one state at a time."""
    for state in states:
        act(state)


def seconds_per_thousand(act: Act, states: np.ndarray, repeats: int = 3) -> float:
    """Return the seconds for 1,000 single-state actions: the fastest of `repeats` rounds over states [n, S]."""
    one_by_one(act, states[: max(1, len(states) // 10)])
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        one_by_one(act, states)
        durations.append(time.perf_counter() - begin)
    return min(durations) * STATES / len(states)


def diffusion_policy(network: NoiseNetwork, weights: Weights, steps: int, device: torch.device | str = "cpu") -> Act:
    """Return a function that samples an action for a state [S] from a behaviour model; measures speed, not quality."""
    condition = torch.zeros(1, 1, network.conditions, device=device)

    def act(state: np.ndarray) -> np.ndarray:
        observation = torch.from_numpy(state).to(device)[None, None]
        start = torch.randn(1, 1, network.actions, device=device)
        predict = lambda noisy, times: network(weights, noisy, times, observation, condition)  # noqa: E731
        return sample(predict, start, steps)[0, 0].cpu().numpy()

    return act
