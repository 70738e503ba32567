"""Packs through Ray Tune: a Searcher that hands out what the plans of all studies have to train next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray import tune
from ray.tune.search import Searcher

from drcorl_ray.config import ScalingConfig
from drcorl_ray.distributed.cluster import interrupts_restored, ray_storage
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import is_full
from drcorl_ray.runs.directory import RunDirectory

R = TypeVar("R")

_ENDLESS = 1_000_000  # trials; the plans say when they are finished


class PackId(Protocol):
    """A pack, by the study it belongs to and its number there."""

    @property
    def study(self) -> str: ...

    @property
    def number(self) -> int: ...


class Plan(Protocol):
    """The order in which the packs of a study are trained."""

    def jobs(self) -> Sequence[tuple[PackId, str]]:
        """(pack, task) of every training that may start now, the oldest first; empty when the study is finished."""
        ...


class TrainPack(Protocol):
    """Trains a pack of a study on a task; `report` is called with the step at each report."""

    def __call__(self, study: str, number: int, task: str, report: Callable[[int], None]) -> None: ...


class PackSearch(Searcher):
    """Suggests {"study", "number", "task"}: a pack to train on a task. Results are on disk; Tune reports only which ended."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__(metric="step", mode="max")
        self._plans = list(plans)
        self._handed_out: dict[str, dict[str, Any]] = {}
        self._running: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        for plan in self._plans:
            for pack, task in plan.jobs():
                job = {"study": pack.study, "number": pack.number, "task": task}
                if job not in self._handed_out.values():
                    self._handed_out[trial_id] = job
                    self._running.add(trial_id)
                    return job
        return None if self._running else Searcher.FINISHED  # a pack that failed for good is left to a resumed search

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Reports during the training are ignored; scores are read at the end."""

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Tune expects; studies and packs are always on disk."""
        Path(checkpoint_path).write_text("see RUN/studies and RUN/packs\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def pack_resources(scaling: ScalingConfig) -> dict[str, float]:
    """Return the resources that one pack books."""
    gpus = {"GPU": scaling.gpus_per_pack} if scaling.use_gpu else {}
    return {"CPU": scaling.cpus_per_worker} | gpus | scaling.worker_resources


def check_room(scaling: ScalingConfig) -> None:
    """Raise UserError if no machine of the cluster is large enough for one pack, which would then wait forever."""
    if Path("~/ray_bootstrap_config.yaml").expanduser().exists():
        return  # the head of a cluster that grows by demand (`ray up`)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = pack_resources(scaling)
    if not any(all(machine.get(name, 0.0) >= amount for name, amount in wanted.items()) for machine in machines):
        largest = {name: max(machine.get(name, 0.0) for machine in machines) for name in wanted}
        raise UserError(f"scaling: a pack books {wanted}, and the largest machine here has {largest}; lower the shares")


def on_pack_resources(scaling: ScalingConfig, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function in a process with a pack's resources, wait, and return its result."""
    resources = pack_resources(scaling)
    task: Any = ray.remote(function)
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "resources": scaling.worker_resources}
    return ray.get(task.options(**options).remote(*arguments))


def run_packs(train_pack: TrainPack, plans: Sequence[Plan], scaling: ScalingConfig, run: RunDirectory) -> None:
    """Run all packs of a search through Tune, as many at a time as fit; UserError if one failed for good."""

    def trainable(job: dict[str, Any]) -> None:
        last: dict[str, Any] = {"step": -1}  # a pack that finished earlier reports too
        try:
            train_pack(job["study"], job["number"], job["task"], lambda step: tune.report({"step": step}))
        except UserError as error:  # not raised: trying again would not help
            last["mistake"] = str(error)
        except OSError as error:
            if not is_full(error):
                raise
            last["mistake"] = str(error)
        tune.report(last)

    tuner = tune.Tuner(
        tune.with_resources(trainable, pack_resources(scaling)),
        tune_config=tune.TuneConfig(
            search_alg=PackSearch(plans),
            num_samples=_ENDLESS,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"pack-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"pack-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"search-{int(time.time())}",
            **ray_storage(run.ray),
            failure_config=tune.FailureConfig(max_failures=scaling.max_failures),
            verbose=0,
        ),
    )
    # Nothing is resumed from Tune's own records, and a full disk is reported by the packs themselves.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    with interrupts_restored():
        trials = tuner.fit()
    errors = [getattr(error, "cause", error) for error in trials.errors]
    errors += [trial.metrics["mistake"] for trial in trials if trial.metrics and "mistake" in trial.metrics]
    if errors:
        reason = " ".join(str(errors[-1]).split())[-400:]
        raise UserError(f"{len(errors)} packs failed ({reason}); fix it and add run.resume=true run.dir={run.path}")
    if any(plan.jobs() for plan in plans):  # Tune treats the first Ctrl-C as the end of the work
        raise KeyboardInterrupt
