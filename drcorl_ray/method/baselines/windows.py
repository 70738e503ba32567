"""What CDT learns from: windows of an episode's last steps, with the cost and the return that were still to come."""

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
    """B windows of T consecutive rows, one after the other: B · T rows of each member.

    to_go: [P, B · T, 2], undiscounted cost and return from this step on. times [P, B · T] int64: steps since the episode
    began. valid [P, B · T] bool: false for what would lie before it.
    """

    to_go: Tensor
    times: Tensor
    valid: Tensor


class History:
    """A dataset's rows as parts of their episodes.

    rewards, costs: [N] in row order. steps: T. augmented: share of the windows that are asked for what no episode reached.
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
        """Windows that end in rows drawn uniformly, some of them augmented. at: the rows [P, n] of the table."""
        last, more = self._drawn(draws, windows)
        rows = last.unsqueeze(-1) + torch.arange(1 - self._steps, 1, device=last.device)
        times = rows - self._first[last].unsqueeze(-1)
        valid = times >= 0
        rows = torch.where(valid, rows, last.unsqueeze(-1))
        batch = at(rows.flatten(1))
        to_go = (self._to_go[rows] + more.unsqueeze(2)).flatten(1, 2).to(batch.rewards.dtype)
        columns = {field.name: getattr(batch, field.name) for field in fields(Batch)}
        return Windows(**columns, to_go=to_go, times=times.clamp(min=0).flatten(1), valid=valid.flatten(1))

    def _drawn(self, draws: Draws, windows: int) -> tuple[Tensor, Tensor]:
        """Windows' last rows [P, n], and what they are asked for beyond what came, cost and return [P, n, 2].

        A share is asked for a cost κ and a return between that of the best episode within κ and the data's highest, and is a
        window of that episode: what cannot be had safely is answered by what can (CDT's augmentation).
        """
        last = draws.integers(Stream.ROWS, windows, self._rows)
        chosen, cost, total, place = draws.uniform(Stream.AUGMENTATION, windows, 4, dtype=torch.float64).unbind(-1)
        wanted = cost * self._highest[0]
        within = (torch.searchsorted(self._by_cost, wanted, right=True) - 1).clamp(min=0)
        episode = self._best[within]
        shown = self._starts[episode] + (place * self._lengths[episode]).long()
        reached = self._outcomes[episode]
        more = [(wanted - reached[..., 0]).clamp(min=0.0), total * (self._highest[1] - reached[..., 1])]
        augmented = chosen < self._augmented
        return torch.where(augmented, shown, last), torch.stack(more, dim=-1) * augmented.unsqueeze(-1)


def best_so_far(values: np.ndarray) -> np.ndarray:
    """For each place, where the largest value up to it stands, of equal ones the first; [E] int64."""
    risen = np.diff(np.maximum.accumulate(values), prepend=-np.inf) > 0
    return np.maximum.accumulate(np.where(risen, np.arange(len(values)), 0))


def _rest(values: Tensor, last: Tensor) -> Tensor:
    """Sums of [N] from each row to its episode's last one, float64."""
    sums = values.double().cumsum(0)
    return sums[last] - sums + values
