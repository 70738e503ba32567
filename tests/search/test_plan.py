"""The order of packs: every configuration once, successive halving by hand, kills, and a planted constrained optimum."""

import shutil
from collections import Counter
from contextlib import suppress

import pytest
from optuna.trial import TrialState

from drcorl_ray.config import SearchConfig
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import read_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.search.plan import read_packs
from drcorl_ray.search.study import COST_CONSTRAINT, Score
from tests.helpers.fakes import answer, make_plan, run, states, told

SPACE = {"k": {"low": 0.0, "high": 4.0}, "beta_0": {"low": 0.0, "high": 0.1}}


def settings(**changes) -> SearchConfig:
    basic = {"space": SPACE, "configurations": 10, "members_per_pack": 4, "concurrent_packs": 2}
    return SearchConfig.model_validate(basic | changes)


def by_k(params: dict, task: str) -> Score:
    return Score(params["k"], 0.5)


def numbers(packs) -> list[list[int]]:
    return [[member.number for member in pack.members] for pack in packs]


def test_packs_hold_every_configuration_once(tmp_path):
    plan = make_plan(tmp_path, settings())
    assert [pack.number for pack, _ in plan.jobs()] == [0, 1]  # no more than concurrent_packs
    assert numbers(pack for pack, _ in run(plan, by_k)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert plan.jobs() == []
    assert states(plan.study) == [TrialState.COMPLETE] * 10
    assert list(read_packs(RunDirectory(tmp_path), "s")) == [pack for pack, _ in _again(plan, tmp_path)]


def _again(plan, folder):
    shutil.rmtree(folder / "packs")
    shutil.rmtree(folder / "studies")
    return run(make_plan(folder, plan.study.settings), by_k)


def test_suggestions_do_not_depend_on_which_pack_finishes_first(tmp_path):
    """Fault: tell results to Optuna in the order in which packs finish."""
    packs = []
    for last_first in (False, True):
        plan = make_plan(tmp_path / str(last_first), settings(configurations=40, rungs=[0.5]), stops=(50, 100))
        done = run(plan, by_k, last_first=last_first)
        packs.append(sorted((pack for pack, _ in done), key=lambda pack: pack.number))
    assert packs[0] == packs[1]


def test_successive_halving_by_hand(tmp_path):
    """A third of each pack of 4 survives (rounded up); survivors wait for a full pack; the last ones continue at the end."""
    plan = make_plan(tmp_path, settings(configurations=10, concurrent_packs=1, reduction_factor=3), stops=(40, 100))
    rewards = [5, 9, 1, 2, 8, 7, 3, 4, 0, 6]
    points = {tuple(plan.study.ask(number).items()): reward for number, reward in enumerate(rewards)}
    done = [pack for pack, _ in run(plan, lambda params, task: Score(points[tuple(params.items())], 0.5))]
    assert numbers(done) == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 4, 5], [8, 9], [9]]
    assert [(pack.rung, pack.start, pack.stop) for pack in done] == [
        (0, 0, 40), (0, 0, 40), (1, 40, 100), (0, 0, 40), (1, 40, 100),
    ]  # fmt: skip
    assert [member.source for member in done[2].members] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert done[2].sources() == {0: [0, 1], 1: [0, 1]}
    stopped = {2, 3, 6, 7, 8}
    trials = plan.study.optuna.get_trials()
    assert {trial.number for trial in trials if trial.state == TrialState.PRUNED} == stopped
    assert [trial.user_attrs["member_steps"] for trial in trials] == [40 if n in stopped else 100 for n in range(10)]
    assert list(tmp_path.rglob("state*")) == []  # no state is needed any more
    assert read_json(plan.folder(0).outcomes) == {"0": "goes on", "1": "goes on", "2": "stopped", "3": "stopped"}
    assert read_json(plan.folder(2).outcomes) == dict.fromkeys("0145", "complete")


def test_unsafe_members_are_stopped_before_members_of_low_reward(tmp_path):
    plan = make_plan(tmp_path, settings(configurations=4), stops=(50, 100))
    costs = {tuple(plan.study.ask(n).items()): cost for n, cost in enumerate([0.5, 3.0, 1.1, 0.9])}
    done = run(plan, lambda params, task: Score(costs[tuple(params.items())], costs[tuple(params.items())]))
    assert numbers(pack for pack, _ in done)[-1] == [0, 3]  # the unsafe members had higher rewards


def test_only_the_member_that_is_not_finite_fails(tmp_path):
    plan = make_plan(tmp_path, settings(configurations=4), stops=(50, 100))
    lost = tuple(plan.study.ask(2).items()) if plan.study.ask(0) and plan.study.ask(1) else ()
    run(plan, lambda params, task: Score(None, None) if tuple(params.items()) == lost else by_k(params, task))
    assert Counter(states(plan.study)) == {TrialState.FAIL: 1, TrialState.PRUNED: 1, TrialState.COMPLETE: 2}
    assert states(plan.study)[2] == TrialState.FAIL


