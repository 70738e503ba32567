"""The training loop, and what a finished training writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from drcorl_ray.method.learner import Learner
from drcorl_ray.training.build import Population


def report_intervals(step: int, total: int, report_steps: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of what is left from `step` to `total`, cut at the multiples of report_steps."""
    while step < total:
        stop = min(total, (step // report_steps + 1) * report_steps)
        yield step, stop
        step = stop


def save_last(path: Path, learner: Population) -> None:
    """Write the finished population, with which of it is finite and what it took from rollouts."""
    finite = learner.finite()
    none = torch.zeros_like(finite, dtype=torch.int64)
    spent, taken = (learner.online.spent, learner.online.counts) if isinstance(learner, Learner) else (none, none)
    about = {"finite": finite, "online_episodes": spent, "appended_transitions": taken}
    learner.policies().save_population(path, {name: values.tolist() for name, values in about.items()})


def save_online_best(path: Path, learner: Learner) -> None:
    """Write the policies that did best in online evaluations, with whose they are; no file where no member had one."""
    evaluated = learner.online.best_cost.isfinite()
    if evaluated.any():
        policies = learner.policies(learner.online.best).select(evaluated.nonzero().flatten().tolist())
        policies.save_population(path, {"members": evaluated.nonzero().flatten().tolist()})
