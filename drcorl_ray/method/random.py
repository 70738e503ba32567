"""Stateless randomness: every draw is a function of (member seed, step, stream, position).

A member therefore draws the same numbers alone, in any pack, on any number of workers and after any restart, and there is no
generator state to save. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) addressed by a counter: word i of
(seed, step, stream) is `mix(key + (i + 1) · GOLDEN)`, where the key is a chain of the same mixes. All arithmetic is on int64
tensors, which wrap modulo 2⁶⁴. Shapes: P members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


class Stream(IntEnum):
    """The purpose of a draw. The values determine a run's numbers: never reuse or renumber one (12 was used before)."""

    INITIALISATION = 0
    ROWS = 1
    DIFFUSION_TIME = 2
    DIFFUSION_NOISE = 3
    DROPOUT = 4
    CONDITION_DROPOUT = 5
    POLICY_NOISE = 6
    NEXT_POLICY_NOISE = 7
    REGULARISER_TIME = 8
    REGULARISER_NOISE = 9
    ESTIMATE_ROWS = 10
    ESTIMATE_NOISE = 11
    SAMPLING_NOISE = 13
    APPENDED_ROWS = 14
    LATENT = 15
    NEXT_LATENT = 16
    RECONSTRUCTION = 17
    INITIAL_ROWS = 18
    AUGMENTATION = 19


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right, filling with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of int64 in which every output bit depends on all input bits."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _words(key: Tensor, stream: int, first: int, count: int) -> Tensor:
    """Return words first … first + count − 1 of a stream, [P, count], for a step's keys [P]."""
    # torch.compile (2.13) computes products of an index in integers that do not wrap; the result of an xor is not an index.
    counter = (torch.arange(count, device=key.device) + first) ^ 0
    return mix(mix(key + stream)[:, None] + counter * _GOLDEN)


_opaque_words = torch.library.custom_op("drcorl_ray::words", _words, mutates_args=())
_opaque_words.register_fake(lambda key, stream, first, count: key.new_empty(len(key), count))


@dataclass(frozen=True)
class Draws:
    """All random numbers of one step of a population.

    seeds: [P] int64, one per member. step: the step's number. first_row: position of this worker's first row in the global
    minibatch. Data-parallel workers thereby draw disjoint parts of what a single worker would draw.
    """

    seeds: Tensor
    step: int | Tensor
    first_row: int = 0
    _key: Tensor = field(init=False, repr=False, compare=False)  # [P], the same for all streams of the step

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", mix(mix(self.seeds + _GOLDEN) + self.step))

    def bits(self, stream: Stream, rows: int, *inner: int) -> Tensor:
        """Draw uniform 64-bit words, [P, rows, *inner] int64."""
        per_row = math.prod(inner)
        # Compiled for a CPU, this would become C++, where signed overflow is undefined and compilers exploit that.
        words = _opaque_words if torch.compiler.is_compiling() and self.seeds.device.type == "cpu" else _words
        return words(self._key, int(stream), self.first_row * per_row + 1, rows * per_row).view(-1, rows, *inner)

    def uniform(self, stream: Stream, rows: int, *inner: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw uniformly from [0, 1), [P, rows, *inner]: multiples of 2⁻²⁴, exact in float32."""
        return _shift_right(self.bits(stream, rows, *inner), 40).to(dtype) * 2.0**-24

    def integers(self, stream: Stream, rows: int, high: int | Tensor) -> Tensor:
        """Draw uniformly from {0, …, high − 1}, [P, rows] int64; high < 2³¹ is an integer or a tensor [P]."""
        high = high[:, None] if isinstance(high, Tensor) else high
        return _shift_right(_shift_right(self.bits(stream, rows), 32) * high, 32)

    def normal(self, stream: Stream, rows: int, *inner: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw standard normal numbers [P, rows, *inner] by the Box-Muller transform, each from one 64-bit word."""
        word = self.bits(stream, rows, *inner)
        radius = (-2.0 * torch.log((_shift_right(word, 32).to(dtype) + 0.5) * 2.0**-32)).sqrt()
        return radius * torch.cos((word & 0xFFFFFFFF).to(dtype) * (2.0 * math.pi * 2.0**-32))

    def keep(self, stream: Stream, probability: float, rows: int, *inner: int) -> Tensor:
        """Draw a boolean mask [P, rows, *inner] that is true with the given probability (rounded to 2⁻¹⁶).

        Dropout needs more draws than anything else, so one 64-bit word serves four entries of the last dimension.
        """
        *outer, last = inner
        words = self.bits(stream, rows, *outer, -(-last // 4))
        lanes = torch.stack([_shift_right(words, 16 * lane) & 0xFFFF for lane in range(4)], dim=-1)
        return (lanes < round(probability * 2**16)).flatten(-2)[..., :last]
