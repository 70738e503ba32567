"""Stateless draws against published vectors, an independent implementation and simple statistics."""

import math

import pytest
import torch

from drcorl_ray.method.random import _GOLDEN, Draws, Stream, mix

MASK = 2**64 - 1


def reference_mix(z: int) -> int:
    """SplitMix64's output function in Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_published_vectors_of_splitmix64_with_seed_zero():
    words = [int(mix(torch.tensor([i]) * _GOLDEN)) & MASK for i in (1, 2, 3)]
    assert words == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(("seed", "step", "stream"), [(0, 0, 0), (1, 2, 3), (2**31 - 1, 10**6, 8), (5, 1 << 40, 1)])
def test_bits_equal_a_second_implementation(seed, step, stream):
    golden = 0x9E3779B97F4A7C15
    key = reference_mix((seed + golden) & MASK)
    key = reference_mix((key + step) & MASK)
    key = reference_mix((key + stream) & MASK)
    expected = [reference_mix((key + (i + 1) * golden) & MASK) for i in range(6)]
    words = Draws(torch.tensor([seed]), step).bits(Stream(stream), 3, 2).flatten()
    assert [int(word) & MASK for word in words] == expected


def test_a_member_draws_the_same_alone_and_beside_others():
    alone = Draws(torch.tensor([3]), 17).normal(Stream.POLICY_NOISE, 5, 2)
    together = Draws(torch.tensor([1, 3, 2]), 17).normal(Stream.POLICY_NOISE, 5, 2)
    assert torch.equal(alone[0], together[1])


def test_workers_draw_the_parts_of_what_one_worker_draws():
    seeds = torch.tensor([4, 9])
    whole = Draws(seeds, 3).normal(Stream.DIFFUSION_NOISE, 8, 3)
    parts = [Draws(seeds, 3, first_row=first).normal(Stream.DIFFUSION_NOISE, 4, 3) for first in (0, 4)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    masks = [Draws(seeds, 3, first_row=first).keep(Stream.DROPOUT, 0.9, 4, 3, 7) for first in (0, 4)]
    assert torch.equal(torch.cat(masks, dim=1), Draws(seeds, 3).keep(Stream.DROPOUT, 0.9, 8, 3, 7))


def test_step_may_be_a_tensor():
    seeds = torch.tensor([4, 9])
    assert torch.equal(Draws(seeds, torch.tensor(12)).bits(Stream.ROWS, 4), Draws(seeds, 12).bits(Stream.ROWS, 4))


@pytest.mark.parametrize("changed", [{"seeds": torch.tensor([6])}, {"step": 2}])
def test_seed_and_step_and_stream_change_the_draw(changed):
    base = {"seeds": torch.tensor([5]), "step": 1}
    draw = Draws(**base).bits(Stream.ROWS, 100)
    assert not torch.isin(Draws(**(base | changed)).bits(Stream.ROWS, 100), draw).any()
    assert not torch.isin(Draws(**base).bits(Stream.DROPOUT, 100), draw).any()


def test_distributions():
    draws = Draws(torch.tensor([0]), 0)
    n = 200_000
    uniform = draws.uniform(Stream.REGULARISER_TIME, n, dtype=torch.float64)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = torch.histc(uniform, bins=100, min=0, max=1)
    assert ((counts - n / 100).square() / (n / 100)).sum() < 160  # χ² with 99 degrees of freedom: p ≈ 1e-4
    normal = draws.normal(Stream.POLICY_NOISE, n, dtype=torch.float64)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = math.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[power] / n)
        assert abs(normal.pow(power).mean() - moment) < 5 * spread
    integers = draws.integers(Stream.ROWS, n, 10)[0]
    assert (integers.bincount(minlength=10) - n / 10).abs().max() < 5 * math.sqrt(n / 10)
    keep = draws.keep(Stream.DROPOUT, 0.9, n // 100, 100)
    assert abs(keep.double().mean() - 0.9) < 5 * math.sqrt(0.09 / n)


def test_integers_take_a_bound_per_member():
    draws = Draws(torch.tensor([0, 1]), 0)
    integers = draws.integers(Stream.ROWS, 1000, torch.tensor([3, 50]))
    assert integers[0].unique().tolist() == [0, 1, 2]
    assert integers[1].max() == 49
