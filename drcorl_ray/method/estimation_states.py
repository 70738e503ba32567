"""Estimation states: the dataset states on which a policy's cost is estimated (App. B.1), close to the policy's own (D15).

A cost critic gives the cost-to-go of any dataset state. Its mean over all of them is the cost of a policy that starts in a
random one, also in the middle of the most unsafe episode. If the data acted as the policy would on a stretch of an episode,
the policy reaches the state at the end of that stretch too. The critic's mean over such states is close to its mean over the
policy's own episodes, and it needs no simulator.

Shapes: P members, N compared states, C candidates, K states of an estimate, S observation, A action, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PHASES = 4  # equal parts of an episode, each with the same number of estimation states
NEAREST = 32  # estimation states in each phase
STRETCH = 100  # steps before a candidate on which actions are compared; at most a quarter of an episode
ROWS = 65536  # largest number of compared states
HOP = 5  # largest stride in steps between compared states, so that a stretch has at least 20; beyond it episodes are left out
_AT_ONCE = 1024


@dataclass(frozen=True)
class EstimationStates:
    """N dataset states in order: standardised observations [N, S] and the data's actions [N, A].

    ends: indices of the candidates, the states at the end of a stretch [C]. phases: the candidates' phases [C], ascending.
    stretch: number of compared states before a candidate. nearest: number of candidates of each phase that are selected;
    None: all candidates, whatever the policy does.
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
        """Return the indices [P, K] of the candidates on whose stretches `act` is closest to the data in mean square.

        act: the members' policies, [P, B, S] → [P, B, A]. members: P.
        """
        if self.nearest is None:
            return self.ends.repeat(members, 1)
        with torch.no_grad():
            squared_errors = [
                (act(states.expand(members, -1, -1)) - actions).square().mean(-1)
                for states, actions in zip(self.observations.split(_AT_ONCE), self.actions.split(_AT_ONCE), strict=True)
            ]
        sums = torch.cat([torch.zeros_like(squared_errors[0][:, :1]), *squared_errors], dim=1).double().cumsum(1)
        distance = sums[:, self.ends] - sums[:, self.ends - self.stretch]
        selected, first = [], 0
        for count in torch.bincount(self.phases).tolist():
            closest = distance[:, first : first + count].topk(min(self.nearest, count), dim=1, largest=False).indices
            selected.append(self.ends[closest + first])
            first += count
        return torch.cat(selected, dim=1)


def candidate_segments(lengths: np.ndarray, episode_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the compared rows [N] of a dataset with episodes of these lengths, and `EstimationStates`' ends, phases, stretch.

    Each candidate has a whole stretch of its own episode before it; stretches are shorter if no episode is long enough.
    Large datasets are subsampled by whole episodes so that at most ROWS states remain at a stride of HOP steps.
    """
    hop = min(-(-int(lengths.sum()) // ROWS), HOP)
    starts = np.cumsum(lengths) - lengths
    episode_stride = -(-int(lengths.sum()) // (ROWS * hop))
    starts, lengths = starts[::episode_stride], lengths[::episode_stride]
    steps = np.concatenate([np.arange(0, length, hop) for length in lengths])
    starts = np.repeat(starts, -(-lengths // hop))
    stretch_steps = min(STRETCH, episode_length // PHASES, (int(lengths.max()) - 1) // hop * hop)
    stretch = stretch_steps // hop
    ends = np.flatnonzero(steps >= stretch * hop)
    phases = np.minimum(steps[ends] * PHASES // episode_length, PHASES - 1)
    order = np.argsort(phases, kind="stable")
    return starts + steps, ends[order], phases[order], stretch
