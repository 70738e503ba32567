"""Searches in packs: every configuration judged once, constraints respected, nothing lost when the driver is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from drcorl_ray.config import RangeConfig
from drcorl_ray.policy import load_policy
from drcorl_ray.population_search import COST_CONSTRAINT, PopulationSearch, open_study
from drcorl_ray.rollout import evaluate
from drcorl_ray.run_directory import read_results
from drcorl_ray.search import search
from tests.tiny import tiny_arguments, tiny_config

ROOT = Path(__file__).resolve().parent.parent
SPACE = {"k": RangeConfig(low=0.0, high=4.0), "adaptation": RangeConfig(choices=["crpo", "lagrangian"])}


def searcher(path: Path, configurations: int = 5, size: int = 2) -> PopulationSearch:
    points = [{"k": 2.0, "adaptation": "crpo"}]
    return PopulationSearch(
        path / "s.journal", "task", SPACE, configurations=configurations, members_per_pack=size, first_points=points, seed=0
    )


def answer(suggestion: dict, reward=float, cost=lambda number: 0.5) -> dict:
    members = [
        {"number": m["number"], "normalized_reward": reward(m["number"]), "normalized_cost": cost(m["number"])}
        for m in suggestion["members"]
    ]
    return {"members": members}


def test_packs_of_members_until_all_configurations_are_asked(tmp_path):
    search_alg = searcher(tmp_path)
    packs = [search_alg.suggest(f"t{i}") for i in range(3)]
    assert [len(pack["members"]) for pack in packs] == [2, 2, 1]
    assert packs[0]["members"][0]["params"] == {"k": 2.0, "adaptation": "crpo"}  # the configured point comes first
    assert search_alg.suggest("t0") == packs[0]  # asking again for a trial changes nothing
    assert search_alg.suggest("t3") == PopulationSearch.FINISHED
    for i, pack in enumerate(packs):
        search_alg.on_trial_complete(f"t{i}", answer(pack))
    trials = search_alg.study.get_trials()
    assert [trial.value for trial in trials] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(trial.constraints == {COST_CONSTRAINT: -0.5} for trial in trials)


def test_an_unsafe_configuration_never_wins(tmp_path):
    search_alg = searcher(tmp_path)
    for i in range(3):
        pack = search_alg.suggest(f"t{i}")
        search_alg.on_trial_complete(f"t{i}", answer(pack, cost=lambda number: 0.9 if number < 2 else 1.01))
    assert search_alg.study.best_trial.number == 1


def test_members_without_a_finite_score_fail_alone(tmp_path):
    search_alg = searcher(tmp_path)
    pack = search_alg.suggest("t0")
    search_alg.on_trial_complete("t0", answer(pack, reward=lambda number: [None, 0.3][number]))
    assert [trial.state for trial in search_alg.study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    other = search_alg.suggest("t1")
    search_alg.on_trial_complete("t1", answer(other, reward=lambda number: float("inf")))
    assert [trial.state for trial in search_alg.study.get_trials()[2:]] == [TrialState.FAIL] * 2


def test_a_dead_search_hands_its_open_packs_out_again_first(tmp_path):
    first = searcher(tmp_path)
    done, lost = first.suggest("a"), first.suggest("b")
    first.on_trial_complete("a", answer(done))
    first.on_trial_complete("b", error=True)  # an error leaves the pack open
    first.study.ask(first._space)  # asked, but killed before it was put into a pack
    second = searcher(tmp_path)
    assert second.suggest("c") == lost
    rest = second.suggest("d")
    assert len(rest["members"]) == 1
    assert second.suggest("e") == PopulationSearch.FINISHED
    for name, pack in (("c", lost), ("d", rest)):
        second.on_trial_complete(name, answer(pack))
    states = [trial.state for trial in second.study.get_trials()]
    assert states.count(TrialState.COMPLETE) == 5
    assert states.count(TrialState.RUNNING) == 0


def test_a_resumed_search_asks_what_the_undisturbed_one_asks(tmp_path):
    """Fault: one sampler seed for every session, which repeats the first pack's configurations after a restart."""
    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    straight = searcher(tmp_path / "straight", configurations=6)
    expected = [straight.suggest(f"t{i}") for i in range(3)]
    packs = [searcher(tmp_path / "resumed", configurations=6).suggest("a")]
    for i in range(1, 3):
        session = searcher(tmp_path / "resumed", configurations=6)
        for pack in packs:  # handed out again, in order
            assert session.suggest(f"again-{pack['pack']}") == pack
        packs.append(session.suggest(f"t{i}"))
    assert packs == expected
    params = [tuple(member["params"].values()) for pack in packs for member in pack["members"]]
    assert len(set(params)) == 6


def test_a_search_owes_what_has_no_result(tmp_path):
    search_alg = searcher(tmp_path)
    pack = search_alg.suggest("a")
    assert search_alg.open_configurations == 5
    search_alg.on_trial_complete("a", answer(pack, reward=lambda number: [None, 0.3][number]))
    assert search_alg.open_configurations == 3  # a failed member has its result


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_through_tune_ends_in_winners(tmp_path):
    config = tiny_config(tmp_path, "member.cost_limit=200")
    run = search(config)
    rows = read_results(run.path)["rows"]
    winner = next(row for row in rows if row["selection"] == "search_winner")
    judged = [row for row in rows if row["algorithm"] == "drcorl" and row["selection"] == "last"]
    assert len(judged) == 5
    assert {row["online_episodes"] for row in judged} == {2}
    assert winner["online_episodes"] == 10
    [curve] = read_results(run.path)["run"]["curves"]
    assert len(curve["steps"]) == 3
    assert [len(values) for values in (*curve["normalized_reward"], *curve["normalized_cost"])] == [3, 3]
    best = max((row for row in judged if row["normalized_cost"] <= 1), key=lambda row: row["normalized_reward"])
    assert winner["config"] == best["config"]
    again = evaluate(load_policy(run.path / winner["policy"]).population, "PointCircle", range(1_000_000, 1_000_003))
    assert winner["reward_mean"] == float(again.returns.mean())
    assert not np.isclose(winner["reward_mean"], best["reward_mean"])  # fresh seeds, not the search's


def launch(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "launch/tune.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_of_the_driver_in_the_middle_of_a_search_loses_nothing(tmp_path):
    arguments = tiny_arguments(tmp_path, "extract.steps=600", "evaluation.baselines=[]", "search.concurrent_packs=1")
    driver = launch(arguments)
    packs = tmp_path / "run" / "packs"
    deadline = time.monotonic() + 240
    while not list(packs.glob("*-0001/state.safetensors")):  # the second pack is under way
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    first = (packs / "PointCircle-0000" / "result.json").read_bytes()

    refused = launch(arguments)
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "run.resume=true" in output

    resumed = launch([*arguments, "run.resume=true"])
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert (packs / "PointCircle-0000" / "result.json").read_bytes() == first
    study = open_study(tmp_path / "run" / "studies" / "PointCircle.journal", "PointCircle", 0)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 5
    assert len([row for row in read_results(tmp_path / "run")["rows"] if row["selection"] == "last"]) == 5
