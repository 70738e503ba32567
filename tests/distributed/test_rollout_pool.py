"""The pool returns what the plain function returns, even if actors die, hang or start late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.registry import Task, get_task
from tests.evaluation.test_rollout import PICKY, WALK, assert_same
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy


def parent(process: int) -> int:
    return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])


def actor_processes(doing: str) -> set[int]:
    """Return the ids of this test session's Ray processes with that title, e.g. "RolloutActor.run" while a job runs."""
    processes = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            if title.startswith(f"ray::{doing}") and parent(parent(int(entry.name))) == os.getpid():
                processes.add(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return processes


def harm_one_actor_at_work(harm: signal.Signals, harmed: list[int]) -> threading.Thread:
    """Send the signal `harm` to the first actor that runs a job; append its process id to `harmed`."""

    def watch() -> None:
        while not (working := actor_processes("RolloutActor.run")):
            time.sleep(0.01)
        harmed.append(min(working))
        os.kill(harmed[0], harm)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def hoppers() -> tuple[PopulationPolicy, list[int]]:
    return random_policy(11, 3, members=5, hidden=256), list(range(100, 112))


@pytest.mark.ray
@pytest.mark.parametrize("actors", [1, 3])
def test_the_pool_equals_plain_evaluation(ray_cluster, hoppers, actors):
    expected = evaluate(hoppers[0], "HopperVelocity", hoppers[1])
    with RayRolloutPool(actors) as pool:
        assert_same(pool.evaluate(hoppers[0], "HopperVelocity", hoppers[1]), expected)
        small = random_policy(8, 2, members=2)
        assert_same(pool.evaluate(small, "PointCircle", [1, 2]), evaluate(small, "PointCircle", [1, 2]))


@pytest.mark.ray
def test_a_killed_actor_changes_nothing(ray_cluster):
    policies, seeds = random_policy(17, 6, members=2, hidden=256), list(range(8))
    expected = evaluate(policies, "HalfCheetahVelocity", seeds)
    with RayRolloutPool(2) as pool:
        thread = harm_one_actor_at_work(signal.SIGKILL, harmed := [])
        assert_same(pool.evaluate(policies, "HalfCheetahVelocity", seeds), expected)
        thread.join(timeout=5)
        assert len(harmed) == 1
        assert harmed[0] not in actor_processes("")

        idle = min(actor_processes("RolloutActor"))  # then kill one between evaluations
        os.kill(idle, signal.SIGKILL)
        assert_same(pool.evaluate(policies, "HalfCheetahVelocity", seeds), expected)


@pytest.mark.ray
def test_a_hanging_actor_is_replaced(ray_cluster):
    policies, seeds = random_policy(17, 6, members=1, hidden=256), list(range(6))
    expected = evaluate(policies, "HalfCheetahVelocity", seeds)
    harmed: list[int] = []
    try:
        with RayRolloutPool(2, job_timeout_s=10) as pool:
            harm_one_actor_at_work(signal.SIGSTOP, harmed)
            assert_same(pool.evaluate(policies, "HalfCheetahVelocity", seeds), expected)
    finally:
        for process in harmed:
            os.kill(process, signal.SIGKILL)
    assert len(harmed) == 1


@pytest.mark.ray
def test_errors_reach_the_caller(ray_cluster):
    with RayRolloutPool(2, retries=1) as pool:
        with pytest.raises(UserError, match=r"^Nowhere: gymnasium cannot make 'Nowhere-v0'") as caught:
            pool.evaluate(random_policy(1, 1), Task("Nowhere", "gymnasium", None, "Nowhere-v0", 5), [0, 1, 2])
        assert "\n" not in str(caught.value)
        with pytest.raises(RuntimeError, match=r"Picky: rollouts failed 2 times"):
            pool.evaluate(random_policy(1, 1), PICKY, [12, 13, 14])
        with pytest.raises(ValueError, match="seed"):
            pool.evaluate(random_policy(1, 1), WALK, [])
        policies = random_policy(1, 1, members=2)  # the pool recovers; a user's task is sent to the actors
        assert_same(pool.evaluate(policies, WALK, [3, 4]), evaluate(policies, WALK, [3, 4]))


@pytest.mark.ray
def test_actors_without_a_cpu_delay_nothing(ray_cluster):
    policies, seeds = random_policy(8, 2, members=2), list(range(6))
    with RayRolloutPool(4, cpus_per_actor=1.5) as pool:  # the cluster has 2 CPUs: one actor runs, three wait
        assert_same(pool.evaluate(policies, "PointCircle", seeds), evaluate(policies, get_task("PointCircle"), seeds))
    with (
        RayRolloutPool(1, cpus_per_actor=3, start_timeout_s=2) as pool,
        pytest.raises(UserError, match="no rollout actor started"),
    ):
        pool.evaluate(policies, "PointCircle", seeds)


@pytest.mark.ray
def test_a_repeated_episode_is_charged_again(ray_cluster):
    """A lost job of eight episodes charges eight more. If the budget is spent they do not run, and `ran` shows it."""
    policies, seeds = random_policy(17, 6, members=2, hidden=256), list(range(8))
    for budget, charged in ((16, 8), (8, 8)):
        left, log = [budget, budget], []

        def charge(members, episodes, left=left, log=log):
            granted = [min(episodes, left[member]) for member in members]
            for member, count in zip(members, granted, strict=True):
                left[member] -= count
            log.append(sum(granted))
            return granted

        with RayRolloutPool(2) as pool:
            thread = harm_one_actor_at_work(signal.SIGKILL, [])
            rollouts = pool.roll_out(policies, "HalfCheetahVelocity", seeds, charge=charge)
            thread.join(timeout=5)
        assert min(left) >= 0
        if budget == 16:
            assert rollouts.ran.all()
            assert sum(log) == 16 + charged
        else:
            assert rollouts.ran.sum() == 16 - charged
            assert sum(log) == 16


@pytest.mark.ray
def test_an_idle_actor_that_hangs_is_replaced(ray_cluster):
    policies, seeds = random_policy(8, 2, members=2), list(range(4))
    expected = evaluate(policies, "PointCircle", seeds)
    with RayRolloutPool(1, job_timeout_s=8) as pool:
        assert_same(pool.evaluate(policies, "PointCircle", seeds), expected)
        [idle] = actor_processes("RolloutActor")
        os.kill(idle, signal.SIGSTOP)
        try:
            assert_same(pool.evaluate(policies, "PointCircle", seeds), expected)
        finally:
            os.kill(idle, signal.SIGKILL)


@pytest.mark.ray
def test_closing_ends_running_and_queued_rollouts(ray_cluster):
    """No actor is left. Fault: `close` waits for the rollouts, or a queued one starts actors afterwards."""
    policies = random_policy(17, 6, members=4, hidden=256)
    with RayRolloutPool(2) as pool:
        running = pool.start(policies, "HalfCheetahVelocity", range(2000))
        queued = pool.start(policies, "HalfCheetahVelocity", range(2000))
        while not actor_processes("RolloutActor.run"):
            time.sleep(0.05)
        began = time.monotonic()
    for future in (running, queued):
        with pytest.raises(RuntimeError, match="closed"):
            future.result()
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 20
    while actor_processes("RolloutActor"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


CLUSTER = """
import os, time
from pathlib import Path
import numpy as np
import ray
from ray.cluster_utils import Cluster
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.tasks.registry import Task
from tests.helpers.policies import random_policy
from tests.helpers.paths import ROOT

placed = Path(os.environ["PLACED_EPISODES"])
task = Task("Placed", "gymnasium", None, "tests.helpers.small_envs:PlacedCircle-v0", 200)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
small = {"num_cpus": 1, "resources": {"rollout_node": 1}, "object_store_memory": 100 * 2**20}
first = cluster.add_node(**small)
ray.init(address=cluster.address, log_to_driver=False)

policies, seeds = random_policy(8, 2, members=4), range(500)
with RayRolloutPool(2, cpus_per_actor=1, resources={"rollout_node": 0.001}) as pool:
    under_way = pool.start(policies, task, seeds)  # the second actor waits until its node has joined
    while not placed.exists():
        time.sleep(0.05)
    second = cluster.add_node(**small)
    under_way.result()
    counts = {node: placed.read_text().split().count(node) for node in set(placed.read_text().split())}
    assert counts.keys() == {first.node_id, second.node_id}, counts
    cluster.remove_node(first)
    stats = pool.evaluate(policies, task, range(8))
    assert set(placed.read_text().split()[2000:]) == {second.node_id}
expected = evaluate(policies, "PointCircle", range(8))
np.testing.assert_array_equal(stats.returns, expected.returns)
print("placed", sorted(counts.values()))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly
def test_actors_run_only_on_nodes_with_their_resource(tmp_path):
    """The driver's node is never used; a node that joins in the middle is used, and a node that leaves costs no episode."""
    environment = os.environ | {"PLACED_EPISODES": str(tmp_path / "placed"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "placed" in done.stdout
