"""Ray Train around the training loop: it reads shards, all-reduces between workers, reports, and saves states."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
import ray.train
import ray.train.collective
import torch
import torch.distributed
from ray.train.torch import TorchConfig, get_device
from torch import Tensor

from drcorl_ray.config import Config, DataConfig, MemberSettings, ScalingConfig
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.cluster import interrupts_restored, ray_storage
from drcorl_ray.distributed.ray_data import Feed
from drcorl_ray.distributed.ray_private import StageTrainer
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import save_curve_point
from drcorl_ray.method.interfaces import Population, Stage
from drcorl_ray.method.online_data import OnlineResult
from drcorl_ray.method.train_state import no_reduce
from drcorl_ray.policy.loading import load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import TrainingFolder
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.training.build import Placement, build_population, build_runner
from drcorl_ray.training.checkpoint import States
from drcorl_ray.training.loop import Hook, no_hook, resume, save_last, save_online_best, train
from drcorl_ray.training.online import online_evaluation

T = TypeVar("T", bound=Stage)


@dataclass(frozen=True)
class StageJob(Generic[T]):
    """One stage of a training, as the workers of a Ray Train job run it.

    name: the stage's name in logs and messages. folder: where its states are saved. batch_size: rows of a global minibatch.
    build: builds the stage at its start. hooks: returns, for (stage, rank), a context of the training that yields two hooks:
    before a step, and before a state is saved. finish: called by the first worker at the end.
    """

    name: str
    data: TaskData
    run: RunDirectory
    log: Path
    folder: TrainingFolder
    batch_size: int
    replay: DataConfig
    scaling: ScalingConfig
    build: Callable[[Placement], T]
    finish: Callable[[T], None]
    hooks: Callable[[T, int], AbstractContextManager[tuple[Hook, Hook]]] = lambda stage, rank: nullcontext((no_hook, no_hook))


def extract(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberSettings], weights: Sequence[Path]
) -> Path:
    """Train a population as a Ray Train job and return the file of its last policies."""
    path, schedule = run.population(data.task.name), config.training
    points = config.curve_steps()

    def build(placement: Placement) -> Population:
        return build_population(config, data, members, weights, placement)

    @contextmanager
    def hooks(population: Population, rank: int) -> Iterator[tuple[Hook, Hook]]:
        def keep_point(step: int) -> None:
            if rank == 0 and step in points:
                save_curve_point(run.curve(data.task.name, step), population)

        with online_evaluation(
            config.evaluation,
            schedule,
            population,
            data.task,
            run.online(data.task.name),
            schedule.total_steps,
            lambda: RayRolloutPool.from_config(config.evaluation.actors, config.scaling),
            leads=rank == 0,
            share=_from_first_worker,
        ) as before_step:
            yield before_step, keep_point

    def finish(population: Population) -> None:
        save_online_best(run.online_best(data.task.name), population)
        save_last(path, population)

    folder = run.training(job_name("extract", data, weights))
    rows = schedule.batch_size
    fit(StageJob("extract", data, run, run.metrics, folder, rows, config.data, config.scaling, build, finish, hooks))
    load_population(path)
    return path


def job_name(stage: str, data: TaskData, weights: Iterable[Path]) -> str:
    """Return the name of a stage's job and states, a hash of the pretrained weights that it makes or starts from.

    A job with other weights therefore never resumes from these states.
    """
    identity = hashlib.sha256(" ".join(path.stem for path in weights).encode()).hexdigest()[:16]
    return f"{stage}-{data.task.name}-{identity}"


def fit(job: StageJob[Any]) -> None:
    """Run a stage as a Ray Train job that resumes from its last intact state, whichever process died.

    The states are our own files: Ray 2.60 keeps its list of checkpoints in a file that is not written atomically. UserError
    if the job failed for good.
    """
    scaling = job.scaling
    trainer = StageTrainer(
        _worker_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={
                "CPU": scaling.cpus_per_worker,
                **({"GPU": 1} if scaling.use_gpu else {}),
                **scaling.worker_resources,
            },
        ),
        run_config=ray.train.RunConfig(
            name=job.folder.path.name,
            **ray_storage(job.run.ray),
            # Ray 2.60 retries set-up failures for ever unless the failures of the controller are limited too.
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=2),
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
            f"{job.name} of {job.data.task.name} failed ({' '.join(str(reason).split())[-400:]}); "
            f"fix it and add run.resume=true run.dir={job.run.path}"
        ) from error


def _worker_loop(train_loop_config: dict[str, StageJob[Any]]) -> None:
    job = train_loop_config["job"]
    torch.set_num_threads(max(1, int(job.scaling.cpus_per_worker)))
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    placement = Placement(str(get_device()), rank, workers, _all_reduce if workers > 1 else no_reduce)
    stage = job.build(placement)
    feed = Feed(job.replay, job.data, placement)
    states, first = States(job.folder), rank == 0
    step = resume(stage, states, job.run, f"{job.data.task.name}, {job.name}", quiet=not first)
    if workers > 1 and ray.train.collective.broadcast_from_rank_zero(step) != step:
        raise RuntimeError(f"{job.folder.path}: worker {rank} loaded a different state than the first worker")
    feed.seek(step)
    log = MetricsLog(job.log, job.data.task.name, job.name, stage.total_steps, step) if first else None
    runner = build_runner(stage, feed.replay, job.batch_size, placement, job.scaling)
    with job.hooks(stage, rank) as (before_step, before_save):

        def prepare(step: int) -> None:
            feed.move(step)
            before_step(step)

        train(
            stage,
            runner,
            step,
            stage.total_steps,
            report_steps=job.scaling.report_steps,
            log=log,
            states=states if first else None,  # all workers' states are equal
            before_step=prepare,
            before_save=before_save,
            after_report=lambda step: ray.train.report({"step": step}),  # a barrier
        )
    feed.close()
    if first:
        job.finish(stage)


def _from_first_worker(result: OnlineResult | None) -> OnlineResult:
    """Return the first worker's result in every worker, as an object reference: a broadcast takes at most 1 kB."""
    if ray.train.get_context().get_world_size() == 1:
        assert result is not None
        return result
    sent = ray.train.collective.broadcast_from_rank_zero([ray.put(result)] if result else [])
    return ray.get(sent[0])


def _all_reduce(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor / torch.distributed.get_world_size()
