"""Tests of importances, Pareto fronts and curves from real Optuna journals and logs, against planted answers."""

from __future__ import annotations

import json
import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drcorl_ray.report import optuna_views as study
from drcorl_ray.report.figures import plotly as figures
from drcorl_ray.report.figures import png as pictures
from drcorl_ray.runs.directory import RunDirectory
from tests.helpers.results import MadeSearch, log_line, make_results, make_row


def only_study(made: MadeSearch) -> study.StudyView:
    [view] = study.read_studies(RunDirectory(made.path), made.results)
    return view


@pytest.mark.parametrize("multi_objective", [False, True])
def test_the_planted_key_is_the_most_important(tmp_path, multi_objective):
    """This holds for one objective with a constraint and for two objectives."""
    by_score = study.importances(only_study(MadeSearch(tmp_path, configurations=80, multi_objective=multi_objective)))
    assert by_score.keys() == {"reward", "cost"}
    for shares in by_score.values():
        assert max(shares, key=shares.__getitem__) == "k"
        assert sum(shares.values()) == pytest.approx(1.0)
    assert set(by_score["reward"]) == {"k", "beta_0", "beta_schedule", "beta_1"}


def test_the_important_key_is_the_one_that_makes_the_best_configurations(tmp_path):
    """k decides the best configurations, beta_0 the worst. Fault: the wrong sign of the reward."""
    made = MadeSearch(tmp_path, configurations=80, score=lambda params: ((params["k"] > 3.5) - (params["beta_0"] > 0.05), 0.5))
    shares = study.importances(only_study(made))["reward"]
    assert shares["k"] > 2 * shares["beta_0"]


def test_reward_and_cost_have_importances_of_their_own(tmp_path):
    """A different key decides each score. Fault: show the importances for the reward also for the cost."""
    made = MadeSearch(tmp_path, configurations=80, score=lambda params: (params["k"], params["beta_0"] * 10))
    by_score = study.importances(only_study(made))
    assert max(by_score["reward"], key=by_score["reward"].__getitem__) == "k"
    assert max(by_score["cost"], key=by_score["cost"].__getitem__) == "beta_0"


@pytest.mark.parametrize(("configurations", "known"), [(1, False), (4, False), (5, True)])
def test_too_few_finished_configurations_have_no_importances(tmp_path, configurations, known):
    """Every fourth configuration is stopped, so four of five finish."""
    assert bool(study.importances(only_study(MadeSearch(tmp_path, configurations=configurations)))) is known


def test_a_score_that_never_differs_has_no_importances(tmp_path):
    """Optuna would give every key the same share. The figures are still drawn, with the other score only."""
    made = MadeSearch(tmp_path, configurations=20, score=lambda params: (0.5, params["k"]))
    by_score = study.importances(only_study(made))
    assert by_score.keys() == {"cost"}
    assert len(figures.importances("TaskA", by_score)["data"]) == 1
    pictures.importances(tmp_path / "importances.png", {"TaskA": by_score})


def test_reading_does_not_change_the_study(tmp_path):
    made = MadeSearch(tmp_path, configurations=8, multi_objective=True)
    journal = tmp_path / made.studies[0]["journal"]
    before, level = journal.read_bytes(), optuna.logging.get_verbosity()
    study.importances(only_study(made))
    assert journal.read_bytes() == before
    assert optuna.logging.get_verbosity() == level


@pytest.mark.parametrize("damage", ["absent", "another study", "broken"])
def test_an_unreadable_study_is_none(tmp_path, damage):
    made = MadeSearch(tmp_path, configurations=4)
    journal = tmp_path / made.studies[0]["journal"]
    if damage == "absent":
        journal.unlink()
    elif damage == "broken":
        journal.write_text("{}\nnot json\n")
    else:
        made.studies[0]["name"] = "Another"
    view = only_study(made)
    assert view.optuna is None
    assert study.importances(view) == {}
    assert journal.exists() == (damage != "absent")


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


@given(POINTS)
def test_the_front_equals_brute_force(points):
    def dominated(reward: int, cost: int) -> bool:
        return any(r >= reward and c <= cost and (r, c) != (reward, cost) for r, c in points)

    front = study.pareto_front(points)
    assert sorted(front) == [index for index, point in enumerate(points) if not dominated(*point)]
    assert [points[index][1] for index in front] == sorted(points[index][1] for index in front)


def test_a_shared_study_judges_by_mean_reward_and_worst_cost():
    rows = [
        make_row(task=task, study="shared", configuration=2, state=state, normalized_reward=reward, normalized_cost=cost)
        for task, reward, cost, state in (("A", 0.2, 0.5, "complete"), ("B", 0.6, 1.5, "complete"))
    ]
    rows += [make_row(task="A", study="other", configuration=2), make_row(task="A", selection="search_winner", study="shared")]
    [point] = study.judged(make_results(rows), "shared")
    assert (point.number, point.state, point.cost) == (2, "complete", 1.5)
    assert point.reward == pytest.approx(0.4)


def write_pack(folder, numbers, steps, value):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"members": [{"number": number} for number in numbers]}))
    reports = {0: {"critic/q_reward": [1.0]}} | {
        step: {"adaptation/cost_estimate": [value(number, step) for number in numbers]} for step in steps
    }
    lines = [log_line(metrics, step, total_steps=9, task=folder.name) for step, metrics in reports.items()]
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"half')


def test_a_curve_continues_in_a_later_pack(tmp_path):
    """The configuration has a different index there. Fault: use its index in the first pack."""
    results = make_results([], search={"studies": [{"name": "My-Study", "tasks": ["A"], "journal": "j"}]})
    write_pack(tmp_path / "packs" / "My-Study-0000" / "A", [0, 1, 2], [1, 2], lambda number, step: 10.0 * number + step)
    later = tmp_path / "packs" / "My-Study-0003" / "A"
    write_pack(later, [5, 2], [3, 4], lambda number, step: None if step == 4 else 10.0 * number + step)
    write_pack(tmp_path / "packs" / "Older-0000" / "A", [7], [1], lambda number, step: 0.0)
    (tmp_path / "packs" / "My-Study-0004" / "A").mkdir(parents=True)  # not judged yet
    curves = study.offline_curves(RunDirectory(tmp_path), results)
    assert curves.keys() == {"A"}
    assert list(curves["A"]) == [0, 1, 2, 5]
    series = curves["A"][2]
    assert series.steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(series.values["adaptation/cost_estimate"], [21, 22, 23, math.nan])
    assert np.isnan(series.values["critic/q_reward"]).all()


def test_the_curves_of_a_training_run_are_those_of_its_members(tmp_path):
    run = RunDirectory(tmp_path)
    metrics = {"adaptation/cost_estimate": [3.0, 4.0], "critic/q_reward": [1.0, None]}
    run.metrics.write_text("".join(log_line(metrics, step, 1000, task="A") for step in range(1, 1001)))
    curves = study.offline_curves(run, make_results([]))["A"]
    assert list(curves) == [0, 1]
    assert curves[1].values["adaptation/cost_estimate"].tolist() == [4.0] * 100
    assert (curves[0].steps[0], curves[0].steps[-1], len(curves[0].steps)) == (1, 1000, 100)


def test_damaged_logs_yield_no_curves(tmp_path):
    made = MadeSearch(tmp_path, configurations=4)
    [log] = tmp_path.glob("packs/*/*/metrics.jsonl")
    log.write_text("not json\n")
    assert study.offline_curves(RunDirectory(tmp_path), made.results) == {}
    log.with_name("result.json").write_text("{")
    assert study.offline_curves(RunDirectory(tmp_path), made.results) == {}
