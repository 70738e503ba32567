"""Transitions on the device, sampled by stateless draws for a whole population at once.

All columns are views of one table [N, W], so that a minibatch is one gather. Shapes: N rows of the table, W the summed width
of all columns, P members, B rows of a minibatch, S observation, A action.
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

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.data.store import Manifest


@dataclass(frozen=True)
class Batch:
    """A minibatch for each of P members; observations are standardised by the dataset's mean and standard deviation.

    observations, next_observations: [P, B, S]. actions: [P, B, A]. All others: [P, B]; terminals are 0 or 1.
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
    """Rows on their way into the table: row numbers [n] and their values [n, W], valid after the event `copied`."""

    rows: np.ndarray
    block: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class RowSubset:
    """The rows that each member may draw: the first `counts[p]` of `rows[p]`; rows [P, M] int64, counts [P] int64."""

    rows: Tensor
    counts: Tensor


def subset(masks: Tensor) -> RowSubset:
    """Return the rows where masks [P, N] bool are true; UserError if a member has none."""
    counts = masks.sum(dim=1)
    if (counts == 0).any():
        raise UserError(f"member {int(counts.argmin())} has no rows to learn from; loosen the settings that select its rows")
    # A stable descending sort puts each member's rows first, in their order.
    rows = masks.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    return RowSubset(rows.contiguous(), counts)


_ROWS_AT_ONCE = 16384
_COLUMNS = (*(field.name for field in fields(Batch)), "episode_returns", "episode_costs")


class Replay:
    """A resident replay (the whole dataset on the device) or a rolling window of the dataset.

    Resident (capacity None, or at least the dataset's rows): a row is stored at its row number, so the content does not
    depend on the order of arrival. Window (a smaller capacity): a ring buffer in which new rows overwrite the oldest.
    The columns are attributes [rows, …]: those of `Batch`, and episode_returns and episode_costs.
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
        """Whether every row of the dataset has arrived exactly once."""
        return self.inserted_rows == len(self._arrived) and bool(self._arrived.all())

    @property
    def filled(self) -> int:
        """The number of rows that `sample` draws from: 0 or all of a resident replay, the rows so far of a window."""
        if self.resident:
            return self.capacity if self.inserted_rows == self.capacity else 0
        return min(self.inserted_rows, self.capacity)

    def insert(self, columns: Mapping[str, np.ndarray | Tensor]) -> None:
        """Insert rows with the columns of `schema.STORED`, as read from the store, in any order."""
        rows = np.array(columns["rows"])
        if self.resident and self._stream is None and len(rows) and (np.diff(rows) == 1).all():
            self._write(columns, self._table[rows[0] : rows[-1] + 1])
            self._count(rows)
        else:
            self.take(self.arrange(columns))

    def arrange(self, columns: Mapping[str, np.ndarray | Tensor]) -> Arrival:
        """Standardise rows with the columns of `schema.STORED` and start their copy to the device, for `take`.

        May be called from another thread than the one that samples.
        """
        rows = np.array(columns["rows"])  # a copy: the caller may reuse the columns' memory
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
        """Write arranged rows into the table."""
        rows, block = arrival.rows, arrival.block
        if arrival.copied is not None:
            current = torch.cuda.current_stream()
            current.wait_event(arrival.copied)
            block.record_stream(current)
        if self.resident:
            index = torch.as_tensor(rows, device=self._table.device)
        else:
            index = torch.arange(self.inserted_rows, self.inserted_rows + len(rows), device=self._table.device)
            index = index[-self.capacity :] % self.capacity
        self._table[index] = block[-len(index) :]
        self._count(rows)

    def sample(self, draws: Draws, batch_rows: int, subset: RowSubset | None = None, *, stream: Stream = Stream.ROWS) -> Batch:
        """Draw rows uniformly with replacement for each of the P members of `draws`, from the member's `subset` if given."""
        if not self.filled:
            raise RuntimeError(f"the replay holds {self.inserted_rows} of {self.capacity} rows; fill it before sampling")
        if subset is None:
            index = draws.integers(stream, batch_rows, self.filled)
        else:
            index = subset.rows.gather(1, draws.integers(stream, batch_rows, subset.counts))
        return self.at(index)

    def at(self, index: Tensor) -> Batch:
        """Return the rows with the given indices [P, B] of the table."""
        rows = self._table.index_select(0, index.flatten())  # measurably faster on a CPU than indexing by [P, B]
        views = self._views(rows.view(*index.shape, -1))
        return Batch(**{field.name: views[field.name] for field in fields(Batch)})

    def _write(self, columns: Mapping[str, np.ndarray | Tensor], block: Tensor) -> None:
        """Convert stored columns to rows of the table [n, W] on the CPU, a few at a time so that they stay in its caches."""
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
