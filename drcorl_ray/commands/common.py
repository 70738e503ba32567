"""Steps that several commands share: open a task, announce a run, finish it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from drcorl_ray.config import Config
from drcorl_ray.config.algorithms import baselines
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.speed import inference_times
from drcorl_ray.io.console import console
from drcorl_ray.io.files import write_json
from drcorl_ray.report import write_report
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.provenance import describe_results
from drcorl_ray.runs.schema import Row
from drcorl_ray.tasks.envs import make_simulator


@contextmanager
def resumable(run: RunDirectory) -> Iterator[None]:
    """Print where the run is, and attach to an interruption how to resume it, for the last line of the command."""
    console.print(f"run: {run.path}", soft_wrap=True)
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(f"add run.resume=true run.dir={run.path} to resume")
        raise


def finish(config: Config, run: RunDirectory, rows: Sequence[Row], started: float, extra: Mapping[str, Any]) -> None:
    """Measure inference times; write the report and, last, results.json, with `extra` in its description of the run."""
    wall_s = time.monotonic() - started
    times = inference_times(
        run.path, rows, config.pretrain, {algorithm.name for algorithm in baselines() if not algorithm.light}
    )
    results = describe_results(rows, wall_s, {**extra, "inference_times": times})
    write_report(run, results)
    write_json(run.results, results)
    console.print(f"report: {run.path / 'report.html'}")


def open_task(config: Config, task_name: str) -> TaskData:
    """Open a task's data. A simulator that cannot run is reported now, not after the training."""
    make_simulator(task_name).close()
    with console.status(f"{task_name}: reading the dataset"):
        return TaskData.open(task_store(task_name, config.data, config.run))
