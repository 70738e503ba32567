"""Steps that several commands share: open a task, finish a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from drcorl_ray.config import Config
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.scoring import Records
from drcorl_ray.io.console import console
from drcorl_ray.io.files import write_json
from drcorl_ray.report import write_report
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.provenance import describe_results
from drcorl_ray.tasks.envs import make_simulator


def finish(run: RunDirectory, rows: Records, started: float, extra: Mapping[str, Any]) -> None:
    """Write the report and, last, results.json, with `extra` in its description of the run."""
    results = describe_results(rows, time.monotonic() - started, extra)
    write_report(run, results)
    write_json(run.results, results)
    console.print(f"report: {run.path / 'report.html'}")


def open_task(config: Config, task_name: str) -> TaskData:
    """A task's data, made ready; a simulator that cannot run is reported now and not after the training."""
    make_simulator(task_name).close()
    with console.status(f"{task_name}: reading the dataset"):
        return TaskData.open(task_store(config, task_name))
