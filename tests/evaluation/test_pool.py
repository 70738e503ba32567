"""A pool in this process gives what the plain function gives, and spends no episode that was not granted."""

from __future__ import annotations

import numpy as np
import pytest

from drcorl_ray.evaluation import pool as pool_module
from drcorl_ray.evaluation.pool import LocalRolloutPool, granted
from drcorl_ray.evaluation.rollout import Block, evaluate, roll_out_in
from drcorl_ray.tasks.envs import make_simulator
from tests.evaluation.test_rollout import WALK, assert_same
from tests.helpers.policies import random_policy


@pytest.mark.parametrize("size", [1, 3, 64])
def test_blocks_of_any_size_give_the_same_episodes(size):
    """Fault: give every block the first seeds."""
    policies, seeds, finished = random_policy(1, 1, members=3), [4, 1, 9, 7], []
    with LocalRolloutPool(finished.append, size) as pool:
        assert_same(pool.evaluate(policies, WALK, seeds), evaluate(policies, WALK, seeds))
        assert sum(finished) == 12
        assert max(finished) <= size


def test_trajectories_are_those_of_the_first_episodes():
    """Fault: count `record` from each block's first episode."""
    policies, seeds = random_policy(1, 1, members=2), [4, 1, 9]
    with LocalRolloutPool(size=1) as pool:
        recorded = pool.roll_out(policies, WALK, seeds, record=2).trajectories
    expected = roll_out_in(make_simulator(WALK), policies, WALK, seeds, record=2).trajectories
    assert recorded.keys() == expected.keys() == {(member, episode) for member in range(2) for episode in range(2)}
    for key, columns in expected.items():
        assert all(np.array_equal(recorded[key][name], values) for name, values in columns.items())


def test_what_is_not_granted_does_not_run():
    """Member 1 may have one episode of three. Fault: ask, and roll out all the same."""
    left = [3, 1]

    def charge(members, episodes):
        counts = [min(episodes, left[member]) for member in members]
        for member, count in zip(members, counts, strict=True):
            left[member] -= count
        return counts

    policies = random_policy(1, 1, members=2)
    with LocalRolloutPool() as pool:
        rollouts = pool.start(policies, WALK, [4, 1, 9], charge=charge).result()
    assert rollouts.ran.tolist() == [[True, True, True], [True, False, False]]
    assert (rollouts.stats.lengths > 0).tolist() == rollouts.ran.tolist()
    assert left == [0, 0]
    free = evaluate(policies, WALK, [4, 1, 9])
    assert np.array_equal(rollouts.stats.costs[rollouts.ran], free.costs[rollouts.ran])


def test_a_block_is_cut_to_each_members_grant():
    block = Block(slice(2, 5), slice(4, 8))
    assert granted(block, None) == [block]
    assert granted(block, lambda members, episodes: [episodes] * 3) == [block]
    assert granted(block, lambda members, episodes: [4, 0, 1]) == [
        Block(slice(2, 3), slice(4, 8)),
        Block(slice(4, 5), slice(4, 5)),
    ]


def test_a_simulator_is_kept_for_its_task_and_closed_for_another(monkeypatch):
    """Fault: a simulator for every block, or the first task's for all."""
    made, closed = [], []

    def make(task):
        simulator = make_simulator(task)
        made.append(task.name)
        close = simulator.close
        monkeypatch.setattr(simulator, "close", lambda: (closed.append(task.name), close()))
        return simulator

    monkeypatch.setattr(pool_module, "make_simulator", make)
    with LocalRolloutPool(size=1) as pool:
        pool.evaluate(random_policy(1, 1, members=2), WALK, [1, 2])
        pool.evaluate(random_policy(8, 2, members=1), "PointCircle", [1])
        assert (made, closed) == ([WALK.name, "PointCircle"], [WALK.name])
    assert closed == [WALK.name, "PointCircle"]


def test_bad_requests_are_refused_before_anything_runs():
    policies = random_policy(1, 1, members=2)
    with LocalRolloutPool() as pool:
        with pytest.raises(ValueError, match="at least one episode seed"):
            pool.evaluate(policies, WALK, [])
        policies.weights[0][1] = np.nan
        with pytest.raises(ValueError, match=r"members \[1\] are not finite"):
            pool.evaluate(policies, WALK, [1])
