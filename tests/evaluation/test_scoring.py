"""Rows of results.json by hand (Eq. 26), and the references of a report."""

from __future__ import annotations

import numpy as np
import pytest

from drcorl_ray.data.dsrl import make_dataset
from drcorl_ray.data.store import Source, convert
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.references import best_safe_episode, best_safe_episodes, data_episodes
from drcorl_ray.evaluation.scoring import RowInfo, score
from drcorl_ray.policy.loading import load_policy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.provenance import describe_results
from drcorl_ray.tasks.scores import EpisodeStats
from tests.helpers.columns import make_columns
from tests.policy.test_policy import make_population, observations

# design.md §8, and the episodes' mean length
ROW_NAMES = {
    "task", "algorithm", "member", "config", "seed", "cost_limit", "dataset_sha256", "evaluation_mode", "selection",
    "online_episodes", "episodes", "reward_mean", "reward_std", "cost_mean", "cost_std", "length_mean", "normalized_reward",
    "normalized_cost", "policy",
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    """Four episodes with returns -2, 4, 18, 8 and costs 0, 3, 9, 3."""
    columns = make_columns(8)
    columns["rewards"] = np.array([-1, -1, 2, 2, 9, 9, 4, 4], np.float32)
    columns["costs"] = np.array([0, 0, 1, 2, 4, 5, 3, 0], np.float32)
    columns["terminals"] = np.zeros(8, bool)
    columns["timeouts"] = np.tile([False, True], 4)
    folder = tmp_path / "store"
    convert(make_dataset(columns), folder, task="PointCircle", source=Source(file_name="a.hdf5", sha256="ab" * 32))
    return TaskData.open(folder)


STATS = EpisodeStats(
    returns=np.array([[2.0, 6.0], [18.0, 18.0]]),
    costs=np.array([[3.0, 12.0], [0.0, 0.0]]),
    lengths=np.array([[200, 100], [200, 200]]),
    seeds=np.array([5, 6]),
)


def test_rows_by_hand(tmp_path, data):
    """Fault: subtract the smallest cost of the data, omit the 0.1, or divide by R_max instead of the range."""
    run = RunDirectory(tmp_path / "run")
    infos = [
        RowInfo("drcorl", {"k": 1.5}, seed=3, cost_limit=9.9),
        RowInfo("bc", {"cost_limit": None}, seed=4, cost_limit=0.0, selection="search_winner", online_episodes=40),
    ]
    population = make_population(2)
    first, second = score(run, data, population, infos, STATS, ["drcorl-000", "winner-0007"])
    assert first == {
        "task": "PointCircle",
        "algorithm": "drcorl",
        "member": 0,
        "config": {"k": 1.5},
        "seed": 3,
        "cost_limit": 9.9,
        "dataset_sha256": "ab" * 32,
        "evaluation_mode": "offline",
        "selection": "last",
        "online_episodes": 0,
        "episodes": 2,
        "reward_mean": 4.0,
        "reward_std": 2.0,
        "cost_mean": 7.5,
        "cost_std": 4.5,
        "length_mean": 150.0,
        "normalized_reward": pytest.approx((4.0 - -2.0) / (18.0 - -2.0), abs=1e-15),
        "normalized_cost": pytest.approx((3.0 + 12.0) / 2 / 10.0, abs=1e-15),
        "policy": "policies/PointCircle-drcorl-000.safetensors",
    }
    assert first.keys() == second.keys() == ROW_NAMES
    assert (second["selection"], second["online_episodes"], second["normalized_reward"]) == ("search_winner", 40, 1.0)
    assert second["normalized_cost"] == 0.0
    for member, row in enumerate((first, second)):
        policy = load_policy(run.path / row["policy"])
        assert policy.meta["result"] == row
        states = observations(3)
        np.testing.assert_array_equal(policy.act(states), population.select([member]).act(states[None])[0])


def test_a_cost_limit_of_zero_stays_finite(tmp_path, data):
    [row, _] = score(RunDirectory(tmp_path), data, make_population(2), [RowInfo("drcorl", {}, 0, 0.0)] * 2, STATS, ["a", "b"])
    assert row["normalized_cost"] == pytest.approx(75.0)


@pytest.mark.parametrize(("limit", "best"), [(0.0, 0.0), (2.99, 0.0), (3.0, 0.5), (8.0, 0.5), (9.0, 1.0), (-0.5, None)])
def test_best_safe_episode(data, limit, best):
    """A cost equal to the limit is safe. Fault: < instead of ≤, or the episode of lowest cost instead of the best one."""
    assert best_safe_episode(data, limit) == best


def test_references_exist_for_limits_that_an_episode_satisfies(data):
    assert best_safe_episodes(data, [9.0, 3.0, -0.5, 3.0]) == [
        {"task": "PointCircle", "cost_limit": 3.0, "normalized_reward": 0.5},
        {"task": "PointCircle", "cost_limit": 9.0, "normalized_reward": 1.0},
    ]


def test_episodes_of_the_data_are_subsampled_evenly(data, monkeypatch):
    """All episodes, or an even selection with the first and the last. Faults: normalise the costs; take the first episodes."""
    every = {"task": "PointCircle", "normalized_reward": [0.0, 0.3, 1.0, 0.5], "cost": [0.0, 3.0, 9.0, 3.0]}
    assert data_episodes(data) == every
    monkeypatch.setattr("drcorl_ray.evaluation.references.MOST_EPISODES", 3)
    assert data_episodes(data) == {"task": "PointCircle", "normalized_reward": [0.0, 1.0, 0.5], "cost": [0.0, 9.0, 3.0]}
    monkeypatch.setattr("drcorl_ray.evaluation.references.MOST_EPISODES", 2)
    assert data_episodes(data)["cost"] == [0.0, 3.0]


def test_results_describe_the_run():
    row = {"task": "PointCircle", "normalized_reward": 0.5}
    content = describe_results([row], 12.345, {"curves": []})
    assert content["schema"] == 1
    assert content["rows"] == [row]
    assert content["run"].keys() >= {"commit", "versions", "machine", "wall_s", "argv", "curves"}
    assert content["run"]["versions"].keys() >= {"python", "torch", "numpy"}
    assert content["run"]["wall_s"] == 12.3
