"""Transitions on the device, sampled by stateless draws for a whole population at once.

All columns live in one table [rows, W], so that a minibatch is one gather; the names are views of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.data.schema import STORED
from drcorl_ray.errors import UserError
from drcorl_ray.method.random import Draws, Stream

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.data.store import Manifest


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
class Arrival:
    """Rows [n] of the data set on the device, as a block of the table [n, W]; usable once `copied` has happened."""

    rows: np.ndarray
    block: Tensor
    copied: torch.cuda.Event | None = None


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


_ROWS_AT_ONCE = 16384
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
    ) -> None:
        if capacity is not None and capacity < 1:
            raise UserError(f"replay capacity {capacity} is too small; it must be at least 1 row")
        self.resident = capacity is None or capacity >= manifest.rows
        self.capacity = manifest.rows if capacity is None or self.resident else capacity
        self.inserted_rows = 0
        self._arrived = np.zeros(manifest.rows, np.bool_)
        self._mean, self._std = (torch.tensor(m, dtype=dtype) for m in (manifest.observation_mean, manifest.observation_std))
        self._stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None
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
        """Take rows of `schema.STORED` as the store holds them, in any order."""
        rows = np.array(columns["rows"])
        if self.resident and self._stream is None and len(rows) and (np.diff(rows) == 1).all():
            self._write(columns, self._table[rows[0] : rows[-1] + 1])
            self._count(rows)
        else:
            self.take(self.arrange(columns))

    def arrange(self, columns: Mapping[str, np.ndarray | Tensor]) -> Arrival:
        """Rows of `schema.STORED` made ready for `take`: standardised, and on their way to the device.

        May be called in another thread than the one that samples.
        """
        rows = np.array(columns["rows"])  # of the columns' memory nothing is kept
        block = torch.empty(len(rows), self._table.shape[1], dtype=self._table.dtype, pin_memory=self._stream is not None)
        self._write(columns, block)
        if self._stream is None:
            return Arrival(rows, block)
        with torch.cuda.stream(self._stream):
            copied = torch.cuda.Event()
            block = block.to(self._table.device, non_blocking=True)
            copied.record()
        return Arrival(rows, block, copied)

    def take(self, arrival: Arrival) -> None:
        """Put arranged rows in their places."""
        rows, block = arrival.rows, arrival.block
        if arrival.copied is not None:
            current = torch.cuda.current_stream()
            current.wait_event(arrival.copied)
            block.record_stream(current)
        if self.resident:
            places = torch.as_tensor(rows, device=self._table.device)
        else:
            places = torch.arange(self.inserted_rows, self.inserted_rows + len(rows), device=self._table.device)
            places = places[-self.capacity :] % self.capacity
        self._table[places] = block[-len(places) :]
        self._count(rows)

    def sample(self, draws: Draws, batch_rows: int, subset: RowSubset | None = None, *, stream: Stream = Stream.ROWS) -> Batch:
        """Rows drawn uniformly with replacement for each of the P members of `draws`, from its own rows if so told."""
        if not self.filled:
            raise RuntimeError(f"the replay holds {self.inserted_rows} of {self.capacity} rows; fill it before sampling")
        if subset is None:
            index = draws.integers(stream, batch_rows, self.filled)
        else:
            index = subset.rows.gather(1, draws.integers(stream, batch_rows, subset.counts))
        return self.at(index)

    def at(self, index: Tensor) -> Batch:
        """The rows [P, B] of the table."""
        rows = self._table.index_select(0, index.flatten())  # measurably quicker on a CPU than indexing by [P, B]
        views = self._views(rows.view(*index.shape, -1))
        return Batch(**{field.name: views[field.name] for field in fields(Batch)})

    def _write(self, columns: Mapping[str, np.ndarray | Tensor], block: Tensor) -> None:
        """Stored columns into rows of the table, [n, W], on the CPU; a few at a time, that they are still in its caches."""
        stored = {name: torch.as_tensor(columns[name]).view(-1, width) for name, width in self._widths.items()}
        for first, rows in enumerate(block.split(_ROWS_AT_ONCE)):
            parts: list[Tensor] = []
            for name, column in stored.items():
                part = column.narrow(0, first * _ROWS_AT_ONCE, len(rows)).to(block.dtype)
                parts.append((part - self._mean).div_(self._std) if STORED[name].width == "S" else part)
            torch.cat(parts, dim=1, out=rows)

    def _count(self, rows: np.ndarray) -> None:
        self._arrived[rows] = True
        self.inserted_rows += len(rows)

    def _views(self, table: Tensor) -> dict[str, Tensor]:
        parts = table.split(list(self._widths.values()), dim=-1)
        return {name: part if STORED[name].width else part.squeeze(-1) for name, part in zip(self._widths, parts, strict=True)}
