"""Transitions on the device, sampled by stateless draws for a whole population at once.

All columns live in one table [rows, W], so that a minibatch is one gather; the names are views of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.schema import STORED
from drcorl_ray.data.store import Manifest
from drcorl_ray.errors import UserError
from drcorl_ray.method.random import Draws, Stream


@dataclass(frozen=True)
class Batch:
    """A minibatch of each of P members; observations are standardised with the data set's mean and deviation.

    observations, next_observations: [P, B, S]. actions: [P, B, A]. All others [P, B]; terminals are 0 or 1.
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    costs: Tensor
    terminals: Tensor
    reward_rates: Tensor
    cost_rates: Tensor


@dataclass(frozen=True)
class RowSubset:
    """The rows each member may draw: rows [P, M] int64, of which the first counts [P] int64 of a member are meant."""

    rows: Tensor
    counts: Tensor


def subset(masks: Tensor) -> RowSubset:
    """The rows where masks [P, N] bool are true; UserError names a member without any."""
    counts = masks.sum(dim=1)
    if (counts == 0).any():
        raise UserError(f"member {int(counts.argmin())} has no rows to learn from; loosen what selects its rows")
    # A stable descending sort puts each member's rows first, in their order.
    rows = masks.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    return RowSubset(rows.contiguous(), counts)


_COLUMNS = (*(field.name for field in fields(Batch)), "episode_returns", "episode_costs")


class Replay:
    """A device-resident data set, or a rolling window of one.

    Resident (capacity None or ≥ the rows of the manifest): a row's place is its row number, so the content does not depend
    on the order of arrival. Window (capacity smaller): a ring whose oldest rows are overwritten.
    The columns are attributes [rows, …]: those of `Batch`, episode_returns and episode_costs.
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    rewards: Tensor
    costs: Tensor
    terminals: Tensor
    reward_rates: Tensor
    cost_rates: Tensor
    episode_returns: Tensor
    episode_costs: Tensor

    def __init__(
        self,
        manifest: Manifest,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        capacity: int | None = None,
    ):
        if capacity is not None and capacity < 1:
            raise UserError(f"replay capacity {capacity} is too small; it must be at least 1 row")
        self.resident = capacity is None or capacity >= manifest.rows
        self.capacity = manifest.rows if capacity is None or self.resident else capacity
        self.inserted_rows = 0
        self._arrived = np.zeros(manifest.rows, np.bool_)
        self._mean = torch.tensor(manifest.observation_mean, dtype=dtype, device=device)
        self._std = torch.tensor(manifest.observation_std, dtype=dtype, device=device)
        self._widths = {
            name: {"S": manifest.observation_size, "A": manifest.action_size, "": 1}[STORED[name].width] for name in _COLUMNS
        }
        self._table = torch.zeros(self.capacity, sum(self._widths.values()), dtype=dtype, device=device)
        for name, column in self._views(self._table).items():
            setattr(self, name, column)

    @property
    def complete(self) -> bool:
        """Every row of the data set has arrived exactly once."""
        return self.inserted_rows == len(self._arrived) and bool(self._arrived.all())

    @property
    def filled(self) -> int:
        """Rows that `sample` draws from: all of a complete resident replay, what a window holds so far."""
        if self.resident:
            return self.capacity if self.inserted_rows == self.capacity else 0
        return min(self.inserted_rows, self.capacity)

    def insert(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        """Take rows of `schema.STORED` as the store holds them, in any order; observations are standardised here."""
        rows = torch.as_tensor(columns["rows"]).cpu().numpy()
        if self.resident:
            places = torch.as_tensor(rows, device=self._table.device)
        else:
            places = torch.arange(self.inserted_rows, self.inserted_rows + len(rows), device=self._table.device)
            places = places[-self.capacity :] % self.capacity
        self._arrived[rows] = True
        self.inserted_rows += len(rows)
        self._table[places] = self._block(columns)[-len(places) :]

    def sample(self, draws: Draws, batch_rows: int, subset: RowSubset | None = None, *, stream: Stream = Stream.ROWS) -> Batch:
        """Rows drawn uniformly with replacement for each of the P members of `draws`, from its own rows if so told."""
        if not self.filled:
            raise RuntimeError(f"the replay holds {self.inserted_rows} of {self.capacity} rows; fill it before sampling")
        if subset is None:
            index = draws.integers(stream, batch_rows, self.filled)
        else:
            index = subset.rows.gather(1, draws.integers(stream, batch_rows, subset.counts))
        rows = self._table.index_select(0, index.flatten())  # measurably quicker on a CPU than indexing by [P, B]
        views = self._views(rows.view(*index.shape, -1))
        return Batch(**{field.name: views[field.name] for field in fields(Batch)})

    def _block(self, columns: Mapping[str, np.ndarray | Tensor]) -> Tensor:
        """Stored columns as rows of the table, [n, W]."""
        parts: list[Tensor] = []
        for name, width in self._widths.items():
            part = torch.as_tensor(columns[name]).to(self._table).view(-1, width)
            parts.append((part - self._mean) / self._std if STORED[name].width == "S" else part)
        return torch.cat(parts, dim=1)

    def _views(self, table: Tensor) -> dict[str, Tensor]:
        parts = table.split(list(self._widths.values()), dim=-1)
        return {name: part if STORED[name].width else part.squeeze(-1) for name, part in zip(self._widths, parts, strict=True)}
