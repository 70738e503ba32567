"""The training loop of every stage, and the files that a finished training writes. Ray Train and Ray Tune call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from drcorl_ray.method.interfaces import Population, Stage
from drcorl_ray.method.runner import Runner
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.training.checkpoint import States

Hook = Callable[[int], object]
"""A function that is called with a step."""


def no_hook(step: int) -> None:
    """Do nothing at a step."""


def train(
    stage: Stage,
    runner: Runner,
    start: int,
    stop: int,
    *,
    report_steps: int,
    log: MetricsLog | None,
    states: States | None,
    before_step: Hook = no_hook,
    before_save: Hook = no_hook,
    after_report: Hook = no_hook,
) -> None:
    """Train steps start … stop − 1 with a report at every multiple of `report_steps` and at the end.

    A report calls before_save, writes a line of the log, saves the state, calls after_report, all with the number of steps
    done. log, states: None in a data-parallel worker other than the first.
    """
    for first, last in report_intervals(start, stop, report_steps):
        metrics = runner.advance(first, last, before_step)
        before_save(last)
        if log is not None:
            log.write(last, metrics)
        if states is not None:
            states.save(stage, last)
        after_report(last)


def report_intervals(step: int, total: int, report_steps: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) intervals from `step` to `total`, split at the multiples of report_steps."""
    while step < total:
        stop = min(total, (step // report_steps + 1) * report_steps)
        yield step, stop
        step = stop


def resume(stage: Stage, states: States, run: RunDirectory, name: str, start: int = 0, *, quiet: bool = False) -> int:
    """Load the newest intact state into the stage and return its step, 0 without one.

    Damaged states are noted in the run unless `quiet`. name: the training's name in the notes. start: the step from which it
    continues if no state is intact.
    """
    step, damages = states.load(stage)
    for damage in damages if not quiet else ():
        run.note(f"{name}: {damage}; resuming from step {step or start}")
    return step


def save_last(path: Path, population: Population) -> None:
    """Write the finished population, which members are finite, and the online episodes and transitions they used."""
    finite, online = population.finite(), population.as_online()
    none = torch.zeros_like(finite, dtype=torch.int64)
    spent, appended = (online.online.spent, online.online.counts) if online else (none, none)
    meta = {"finite": finite, "online_episodes": spent, "appended_transitions": appended}
    population.policies().save_population(path, {name: values.tolist() for name, values in meta.items()})


def save_online_best(path: Path, population: Population) -> None:
    """Write the best policies by online evaluation, with their members; no file if no member was evaluated online."""
    if (learner := population.as_online()) is None:
        return
    members = learner.online.best_cost.isfinite().nonzero().flatten().tolist()
    if members:
        learner.policies(learner.online.best).select(members).save_population(path, {"members": members})
