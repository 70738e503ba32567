"""Data from rollouts (App. B.1): each member's online cost estimate and the transitions it appends.

Shapes: P members, C transitions of room, W summed width of a transition's columns, N policy weights, B rows of a minibatch.
"""

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

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import EvaluationConfig, MemberConfig

Columns = Mapping[str, np.ndarray]
_WIDE = {"observations": "observation_size", "actions": "action_size", "next_observations": "observation_size"}
_VALUES = ("estimate", "episodes", "spent", "counts", "best_cost", "best_return")
_PARAMETERS = ("pending", "best")  # [P, N]; [P, 0] while empty


@dataclass(frozen=True)
class OnlineResult:
    """The result of one online evaluation of P members.

    episodes: number of each member's episodes [P]. costs, returns: means over these episodes [P], 0 without episodes. spent:
    episodes begun so far, repeated ones included [P]. transitions: by member, the rows to append in order, with the columns
    [n, …] of Batch; observations are not standardised.
    """

    costs: np.ndarray
    returns: np.ndarray
    episodes: np.ndarray
    spent: np.ndarray
    transitions: Mapping[int, Columns]


class OnlineData:
    """The results of rollouts for P members; part of the learner's state.

    online: members whose cost estimate comes from rollouts, [P] bool. hybrid: members that also learn from the transitions,
    [P] bool. episodes, estimate: number and mean cost of the last evaluation's episodes [P]; a member without episodes uses
    its offline estimate. spent: episodes so far [P]. table, counts: the transitions of hybrid members [P, C, W] and their
    number [P], at most C = `hybrid_transitions`. pending, pending_step: the policies [P, N] under evaluation and the step at
    which it began; [P, 0] and −1 without one. best, best_cost, best_return: the policies with the best evaluation [P, N], and
    its means [P].
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
        self.table = self._empty_table()

    def _empty_table(self) -> Tensor:
        """Return an empty table for the present members; it has no rows if none is hybrid."""
        rows = self.config.hybrid_transitions if bool(self.hybrid.any()) else 0
        return self.estimate.new_zeros(len(self.counts), rows, sum(self._widths.values()))

    def take(self, result: OnlineResult, policies: Tensor, cost_limit: Tensor) -> None:
        """Take over an evaluation's estimates, and append its transitions while there is room.

        policies: the evaluated policies [P, N]. Each member's best one is kept: the one with the highest return among those
        within the cost limit [P], or the one with the lowest cost while none is within it.
        """
        self.estimate.copy_(torch.tensor(result.costs))
        self.episodes.copy_(torch.where(self.online, torch.tensor(result.episodes).to(self.online.device), 0))
        returns = torch.tensor(result.returns).to(self.estimate)
        safe, was_safe = (cost <= cost_limit + COST_EPSILON for cost in (self.estimate, self.best_cost))
        better_alike = torch.where(safe, returns > self.best_return, self.estimate < self.best_cost)
        better = (self.episodes > 0) & torch.where(safe == was_safe, better_alike, safe)
        self.best = torch.where(better[:, None], policies, self.best if self.best.numel() else policies)
        self.best_cost.copy_(torch.where(better, self.estimate, self.best_cost))
        self.best_return.copy_(torch.where(better, returns, self.best_return))
        self.spent.copy_(torch.tensor(result.spent))
        for member, columns in result.transitions.items():
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
        """Replace the share `hybrid_share` of the minibatch of each member that has appended transitions by draws from them.

        Every 1/share-th row of the global minibatch is replaced, so the result does not depend on how workers split it.
        """
        if not self.table.shape[1]:
            return batch
        share, rows = self.config.hybrid_share, batch.rewards.shape[1]
        position = torch.arange(draws.first_row, draws.first_row + rows, device=self.table.device).double()
        chosen = ((position + 1.0) * share).floor() > (position * share).floor()
        replaced = chosen & (self.counts > 0)[:, None]
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
        """Return the cost estimates in force [P]: from rollouts for members that had episodes, else `offline` [P]."""
        return torch.where(self.episodes > 0, self.estimate, offline)

    def hold(self, policies: Tensor, step: int) -> None:
        """Keep the policies [P, N] of an evaluation that began at `step` until `release`."""
        self.pending, self.pending_step = policies.clone(), step

    def release(self) -> None:
        self.pending, self.pending_step = self.pending[:, :0], -1

    def select(self, index: Tensor) -> None:
        kept = self.table[index]
        for name in ("online", "hybrid", *_VALUES, *_PARAMETERS):
            setattr(self, name, getattr(self, name)[index])
        self.table = self._empty_table()
        self.table.copy_(kept[:, : self.table.shape[1]])

    def join(self, other: OnlineData) -> None:
        mine = self.table
        for name in ("online", "hybrid", *_VALUES):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        for name in _PARAMETERS:  # empty in a population without online members
            parts = getattr(self, name), getattr(other, name)
            width = max(part.shape[1] for part in parts)
            setattr(self, name, torch.cat([pad(part, (0, width - part.shape[1])) for part in parts]))
        self.pending_step = max(self.pending_step, other.pending_step)
        self.table = self._empty_table()
        for part, first in ((mine, 0), (other.table, len(mine))):
            self.table[first : first + len(part), : part.shape[1]] = part

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save; the table is cut to the rows in use."""
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
