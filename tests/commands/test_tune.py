"""Whole searches through Ray: winners on fresh seeds, retrained alone; kills of driver, trial and node lose nothing."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from optuna.trial import TrialState

from drcorl_ray.commands.train import train
from drcorl_ray.commands.tune import open_tasks, search
from drcorl_ray.config import MemberConfig
from drcorl_ray.config.loading import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import load_curve_point
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.io.files import load_arrays, local_file
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.results import read_results
from drcorl_ray.search.accounting import covered, most_at_once
from drcorl_ray.search.plan import read_packs
from drcorl_ray.search.setup import open_studies, reference_members, stops
from drcorl_ray.search.study import load_study
from drcorl_ray.search.winners import best_step
from tests.helpers.paths import ROOT
from tests.helpers.tiny import pretrain_beforehand, tiny_arguments, tiny_config

QUICKSTART = ROOT / "tune_configs" / "quickstart.yaml"  # what launch/tune.py reads where it is given no file
HALVING = ["search.rungs=[0.5]", "search.members_per_pack=4", "search.configurations=8", "search.concurrent_packs=1"]


def test_the_papers_settings_are_among_the_first_points(tmp_path):
    space = "search.space={beta_0: {low: 0.001, high: 0.1}, policy_class: {choices: [dirac, gaussian_constant]}}"
    config = tiny_config(tmp_path, space, "member.cost_limit=30")
    [(study, tasks)] = open_studies(config, RunDirectory.prepare(config), config.tasks)
    assert tasks == ["PointCircle"]
    assert [study.ask(0), study.ask(1)] == [
        {"beta_0": 0.04, "policy_class": "dirac"},  # the configured member
        {"beta_0": 0.02, "policy_class": "gaussian_constant"},
    ]


def test_a_search_over_a_baseline_starts_at_its_own_settings(tmp_path):
    """And not at DRCORL's of the paper. Fault: the gains of the paper's DRCORL member are asked second."""
    space = "search.space={pid_integral: {low: 0.001, high: 0.1}, bcq_lag.perturbation: {low: 0.1, high: 0.9}}"
    own = ("run.algorithm=bcq_lag", "member.pid_integral=0.02", "baseline.bcq_lag.perturbation=0.25")
    config = tiny_config(tmp_path, space, *own)
    [(study, _)] = open_studies(config, RunDirectory.prepare(config), config.tasks)
    assert study.ask(0) == {"pid_integral": 0.02, "bcq_lag.perturbation": 0.25}
    assert study.ask(1)["pid_integral"] != MemberConfig().pid_integral


@pytest.mark.parametrize("arguments", [[], ["search.space={cpq.ood_scale: {low: 1, high: 3}, k: {low: 0, high: 4}}"]])
def test_a_search_over_settings_that_a_baseline_does_not_have_is_refused(tmp_path, arguments):
    """The default space is DRCORL's. Fault: settings are searched that change nothing."""
    with pytest.raises(UserError, match=r"search\.space: cpq has no .*k.*set search\.space=.*learning_rate, cpq\.ood_scale"):
        search(tiny_config(tmp_path, "run.algorithm=cpq", *arguments))


def test_tasks_that_are_not_available_are_left_out_only_if_asked(tmp_path):
    names = "task.name=[PointCircle, HopperVelocity]"
    data = f"data.dataset={{PointCircle: {tmp_path / 'tiny.hdf5'}, HopperVelocity: {tmp_path / 'absent.hdf5'}}}"
    with pytest.raises(UserError, match=r"absent\.hdf5"):
        open_tasks(tiny_config(tmp_path, names, data))
    tasks = open_tasks(tiny_config(tmp_path, names, data, "task.skip_unavailable=true"))
    assert [data.task.name for data in tasks] == ["PointCircle"]
    absent = f"data.dataset={tmp_path / 'absent.hdf5'}"
    nothing = tiny_config(tmp_path, "task.name=HopperVelocity", absent, "task.skip_unavailable=true")
    with pytest.raises(UserError, match="none of the 1 tasks is available"):
        open_tasks(nothing)


def test_every_seed_and_limit_that_is_compared_is_pretrained_and_cloned(tmp_path):
    space = "search.space={seed: {choices: [4, 2]}, cost_limit: {choices: [10, 30]}, k: {choices: [0.0]}}"
    members = reference_members(tiny_config(tmp_path, space, "search.sampler=grid"))
    assert [(member.seed, member.cost_limit) for member in members] == [(4, 10), (4, 30), (2, 10), (2, 30)]
    own = reference_members(tiny_config(tmp_path, "run.seed=7"))
    assert [(member.seed, member.cost_limit) for member in own] == [(7, 10.0)]


def test_rungs_are_shares_of_the_policy_steps(tmp_path):
    config = tiny_config(tmp_path, "extract.steps=100", "extract.critic_steps=40", "search.rungs=[0.25, 0.5]")
    assert stops(config) == [65, 90, 140]


