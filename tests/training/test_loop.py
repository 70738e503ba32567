"""The training loop: what happens at a report, in which order, and where a training resumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from drcorl_ray.method.interfaces import Stage
from drcorl_ray.method.runner import Runner
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog, read_log
from drcorl_ray.training import loop
from drcorl_ray.training.checkpoint import States


class Sum:
    """A stage whose state is the sum of the steps it took; a step draws nothing and has no gradients."""

    total_steps = 50

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def step_kind(self, step: int) -> str:
        return "add"

    def prepare(self, step: int) -> None:
        """Nothing to prepare."""

    def draws(self, step: Any) -> Any:
        return SimpleNamespace(step=step)

    def sampler(self, replay: object) -> Any:
        return lambda draws, rows: None

    def gradients(self, step_kind: str, batch: object, draws: Any) -> tuple[list, dict]:
        return [], {}

    def update(self, step_kind: str, means: object, step: torch.Tensor) -> dict[str, torch.Tensor]:
        self.value += step
        return {"value": self.value.clone()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state) -> None:
        self.value.copy_(state["value"])


def train(stage: Sum, run: RunDirectory, stop: int = 50, **hooks: Any) -> int:
    """Resume, train to `stop` with a report every 20 steps, and return the step of the start."""
    typed = cast("Stage", stage)
    states = States(run.training("sum"))
    step = loop.resume(typed, states, run, "T, sum")
    log = MetricsLog(run.metrics, "T", "sum", stage.total_steps, step)
    runner = Runner(typed, stage.sampler(None), 1)
    loop.train(typed, runner, step, stop, report_steps=20, log=log, states=states, **hooks)
    return step


@pytest.mark.parametrize(
    ("step", "intervals"),
    [(0, [(0, 20), (20, 40), (40, 50)]), (20, [(20, 40), (40, 50)]), (33, [(33, 40), (40, 50)]), (50, [])],
)
def test_reports_are_at_multiples_and_at_the_end(step, intervals):
    assert list(loop.report_intervals(step, 50, 20)) == intervals


def test_the_order_at_a_report(tmp_path):
    """A curve point must be there before the state, or a resumed run would lack it. Fault: save the state first."""
    run, seen = RunDirectory(tmp_path), []

    def before_save(step: int) -> None:
        logged = [line["step"] for line in read_log(run.metrics)]
        seen.append(("save", step, logged, run.training("sum").state.exists()))

    def after_report(step: int) -> None:
        seen.append(("report", step, [line["step"] for line in read_log(run.metrics)], run.training("sum").state.exists()))

    train(Sum(), run, 40, before_save=before_save, after_report=after_report)
    assert seen == [
        ("save", 20, [], False), ("report", 20, [20], True), ("save", 40, [20], True), ("report", 40, [20, 40], True),
    ]  # fmt: skip


def test_a_hook_is_called_before_each_step(tmp_path):
    steps: list[int] = []
    train(Sum(), RunDirectory(tmp_path), 50, before_step=steps.append)
    assert steps == list(range(50))


@pytest.mark.parametrize("damage", [False, True])
def test_a_resumed_training_ends_as_one_that_ran_through(tmp_path, damage):
    """From its newest state, or where that is damaged from the one before, with a note. Fault: train from the start."""
    through, run = Sum(), RunDirectory(tmp_path / "resumed")
    train(through, RunDirectory(tmp_path / "through"))
    train(Sum(), run, 40)
    if damage:
        run.training("sum").state.write_bytes(b"half a state")
    resumed = Sum()
    assert train(resumed, run) == (20 if damage else 40)
    assert torch.equal(resumed.value, through.value)
    assert float(through.value) == sum(range(50))
    lines = [read_log(each.metrics) for each in (run, RunDirectory(tmp_path / "through"))]
    assert [[(line["step"], line["metrics"]) for line in part] for part in lines[:1]] == [
        [(line["step"], line["metrics"]) for line in lines[1]]
    ]
    notes = run.notes.read_text() if run.notes.exists() else ""
    assert ("T, sum: " in notes and "resuming from step 20" in notes) == damage


def test_other_workers_write_nothing(tmp_path):
    stage = Sum()
    runner, typed = Runner(cast("Stage", stage), stage.sampler(None), 1), cast("Stage", stage)
    reported: list[int] = []
    loop.train(typed, runner, 0, 50, report_steps=20, log=None, states=None, after_report=reported.append)
    assert reported == [20, 40, 50]
    assert list(tmp_path.iterdir()) == []
    assert np.isfinite(float(stage.value))
