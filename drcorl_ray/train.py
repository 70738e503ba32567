"""Ray Train around the two stages: shards in, one flat all-reduce between workers, reports and checkpoints out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import torch
import torch.distributed
from filelock import Timeout
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from torch import Tensor

from drcorl_ray.cluster import interrupts_restored
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.curves import curve_steps, save_curve_point
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.stream import Share, Window, fill, stream_dataset
from drcorl_ray.errors import UserError
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.online import Evidence
from drcorl_ray.method.optim import alone
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.online import Before, online_evaluation
from drcorl_ray.policy import load_population
from drcorl_ray.progress import console
from drcorl_ray.run_directory import MetricsLog, RunDirectory
from drcorl_ray.stages import (
    Placement,
    Stage,
    TaskData,
    artifact_path,
    build_population,
    build_pretrainer,
    build_runner,
    load_artifacts,
    report_intervals,
    sampler_of,
    save_artifacts,
    save_last,
    save_online_best,
)
from drcorl_ray.states import States
from drcorl_ray.storage import file_lock, ray_storage

BuildStage = Callable[[Config, TaskData, Placement], Stage]
Finish = Callable[[Stage], None]


def pretrain(
    config: Config,
    data: TaskData,
    run: RunDirectory,
    seeds: Sequence[int],
    log: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """The pretrained artifacts of a task, one per seed: those in run.storage if sound, the others made by one Ray Train job.

    Of several runs that want the same one at once, the first to lock it makes it and the others wait for it (until
    `cancelled`); the lock goes with its process. Baselines start from none.
    """
    if config.run.algorithm != "drcorl":
        return []
    root, precision = config.run.storage_folder, config.scaling.precision
    paths = {seed: artifact_path(root, data, config.pretrain, seed, precision) for seed in seeds}
    if missing := _missing(paths):
        with ExitStack() as locks:
            for seed in sorted(missing):
                locks.enter_context(_locked(missing[seed], data.task.name, cancelled))
            if missing := _missing(paths):  # another run may have made them meanwhile
                _make_artifacts(config, data, run, missing, log or run.metrics)
    return list(paths.values())


def pretrain_tasks(
    config: Config, tasks: Sequence[TaskData], run: RunDirectory, seeds: Sequence[int]
) -> list[tuple[Path, ...]]:
    """`pretrain` for every task, as many at a time as the cluster has room for beside Ray Data's own work.

    Ctrl-C and the first error end them all; what they had reported is gone on from by a resumed run.
    """

    def one(data: TaskData) -> tuple[Path, ...]:
        return tuple(pretrain(config, data, run, seeds, run.pretraining_log(data.task.name), cancelled.is_set))

    cancelled = threading.Event()
    room = min(_room(config), len(tasks))
    if room == 1:  # in the main thread Ray Train answers a Ctrl-C itself
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


def _room(config: Config) -> int:
    """Train jobs that fit side by side. One more than fits would wait for its workers until Ray Train gives up."""
    scaling, cluster = config.scaling, ray.available_resources()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    elsewhere = sum(has.get("CPU", 0.0) for has in machines if not scaling.worker_resources.keys() <= has.keys())
    rooms = [(cluster.get("CPU", 1.0) - elsewhere - 1.0) / (scaling.workers * scaling.cpus_per_worker)]
    if scaling.use_gpu:
        rooms.append(cluster.get("GPU", 1.0) / scaling.workers)
    return max(1, int(min(rooms)))


def _missing(paths: Mapping[int, Path]) -> dict[int, Path]:
    """The artifacts that are absent or damaged."""
    missing = {}
    for seed, path in paths.items():
        try:
            load_artifacts([path])
        except UserError:
            missing[seed] = path
    return missing


@contextmanager
def _locked(path: Path, task: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    lock = file_lock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{task}: another run is pretraining it; waiting for its artifact")
        lock.acquire(cancel_check=cancelled)
    try:
        yield
    finally:
        lock.release()


def _make_artifacts(config: Config, data: TaskData, run: RunDirectory, paths: Mapping[int, Path], log: Path) -> None:
    def build(config: Config, data: TaskData, placement: Placement) -> Stage:
        return build_pretrainer(config, data, list(paths), placement)

    def finish(stage: Stage) -> None:
        assert isinstance(stage, Pretrainer)
        save_artifacts(paths, stage)

    _fit(config, data, run, log, "pretrain", paths.values(), build, finish)


def extract(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberConfig], artifacts: Sequence[Path]
) -> Path:
    """Policy extraction of a population, or a baseline's training, by a Ray Train job; the file of the finished population."""
    path = run.population(data.task.name)

    def build(config: Config, data: TaskData, placement: Placement) -> Stage:
        return build_population(config, data, members, artifacts, placement)

    def finish(stage: Stage) -> None:
        assert not isinstance(stage, Pretrainer)
        if isinstance(stage, Learner):
            save_online_best(run.online_best(data.task.name), stage)
        save_last(path, stage)

    _fit(config, data, run, run.metrics, "extract", artifacts, build, finish)
    load_population(path)
    return path