def test_the_best_point_of_a_curve_by_hand():
    """Fault: the highest reward whatever its cost, or the last of the safe ones."""

    def best(reward: list, cost: list) -> int:
        return best_step({"steps": [10, 20, 30, 40], "normalized_reward": [reward], "normalized_cost": [cost]})

    assert best([0.5, 0.9, 0.8, 0.7], [0.0, 1.1, 1.0, 0.2]) == 30
    assert best([0.5, 0.9, 0.8, 0.7], [3.0, 2.0, 1.5, 1.6]) == 30
    assert best([0.5, None, 0.8, 0.7], [0.5, None, 2.0, 1.6]) == 10
    assert best([None, 0.5, 0.8, 0.7], [None, 1.5, 2.0, 1.6]) == 20


def test_covered_and_busiest_by_hand():
    intervals = [(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.75)]
    assert covered(intervals) == 4.0
    assert covered([(4.0, 3.0)]) == 0.0
    assert most_at_once(intervals) == 2
    assert most_at_once([(0.0, 1.0), (1.0, 2.0)]) == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_ends_in_winners_that_train_again_to_the_same_policy(tmp_path):
    """Online and hybrid members, with an evaluation under way where the rung cuts: begun at step 47, due at 56."""
    space = "search.space={evaluation_mode: {choices: [hybrid, online]}, beta_0: {low: 0.003, high: 0.1}}"
    online = ["evaluation.online_interval=12", "evaluation.online_staleness=9", "evaluation.hybrid_transitions=600"]
    config = tiny_config(
        tmp_path,
        "member.cost_limit=200",
        "member.evaluation_mode=hybrid",
        "scaling.cpus_per_actor=0.1",
        space,
        *online,
        *HALVING,
    )
    run = search(config)
    results = read_results(run.path)
    rows = results["rows"]
    judged = [row for row in rows if row["algorithm"] == "drcorl" and row["selection"] == "last"]
    complete = [row for row in judged if row["state"] == "complete"]
    assert sorted(row["configuration"] for row in judged) == list(range(8))
    trials = load_study(run.study("PointCircle"), "PointCircle").get_trials()
    pruned = {trial.number for trial in trials if trial.state == TrialState.PRUNED}
    assert {row["configuration"] for row in judged if row["state"] == "stopped"} == pruned
    assert len(complete) == 4
    assert {row["member_steps"] for row in complete} == {80}
    assert {row["member_steps"] for row in judged if row["state"] == "stopped"} == {50}
    spent = {(row["state"], row["online_episodes"]) for row in judged}
    assert spent == {("stopped", 2 + 3 * 2), ("complete", 4 + 5 * 2)}  # two a judgement, two an online evaluation
    appended = {(row["state"], row["evaluation_mode"], row["appended_transitions"]) for row in judged}
    assert appended <= {
        ("stopped", "online", 0), ("stopped", "hybrid", 400), ("complete", "online", 0), ("complete", "hybrid", 600),
    }  # fmt: skip
    assert {row["evaluation_mode"] for row in judged} == {"online", "hybrid"}

    winners = [row for row in rows if row["selection"] == "search_winner"]
    best = sorted((row for row in complete if row["normalized_cost"] <= 1), key=lambda row: -row["normalized_reward"])
    assert {row["configuration"] for row in winners} == {row["configuration"] for row in best[:2]}
    winner = winners[0]
    searched = next(row for row in judged if row["configuration"] == winner["configuration"])
    assert winner["search_normalized_reward"] == searched["normalized_reward"]
    assert winner["online_episodes"] == 4 * 8 + 4 * 14
    again = evaluate(load_policy(run.path / winner["policy"]).population, "PointCircle", range(1_000_000, 1_000_003))
    assert winner["reward_mean"] == float(again.returns.mean())
    assert not np.isclose(winner["reward_mean"], searched["reward_mean"])  # fresh seeds, not the search's
    assert [len(values) for values in results["run"]["curves"][0]["normalized_reward"]] == [3]

    best_points = [row for row in rows if row["selection"] == "online_best"]
    assert [row["configuration"] for row in best_points] == [row["configuration"] for row in winners]
    [point, _], [curve, _] = best_points, results["run"]["curves"]
    assert point["member_steps"] == best_step(curve)
    assert point["online_episodes"] == searched["online_episodes"] + 3 * config.evaluation.curve_episodes
    kept = [load_curve_point(file) for file in run.path.glob(f"curves/*/*/step-{best_step(curve):08d}.safetensors")]
    weights = load_policy(run.path / point["policy"]).population.weights[0][0]
    assert any((weights == other.policies.weights[0]).all(axis=(1, 2)).any() for other in kept)

    cost = results["run"]["search"]["cost"]
    assert (cost["packs"], cost["configurations"], cost["stopped"]) == (3, 8, 4)
    assert cost["member_steps"] == 8 * 50 + 4 * 30 == sum(row["member_steps"] for row in judged)
    assert cost["online_episodes"] == 4 * 8 + 4 * 14
    assert [entry["members"] for entry in results["run"]["calibration"]] == [[f"0 {w['evaluation_mode']}"] for w in winners]
    parts = [cost[name] for name in ("pretraining_s", "packs_s", "evaluation_s", "overhead_s")]
    assert sum(parts) == pytest.approx(cost["wall_s"])
    assert all(part > 0 for part in parts)
    assert not list((run.path / "packs").rglob("state*"))

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared" / "pretrained").glob("*.safetensors")}
    alone = train(load_config([str(run.path / winner["config_file"]), f"run.dir={tmp_path / 'alone'}"]))
    [row] = [row for row in read_results(alone.path)["rows"] if row["selection"] == "last" and row["algorithm"] == "drcorl"]
    assert row["config"] == winner["config"]
    one, other = (load_policy(folder / r["policy"]).population for folder, r in ((run.path, winner), (alone.path, row)))
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        assert a.tobytes() == b.tobytes()
    assert before == {path: path.stat().st_mtime_ns for path in before}  # the pretraining was shared


