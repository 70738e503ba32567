"""What a search cost: its wall time split into phases, device seconds, member-steps and online episodes."""

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


class Ledger:
    """Clocks the phases of this session; what earlier sessions of a resumed run spent is in the packs' own records."""

    def __init__(self) -> None:
        self._began = time.time()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._phases[name] = time.monotonic() - began

    def cost(self, records: Sequence[SearchRecord], wall_s: float) -> SearchCost:
        """The account of results.json."""
        spent = [(record, pack, task, record.result(pack, task)) for record, pack, task in _jobs(records)]
        intervals = [(result["began"], result["ended"]) for *_, result in spent]
        packs_s = covered((max(begin, self._began), end) for begin, end in intervals)
        record = records[0]
        resources = pack_resources(record.config.scaling)
        device = "GPU" if "GPU" in resources else "CPU"
        named = {f"{name}_s": seconds for name, seconds in self._phases.items()} | {"packs_s": packs_s}
        scaling = record.config.scaling
        per_worker = 1.0 if device == "GPU" else scaling.cpus_per_worker
        logs = (record.run.pretraining_log(data.task.name) for record in records for data in record.tasks)
        pretraining = sum(line["seconds"] for log in logs for line in read_log(log))
        account = {
            "wall_s": wall_s,
            **named,
            "overhead_s": wall_s - sum(named.values()),
            "slots": most_at_once(intervals),
            "device": device,
            "pretraining_device_s": pretraining * scaling.workers * per_worker,
            "packs_device_s": sum(end - begin for begin, end in intervals) * resources[device],
            "member_steps": sum(len(pack.members) * (pack.stop - pack.start) for _, pack, *_ in spent),
            "online_episodes": sum(record.episodes(number) for record in records for number in record.path),
            "packs": len(spent),
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
    """Length of the union of intervals; those that end before they begin count nothing."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def most_at_once(intervals: Sequence[Interval]) -> int:
    """How many intervals overlap at the busiest moment."""
    events = sorted([(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals])
    running = most = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most
