"""What a user sees while a run works: progress bars fed by the metrics logs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drcorl_ray.run_directory import RunDirectory, read_log
from drcorl_ray.storage import is_remote

_POLL_S, _REMOTE_POLL_S = 0.5, 5.0
_WIDTH = 118
_FINISHED_BARS = 6  # that stay on the screen: a terminal shows no more bars than it has lines


def wide_console(*, stderr: bool = False) -> Console:
    """A console wide enough for bars and tables of results, also where it is a file or a narrow terminal."""
    wide = Console(stderr=stderr)
    wide.width = max(wide.width, _WIDTH)
    return wide


console = wide_console(stderr=True)


def progress_bars() -> Progress:
    """Bars of a run's stages; on something that is not a terminal only finished lines are printed."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console, refresh_per_second=4)


class Watcher:
    """Follows the run's metrics logs in a thread: one bar a stage, and every line to `log`; notes are printed.

    The logs are the only thing that workers and driver share, so this works wherever the workers run.
    """

    def __init__(self, run: RunDirectory, bars: Progress, log: Callable[[Mapping[str, Any]], None]) -> None:
        self._run, self._bars, self._log = run, bars, log
        self._seen: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}
        self._noted = len(self._notes())
        self._tasks: dict[tuple[str, str], TaskID] = {}
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
        while not self._stop.wait(_REMOTE_POLL_S if is_remote(self._run.path) else _POLL_S):
            self._read()

    def _notes(self) -> list[str]:
        return self._run.notes.read_text(encoding="utf-8").splitlines() if self._run.notes.exists() else []

    def _read(self) -> None:
        for note in self._notes()[self._noted :]:
            self._bars.console.print(f"[yellow]{escape(note)}")
            self._noted += 1
        for path in self._run.logs():
            size = path.stat().st_size
            if self._sizes.get(path) == size:
                continue
            self._sizes[path], lines = size, read_log(path)
            seen = min(self._seen.get(path, 0), len(lines))  # a resumed stage has taken back its unfinished reports
            for line in lines[seen:]:
                self._show(line)
                self._log(line)
            self._seen[path] = len(lines)

    def _show(self, line: Mapping[str, Any]) -> None:
        key = line["task"], line["stage"]
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{key[0]}: {key[1]}", total=line["total_steps"], note="")
        self._bars.update(self._tasks[key], completed=line["step"], note=_note(line["metrics"]))
        finished = [task for task in self._bars.tasks if task.finished and task.visible]
        for task in finished[:-_FINISHED_BARS]:
            self._bars.update(task.id, visible=False)


def _note(metrics: Mapping[str, list[float | None]]) -> str:
    """The one number of a report that tells most."""
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
