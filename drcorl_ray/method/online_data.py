"""What a population takes from rollouts (App. B.1): each member's online cost estimate and its own appended transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.tasks.scores import COST_EPSILON

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import EvaluationConfig, MemberConfig

Columns = Mapping[str, np.ndarray]
_WIDE = {"observations": "observation_size", "actions": "action_size", "next_observations": "observation_size"}
_VALUES = ("estimate", "episodes", "spent", "counts", "best_cost", "best_return")
_PARAMETERS = ("pending", "best")  # [P, N], or [P, 0] while there are none


@dataclass(frozen=True)
class OnlineResult:
    """What one online evaluation found out about P members.

    costs, returns: [P] means over the episodes [P] it had, 0 of none. spent: [P] episodes begun so far, repeated ones too.
    transitions: by member, rows to append, in order; columns as in Batch [n, …], observations not standardised.
    """

    costs: np.ndarray
    returns: np.ndarray
    episodes: np.ndarray
    spent: np.ndarray
    transitions: Mapping[int, Columns]


class OnlineData:
    """What P members know from rollouts; part of the learner's state.

    online, hybrid: [P] bool, whose estimate comes from rollouts, and who also learns from them. estimate: [P] mean cost of
    the last evaluation's episodes [P]; where these are 0 the offline estimate holds. spent: [P] episodes so far. table:
    [P, C, W], of which a hybrid member's first counts [P] rows are its replay, at most `hybrid_transitions`. pending: [P, N]
    policies that an evaluation which began at pending_step is about; without one [P, 0] and −1. best: [P, N] policies that
    scored best in an evaluation, with best_cost, best_return [P].
    """

    def __init__(
        self,
        spec: DataSpec,
        config: EvaluationConfig,
        members: Sequence[MemberConfig],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        modes = [member.evaluation_mode or config.mode for member in members]
        self.config = config
        self.online = torch.tensor([mode != "offline" for mode in modes], device=device)
        self.hybrid = torch.tensor([mode == "hybrid" for mode in modes], device=device)
        self.estimate = torch.zeros(len(members), device=device, dtype=dtype)
        self.episodes, self.spent, self.counts = (
            torch.zeros(len(members), dtype=torch.int64, device=device) for _ in range(3)
        )
        self.best_cost, self.best_return = (torch.full_like(self.estimate, x) for x in (torch.inf, -torch.inf))
        self.pending, self.pending_step = torch.empty(len(members), 0, device=device, dtype=dtype), -1
        self.best = self.pending
        self._widths = {field.name: getattr(spec, _WIDE.get(field.name, ""), 1) for field in fields(Batch)}
        self._mean = torch.tensor(spec.observation_mean, device=device, dtype=dtype)
        self._std = torch.tensor(spec.observation_std, device=device, dtype=dtype)
        self.table = self._room()

    def _room(self) -> Tensor:
        """An empty table for the members there are; where none is hybrid it has no rows."""
        rows = self.config.hybrid_transitions if bool(self.hybrid.any()) else 0
        return self.estimate.new_zeros(len(self.counts), rows, sum(self._widths.values()))

    def take(self, evidence: OnlineResult, policies: Tensor, cost_limit: Tensor) -> None:
        """Replace the online members' estimates, and append transitions as far as the budget reaches.

        policies: [P, N] that were evaluated; each member's best is kept: the highest return within its cost limit [P], and
        while none is within, the lowest cost.
        """
        self.estimate.copy_(torch.tensor(evidence.costs))
        self.episodes.copy_(torch.where(self.online, torch.tensor(evidence.episodes).to(self.online.device), 0))
        returns = torch.tensor(evidence.returns).to(self.estimate)
        safe, was_safe = (cost <= cost_limit + COST_EPSILON for cost in (self.estimate, self.best_cost))
        same = torch.where(safe, returns > self.best_return, self.estimate < self.best_cost)
        better = (self.episodes > 0) & torch.where(safe == was_safe, same, safe)
        self.best = torch.where(better[:, None], policies, self.best if self.best.numel() else policies)
        self.best_cost.copy_(torch.where(better, self.estimate, self.best_cost))
        self.best_return.copy_(torch.where(better, returns, self.best_return))
        self.spent.copy_(torch.tensor(evidence.spent))
        for member, columns in evidence.transitions.items():
            self._append(member, columns)

    def _append(self, member: int, columns: Columns) -> None:
        if not self.hybrid[member]:
            return
        begin = int(self.counts[member])
        end = min(begin + len(columns["rewards"]), self.table.shape[1])
        parts = []
        for name, width in self._widths.items():
            part = torch.tensor(columns[name]).to(self.table).view(-1, width)
            parts.append((part - self._mean) / self._std if name in ("observations", "next_observations") else part)
        self.table[member, begin:end] = torch.cat(parts, dim=1)[: end - begin]
        self.counts[member] = end

    def mix(self, batch: Batch, draws: Draws) -> Batch:
        """A minibatch whose members with appended transitions drew their share of it from them.

        Every 1/share-th row is replaced, counted over the global minibatch, so that workers may split it anyhow.
        """
        if not self.table.shape[1]:
            return batch
        share, rows = self.config.hybrid_share, batch.rewards.shape[1]
        places = torch.arange(draws.first_row, draws.first_row + rows, device=self.table.device).double()
        due = ((places + 1.0) * share).floor() > (places * share).floor()
        replaced = due & (self.counts > 0)[:, None]
        index = draws.integers(Stream.APPENDED_ROWS, rows, self.counts.clamp(min=1))
        drawn = self.table.gather(1, index.unsqueeze(-1).expand(-1, -1, self.table.shape[-1]))
        mixed: dict[str, Tensor] = {}
        for name, part in zip(self._widths, drawn.split(list(self._widths.values()), dim=-1), strict=True):
            column = getattr(batch, name)
            mixed[name] = (
                torch.where(replaced.unsqueeze(-1), part, column)
                if name in _WIDE
                else torch.where(replaced, part.squeeze(-1), column)
            )
        return Batch(**mixed)

    def known(self, offline: Tensor) -> Tensor:
        """The cost estimate that holds, [P]: by rollouts where there were any, else the given offline one."""
        return torch.where(self.episodes > 0, self.estimate, offline)

    def hold(self, policies: Tensor, step: int) -> None:
        """Keep the policies [P, N] that an evaluation begun at `step` is about, until `release`."""
        self.pending, self.pending_step = policies.clone(), step

    def release(self) -> None:
        self.pending, self.pending_step = self.pending[:, :0], -1

    def select(self, index: Tensor) -> None:
        kept = self.table[index]
        for name in ("online", "hybrid", *_VALUES, *_PARAMETERS):
            setattr(self, name, getattr(self, name)[index])
        self.table = self._room()
        self.table.copy_(kept[:, : self.table.shape[1]])

    def join(self, other: OnlineData) -> None:
        mine = self.table
        for name in ("online", "hybrid", *_VALUES):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        for name in _PARAMETERS:  # a population without online members has none
            parts = getattr(self, name), getattr(other, name)
            width = max(part.shape[1] for part in parts)
            setattr(self, name, torch.cat([pad(part, (0, width - part.shape[1])) for part in parts]))
        self.pending_step = max(self.pending_step, other.pending_step)
        self.table = self._room()
        for part, first in ((mine, 0), (other.table, len(mine))):
            self.table[first : first + len(part), : part.shape[1]] = part

    def state_dict(self) -> dict[str, Tensor]:
        """The table is cut to the rows in use."""
        state = {name: getattr(self, name) for name in (*_VALUES, *_PARAMETERS)}
        state["table"] = self.table[:, : int(self.counts.max())]
        return state | {"pending_step": torch.tensor(self.pending_step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in _VALUES:
            getattr(self, name).copy_(state[name])
        for name in _PARAMETERS:
            setattr(self, name, state[name].to(self.estimate))
        self.pending_step = int(state["pending_step"])
        self.table[:, : state["table"].shape[1]] = state["table"]
