"""CDT's training data: windows of consecutive steps of an episode, with the cost and the return to go.

Shapes: N rows of the dataset, E episodes, P members, B or n windows of a minibatch, T steps of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch


@dataclass(frozen=True)
class Windows(Batch):
    """B windows of T consecutive rows, concatenated to B · T rows per member.

    to_go: undiscounted cost and return from this step on, [P, B · T, 2]. times: steps since the episode's start,
    [P, B · T] int64. valid: false for positions before the episode's start, [P, B · T] bool.
    """

    to_go: Tensor
    times: Tensor
    valid: Tensor


class History:
    """A dataset's rows, indexed by their episodes.

    rewards, costs: [N] in row order. steps: T. augmented: share of the windows whose targets no episode of the data reaches.
    """

    def __init__(self, episodes: EpisodeTotals, rewards: Tensor, costs: Tensor, *, steps: int, augmented: float) -> None:
        device = rewards.device
        self._steps, self._augmented = steps, augmented
        self._rows = int(episodes.ends[-1])
        lengths, ends = (torch.from_numpy(np.asarray(x, np.int64)).to(device) for x in (episodes.lengths, episodes.ends))
        self._first = (ends - lengths).repeat_interleave(lengths)
        last = ends.repeat_interleave(lengths) - 1
        self._to_go = torch.stack([_rest(x[: self._rows], last) for x in (costs, rewards)], dim=-1)
        outcomes = np.stack([episodes.costs, episodes.returns], axis=-1).astype(np.float64)
        rising = np.argsort(episodes.costs, kind="stable")
        best = rising[best_so_far(episodes.returns[rising])]
        self._outcomes, self._by_cost, self._best = (
            torch.from_numpy(x).to(device) for x in (outcomes, outcomes[rising, 0], best)
        )
        self._highest = self._outcomes.amax(0)
        self._starts, self._lengths = ends - lengths, lengths

    def sample(self, at: Callable[[Tensor], Batch], draws: Draws, windows: int) -> Windows:
        """Draw windows that end in uniformly drawn rows, some of them augmented. at: returns the dataset's rows [P, n]."""
        last, extra = self._draw(draws, windows)
        rows = last.unsqueeze(-1) + torch.arange(1 - self._steps, 1, device=last.device)
        times = rows - self._first[last].unsqueeze(-1)
        valid = times >= 0
        rows = torch.where(valid, rows, last.unsqueeze(-1))
        batch = at(rows.flatten(1))
        to_go = (self._to_go[rows] + extra.unsqueeze(2)).flatten(1, 2).to(batch.rewards.dtype)
        columns = {field.name: getattr(batch, field.name) for field in fields(Batch)}
        return Windows(**columns, to_go=to_go, times=times.clamp(min=0).flatten(1), valid=valid.flatten(1))

    def _draw(self, draws: Draws, windows: int) -> tuple[Tensor, Tensor]:
        """Draw the windows' last rows [P, n], and the cost and the return [P, n, 2] to add to what came after them.

        CDT's augmentation replaces a share of the windows. Their targets are a cost κ, and a return between that of the best
        episode within κ and the highest of the data; the window is one of that best episode. The policy thereby learns to
        answer an unreachable return by the best reachable one.
        """
        last = draws.integers(Stream.ROWS, windows, self._rows)
        selector, cost, total, position = draws.uniform(Stream.AUGMENTATION, windows, 4, dtype=torch.float64).unbind(-1)
        target_cost = cost * self._highest[0]
        within = (torch.searchsorted(self._by_cost, target_cost, right=True) - 1).clamp(min=0)
        episode = self._best[within]
        best_rows = self._starts[episode] + (position * self._lengths[episode]).long()
        reached = self._outcomes[episode]
        extra = [(target_cost - reached[..., 0]).clamp(min=0.0), total * (self._highest[1] - reached[..., 1])]
        augmented = selector < self._augmented
        return torch.where(augmented, best_rows, last), torch.stack(extra, dim=-1) * augmented.unsqueeze(-1)


def best_so_far(values: np.ndarray) -> np.ndarray:
    """Return for each index the index of the largest value up to it (the first of equal ones), [E] int64."""
    is_record = np.diff(np.maximum.accumulate(values), prepend=-np.inf) > 0
    return np.maximum.accumulate(np.where(is_record, np.arange(len(values)), 0))


def _rest(values: Tensor, last: Tensor) -> Tensor:
    """Return the sums of `values` [N] from each row to the last row [N] of its episode, float64."""
    sums = values.double().cumsum(0)
    return sums[last] - sums + values
