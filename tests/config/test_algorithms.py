"""The registry of algorithms: refusals, hints, and how a configuration carries a user's entries to other processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import BaseModel

from drcorl_ray.config import Config, Section
from drcorl_ray.config.algorithms import ALGORITHMS, BUILT_IN, Algorithm, algorithms, get_algorithm, shown_algorithm
from drcorl_ray.config.loading import dump_config, load_config
from drcorl_ray.config.registration import register_algorithm
from drcorl_ray.errors import UserError
from drcorl_ray.method.baselines import Baseline
from drcorl_ray.training.baselines import baseline_class

OWN = Algorithm("own", "Own", "some.module:Own")


class OwnSettings(Section):
    width: int = 3
    pull: float = 0.5


WITH_SETTINGS = replace(OWN, settings=OwnSettings, member_settings=("pull",))


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    yield
    forget_own()


def forget_own() -> None:
    for name in ALGORITHMS.keys() - BUILT_IN.keys():
        del ALGORITHMS[name]


def test_every_built_in_learner_can_be_imported():
    """Fault: a class was renamed, which is noticed only when a population of it is built."""
    for algorithm in algorithms()[1:]:
        assert issubclass(baseline_class(algorithm.name), Baseline)
    assert len({algorithm.color for algorithm in algorithms()}) == len(algorithms())
    assert len({algorithm.marker for algorithm in algorithms()}) == len(algorithms())


def test_registering_again_changes_nothing_and_taken_names_are_refused():
    assert register_algorithm(OWN) is OWN
    register_algorithm(replace(OWN))
    with pytest.raises(UserError, match=r"'own' .*is already an algorithm"):
        register_algorithm(replace(OWN, steps=7))
    with pytest.raises(UserError, match=r"'bc' .*is already an algorithm"):
        register_algorithm(replace(OWN, name="bc"))
    assert [algorithm.name for algorithm in algorithms()[-2:]] == ["coptidice", "own"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../own"}, "a name of letters"),
        ({"name": "hidden"}, "no key of `baseline`"),
        ({"learner": "some.module.Own"}, "package.module:Class"),
        ({"color": "red"}, "#rrggbb"),
        ({"title": ""}, "give a title"),
        ({"settings": BaseModel}, r"subclass of drcorl_ray\.config\.Section"),
        ({"member_settings": ("pull",)}, "member_settings pull"),
        ({"shared_member_settings": ("k", "kk")}, "shared_member_settings kk"),
        ({"steps": 0}, "above 0"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"pretrained": True}, "only DRCORL"),
    ],
)
def test_unusable_values_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        register_algorithm(replace(OWN, **changes))


def test_an_unknown_name_is_answered_with_the_nearest_and_all_names():
    with pytest.raises(UserError, match=r"unknown algorithm 'bcq_la'; did you mean 'bcq_lag'\? valid: drcorl, bc, bc_safe"):
        get_algorithm("bcq_la")
    with pytest.raises(UserError, match=r"run\.algorithm: unknown algorithm 'cql'.*valid: drcorl, .*coptidice"):
        load_config(["run.algorithm=cql"])
    with pytest.raises(UserError, match=r"evaluation\.baselines\.1: unknown algorithm 'cql'"):
        load_config(["evaluation.baselines=[bc, cql]"])
    with pytest.raises(UserError, match="drcorl is not trained beside a run"):
        load_config(["evaluation.baselines=[drcorl]"])


def test_a_learner_that_cannot_be_imported_is_named():
    register_algorithm(OWN)
    with pytest.raises(UserError, match=r"algorithm own: its learner 'some\.module:Own' cannot be imported"):
        baseline_class("own")
    register_algorithm(replace(OWN, name="other", learner="drcorl_ray.errors:UserError"))
    with pytest.raises(UserError, match="not a subclass of Baseline"):
        baseline_class("other")


def test_an_unregistered_algorithm_is_shown_by_its_name():
    assert (shown_algorithm("gone").title, shown_algorithm("cpq").title) == ("gone", "CPQ")


def test_a_pickled_configuration_carries_the_users_algorithms():
    """A worker of Ray receives it this way. Fault: rely on the registry of the process that made the configuration."""
    register_algorithm(WITH_SETTINGS)
    config = load_config(["run.algorithm=own", "baseline.own.width=4", "population=[{own.pull: 0.25}]"])
    sent = pickle.dumps(config)
    forget_own()
    received = pickle.loads(sent)
    assert get_algorithm("own") == WITH_SETTINGS
    assert received == config
    [member] = received.members()
    assert member.model_dump() == {
        "seed": 0, "cost_limit": 10.0, "learning_rate": 1e-3, "own.width": 4, "own.pull": 0.25
    }  # fmt: skip


def test_own_sections_survive_yaml_and_have_defaults(tmp_path):
    before = Config()
    register_algorithm(WITH_SETTINGS)
    assert before.baseline.of_algorithm(WITH_SETTINGS) == OwnSettings()  # registered after those settings were made
    config = load_config(["baseline.own.width=4", "baseline.cpq.ood_scale=2.5"])
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config([str(tmp_path / "config.yaml")])
    assert again == config
    assert again.baseline.of_algorithm(WITH_SETTINGS) == OwnSettings(width=4)
    assert again.model_dump()["baseline"]["own"] == {"width": 4, "pull": 0.5}


def test_a_budget_of_none_equals_that_of_pretraining():
    register_algorithm(replace(OWN, steps=None, batch_size=None, learning_rate=None))
    config = load_config(["pretrain.steps=77", "pretrain.batch_size=11", "pretrain.learning_rate=0.02"])
    training = config.training_of("own")
    assert (training.warm_up, training.steps, training.batch_size) == (0, 77, 11)
    assert config.member_with({}, "own").model_dump()["learning_rate"] == 0.02
    assert config.training_of("bear_lag").steps == 300_000
    assert load_config(["baseline.steps=5"]).training_of("own").steps == 5


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("baseline.cpq.ood_scal=1", "unknown key baseline.cpq.ood_scal; did you mean 'ood_scale'?"),
        ("baseline.cpq.ood_scale=-1", "baseline.cpq.ood_scale: Input should be greater than 0 (got -1)"),
        ("baseline.cpp.ood_scale=1", "unknown key baseline.cpp; did you mean 'cpq'?"),
        ("baseline={1: 2}", "unknown key baseline.1; valid: steps"),
        ("baseline=3", "baseline: Input should be a valid dictionary"),
        ("baseline.cpq=3", "baseline.cpq: Input should be a valid dictionary"),
        ("member.cpq_ood_scale=1", "unknown key member.cpq_ood_scale; did you mean 'baseline.cpq.ood_scale'?"),
        ("member.bcq_perturbation=1", "did you mean 'baseline.bcq_lag.perturbation'?"),
        ("member.dice_cost_bound=1", "did you mean 'baseline.coptidice.cost_bound'?"),
        ("member.baseline_learning_rate=1", "did you mean 'baseline.learning_rate'?"),
    ],
)
def test_wrong_keys_and_values_of_sections_are_named(argument, words):
    with pytest.raises(UserError) as caught:
        load_config([argument])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["population=[{k: 1}]"], "population.0: unknown key k; members of cpq may differ in seed, cost_limit, learning_rate"),
        (["population=[{}, {cpq.ood_scale: -1}]"], "population.1: cpq: ood_scale: Input should be greater than 0"),
        (["population=[{learning_rate: 0}]"], "population.0: learning_rate"),
        (
            ["search.space={cdt.target_return: {low: 0.1, high: 1}}"],
            "space.cdt.target_return is not a setting of cpq's",
        ),
        (["search.space={cpq.ood_scale: {low: -1, high: 1}}"], "search.space.cpq.ood_scale: -1.0 is not a valid value"),
    ],
)
def test_members_of_a_baseline_differ_only_in_its_own_settings(arguments, words):
    with pytest.raises(UserError) as caught:
        load_config(["run.algorithm=cpq", *arguments])
    assert words in str(caught.value)


def test_network_settings_must_not_differ_between_members():
    with pytest.raises(UserError, match=r"unknown key cdt\.context; members of cdt may differ in .*cdt\.target_return"):
        load_config(["run.algorithm=cdt", "population=[{cdt.context: 4}]"])
