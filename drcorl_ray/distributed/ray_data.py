"""Ray Data from the store to the device: one pass into a resident replay, or an endless stream into a rolling window."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import ray.data
import torch
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from drcorl_ray.config import DataConfig
from drcorl_ray.data.store import Shard, load_manifest, primitives, read_block
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.errors import UserError
from drcorl_ray.method.replay import Arrival, Replay
from drcorl_ray.training.build import Placement

OBJECT_STORE_BYTES = 512 * 2**20
PART_BYTES = OBJECT_STORE_BYTES // 4
READ_TASKS = 2


def stream_dataset(folder: Path, shards: Sequence[Shard] | None = None) -> ray.data.Dataset:
    """Return the rows of a store, or of some of its shards, as a lazy, ordered Ray dataset with one block per shard.

    It is read on this machine, if possible.
    """
    paths = [str(folder / shard.file_name) for shard in shards or load_manifest(folder).shards]
    # Ray 2.60: read_parquet merges and splits files into its own blocks and takes 6 s to start each epoch (measured); one
    # plain task per file takes 0.3 s. Readers book no CPU: if trainers had booked all CPUs, they would wait for ever.
    # `read_block` is in a module without torch, whose import costs a reader process 4 s and 600 MB.
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    dataset = ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
        read_block,
        batch_size=1,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=min(READ_TASKS, len(paths))),
        scheduling_strategy=this_node,
    )
    dataset.context.execution_options = _execution_options()
    return dataset


def fill(replay: Replay, dataset: ray.data.Dataset) -> None:
    """Read a whole store into a resident replay; its blocks may arrive in any order."""
    for columns in _batches(dataset, None, prefetch=READ_TASKS):
        replay.insert(columns)
    if not replay.complete:
        raise RuntimeError(f"the stream delivered {replay.inserted_rows} rows instead of {replay.capacity} different ones")


class Share:
    """One worker's rows of a store, in order: every n-th shard for n workers, so that each row reaches one worker per epoch.

    The rows are read in parts, each by one Ray Data execution whose output fits into its share of the object store. A single
    execution over the whole store fills the object store, and its executor thread then busy-waits in the learner's process
    (Ray 2.60: 250 ms per step instead of 25 on a store twice that share; docs/performance.md). UserError if there are fewer
    shards than workers.
    """

    def __init__(self, folder: Path, worker: int = 0, workers: int = 1) -> None:
        shards = load_manifest(folder).shards[worker::workers]
        if not shards:
            raise UserError(f"{folder}: too few shards for {workers} workers; use fewer workers")
        self._folder, self._parts = folder, list(_parts(shards))

    def batches(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """Yield the columns of an epoch, `rows` rows at a time, fewer at the end of a part."""
        for part in self._parts:
            yield from _batches(stream_dataset(self._folder, part), rows, prefetch=1)


def _parts(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Yield groups of consecutive shards of at most PART_BYTES in total; a larger shard is a group by itself."""
    part: list[Shard] = []
    for shard in shards:
        if part and sum(other.size_bytes for other in part) + shard.size_bytes > PART_BYTES:
            yield part
            part = []
        part.append(shard)
    yield part


def _batches(dataset: ray.data.Dataset, rows: int | None, prefetch: int) -> Iterable[dict[str, Tensor]]:
    return dataset.iterator().iter_torch_batches(
        batch_size=rows, prefetch_batches=prefetch, collate_fn=StoredColumns(), device="cpu"
    )


class StoredColumns(ArrowBatchCollateFn):
    """Converts an Arrow block to tensors that are read-only views of it; only flags are copied, to uint8."""

    def __call__(self, batch: pa.Table) -> dict[str, Tensor]:
        return {name: torch.from_dlpack(values).view(shape) for name, (values, shape) in primitives(batch).items()}


class Window:
    """Refreshes a rolling-window replay: a thread reads this worker's rows, epoch after epoch, a few chunks ahead.

    The thread also standardises the rows and sends them to the device while the learner works. The sequence of chunks is the
    same in every run, and `refresh` waits instead of skipping, so a window's content depends only on the number of refreshes.
    waited_s: seconds that the learner has waited for data since the window was full. Besides the replay it holds at most
    prefetch_chunks + 2 chunks and a few of Ray's blocks. Close it, or use it in a `with` statement.
    """

    def __init__(self, share: Share, replay: Replay, *, chunk_rows: int = 65536, prefetch_chunks: int = 2) -> None:
        self.waited_s = 0.0
        self._share, self._replay, self._chunk_rows = share, replay, chunk_rows
        self._chunks: queue.Queue[Arrival | BaseException] = queue.Queue(prefetch_chunks)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="drcorl-window", daemon=True)
        self._thread.start()

    def fill(self) -> None:
        """Take chunks until the replay is full; rows repeat if this worker has fewer than the capacity."""
        while self._replay.filled < self._replay.capacity:
            self.refresh()
        self.waited_s = 0.0

    def refresh(self) -> None:
        """Overwrite the replay's oldest rows with the next chunk; raises the errors of the reading thread."""
        started = time.perf_counter()
        chunk = self._chunks.get()
        self.waited_s += time.perf_counter() - started
        if isinstance(chunk, BaseException):
            raise chunk
        self._replay.take(chunk)

    def close(self) -> None:
        """Stop reading and drop the chunks that were read ahead."""
        self._closed.set()
        self._thread.join(timeout=10)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _produce(self) -> None:
        try:
            while True:
                for chunk in self._share.batches(self._chunk_rows):
                    if not self._offer(self._replay.arrange(chunk)):
                        return
        except BaseException as error:  # reported by `refresh`, which would otherwise wait for ever
            self._offer(error)

    def _offer(self, item: Arrival | BaseException) -> bool:
        """Put an item into the queue; return False if the window was closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._chunks.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _execution_options() -> ray.data.ExecutionOptions:
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=OBJECT_STORE_BYTES)
    return ray.data.ExecutionOptions(resource_limits=limits, preserve_order=True)


class Feed:
    """The replay of one worker: resident, or a rolling window that moves with the steps."""

    def __init__(self, config: DataConfig, data: TaskData, placement: Placement) -> None:
        self._refresh_steps = config.refresh_steps
        self.replay = Replay(data.manifest, device=placement.device, capacity=config.window_rows)
        self._window: Window | None = None
        if self.replay.resident:
            fill(self.replay, stream_dataset(data.store))
        else:
            share = Share(data.store, placement.rank, placement.workers)
            self._window = Window(share, self.replay, chunk_rows=max(1, self.replay.capacity // 8))
            self._window.fill()

    def seek(self, step: int) -> None:
        """Move a window to its state before `step`; its content depends only on the number of steps."""
        for earlier_step in range(step):
            self.move(earlier_step)

    def move(self, step: int) -> None:
        """Refresh a window if a refresh is due before this step."""
        if self._window is not None and step and step % self._refresh_steps == 0:
            self._window.refresh()

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
