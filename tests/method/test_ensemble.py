"""Members of one population that use only the first E of the pretrained cost critics, each with its own E."""

import pytest
import torch

from drcorl_ray.errors import UserError
from drcorl_ray.method.learner import Learner
from tests.helpers.learners import extract, make_learner, make_spec, make_table, pretrain, small_config

SPEC = make_spec(3, 2)
TABLE = make_table(200, 3, 2)
PRETRAINED = 4
MEMBERS = [
    {"seed": 1, "cost_ensemble": 1, "cost_limit": 0.0},
    {"seed": 2, "cost_ensemble": 2, "cost_limit": 0.0, "alpha": 0.3, "policy_class": "gaussian"},
    {"seed": 3, "cost_ensemble": 3, "adaptation": "lagrangian", "cost_limit": 1.0},
    {"seed": 4, "cost_limit": 0.0},
]
SIZES = [1, 2, 3, PRETRAINED]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def pretrained_critics(number: int, preset: str = "default", **kw) -> dict[str, torch.Tensor]:
    config = small_config(f"run.preset={preset}", f"pretrain.cost_ensemble={number}")
    return pretrain(config, SPEC, TABLE, [0], **kw).result()


def learner_of(members: list[dict], pretrained: dict[str, torch.Tensor], preset: str = "default") -> Learner:
    config = small_config(f"run.preset={preset}", f"pretrain.cost_ensemble={len(pretrained['q_cost.flat'])}")
    return make_learner(config, SPEC, members, pretrained)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_member_equals_a_learner_that_has_only_its_critics(preset):
    """Policies, critics, every metric and the estimate are equal. Fault: the mask is missing in any one of these places."""
    pretrained = pretrained_critics(PRETRAINED, preset)
    population = learner_of(MEMBERS, pretrained, preset)
    metrics = extract(population, TABLE, 0, 10)
    moments = population.offline_estimate()
    for index, (member, size) in enumerate(zip(MEMBERS, SIZES, strict=True)):
        sliced = {name: rows[:size] if name.startswith("q_cost") else rows for name, rows in pretrained.items()}
        alone = learner_of([member | {"cost_ensemble": None}], sliced, preset)
        expected = extract(alone, TABLE, 0, 10)
        for name, network in alone.networks.items():
            rows = population.networks[name].flat.unflatten(0, (len(MEMBERS), -1))[index, : network.copies]
            torch.testing.assert_close(rows, network.flat, **CLOSE, msg=name)
        torch.testing.assert_close(population.average[index], alone.average[0], **CLOSE)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name][index], value[0], **CLOSE, msg=name)
        for moment, expected_moment in zip(moments, alone.offline_estimate(), strict=True):
            torch.testing.assert_close(moment[index], expected_moment[0], **CLOSE)
    assert (moments[1] > 0).tolist() == [False, True, True, True]


def test_the_number_of_critics_matters():
    """Members that differ only in E end at different policies; otherwise the test above could pass without any effect of E."""
    members = [{"seed": 1, "cost_ensemble": size, "cost_limit": 0.0} for size in SIZES]
    population = learner_of(members, pretrained_critics(PRETRAINED))
    extract(population, TABLE, 0, 10)
    assert len({tuple(row.tolist()) for row in population.average}) == len(SIZES)


def test_a_critic_that_is_not_used_changes_nothing_bitwise():
    pretrained = pretrained_critics(PRETRAINED)
    corrupted = {name: rows.clone() for name, rows in pretrained.items()}
    for name in ("q_cost.flat", "q_cost.target"):
        corrupted[name][2:] *= 100.0
    policies = []
    for start in (pretrained, corrupted):
        learner = learner_of([MEMBERS[0], MEMBERS[1]], start)
        extract(learner, TABLE, 0, 10)
        policies.append(learner.average)
    assert torch.equal(*policies)


def test_the_first_critics_are_those_of_a_smaller_pretraining():
    """One pretraining can therefore be used for every E of an ablation."""
    small, large = pretrained_critics(2), pretrained_critics(8)
    for name, rows in small.items():
        torch.testing.assert_close(large[name][: len(rows)], rows, **CLOSE, msg=name)


def test_more_critics_than_were_pretrained_are_refused():
    with pytest.raises(
        UserError, match=r"^member\.cost_ensemble=5: pretrain\.cost_ensemble=4 cost critics are pretrained; lower"
    ):
        learner_of([{}, {"cost_ensemble": 5}], pretrained_critics(PRETRAINED, steps=0))
