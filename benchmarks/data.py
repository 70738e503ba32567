"""Data path from the store to the learner: rows per second of Ray Data, waiting time, and memory of a rolling window.

python -m benchmarks.data [--rows 1200000] [--window 200000] [--steps 1500] [--output FILE.json]

Makes a store in a temporary folder and starts Ray. Reads by plain pyarrow and by Ray Data take turns; then a learner trains
from a rolling window that is smaller than the store. The defaults take two minutes and 1 GB of disk.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.population import ACTIONS, OBSERVATIONS, Settings, make_pretrainer
from benchmarks.timing import interleaved, machine, table, write
from drcorl_ray.data.dsrl import make_dataset
from drcorl_ray.data.store import Source, convert, load_manifest, read_shard
from drcorl_ray.distributed.cluster import connect, prepare_environment
from drcorl_ray.method.replay import Replay

EPISODE = 1000
REFRESH_STEPS = 50
CHUNK_SHARE = 8  # a window is refreshed by this part of it, as ray_data.Feed does


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_200_000)
    parser.add_argument("--window", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        make_store(store, options.rows)
        connect()
        results = {"machine": machine("cpu"), "rows": options.rows, "window": options.window}
        results |= {"pass": measure_pass(store), "window_run": measure_window(store, options.window, options.steps)}
    show(results)
    write(options.output, results)


def make_store(folder: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    ends = np.arange(1, rows + 1) % EPISODE == 0
    normal = partial(generator.standard_normal, dtype=np.float32)
    columns = {
        "observations": normal((rows, OBSERVATIONS)), "actions": np.tanh(normal((rows, ACTIONS))),
        "next_observations": normal((rows, OBSERVATIONS)), "rewards": normal(rows),
        "costs": (normal(rows) > 1.0).astype(np.float32), "terminals": np.zeros(rows, bool), "timeouts": ends,
    }  # fmt: skip
    convert(make_dataset(columns), folder, task="made-up", source=Source(file_name="made-up.hdf5", sha256="0" * 64))


def measure_pass(store: Path) -> dict[str, float]:
    """Return rows per second of reading a store by plain pyarrow, of also inserting into a replay, and of Ray Data's pass."""
    from drcorl_ray.distributed.ray_data import StoredColumns, fill, stream_dataset

    manifest = load_manifest(store)

    def bare() -> None:
        for shard in manifest.shards:
            read_shard(store / shard.file_name)

    def one_process() -> None:
        replay = Replay(manifest)
        for shard in manifest.shards:
            replay.insert(StoredColumns()(read_shard(store / shard.file_name)))

    def by_ray() -> None:
        fill(Replay(manifest), stream_dataset(store))

    seconds = interleaved({"pyarrow": bare, "one process": one_process, "ray data": by_ray}, 5)
    return {name: manifest.rows / took for name, took in seconds.items()}


def measure_window(store: Path, rows: int, steps: int) -> dict[str, Any]:
    """Train pretraining's critic phase from a rolling window; return the time, the waiting time and the added memory."""
    from drcorl_ray.distributed.ray_data import Share, Window
    from drcorl_ray.method.runner import Runner

    manifest = load_manifest(store)
    settings = Settings(pretrain={"steps": 10**6, "monte_carlo_steps": 0})
    stage = make_pretrainer(settings, [0])
    with PeakMemory() as peak:
        replay = Replay(manifest, capacity=rows)
        with Window(Share(store), replay, chunk_rows=rows // CHUNK_SHARE) as window:
            window.fill()
            refreshes = 0

            def before(step: int) -> None:
                nonlocal refreshes
                if step % REFRESH_STEPS == 0:
                    window.refresh()
                    refreshes += 1

            first = 2 * settings.pretrain.steps
            began = time.perf_counter()
            Runner(stage, replay.sample, settings.pretrain.batch_size).advance(first, first + steps, before)
            took = time.perf_counter() - began
            waited = window.waited_s
    row_bytes = replay._table.element_size() * replay._table.shape[1]
    return {
        "steps": steps, "seconds": took, "waited_s": waited, "refreshes": refreshes,
        "rows_passed": refreshes * (rows // CHUNK_SHARE), "window_bytes": rows * row_bytes,
        "store_bytes": manifest.rows * row_bytes, "added_bytes": peak.added,
    }  # fmt: skip


class PeakMemory:
    """Measures the peak of this process's resident memory above its value at the start."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop = psutil.Process(), threading.Event()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def added(self) -> int:
        return self._peak - self._start


def show(results: dict[str, Any]) -> None:
    rates, run = results["pass"], results["window_run"]
    ray, bare, one_process = rates["ray data"], rates["pyarrow"], rates["one process"]
    table(
        f"{results['rows']:,} rows of {OBSERVATIONS} observations and {ACTIONS} actions",
        ("what", "measured", "target"),
        [
            ("bare pyarrow read", f"{bare:,.0f} rows/s", ""),
            ("store → replay in this process", f"{one_process:,.0f} rows/s", ""),
            (
                "store → replay by Ray Data",
                f"{ray:,.0f} rows/s, {ray / bare:.2f} and {ray / one_process:.2f} of these",
                "≥ 0.50",
            ),
            (
                f"learner waiting, {run['refreshes']} refreshes in {run['steps']} steps",
                f"{run['waited_s']:.2f} of {run['seconds']:.1f} s, {run['waited_s'] / run['seconds']:.1%}",
                "≤ 2 %",
            ),
            (
                f"memory of a window of {mebibytes(run['window_bytes'])} on a store of {mebibytes(run['store_bytes'])}",
                mebibytes(run["added_bytes"]),
                "window + a few chunks",
            ),
        ],
    )


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
