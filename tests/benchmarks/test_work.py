"""The counted work of operations against closed forms and torch's profiler."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from benchmarks.work import count_work
from tests.helpers.learners import make_learner, make_spec, make_table, pretrain, sampler, small_config, take_step


def test_a_layer_by_hand():
    """Fault: the bias is left out, or an expanded tensor is counted as often as it is repeated."""
    weight, x, bias = torch.randn(3, 5, 7), torch.randn(3, 4, 5), torch.randn(3, 1, 7)
    work = count_work(lambda: torch.baddbmm(bias, x, weight).relu())
    assert work.flops == 2 * 3 * 4 * 5 * 7
    product, activation = 3 * 7 + 3 * 4 * 5 + 3 * 5 * 7 + 3 * 4 * 7, 2 * 3 * 4 * 7
    assert (work.bytes, work.operations) == (4 * (product + activation), 2)
    shared = count_work(lambda: torch.bmm(x, weight[:1].expand(3, -1, -1)))
    assert shared.bytes == 4 * (3 * 4 * 5 + 5 * 7 + 3 * 4 * 7)


@pytest.mark.parametrize("members", [1, 3])
def test_a_step_against_the_profiler_and_the_closed_form(members):
    config, spec, table = small_config("extract.critic_steps=0"), make_spec(3, 2), make_table(100, 3, 2)
    pretrained = pretrain(config, spec, table, [0], 1).result()
    learner = make_learner(config, spec, [{"seed": seed} for seed in range(members)], pretrained)
    take_step(learner, sampler(table), 16, 0)

    def step() -> object:
        return take_step(learner, sampler(table), 16, 1)

    work = count_work(step)
    with profile(with_flops=True) as profiled:
        step()
    products = [event for event in profiled.key_averages() if event.key in ("aten::bmm", "aten::baddbmm", "aten::mm")]
    assert work.flops == sum(event.flops for event in products)
    assert work.flops == members * flops_by_hand(16, 3, 2)


def flops_by_hand(rows: int, s: int, a: int) -> int:
    """Return the FLOPs of one member with 16 units a layer: noise network forward; critics and policy forward and backward.

    As in Algorithm 1. A last layer of one unit is not a matrix product (`networks.apply_linear`).
    """
    actor = s * 16 + 16 * 16 + 16 * 2 * a
    critic = (s + a) * 16 + 16 * 16
    noise = 64 * 128 + 128 * 128 + (128 + s + a + 4) * 16 + 3 * (2 * 16 * 3 * 16) + 16 * a
    policy = 3 * actor + 3 * (2 * actor - s * 16)  # at s, s' and the estimation states; back thrice, not to the states
    temporal_difference = 6 * critic + 6 * (critic + 2 * critic - (s + a) * 16)  # targets at s'; values at s and back
    gradients = 6 * critic + 6 * critic  # targets at (s, a) and back to the actions
    estimate = 4 * critic
    return 2 * rows * (policy + temporal_difference + gradients + estimate + noise)