def _fit(
    config: Config,
    data: TaskData,
    run: RunDirectory,
    log: Path,
    stage: str,
    artifacts: Iterable[Path],
    build: BuildStage,
    finish: Finish,
) -> None:
    """Run one stage as a Ray Train job that resumes from its last intact state, whoever died.

    The states are ours: Ray 2.60 keeps its list of checkpoints in a file that is not written atomically.

    artifacts: the pretrained ones it makes or starts from; a job on others never goes on from this one's states.
    """
    identity = hashlib.sha256(" ".join(path.stem for path in artifacts).encode()).hexdigest()[:16]
    training = f"{stage}-{data.task.name}-{identity}"
    trainer = _Trainer(
        _worker_loop,
        train_loop_config={
            "config": config.model_dump(),
            "data": data,
            "run": run,
            "log": log,
            "stage": stage,
            "states": States(run.states(training)),
            "build": build,
            "finish": finish,
        },
        torch_config=TorchConfig(backend="nccl" if config.scaling.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.workers,
            use_gpu=config.scaling.use_gpu,
            resources_per_worker={
                "CPU": config.scaling.cpus_per_worker,
                **({"GPU": 1} if config.scaling.use_gpu else {}),
                **config.scaling.worker_resources,
            },
        ),
        run_config=ray.train.RunConfig(
            name=training,
            **ray_storage(run.ray),
            # Ray 2.60 retries set-up failures for ever unless the controller's own failures are limited too.
            failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_failures, controller_failure_limit=2),
        ),
    )
    try:
        with interrupts_restored():
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        user_error = next((cause for cause in causes if isinstance(cause, UserError)), None)
        reason = user_error or next(iter(causes), error)
        raise UserError(
            f"{stage} of {data.task.name} failed ({' '.join(str(reason).split())[-400:]}); "
            f"mend it and add run.resume=true run.dir={run.path}"
        ) from error


class _Trainer(TorchTrainer):
    """Without the callback that frees the workers' resources should the controller alone die.

    Where Ray's State API does not answer (no dashboard) it holds up the end of every job for 12 s (Ray 2.60), and our driver
    ends with its controller anyway, which frees them too.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


class Feed:
    """Minibatches of one worker: from a resident replay, or from a rolling window that moves as the steps go by."""

    def __init__(self, config: Config, data: TaskData, placement: Placement) -> None:
        self._refresh_steps = config.data.refresh_steps
        self.replay = Replay(data.manifest, device=placement.device, capacity=config.data.window_rows)
        self._window: Window | None = None
        if self.replay.resident:
            fill(self.replay, stream_dataset(data.store))
        else:
            share = Share(data.store, placement.rank, placement.workers)
            self._window = Window(share, self.replay, chunk_rows=max(1, self.replay.capacity // 8))
            self._window.fill()

    def seek(self, step: int) -> None:
        """Bring a window to where it stood before `step`: its content is a function of the steps taken."""
        for passed in range(step):
            self.move(passed)

    def move(self, step: int) -> None:
        """Refresh a window where that is due before a step."""
        if self._window is not None and step and step % self._refresh_steps == 0:
            self._window.refresh()

    def close(self) -> None:
        if self._window is not None:
            self._window.close()


def _worker_loop(job: dict[str, Any]) -> None:
    config, run, name = Config.model_validate(job["config"]), job["run"], job["stage"]
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    placement = Placement(str(get_device()), rank, workers, _all_reduce if workers > 1 else alone)
    data: TaskData = job["data"]
    stage: Stage = job["build"](config, data, placement)
    rows = placement.rows((config.pretrain if name == "pretrain" else config.training).batch_size)
    feed = Feed(config, data, placement)
    states: States = job["states"]
    step, damages = states.load(stage)
    if rank == 0:
        for damage in damages:
            run.note(f"{data.task.name}, {name}: {damage}; going on from step {step}")
    if workers > 1 and ray.train.collective.broadcast_from_rank_zero(step) != step:
        raise RuntimeError(f"{states.folder}: worker {rank} read another state than the first one")
    feed.seek(step)
    log = MetricsLog(job["log"], data.task.name, name, stage.total_steps, step) if rank == 0 else None
    keep = curve_steps(config) if name == "extract" and rank == 0 else []
    with _rollouts(config, stage, data, run, rank) as before:

        def between(step: int) -> None:
            feed.move(step)
            before(step)

        runner = build_runner(stage, sampler_of(stage, feed.replay), rows, placement, config.scaling)
        for start, stop in report_intervals(step, stage.total_steps, config.scaling.report_steps):
            metrics = runner.advance(start, stop, between)
            if stop in keep and not isinstance(stage, Pretrainer):
                save_curve_point(run.curve(data.task.name, stop), stage)
            if log is not None:
                log.write(stop, metrics)
            if rank == 0:  # all workers' states are equal
                states.save(stage, stop)
            ray.train.report({"step": stop})  # a barrier
    feed.close()
    if rank == 0:
        job["finish"](stage)


def _rollouts(config: Config, stage: Stage, data: TaskData, run: RunDirectory, rank: int) -> AbstractContextManager[Before]:
    """The online evaluation of an extraction, by the first worker; pretraining has none."""
    if isinstance(stage, Pretrainer):
        return nullcontext(lambda step: None)
    folder = run.online(data.task.name)
    return online_evaluation(config, stage, data.task, folder, stage.total_steps, leads=rank == 0, share=_from_first_worker)


def _from_first_worker(evidence: Evidence | None) -> Evidence:
    """The first worker's evidence, in every worker. A broadcast takes 1 kB at most, hence a reference to Ray's store."""
    if ray.train.get_context().get_world_size() == 1:
        assert evidence is not None
        return evidence
    sent = ray.train.collective.broadcast_from_rank_zero([ray.put(evidence)] if evidence else [])
    return ray.get(sent[0])


def _all_reduce(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor / torch.distributed.get_world_size()
