"""Resources that a search used: wall time by phase, device seconds, member-steps and online episodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from drcorl_ray.distributed.ray_tune import pack_resources
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.schema import SearchCost
from drcorl_ray.search.finished_study import SearchRecord
from drcorl_ray.search.plan import Pack
from drcorl_ray.tasks.registry import Task

Interval = tuple[float, float]


class SearchClock:
    """Measures the phases of this session. The packs' result files hold the times of a resumed run's earlier sessions."""

    def __init__(self) -> None:
        self._began = time.time()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the wall time of the `with` block under `name`."""
        began = time.monotonic()
        yield
        self._phases[name] = time.monotonic() - began

    def cost(self, records: Sequence[SearchRecord], wall_s: float) -> SearchCost:
        """Return the entry `search.cost` of results.json; wall_s: wall time of this session in seconds."""
        finished = [(record, pack, task, record.result(pack, task)) for record, pack, task in _jobs(records)]
        intervals = [(result["began"], result["ended"]) for *_, result in finished]
        packs_s = covered((max(begin, self._began), end) for begin, end in intervals)
        record = records[0]
        resources = pack_resources(record.config.scaling)
        device = "GPU" if "GPU" in resources else "CPU"
        phases = {f"{name}_s": seconds for name, seconds in self._phases.items()} | {"packs_s": packs_s}
        scaling = record.config.scaling
        per_worker = 1.0 if device == "GPU" else scaling.cpus_per_worker
        logs = (record.run.pretraining_log(data.task.name) for record in records for data in record.tasks)
        pretraining = sum(line["seconds"] for log in logs for line in read_log(log))
        account = {
            "wall_s": wall_s,
            **phases,
            "overhead_s": wall_s - sum(phases.values()),
            "slots": most_at_once(intervals),
            "device": device,
            "pretraining_device_s": pretraining * scaling.workers * per_worker,
            "packs_device_s": sum(end - begin for begin, end in intervals) * resources[device],
            "member_steps": sum(len(pack.members) * (pack.stop - pack.start) for _, pack, *_ in finished),
            "online_episodes": sum(record.episodes(number) for record in records for number in record.path),
            "packs": len(finished),
            "configurations": sum(len(record.path) for record in records),
            "stopped": sum(not record.complete(number) for record in records for number in record.path),
        }
        return cast("SearchCost", account)


def _jobs(records: Sequence[SearchRecord]) -> Iterator[tuple[SearchRecord, Pack, Task]]:
    for record in records:
        for pack in record.packs:
            for data in record.tasks:
                yield record, pack, data.task


def covered(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals; an interval that ends before it begins counts as empty."""
    total, end_so_far = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, end_so_far))
        end_so_far = max(end_so_far, end)
    return total


def most_at_once(intervals: Sequence[Interval]) -> int:
    """Return the largest number of intervals that overlap at one moment."""
    events = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    running = largest = 0
    for _, change in events:
        running += change
        largest = max(largest, running)
    return largest