def launch(arguments: list[str], home: Path) -> subprocess.Popen:
    """The launch script on "a machine" with a home and a working directory of its own."""
    home.mkdir()
    environment = {**os.environ, "HOME": str(home)}
    command = [sys.executable, str(ROOT / "launch" / "tune.py"), *arguments]
    return subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )


def wait_for(happened, driver: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline
        assert driver is None or driver.poll() is None, driver.stdout.read()
        time.sleep(0.05)


def outcome(run: Path) -> list[tuple]:
    """What a search found: every configuration's parameters, state and scores, and every pack's policies."""
    with local_file(run / "studies" / "PointCircle.journal") as journal:
        trials = load_study(journal, "PointCircle").get_trials()
    weights = {
        str(path.relative_to(run)): load_arrays(path)[0] for path in sorted((run / "packs").glob("*/*/population.safetensors"))
    }
    populations = [(path, {name: x.tobytes() for name, x in arrays.items()}) for path, arrays in weights.items()]
    return [(trial.params, trial.values, trial.state) for trial in trials] + populations


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_kill_9_of_the_driver_and_a_resume_on_another_machine_change_nothing(tmp_path, bucket):
    """The machines have nothing but the object store in common; the search that was not killed keeps all on its disk."""
    extra = [*HALVING, "extract.steps=400", "evaluation.baselines=[]"]
    local = tiny_arguments(tmp_path, *extra)
    (bucket / "tiny.hdf5").write_bytes((tmp_path / "tiny.hdf5").read_bytes())
    there = [f"data.dataset={bucket}/tiny.hdf5", f"run.dir={bucket}/run", f"run.storage={bucket}/shared"]
    arguments, run = [*local, *there], bucket / "run"
    pretrain_beforehand(load_config(arguments, QUICKSTART))
    driver = launch(arguments, tmp_path / "first")
    wait_for(lambda: list(run.glob("packs/*-0001/*/state.safetensors")), driver)  # the second pack is under way
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    first = (run / "packs" / "PointCircle-0000" / "PointCircle" / "result.json").read_bytes()
    shutil.rmtree(tmp_path / "first")

    with pytest.raises(UserError, match=r"run\.resume=true"):
        search(load_config(arguments, QUICKSTART))
    resumed = launch([*arguments, "run.resume=true"], tmp_path / "second")
    output, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, output
    assert (run / "packs" / "PointCircle-0000" / "PointCircle" / "result.json").read_bytes() == first
    assert (run / "report.html").exists()
    pretrain_beforehand(load_config(local, QUICKSTART))
    assert outcome(run) == outcome(search(load_config(local, QUICKSTART)).path)


def trial_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process in children if process.is_running() and "ImplicitFunc" in " ".join(process.cmdline())]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("ray_cluster")
def test_kill_9_of_a_trial_goes_on_from_its_last_report(tmp_path):
    config = tiny_config(
        tmp_path, "search.configurations=2", "extract.steps=600", "evaluation.baselines=[]", "evaluation.curve_points=0"
    )
    pretrain_beforehand(config)
    log = tmp_path / "run" / "packs" / "PointCircle-0000" / "PointCircle" / "metrics.jsonl"
    killed: list[tuple[int, int]] = []

    def kill() -> None:
        wait_for(lambda: len(read_log(log)) >= 3)
        [trial] = trial_processes()
        os.kill(trial.pid, signal.SIGKILL)
        killed.append((trial.pid, read_log(log)[-1]["step"]))

    killer = threading.Thread(target=kill)
    killer.start()
    run = search(config)
    killer.join()
    assert len(killed) == 1
    steps = [line["step"] for line in read_log(log)]
    assert steps == sorted(set(steps))  # no report twice
    assert steps[-1] == 620
    assert killed[0][1] < 620
    [pack] = read_packs(run, "PointCircle")
    alone = train(load_config([str(run.member("PointCircle", 0)), f"run.dir={tmp_path / 'alone'}"]))
    whole, _ = load_population(run.pack("PointCircle", 0).task("PointCircle").population)
    single, _ = load_population(alone.population("PointCircle"))
    assert whole.weights[0][pack.members[0].number].tobytes() == single.weights[0][0].tobytes()
