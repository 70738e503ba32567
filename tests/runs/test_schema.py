"""Types of results.json, the scores of a row by hand, and results of an early release that can still be read."""

from __future__ import annotations

import json
from typing import get_type_hints

import numpy as np
import pytest

from drcorl_ray.policy.loading import load_policy
from drcorl_ray.report import rebuild
from drcorl_ray.runs.results import read_results
from drcorl_ray.runs.schema import EvaluatedRow, Row, row_scores
from tests.helpers.policies import random_policy

# design.md §8: names that outside scripts rely on.
FIXED = {
    "task", "algorithm", "member", "config", "seed", "cost_limit", "dataset_sha256", "evaluation_mode", "selection",
    "online_episodes", "episodes", "reward_mean", "reward_std", "cost_mean", "cost_std", "normalized_reward",
    "normalized_cost", "policy",
}  # fmt: skip


def test_every_row_has_the_fixed_columns():
    assert Row.__required_keys__ == FIXED | {"length_mean"}
    assert EvaluatedRow.__required_keys__ == Row.__required_keys__ | {
        "name", "safe", "return_range", "seeds", "returns", "costs", "lengths",
    }  # fmt: skip
    assert get_type_hints(Row)["episodes"] is int


def test_scores_by_hand():
    """Scores of two episodes. Faults: divide by n - 1; omit the minimum return of the dataset; omit the 0.1 of Eq. 26."""
    scores = row_scores(np.array([2.0, 6.0]), np.array([3.0, 12.0]), np.array([200, 101]), 9.9, (-2.0, 18.0))
    assert list(scores) == [
        "episodes", "reward_mean", "reward_std", "cost_mean", "cost_std", "length_mean", "normalized_reward",
        "normalized_cost",
    ]  # fmt: skip
    assert scores == {
        "episodes": 2,
        "reward_mean": 4.0,
        "reward_std": 2.0,
        "cost_mean": 7.5,
        "cost_std": 4.5,
        "length_mean": 150.5,
        "normalized_reward": pytest.approx(0.3, abs=1e-15),
        "normalized_cost": pytest.approx(0.75, abs=1e-15),
    }
    assert all(type(value) in (int, float) for value in scores.values())


def test_without_a_return_range_there_is_no_normalised_reward():
    scores = row_scores(np.ones(1), np.ones(1), np.ones(1), 0.0, None)
    assert scores["normalized_reward"] is None
    assert scores["normalized_cost"] == pytest.approx(10.0)


# As early releases wrote it: no `baseline`, no `numbers` or `modes`, no data_episodes, no inference_times.
EARLY = """{"schema": 1, "run": {"commit": "abc", "versions": {"python": "3.11.2"}, "wall_s": 12.5,
"argv": ["launch/train.py"], "machine": {"cpus": 2, "processor": "x86_64", "gpus": []},
"curves": [{"task": "PointCircle", "steps": [10, 20], "normalized_reward": [[0.1, null]], "normalized_cost": [[2.0, 0.5]]}],
"calibration": [{"task": "PointCircle", "steps": [10, 20], "members": ["0 offline"], "cost_limits": [10.0], "member_k": [2.0],
"k": [0.0], "episodes": 10, "estimates": [[[12.0, 4.0]]], "own_estimates": [[15.0, 8.0]], "true_cost": [[20.0, 10.1]],
"true_cost_se": [[2.0, 1.0]]}],
"references": [{"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.7}]},
"rows": [
{"task": "PointCircle", "algorithm": "drcorl", "member": 0, "config": {"k": 2.0, "cost_limit": 10.0, "seed": 0}, "seed": 0,
"cost_limit": 10.0, "dataset_sha256": "ab", "evaluation_mode": "offline", "selection": "last", "online_episodes": 0,
"episodes": 20, "reward_mean": 100.0, "reward_std": 1.0, "cost_mean": 5.05, "cost_std": 2.5, "length_mean": 200.0,
"normalized_reward": 0.8125, "normalized_cost": 0.5, "policy": "policies/PointCircle-drcorl-000.safetensors"},
{"task": "PointCircle", "algorithm": "cpq", "member": 0, "config": {"k": 2.0, "cost_limit": 10.0, "seed": 0}, "seed": 0,
"cost_limit": 10.0, "dataset_sha256": "ab", "evaluation_mode": "offline", "selection": "last", "online_episodes": 0,
"episodes": 20, "reward_mean": 80.0, "reward_std": 1.0, "cost_mean": 20.2, "cost_std": 2.5, "length_mean": 200.0,
"normalized_reward": 0.6, "normalized_cost": 2.0, "policy": "policies/PointCircle-cpq.safetensors"}]}"""


def test_results_of_an_early_release_are_read_reported_and_loaded(tmp_path):
    policy = random_policy(8, 2)
    (tmp_path / "policies").mkdir()
    policy.save(tmp_path / "policies" / "PointCircle-drcorl-000.safetensors", 0, {})
    (tmp_path / "results.json").write_text(EARLY)
    assert read_results(tmp_path) == json.loads(EARLY)
    states = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_array_equal(load_policy(tmp_path).act(states), policy.act(states[None])[0])
    rebuild(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| PointCircle | drcorl | 10 | last | **0.812** | **0.50** |" in text
    assert "## Table 1, cost limit 10" in text
    assert "inference time" not in text
    assert not (tmp_path / "speed.png").exists()
    assert (tmp_path / "report.html").stat().st_size > 10_000
