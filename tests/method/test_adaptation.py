"""Regions at their boundaries, Eq. 12 and the PID multiplier (T5); schedules by table."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drcorl_ray.method import schedules
from drcorl_ray.method.adaptation import ADAPTATIONS, Multiplier, decide, manipulate

F64 = {"dtype": torch.float64}


def decision(cost: list[float], rule: str, multiplier: float = 0.7):
    costs = torch.tensor(cost, **F64)
    full = torch.full_like(costs, ADAPTATIONS.index(rule)).long()
    return decide(
        costs,
        full,
        torch.full_like(costs, multiplier),
        slack_plus=torch.full_like(costs, 0.25),
        slack_minus=torch.full_like(costs, 0.5),
        cost_step_reward_weight=0.5,
    )


def test_gradient_manipulation_switches_at_its_boundaries():
    got = decision([0.0, 0.5, 0.5000001, 1.25, 1.2500001, float("nan"), float("inf")], "gradient_manipulation")
    assert got.region.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert got.band.tolist() == [False, False, True, True, False, False, False]
    assert got.cost_weight.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert got.reward_weight.tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_crpo_has_no_band():
    got = decision([0.5, 1.0, 1.25, 1.2500001], "crpo")
    assert got.region.tolist() == [0, 0, 0, 2]
    assert not got.band.any()
    assert got.cost_weight.tolist() == [0, 0, 0, 1]


def test_lagrangian_weighs_the_cost_by_its_multiplier_everywhere():
    got = decision([0.5, 1.0, 1.1], "lagrangian")
    assert got.region.tolist() == [0, 0, 2]
    assert got.cost_weight.tolist() == [0.7] * 3
    assert got.reward_weight.tolist() == [1.0] * 3


vectors = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=4, max_size=4)


@given(st.lists(st.tuples(vectors, vectors), min_size=1, max_size=4))
def test_eq_12_per_member(pairs):
    gradient_r, gradient_c = (torch.tensor([pair[i] for pair in pairs], **F64) for i in (0, 1))
    combined = manipulate(gradient_r, gradient_c)
    assert combined.isfinite().all()
    for r, c, g in zip(gradient_r, gradient_c, combined, strict=True):
        scale = float(r.norm() * c.norm()) + 1e-12
        if r @ c >= 0:
            torch.testing.assert_close(g, (r + c) / 2)
        elif float(-(r @ c)) > 1e-6 * scale:
            projected_r, projected_c = r - (r @ c) / (c @ c) * c, c - (c @ r) / (r @ r) * r
            torch.testing.assert_close(g, (projected_r + projected_c) / 2)
            bound = -1e-9 * (scale + float(r @ r + c @ c))
            assert g @ r >= bound
            assert g @ c >= bound


def test_eq_12_with_zero_gradients_and_at_any_scale():
    zero, some = torch.zeros(1, 3, **F64), torch.tensor([[1.0, -2.0, 0.5]], **F64)
    assert torch.equal(manipulate(zero, zero), zero)
    assert torch.equal(manipulate(some, zero), some / 2)
    assert torch.equal(manipulate(zero, some), some / 2)
    other = torch.tensor([[-1.0, 1.0, 0.2]], **F64)
    torch.testing.assert_close(manipulate(1e8 * some, 1e8 * other), 1e8 * manipulate(some, other))
    tiny = manipulate(some.float() * 1e-30, other.float())
    assert tiny.isfinite().all()


def test_multiplier_rises_under_violation_and_never_turns_negative():
    multiplier = Multiplier.start(torch.zeros(2, **F64))
    gains = {
        key: torch.tensor([value] * 2, **F64)
        for key, value in [("proportional", 0.1), ("integral", 0.003), ("derivative", 0.001)]
    }
    values = []
    for _ in range(50):
        multiplier.update(torch.tensor([2.0, 0.0], **F64), **gains)
        values.append(multiplier.value.clone())
    path = torch.stack(values)
    assert (path[:, 0].diff() > 0).all()
    assert (path[:, 1] == 0).all()
    assert multiplier.integral.tolist() == [50.0, 0.0]  # clamped: a long safe stretch leaves no debt
    assert path[0].tolist() == pytest.approx([0.103, 0.0])  # by hand: 0.1·1 + 0.003·1, nothing has risen yet
    multiplier.update(torch.tensor([3.0, 3.0], **F64), **gains)
    assert multiplier.value.tolist() == pytest.approx([0.2 + 0.003 * 52 + 0.001, 0.2 + 0.003 * 2 + 0.003])


def test_beta_schedules_of_the_paper():
    kind = torch.tensor([0, 1, 2])
    beta_0, beta_1 = torch.tensor([0.02, 0.0, 0.04], **F64), torch.tensor([9.0, 1e-4, 0.01], **F64)
    for epoch in (0.0, 1.0, 4.0, 9.0):
        expected = [0.02, 0.01 * epoch**0.5, 0.01 * epoch + 0.04]
        assert schedules.beta(kind, beta_0, beta_1, epoch).tolist() == pytest.approx(expected)


def test_slack_shrinks_by_its_share_and_rates_follow_half_a_cosine():
    start, shrink = torch.tensor([0.2, 0.2, 0.4]), torch.tensor([1.0, 0.0, 0.5])
    assert schedules.slack(start, shrink, 0.5).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert schedules.slack(start, shrink, 1.0).tolist() == pytest.approx([0.0, 0.2, 0.2])
    assert schedules.cosine(torch.tensor([0.0, 0.5, 1.0]), 0.1).tolist() == pytest.approx([1.0, 0.55, 0.1])
    assert schedules.cosine(torch.tensor(0.7), 1.0) == 1.0
