"""Pretraining by Ray Train: once per task and seed, shared by all runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import ray

from drcorl_ray.config import Config, ScalingConfig
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.ray_train import StageJob, fit, job_name
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.training.build import Placement, build_pretrainer
from drcorl_ray.training.pretrained import _locked, _missing, pretrained_path, save_pretrained


def pretrain(
    config: Config,
    data: TaskData,
    run: RunDirectory,
    seeds: Sequence[int],
    log: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Return the files of a task's pretrained weights, one per seed; one Ray Train job makes those not in run.storage.

    If several runs need the same file at once, the first to lock it makes it and the others wait (until `cancelled`); a lock
    is released when its process ends. Damaged files are made again. A baseline needs no pretrained weights: an empty list.
    """
    if not get_algorithm(config.run.algorithm).pretrained:
        return []
    root, precision = config.run.storage_folder, config.scaling.precision
    paths = {seed: pretrained_path(root, data, config.pretrain, seed, precision) for seed in seeds}
    if missing := _missing(paths):
        with ExitStack() as locks:
            for seed in sorted(missing):
                locks.enter_context(_locked(missing[seed], data.task.name, cancelled))
            if missing := _missing(paths):  # another run may have made them meanwhile
                _pretrain_missing(config, data, run, missing, log or run.metrics)
    return list(paths.values())


def pretrain_tasks(
    config: Config, tasks: Sequence[TaskData], run: RunDirectory, seeds: Sequence[int]
) -> list[tuple[Path, ...]]:
    """Call `pretrain` for every task, as many at once as the cluster has room for beside Ray Data.

    Ctrl-C and the first error end all jobs; a resumed run continues from their last reports.
    """

    def one(data: TaskData) -> tuple[Path, ...]:
        return tuple(pretrain(config, data, run, seeds, run.pretraining_log(data.task.name), cancelled.is_set))

    cancelled = threading.Event()
    room = min(_room(config.scaling), len(tasks))
    if room == 1:  # in the main thread Ray Train handles Ctrl-C itself
        return [one(data) for data in tasks]
    threads = ThreadPoolExecutor(room)
    jobs = [threads.submit(one, data) for data in tasks]
    try:
        for job in as_completed(jobs):
            job.result()
    except BaseException:
        cancelled.set()
        threads.shutdown(wait=False, cancel_futures=True)
        ray.shutdown()
        raise
    return [job.result() for job in jobs]


def _room(scaling: ScalingConfig) -> int:
    """Return how many Train jobs fit at once. Each further one would wait for its workers until Ray Train gives up."""
    free = ray.available_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    unusable_cpus = sum(node.get("CPU", 0.0) for node in nodes if not scaling.worker_resources.keys() <= node.keys())
    jobs = [(free.get("CPU", 1.0) - unusable_cpus - 1.0) / (scaling.workers * scaling.cpus_per_worker)]
    if scaling.use_gpu:
        jobs.append(free.get("GPU", 1.0) / scaling.workers)
    return max(1, int(min(jobs)))


def _pretrain_missing(config: Config, data: TaskData, run: RunDirectory, paths: Mapping[int, Path], log: Path) -> None:
    def build(placement: Placement) -> Pretrainer:
        return build_pretrainer(config.pretrain, data, list(paths), placement)

    def finish(pretrainer: Pretrainer) -> None:
        save_pretrained(paths, pretrainer)

    folder = run.training(job_name("pretrain", data, paths.values()))
    rows = config.pretrain.batch_size
    fit(StageJob("pretrain", data, run, log, folder, rows, config.data, config.scaling, build, finish))