def test_shared_configurations_are_scored_on_all_tasks(tmp_path):
    """The score is the mean reward and the largest cost; a configuration that is lost on one task is lost."""
    plan = make_plan(tmp_path, settings(configurations=3, members_per_pack=3), tasks=("a", "b"))
    scores = {
        "a": [Score(0.2, 0.1), Score(0.9, 0.5), Score(0.5, 0.5)],
        "b": [Score(0.4, 0.3), Score(0.9, 1.5), Score(None, None)],
    }
    index = {tuple(plan.study.ask(n).items()): n for n in range(3)}
    done = run(plan, lambda params, task: scores[task][index[tuple(params.items())]])
    assert [task for _, task in done] == ["a", "b"]
    trials = plan.study.optuna.get_trials()
    assert [trial.value for trial in trials] == pytest.approx([0.3, 0.9, None])
    assert [trial.constraints.get(COST_CONSTRAINT) for trial in trials[:2]] == pytest.approx([-0.7, 0.5])
    assert plan.study.ranking() == [0, 1]


@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_search_killed_after_every_result_asks_and_tells_the_same(tmp_path, concurrent):
    """Each session does one job and is killed, every second one while it tells results. Fault: tell twice, or ask again."""
    changes = {"configurations": 26, "concurrent_packs": concurrent, "rungs": [0.5]}
    straight = make_plan(tmp_path / "straight", settings(**changes), stops=(50, 100))
    expected = run(straight, by_k)
    trained = []
    while True:
        plan = make_plan(tmp_path / "killed", settings(**changes), stops=(50, 100))
        if len(trained) % 2:
            _die_while_telling(plan)
            plan = make_plan(tmp_path / "killed", settings(**changes), stops=(50, 100))
        job = run(plan, by_k, trials=1)
        if not job:
            break
        trained += job
    assert sorted(trained, key=lambda job: job[0].number) == sorted(expected, key=lambda job: job[0].number)
    for one, other in zip(straight.study.optuna.get_trials(), plan.study.optuna.get_trials(), strict=True):
        assert (one.params, one.values, one.state) == (other.params, other.values, other.state)


def _die_while_telling(plan) -> None:
    """Kill the plan after the first configuration of a pack was told to Optuna and before the others were."""
    calls = []
    tell = plan.study.tell

    def dying(*arguments, **named):
        if calls:
            raise KeyboardInterrupt
        calls.append(tell(*arguments, **named))

    plan.study.tell = dying
    with suppress(KeyboardInterrupt):
        plan.jobs()


def test_a_resumed_search_with_other_tasks_is_refused(tmp_path):
    """Its packs would have other members than their result files. Fault: overwrite the pack's file."""
    run(make_plan(tmp_path, settings(), tasks=("a",)), by_k, trials=1)
    with pytest.raises(UserError, match="started with other tasks"):
        make_plan(tmp_path, settings(), tasks=("a", "b")).jobs()
    assert len(make_plan(tmp_path, settings(), tasks=("a",)).jobs()) == 2


def planted(params: dict, task: str) -> Score:
    """Reward rises with k and falls with the distance of β from 0.06; k ≤ 2.5 is safe; the best safe point is (2.5, 0.06)."""
    reward = params["k"] / 4.0 - 40.0 * (params["beta_0"] - 0.06) ** 2 * 25.0
    return Score(reward, params["k"] / 2.5)


def unconstrained(params: dict, task: str) -> Score:
    return Score(planted(params, task).reward, 0.0)


BEST_SAFE = planted({"k": 2.5, "beta_0": 0.06}, "").reward


def search_planted(folder, seed: int, objective) -> dict:
    plan = make_plan(folder, settings(configurations=80, members_per_pack=8), seed=seed)
    run(plan, objective)
    return plan.study.ask(plan.study.ranking()[0])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.nightly)])
def test_the_planted_best_safe_point_is_found(tmp_path, seeds):
    """The same search without the constraint always ends at an unsafe point."""
    for seed in seeds:
        best = search_planted(tmp_path / f"constrained-{seed}", seed, planted)
        assert planted(best, "").cost <= 1, seed
        assert planted(best, "").reward > BEST_SAFE - 0.1, (seed, best)
        blind = search_planted(tmp_path / f"blind-{seed}", seed, unconstrained)
        assert planted(blind, "").cost > 1, seed


def test_the_constraint_makes_optuna_suggest_safe_configurations(tmp_path):
    """At least half of the later suggestions are safe. Fault: tell Optuna no constraint."""
    plan = make_plan(tmp_path, settings(configurations=64, members_per_pack=8))
    run(plan, planted)
    late = [told(plan.study, number) for number in range(32, 64)]
    assert sum(score.cost <= 1 for score in late) >= 16


def test_a_new_plan_reads_the_results_from_disk(tmp_path):
    plan = make_plan(tmp_path, settings(configurations=4))
    [(pack, task)] = plan.jobs()
    answer(plan, pack, task, by_k)
    assert plan.folder(0).task(task).result.exists()
    assert make_plan(tmp_path, settings(configurations=4)).jobs() == []
