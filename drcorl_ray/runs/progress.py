"""Progress of a run: bars on a terminal, or lines of text, fed by the metrics logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import Progress, TaskID

from drcorl_ray.errors import UserError
from drcorl_ray.io.console import console
from drcorl_ray.io.files import read_bytes
from drcorl_ray.io.storage import storage_of
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import read_log

_FINISHED_BARS = 6  # that stay on the screen: a terminal shows no more bars than it has lines


class Watcher:
    """Follows a run's metrics logs in a thread, passes every line to `log`, and prints the run's notes.

    A terminal shows one bar per stage. Any other output (a pipe, a file) shows one line per report, or only the last if
    several arrive between two polls. Workers and driver share only the logs, so the workers may run on any machine.
    """

    def __init__(self, run: RunDirectory, bars: Progress, log: Callable[[Mapping[str, Any]], None]) -> None:
        self._run, self._bars, self._log = run, bars, log
        self._seen: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}
        self._noted = len(self._notes())
        self._tasks: dict[str, TaskID] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="drcorl-watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()

    def _follow(self) -> None:
        while not self._stop.wait(storage_of(self._run.path).poll_s):
            try:
                self._read()
            except UserError as error:  # a damaged log; the run itself does not need it
                console.print(f"[yellow]{escape(str(error))}", soft_wrap=True)
                return
            except OSError:  # the disk or object store is unreachable; try again at the next poll
                continue

    def _notes(self) -> list[str]:
        notes = self._run.notes
        return read_bytes(notes).decode(errors="replace").splitlines() if notes.exists() else []

    def _read(self) -> None:
        for note in self._notes()[self._noted :]:
            console.print(f"[yellow]{escape(note)}", soft_wrap=True)
            self._noted += 1
        for path in self._run.logs():
            size = path.stat().st_size
            if self._sizes.get(path) == size:
                continue
            self._sizes[path], lines = size, read_log(path)
            seen = min(self._seen.get(path, 0), len(lines))  # a resumed stage removes reports past its saved state
            for line in lines[seen:]:
                self._log(line)
            new = {id(line) for line in lines[seen:]}
            for name, (before, line) in _newest(lines).items():
                if id(line) in new:
                    self._show(name, before, line)
            self._seen[path] = len(lines)

    def _show(self, name: str, before: int, line: Mapping[str, Any]) -> None:
        note = _note(line["metrics"])
        if self._bars.disable:
            console.print(_plain(name, before, line, note), highlight=False, markup=False, soft_wrap=True)
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=line["total_steps"], note="")
        self._bars.update(self._tasks[name], completed=line["step"], note=note)
        finished = [task for task in self._bars.tasks if task.finished and task.visible]
        for task in finished[:-_FINISHED_BARS]:
            self._bars.update(task.id, visible=False)


def _newest(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Return the last report of each stage in a log, and the step of the report before it."""
    newest: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for line in lines:
        name = f"{line['task']}: {line['stage']}"
        newest[name] = newest[name][1]["step"] if name in newest else 0, line
    return newest


def _plain(name: str, before: int, line: Mapping[str, Any], note: str) -> str:
    """Format a report as one line, with the estimated time left at the report's speed."""
    step, total = line["step"], line["total_steps"]
    left = (total - step) * line["seconds"] / max(1, step - before)
    ends = f"{timedelta(seconds=round(left))} left" if step < total else "finished"
    return "  ".join(filter(None, (time.strftime("%H:%M:%S"), name, f"{step}/{total}", ends, note)))


def _note(metrics: Mapping[str, list[float | None]]) -> str:
    """Return the most informative number of a report with its label, or an empty string."""
    for name, label in (
        ("adaptation/cost_estimate", "estimated cost"),
        ("critic/cost_loss", "cost critic loss"),
        ("pretrain/policy_error", "cloning error"),
        ("pretrain/diffusion_loss", "diffusion loss"),
    ):
        values = [value for value in metrics.get(name, []) if value is not None]
        if values:
            return f"{label} {np.mean(values):.3g}"
    return ""
