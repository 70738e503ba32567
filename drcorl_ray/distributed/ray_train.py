"""Ray Train around the two stages: shards in, one flat all-reduce between workers, reports and checkpoints out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import torch
import torch.distributed
from ray.train.torch import TorchConfig, get_device
from torch import Tensor

from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.cluster import interrupts_restored
from drcorl_ray.distributed.ray_data import Feed
from drcorl_ray.distributed.ray_private import _Trainer
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import curve_steps, save_curve_point
from drcorl_ray.io.storage import ray_storage
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.online_data import OnlineResult
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.train_state import alone
from drcorl_ray.policy.loading import load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.training.build import Placement, Stage, build_population, build_runner, sampler_of
from drcorl_ray.training.checkpoint import States
from drcorl_ray.training.loop import report_intervals, save_last, save_online_best
from drcorl_ray.training.online import Before, online_evaluation

BuildStage = Callable[[Config, TaskData, Placement], Stage]
Finish = Callable[[Stage], None]


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


def _from_first_worker(evidence: OnlineResult | None) -> OnlineResult:
    """The first worker's evidence, in every worker. A broadcast takes 1 kB at most, hence a reference to Ray's store."""
    if ray.train.get_context().get_world_size() == 1:
        assert evidence is not None
        return evidence
    sent = ray.train.collective.broadcast_from_rank_zero([ray.put(evidence)] if evidence else [])
    return ray.get(sent[0])


def _all_reduce(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor / torch.distributed.get_world_size()
