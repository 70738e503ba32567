"""Where a policy's cost is estimated (App. B.1): on the data's states that the policy would come to by itself (D15).

A critic knows the cost-to-go of any state in the data, but its mean over all of them is the cost of a policy that starts
anywhere, be it in the middle of the most reckless episode. A state behind a stretch of an episode in which the data acted as
the policy would is one that the policy reaches too; the critic's mean over those comes close to its mean over the policy's own
episodes, without a simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PHASES = 4  # parts of an episode that count alike
NEAREST = 32  # states of each phase on which a policy is estimated
STRETCH = 100  # steps before a state that are compared, a quarter of an episode where that is shorter
ROWS = 65536  # states whose actions are compared at most
HOP = 5  # steps between two of them at most: a stretch is twenty states or more; larger data are thinned by whole episodes
_AT_ONCE = 1024


@dataclass(frozen=True)
class EstimationStates:
    """N states of the data in order, standardised observations [N, S], and the actions [N, A] it took there.

    ends: [C], the candidates among them; phases: [C], rising; stretch: how many states before a candidate are compared;
    nearest: how many candidates of each phase a policy is estimated on; none: all of them, whatever it does.
    """

    observations: Tensor
    actions: Tensor
    ends: Tensor
    phases: Tensor
    stretch: int
    nearest: int | None = NEAREST

    def to(self, device: torch.device | str, dtype: torch.dtype) -> EstimationStates:
        return EstimationStates(
            self.observations.to(device, dtype),
            self.actions.to(device, dtype),
            self.ends.to(device),
            self.phases.to(device),
            self.stretch,
            self.nearest,
        )

    def choose(self, act: Callable[[Tensor], Tensor], members: int) -> Tensor:
        """The states [P, K] behind the stretches where `act`, [P, B, S] → [P, B, A], is closest to the data in mean square."""
        if self.nearest is None:
            return self.ends.repeat(members, 1)
        with torch.no_grad():
            parts = [
                (act(states.expand(members, -1, -1)) - actions).square().mean(-1)
                for states, actions in zip(self.observations.split(_AT_ONCE), self.actions.split(_AT_ONCE), strict=True)
            ]
        sums = torch.cat([torch.zeros_like(parts[0][:, :1]), *parts], dim=1).double().cumsum(1)
        difference = sums[:, self.ends] - sums[:, self.ends - self.stretch]
        chosen, first = [], 0
        for count in torch.bincount(self.phases).tolist():
            near = difference[:, first : first + count].topk(min(self.nearest, count), dim=1, largest=False).indices
            chosen.append(self.ends[near + first])
            first += count
        return torch.cat(chosen, dim=1)


def candidate_segments(lengths: np.ndarray, episode_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of a dataset with episodes of these lengths: rows [N] that are compared, then ends [C], phases [C] and stretch as above.

    A candidate has a whole stretch of its episode before it; where no episode is long enough stretches are shorter. Every
    n-th episode takes part, so that a few steps' hop leaves no more than ROWS.
    """
    hop = min(-(-int(lengths.sum()) // ROWS), HOP)
    starts = np.cumsum(lengths) - lengths
    every = -(-int(lengths.sum()) // (ROWS * hop))
    starts, lengths = starts[::every], lengths[::every]
    steps = np.concatenate([np.arange(0, length, hop) for length in lengths])
    starts = np.repeat(starts, -(-lengths // hop))
    reach = min(STRETCH, episode_length // PHASES, (int(lengths.max()) - 1) // hop * hop)
    stretch = reach // hop
    ends = np.flatnonzero(steps >= stretch * hop)
    phases = np.minimum(steps[ends] * PHASES // episode_length, PHASES - 1)
    order = np.argsort(phases, kind="stable")
    return starts + steps, ends[order], phases[order], stretch
