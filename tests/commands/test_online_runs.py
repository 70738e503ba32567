"""Runs with online evaluation on a real Ray: actors, workers and the driver are killed; results and budgets hold."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from drcorl_ray.commands.train import train
from drcorl_ray.config.loading import load_config
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.results import read_results
from drcorl_ray.tasks import registry as tasks
from drcorl_ray.tasks.registry import register_task
from tests.distributed.test_ray_train import assert_equal_policies, kill_a_worker_at, run_stages
from tests.distributed.test_rollout_pool import actor_processes
from tests.helpers.paths import ROOT
from tests.helpers.tiny import plain_learner, plain_policies, pretrain_beforehand, tiny_arguments, tiny_config

MODES = "population=[{evaluation_mode: offline}, {evaluation_mode: online}, {evaluation_mode: hybrid, seed: 1}]"
ONLINE = [MODES, "evaluation.online_interval=10", "evaluation.hybrid_transitions=1000", "evaluation.actors=2"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def kill_an_actor_every(seconds: float, killed: list[int], over: threading.Event) -> None:
    while not over.wait(seconds):
        for process in sorted(actor_processes("RolloutActor"))[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_cluster")
def test_killed_actors_and_a_killed_worker_change_nothing(tmp_path):
    """The whole run's policies equal those of a plain loop in this process bitwise, and every episode was paid for."""
    config = tiny_config(
        tmp_path, *ONLINE, "extract.steps=300", "scaling.report_steps=40", "evaluation.online_budget=1000",
    )  # fmt: skip
    pretrain_beforehand(config)
    killed: list[int] = []
    over = threading.Event()
    killers = [
        threading.Thread(target=kill_an_actor_every, args=(2.0, killed, over)),
        threading.Thread(target=kill_a_worker_at, args=(tmp_path / "run" / "metrics.jsonl", "extract", 160, killed)),
    ]
    for killer in killers:
        killer.start()
    try:
        data, run, policies = run_stages(config)
    finally:
        over.set()
        for killer in killers:
            killer.join()
    assert len(killed) >= 3
    learner = plain_learner(config, data)
    assert_equal_policies(policies, learner.policies())
    meta = load_population(run.population("PointCircle"))[1]
    assert meta["appended_transitions"] == learner.online.counts.tolist() == [0, 0, 1000]
    undisturbed = learner.online.spent.tolist()
    assert undisturbed == [0, 60, 60]
    assert all(mine >= plain for mine, plain in zip(meta["online_episodes"], undisturbed, strict=True))
    lines = read_log(run.online("PointCircle").ledger)[1:]
    assert sum(sum(line["episodes"]) for line in lines) == sum(meta["online_episodes"])


SCRIPT = """
from drcorl_ray.commands.cli import main
from drcorl_ray.tasks.registry import register_task

register_task("Counted", "tests.helpers.small_envs:CountedCircle-v0", 200, return_min=0, return_max=200)
raise SystemExit(main("train"))
"""


@pytest.mark.nightly
def test_no_kill_of_a_run_spends_more_than_its_budget(tmp_path, monkeypatch):
    """kill -9 of the whole driver at a random moment; the environment itself counts the episodes."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    register_task("Counted", "tests.helpers.small_envs:CountedCircle-v0", 200, return_min=0, return_max=200)
    counted, budget = tmp_path / "counted", 20
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = tiny_arguments(
        tmp_path, *ONLINE, "task.name=Counted", f"evaluation.online_budget={budget}", "evaluation.curve_points=0",
        "evaluation.baselines=[]", "extract.steps=200", "scaling.report_steps=50", "run.resume=true",
    )  # fmt: skip
    pretrain_beforehand(load_config(arguments))
    environment = os.environ | {"COUNTED_EPISODES": str(counted), "PYTHONPATH": str(ROOT)}
    chance = random.Random(0)

    def online_episodes() -> int:
        seeds = counted.read_text().split() if counted.exists() else []
        return sum(seed.isdigit() and 5_000_000 <= int(seed) < 6_000_000 for seed in seeds)

    for kill in (True, False):
        command = [sys.executable, str(script), *arguments]
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        if not kill:
            assert process.wait(timeout=300) == 0
            break
        before, deadline = online_episodes(), time.monotonic() + 200
        while online_episodes() < before + 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(2)  # Ray's processes, in sessions of their own, notice that their driver is gone
    rows = [row for row in read_results(tmp_path / "run")["rows"] if row["selection"] == "last"]
    spent = {row["evaluation_mode"]: row["online_episodes"] for row in rows}
    assert spent["offline"] == 0
    assert 0 < spent["online"] <= budget
    assert 0 < spent["hybrid"] <= budget
    assert online_episodes() <= sum(spent.values())


@pytest.mark.nightly
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_see_the_same_rollouts_and_the_run_says_what_it_spent(tmp_path):
    """The policies of one worker up to rounding, while learning goes on beside the rollouts; rows, calibration and report."""
    settings = ["evaluation.online_budget=7", "evaluation.online_staleness=5", "scaling.workers=2"]
    config = tiny_config(tmp_path, *ONLINE, *settings)
    pretrain_beforehand(config)
    run = train(config)
    policies, meta = load_population(run.population("PointCircle"))
    data = TaskData.open(task_store("PointCircle", config.data, config.run))
    assert_equal_policies(policies, plain_policies(config, data), tolerance=1e-3)  # float32 sums in another order
    assert meta["online_episodes"] == [0, 7, 7]
    results = read_results(run.path)
    rows = [row for row in results["rows"] if row["algorithm"] == "drcorl"]
    told = [
        (row["member"], row["selection"], row["evaluation_mode"], row["online_episodes"], row.get("appended_transitions"))
        for row in rows
    ]
    assert told == [
        (0, "last", "offline", 0, None), (1, "last", "online", 7, 0), (2, "last", "hybrid", 7, 800),
        (1, "online_best", "online", 7, 0), (2, "online_best", "hybrid", 7, 800),
    ]  # fmt: skip
    assert all(load_policy(run.path / row["policy"]).meta["result"] == row for row in rows)
    [calibration] = results["run"]["calibration"]
    assert calibration["members"] == ["0 offline", "1 online", "2 hybrid"]
    assert all(len(calibration["true_cost"][member]) == len(calibration["steps"]) == 3 for member in range(3))
    own, estimates = calibration["own_estimates"], calibration["estimates"]
    assert own[0] == pytest.approx(estimates[0][calibration["k"].index(calibration["member_k"][0])])
    lines = [line for line in read_log(run.metrics) if line["stage"] == "extract"]
    assert lines[-1]["metrics"]["adaptation/online_episodes"][0] == 0
    assert "Can the offline estimate be trusted" in (run.path / "report.html").read_text()
