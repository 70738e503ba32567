"""Search DRCORL's hyper-parameters with Ray Tune and Optuna: pretrain once per task, then packs of members side by side.

drcorl tune                                                        # the quickstart, on the built-in task
drcorl tune velocity.yaml task.name=HopperVelocity data.dataset=FILE.hdf5
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from drcorl_ray.commands.common import finish, open_task, resumable
from drcorl_ray.config import Config
from drcorl_ray.config.loading import QUICKSTART, as_config
from drcorl_ray.config.members import check_searched
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed import comparison
from drcorl_ray.distributed.cluster import connect
from drcorl_ray.distributed.pretraining import pretrain_tasks
from drcorl_ray.distributed.ray_tune import check_room, run_packs
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.references import best_safe_episodes, data_episodes
from drcorl_ray.evaluation.seeds import FRESH_SEEDS, episode_seeds
from drcorl_ray.io.console import console, progress_bars
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.progress import Watcher
from drcorl_ray.runs.tracking import Tracker
from drcorl_ray.search.accounting import SearchClock
from drcorl_ray.search.finished_study import SearchRecord
from drcorl_ray.search.pack import PackTrainer
from drcorl_ray.search.pack_size import pack_size
from drcorl_ray.search.plan import SearchPlan
from drcorl_ray.search.setup import describe_search, evaluate_search, open_studies, reference_members, stops
from drcorl_ray.search.wandb_members import MemberRuns
from drcorl_ray.search.winners import fresh_episodes
from drcorl_ray.training.pretrained import pretrain_seeds


def search(settings: Config | Sequence[str] = ()) -> RunDirectory:
    """Search the member configurations of all tasks, and return the run's directory.

    settings: a Config, or the arguments of `drcorl tune`: `[CONFIG.yaml …] [section.key=value …]`; without a YAML file they
    change the quickstart. Joins a running Ray, or starts one. Results are in `results.json` of the directory;
    `drcorl_ray.load_policy` reads its best policy. UserError on anything that the user can fix.

    >>> import drcorl_ray
    >>> run = drcorl_ray.search(["settings.yaml", "search.configurations=2", "run.dir=runs/search"])
    >>> run.results.name
    'results.json'
    """
    started, config = time.monotonic(), as_config(settings, QUICKSTART)
    check_searched(config)
    if config.data.window_rows is not None:
        raise UserError("data.window_rows: packs hold their whole dataset on the device; leave it out, or use `train`")
    tasks = open_tasks(config)
    run = RunDirectory.prepare(config)
    with resumable(run):
        _search(config, tasks, run, started)
    return run


def _search(config: Config, tasks: Sequence[TaskData], run: RunDirectory, started: float) -> None:
    clock = SearchClock()
    by_name = {data.task.name: data for data in tasks}
    studies = open_studies(config, run, list(by_name))
    connect()
    check_room(config.scaling)
    with (
        run.locked(),
        progress_bars() as bars,
        Tracker(config.run.wandb, config.model_dump(), run) as tracker,
        Watcher(run, bars, lambda line: tracker.log(line) if line["stage"] == "pretrain" else None),
        MemberRuns(config, run, tracker),
        RayRolloutPool.from_config(config.evaluation.actors, config.scaling) as pool,
    ):
        with clock.phase("pretraining"):
            weights = pretrain_tasks(config, tasks, run, pretrain_seeds(reference_members(config)))
        stores = {name: (data.task, data.store) for name, data in by_name.items()}
        trainer = PackTrainer(config, run, stores, dict(zip(stores, weights, strict=True)))
        size = pack_size(trainer, max(study.configurations for study, _ in studies))
        cpus = config.scaling.cpus_per_worker

        def start_baselines() -> list[comparison.Pending | None]:
            return [comparison.start(config, data, run, reference_members(config), cpus) for data in tasks]

        compared = [] if config.scaling.use_gpu else start_baselines()  # the packs come first on a GPU
        plans = [SearchPlan(study, run, judges, stops(config), size) for study, judges in studies]
        run_packs(trainer, plans, config.scaling, run)
        compared = compared or start_baselines()
        with clock.phase("evaluation"):
            records = [SearchRecord.read(config, run, study, [by_name[name] for name in judges]) for study, judges in studies]
            rows, curves, calibration = evaluate_search(records, pool)
            for data, pending in zip(tasks, compared, strict=True):
                seeds = episode_seeds(FRESH_SEEDS, fresh_episodes(config.search, data.task))
                rows += comparison.rows(data, run, pending, pool, seeds)
    limits = [row["cost_limit"] for row in rows]
    references = [reference for data in tasks for reference in best_safe_episodes(data, limits)]
    described = describe_search(records, clock.cost(records, time.monotonic() - started))
    measured = {"curves": curves, "calibration": calibration, "references": references}
    finish(config, run, rows, started, measured | {"data_episodes": list(map(data_episodes, tasks)), "search": described})


def open_tasks(config: Config) -> list[TaskData]:
    """Open the data of all tasks; skip unavailable ones if `task.skip_unavailable`. UserError if none is left."""
    tasks, reasons = [], []
    for name in config.tasks:
        try:
            tasks.append(open_task(config, name))
        except UserError as error:
            if not config.task.skip_unavailable:
                raise
            reasons.append(error)
            console.print(f"[yellow]{name} is skipped: {error}")
    if not tasks:
        raise UserError(f"task.name: none of the {len(reasons)} tasks is available (the last one: {reasons[-1]})")
    return tasks
