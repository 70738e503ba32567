"""Studies: suggestions, scores and ranking; conditional spaces; a killed process does not change the suggestions."""

import json
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna_dashboard import wsgi

from drcorl_ray.config import RangeConfig, SearchConfig
from drcorl_ray.search import study as study_module
from drcorl_ray.search.study import COST_CONSTRAINT, Score, SearchStudy, _suggest, fit, grid, load_study, sampler
from tests.helpers.fakes import states, told

SPACE = {
    "beta_schedule": {"choices": ["constant", "sqrt", "linear"]},
    "beta_0": {"low": 0.003, "high": 0.1, "log": True},
    "beta_1": {"low": 1e-4, "high": 1e-2, "log": True, "when": {"beta_schedule": ["sqrt", "linear"]}},
    "k": {"low": 0.0, "high": 4.0},
}
POINTS = [{"k": 2.0, "beta_0": 0.01, "beta_schedule": "constant"}, {"k": 9.0, "beta_0": 0.02, "beta_schedule": "sqrt"}]


def settings(**changes) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, "configurations": 40} | changes)


def open_study(folder, name="s", points=POINTS, **changes) -> SearchStudy:
    return SearchStudy(folder / f"{name}.journal", name, settings(**changes), points, seed=3)


def judge(params: dict) -> Score:
    return Score(reward=1.0 - (params["k"] - 3.0) ** 2, cost=params["k"] / 2.0)


def test_first_points_are_cut_to_the_space_and_come_first(tmp_path):
    study = open_study(tmp_path)
    assert study.ask(0) == POINTS[0]
    second = study.ask(1)
    assert {key: second[key] for key in ("k", "beta_0", "beta_schedule")} == {
        "k": 4.0,
        "beta_0": 0.02,
        "beta_schedule": "sqrt",
    }
    assert 1e-4 <= second["beta_1"] <= 1e-2  # not given, so it is sampled


def test_a_key_is_suggested_only_if_its_condition_is_met(tmp_path):
    study = open_study(tmp_path)
    suggestions = [study.ask(number) for number in range(30)]
    assert {params["beta_schedule"] for params in suggestions} == {"constant", "sqrt", "linear"}
    assert all(("beta_1" in params) == (params["beta_schedule"] != "constant") for params in suggestions)


@pytest.mark.parametrize(
    ("kind", "multi_objective"),
    [("tpe", False), ("tpe", True), ("cmaes", False), ("qmc", False), ("qmc", True), ("random", False)],
)
def test_a_killed_process_does_not_change_the_suggestions(tmp_path, kind, multi_objective):
    """The process is killed after Optuna created the trial and before it suggested parameters. Fault: ask for a new trial."""
    changes = {"sampler": kind, "multi_objective": multi_objective}
    straight, killed = open_study(tmp_path, "a", **changes), open_study(tmp_path, "b", **changes)
    params = []
    for number in range(25):
        params.append(straight.ask(number))
        if number % 4 == 3:
            killed.optuna.sampler = sampler(killed.settings, 3, number)
            killed.optuna.ask()
            killed = open_study(tmp_path, "b", **changes)
        assert killed.ask(number) == params[-1]
        assert killed.ask(number) == params[-1]
        for study in (straight, killed):
            study.tell(number, judge(params[-1]), 100, stopped=number % 3 == 1 and not multi_objective)
    assert len({tuple(point.items()) for point in params}) == 25
    assert len(states(killed)) == 25


