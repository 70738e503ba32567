"""Console output of a run: a line per report in a pipe, a bar per stage on a terminal, notes in both."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import drcorl_ray.io.console
import drcorl_ray.runs.progress
from drcorl_ray.io.console import progress_bars
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.runs.progress import Watcher


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def screen(request, monkeypatch) -> Console:
    console = Console(file=io.StringIO(), force_terminal=request.param, width=118, color_system=None)
    for module in (drcorl_ray.io.console, drcorl_ray.runs.progress):
        monkeypatch.setattr(module, "console", console)
    return console


def reports(path: Path, stage: str, steps: list[int], seconds: float) -> None:
    """Append reports to the log, and set the time of every report to `seconds`."""
    log = MetricsLog(path, "Hopper", stage, 100, 100)
    for step in steps:
        log.write(step, {"adaptation/cost_estimate": np.array([1.0, 2.0])})
    lines = [json.loads(line) | {"seconds": seconds} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_new_reports_and_notes_are_shown(tmp_path, screen):
    """Fault: print every old report of a resumed run, or use the time since the start as the time of a report."""
    run, logged = RunDirectory(tmp_path), []
    run.note("an old note")
    reports(run.metrics, "pretrain", [50, 100], 3.0)
    with progress_bars() as bars:
        watcher = Watcher(run, bars, logged.append)
        watcher._read()
        reports(run.metrics, "extract", [20, 40], 60.0)
        watcher._read()
        run.note("a state is [damaged]")
        reports(run.metrics, "extract", [60], 60.0)
        watcher._read()
    assert [(line["stage"], line["step"]) for line in logged] == [
        ("pretrain", 50), ("pretrain", 100), ("extract", 20), ("extract", 40), ("extract", 60),
    ]  # fmt: skip
    lines = screen.file.getvalue().splitlines()
    if screen.is_terminal:
        assert any("Hopper: extract" in line and "60/100" in line for line in lines)
        assert not any("left" in line for line in lines)
    else:
        assert [line[10:] for line in lines if "Hopper" in line] == [
            "Hopper: pretrain  100/100  finished  estimated cost 1.5",
            "Hopper: extract  40/100  0:03:00 left  estimated cost 1.5",
            "Hopper: extract  60/100  0:02:00 left  estimated cost 1.5",
        ]
    assert sum("a state is [damaged]" in line for line in lines) == 1
    assert not any("an old note" in line for line in lines)
