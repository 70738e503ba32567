"""What a user sees while a run works: progress bars fed by the metrics log, and Weights & Biases fed by the same lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drcorl_ray.config import Config
from drcorl_ray.run_directory import RunDirectory, read_log

_POLL_S = 0.5
_WIDTH = 118


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
    """Follows the run's metrics logs in a thread: one bar a stage, and every line to Weights & Biases.

    The logs are the only thing that workers and driver share, so this works wherever the workers run.
    """

    def __init__(self, config: Config, run: RunDirectory, bars: Progress) -> None:
        self._run, self._bars = run, bars
        self._seen: dict[Path, int] = {}
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._tracker = Tracker(config, run)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="drcorl-watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()
        self._tracker.finish()

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._read()

    def _read(self) -> None:
        for path in self._run.logs():
            lines = read_log(path)
            seen = min(self._seen.get(path, 0), len(lines))  # a resumed stage has taken back its unfinished reports
            for line in lines[seen:]:
                self._show(line)
                self._tracker.log(line)
            self._seen[path] = len(lines)

    def _show(self, line: Mapping[str, Any]) -> None:
        key = line["task"], line["stage"]
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{key[0]}: {key[1]}", total=line["total_steps"], note="")
        self._bars.update(self._tasks[key], completed=line["step"], note=_note(line["metrics"]))


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


class Tracker:
    """Weights & Biases: online when the user is logged in or asks, offline otherwise; never a prompt, never a crash."""

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._run: Any = None
        mode = config.run.wandb
        if mode == "auto":
            mode = "online" if _logged_in() else "offline"
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            self._run = wandb.init(
                project="drcorl_ray", name=run.path.name, dir=str(run.path), mode=mode, config=config.model_dump()
            )
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A tracker must not take the run down with it."""
        self._run = None
        console.print(f"[yellow]Weights & Biases is off: {' '.join(str(error).split())[:200]}")

    def log(self, line: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        head = f"{line['task']}/{line['stage']}"
        flat: dict[str, Any] = {f"{head}/step": line["step"]}
        for name, values in line["metrics"].items():
            flat |= {f"{head}/{name}/{member}": value for member, value in enumerate(values)}
        try:
            self._run.log(flat)
        except Exception as error:
            self._give_up(error)

    def finish(self) -> None:
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self._give_up(error)


def _logged_in() -> bool:
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
