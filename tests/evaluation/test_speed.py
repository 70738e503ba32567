"""Inference times of Figure 2, with real policies and with a fake clock."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from drcorl_ray.config import PretrainConfig
from drcorl_ray.config.algorithms import baselines
from drcorl_ray.evaluation import speed
from drcorl_ray.method.diffusion import sample
from tests.helpers.policies import random_policy, random_transformer
from tests.helpers.results import make_row

NO_CLONES = {algorithm.name for algorithm in baselines() if not algorithm.light}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder with policies of three algorithms, one much larger and one with a memory; few states are timed."""
    monkeypatch.setattr(speed, "STATES", 40)
    monkeypatch.setattr(speed, "_SAMPLED", 4)
    monkeypatch.setattr(speed.time, "perf_counter", time.process_time)  # other processes do not count
    for name, hidden in (("drcorl", 8), ("cpq", 512)):
        random_policy(11, 3, hidden=hidden).save(tmp_path / f"{name}.safetensors", 0, {})
    random_transformer(11, 3).save(tmp_path / "cdt.safetensors", 0, {})
    return tmp_path


def rows(*algorithms: str, **changes):
    return [make_row(algorithm=name, policy=f"{name}.safetensors", **changes) for name in algorithms]


def test_time_grows_with_the_size_of_a_policy_and_with_diffusion_steps(run):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    times = speed.inference_times(run, rows("drcorl", "cpq", "cdt"), PretrainConfig(), NO_CLONES)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    policies = [(name, name, f"{name}.safetensors") for name in ("drcorl", "cpq", "cdt")]
    diffusion = [(f"diffusion, {steps} steps", None, None) for steps in (5, 15, 50)]
    assert [(entry["name"], entry["algorithm"], entry["policy"]) for entry in times] == [*policies, *diffusion]
    seconds = {entry["name"]: entry["seconds"] for entry in times}
    assert seconds["cpq"] > 1.5 * seconds["drcorl"] > 0
    assert seconds["diffusion, 50 steps"] > 4 * seconds["diffusion, 5 steps"]


def test_the_first_policy_at_the_lowest_limit_with_a_baseline_is_timed(run):
    """Faults: choose a limit at which only clones are compared; choose a later row, whose file is missing."""
    compared = (
        rows("drcorl", "bc", cost_limit=5.0) + rows("drcorl", "cpq", cost_limit=20.0) + rows("drcorl", "cdt", cost_limit=10.0)
    )
    compared += [make_row(algorithm="drcorl", policy="absent.safetensors", cost_limit=limit) for limit in (10.0, 20.0)]
    times = speed.inference_times(run, compared, PretrainConfig(), NO_CLONES)
    assert [entry["algorithm"] for entry in times if entry["algorithm"]] == ["drcorl", "cdt"]


@pytest.mark.parametrize("algorithms", [("drcorl", "bc"), ("drcorl",), ("cpq",), ()])
def test_clones_and_single_algorithms_are_not_timed(run, algorithms):
    assert speed.inference_times(run, rows(*algorithms), PretrainConfig(), NO_CLONES) == []


def test_seconds_are_for_a_thousand_actions(monkeypatch):
    """Each action advances a fake clock by 10 ms, later by 5 ms; the fastest round counts."""
    clock = {"now": 0.0}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["now"])

    def act(state: np.ndarray) -> None:
        clock["now"] += 0.01 if clock["now"] < 1.0 else 0.005

    assert speed.seconds_per_thousand(act, np.zeros((50, 2), np.float32)) == pytest.approx(5.0)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_diffusion_policy_calls_its_network_once_per_step(steps, monkeypatch):
    calls = []

    class Network:
        conditions, actions = 4, 2

        def __call__(self, weights, noisy, times, observation, conditions):
            calls.append((tuple(noisy.shape), tuple(observation.shape), tuple(conditions.shape)))
            return 0.0 * noisy

    action = speed.diffusion_policy(Network(), {}, steps)(np.zeros(3, np.float32))  # type: ignore[arg-type]
    assert action.shape == (2,)
    assert calls == [((1, 1, 2), (1, 1, 3), (1, 1, 4))] * steps
    assert speed.sample is sample