@pytest.mark.parametrize("kind", ["tpe", "cmaes", "qmc", "random"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_process_killed_between_two_parameters_does_not_change_the_suggestions(tmp_path, monkeypatch, kind, after):
    """Fault: keep the parameters that were suggested and draw only the others again."""
    straight, killed = open_study(tmp_path, "a", sampler=kind), open_study(tmp_path, "b", sampler=kind)
    params = []
    for number in range(20):
        params.append(straight.ask(number))
        if number % 3 == 2:
            with monkeypatch.context() as patch:
                patch.setattr(study_module, "_suggest", dying_after(after))
                with pytest.raises(InterruptedError):
                    killed.ask(number)
            killed = open_study(tmp_path, "b", sampler=kind)
        assert killed.ask(number) == params[-1]
        for study in (straight, killed):
            study.tell(number, judge(params[-1]), 100, stopped=False)


def dying_after(calls: int):
    left = [calls]

    def suggest(trial, key, entry):
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        return _suggest(trial, key, entry)

    return suggest


@pytest.mark.parametrize("kind", ["tpe", "cmaes", "qmc", "random"])
def test_every_configuration_has_new_values(tmp_path, kind):
    """No value repeats, also of conditional keys. Fault: give QMC's independent sampler one seed for the whole study."""
    study = open_study(tmp_path, sampler=kind, points=POINTS[:1])
    suggestions = [study.ask(number) for number in range(25)]
    for key in ("beta_1", "k", "beta_0"):
        values = [params[key] for params in suggestions if key in params]
        assert len(set(values)) == len(values) > 5, key


def test_states_constraints_and_scores_of_told_trials(tmp_path):
    study = open_study(tmp_path)
    scores = [Score(0.7, 0.4), Score(0.9, 1.5), Score(None, None), Score(0.2, 0.1), Score(float("nan"), 0.0)]
    for number, score in enumerate(scores):
        study.ask(number)
        study.tell(number, score, 50 if number == 3 else 100, stopped=number == 3)
    trials = study.optuna.get_trials()
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL,
    ]  # fmt: skip
    assert [trials[number].constraints[COST_CONSTRAINT] for number in (0, 1, 3)] == pytest.approx([-0.6, 0.5, -0.9])
    assert trials[3].intermediate_values == {50: 0.2}
    assert study.optuna.best_trial.number == 0  # for Optuna too: the higher reward is not feasible
    assert told(study, 1) == scores[1]
    study.tell(0, Score(0.0, 9.0), 100, stopped=False)  # a second call after a kill changes nothing
    assert told(study, 0) == scores[0]


def test_safe_configurations_rank_first_and_unsafe_ones_by_cost(tmp_path):
    """Fault: rank all, or the unsafe ones, by reward."""
    study = open_study(tmp_path)
    scores = [Score(0.9, 1.2), Score(0.3, 0.2), Score(0.95, 3.0), Score(0.5, 1.0)]
    for number, score in enumerate(scores):
        study.ask(number)
        study.tell(number, score, 1, stopped=False)
    assert study.ranking() == [3, 1, 0, 2]


def test_cma_es_is_told_a_reward_that_falls_beyond_the_limit(tmp_path):
    study = open_study(tmp_path, sampler="cmaes")
    for number, score in enumerate([Score(0.5, 0.9), Score(0.8, 1.75)]):
        study.ask(number)
        study.tell(number, score, 1, stopped=False)
    assert [trial.value for trial in study.optuna.get_trials()] == pytest.approx([0.5, 0.05])
    assert told(study, 1) == Score(0.8, 1.75)


def test_multi_objective_trials_hold_reward_and_cost(tmp_path):
    study = open_study(tmp_path, multi_objective=True)
    for number, score in enumerate([Score(0.5, 0.9), Score(0.8, 1.75), Score(0.4, 0.95)]):
        study.ask(number)
        study.tell(number, score, 1, stopped=False)
    assert sorted(trial.number for trial in study.optuna.best_trials) == [0, 1]
    again = load_study(tmp_path / "s.journal", "s", multi_objective=True)
    assert [trial.values for trial in again.get_trials()] == [[0.5, 0.9], [0.8, 1.75], [0.4, 0.95]]


def test_a_grid_has_every_combination_once_and_starts_with_the_first_points(tmp_path):
    space = {
        "k": {"choices": [0.0, 2.0]},
        "beta_schedule": {"choices": ["constant", "sqrt"]},
        "beta_1": {"choices": [0.1, 0.2], "when": {"beta_schedule": ["sqrt"]}},
    }
    points = [{"k": 2.0, "beta_schedule": "constant"}, {"k": 1.0, "beta_schedule": "constant"}]
    study = open_study(tmp_path, points=points, space=space, sampler="grid")
    assert study.configurations == 6
    suggestions = [study.ask(number) for number in range(6)]
    assert suggestions[0] == points[0]
    by_hand = [
        (k, schedule, beta_1) for k in (0.0, 2.0) for schedule, beta_1 in (("constant", None), ("sqrt", 0.1), ("sqrt", 0.2))
    ]
    assert sorted((p["k"], p["beta_schedule"], p.get("beta_1") or 0) for p in suggestions) == sorted(
        (k, schedule, beta_1 or 0) for k, schedule, beta_1 in by_hand
    )


def test_fit_drops_values_that_the_space_cannot_hold():
    space = {key: RangeConfig.model_validate(entry) for key, entry in SPACE.items()}
    assert fit(space, {"k": -1.0, "beta_schedule": "cosine", "beta_1": 1.0, "other": 3}) == {"k": 0.0}
    assert fit(space, {"beta_schedule": "linear", "beta_1": 1.0}) == {"beta_schedule": "linear", "beta_1": 1e-2}
    assert grid({"k": RangeConfig(choices=[1, 2])}) == [{"k": 1}, {"k": 2}]


def test_the_dashboard_opens_the_study(tmp_path):
    """Optuna's dashboard lists the study and its trials through its HTTP interface."""
    study = open_study(tmp_path)
    study.ask(0)
    study.tell(0, Score(0.7, 0.4), 100, stopped=False)
    application = wsgi(JournalStorage(JournalFileBackend(str(study.path))))

    def get(path: str) -> dict:
        environment: dict = {"PATH_INFO": path}
        setup_testing_defaults(environment)
        status = []
        body = b"".join(application(environment, lambda line, headers, error=None: status.append(line)))
        assert status == ["200 OK"]
        return json.loads(body)

    [summary] = get("/api/studies")["study_summaries"]
    assert summary["study_name"] == "s"
    detail = get(f"/api/studies/{summary['study_id']}")
    assert [trial.get("values") for trial in detail["trials"]] == [[0.7], None]  # the second point waits
