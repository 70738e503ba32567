"""A search from configuration to report: pretraining once per task and seed, packs, winners on fresh seeds, what it cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from drcorl_ray import comparison
from drcorl_ray.cluster import connect
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.config_file import PRESETS
from drcorl_ray.errors import UserError
from drcorl_ray.experiment import FRESH_SEEDS, Records, episode_seeds, finish, open_task
from drcorl_ray.progress import Watcher, console, progress_bars
from drcorl_ray.results import best_safe_episodes, data_episodes
from drcorl_ray.rollout_pool import RolloutPool
from drcorl_ray.run_directory import RunDirectory
from drcorl_ray.search.cost import Ledger
from drcorl_ray.search.member_runs import MemberRuns
from drcorl_ray.search.pack import PackTrainer
from drcorl_ray.search.pack_size import pack_size
from drcorl_ray.search.plan import SearchPlan
from drcorl_ray.search.record import SearchRecord, configuration_rows
from drcorl_ray.search.study import SearchStudy
from drcorl_ray.search.tuner import check_room, run_packs
from drcorl_ray.search.winners import fresh_episodes, online_best_rows, winner_curves, winner_rows
from drcorl_ray.stages import TaskData, pretrain_seeds
from drcorl_ray.tracking import Tracker
from drcorl_ray.train import pretrain_tasks


def search(config: Config) -> RunDirectory:
    """launch/tune.py: search the member configurations of all tasks; UserError on anything the user can mend."""
    started, ledger = time.monotonic(), Ledger()
    if config.data.window_rows is not None:
        raise UserError("data.window_rows: packs hold their whole dataset on the device; leave it out, or use launch/train.py")
    tasks = open_tasks(config)
    run = RunDirectory.prepare(config)
    by_name = {data.task.name: data for data in tasks}
    studies = open_studies(config, run, list(by_name))
    connect()
    check_room(config.scaling)
    with (
        run.alone(),
        progress_bars() as bars,
        Tracker(config, run) as tracker,
        Watcher(run, bars, lambda line: tracker.log(line) if line["stage"] == "pretrain" else None),
        MemberRuns(config, run, tracker),
        RolloutPool.of(config) as pool,
    ):
        with ledger.phase("pretraining"):
            artifacts = pretrain_tasks(config, tasks, run, pretrain_seeds(reference_members(config)))
        stores = {name: (data.task, data.store) for name, data in by_name.items()}
        trainer = PackTrainer(config, run, stores, dict(zip(stores, artifacts, strict=True)))
        size = pack_size(trainer, max(study.configurations for study, _ in studies))
        cpus = config.scaling.cpus_per_worker
        begin = lambda: [comparison.start(config, data, run, reference_members(config), cpus) for data in tasks]  # noqa: E731
        compared = [] if config.scaling.use_gpu else begin()  # a GPU is the packs' first
        run_packs(trainer, [SearchPlan(study, run.packs, judges, stops(config), size) for study, judges in studies])
        compared = compared or begin()
        with ledger.phase("evaluation"):
            records = [SearchRecord.read(config, run, study, [by_name[name] for name in judges]) for study, judges in studies]
            rows, curves, calibration = evaluate_search(records, pool)
            for data, pending in zip(tasks, compared, strict=True):
                seeds = episode_seeds(FRESH_SEEDS, fresh_episodes(config, data.task))
                rows += comparison.rows(data, run, pending, pool, seeds)
    limits = [row["cost_limit"] for row in rows]
    references = [reference for data in tasks for reference in best_safe_episodes(data, limits)]
    described = describe_search(records, ledger.cost(records, time.monotonic() - started))
    measured = {"curves": curves, "calibration": calibration, "references": references}
    finish(run, rows, started, measured | {"data_episodes": list(map(data_episodes, tasks)), "search": described})
    return run


def describe_search(records: Sequence[SearchRecord], cost: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of the search itself."""
    settings = records[0].config.search
    studies = [
        {
            "name": record.study.name,
            "tasks": [data.task.name for data in record.tasks],
            "journal": str(record.study.path.relative_to(record.run.path)),
        }
        for record in records
    ]
    asked = {"objective": settings.objective, "sampler": settings.sampler, "multi_objective": settings.multi_objective}
    return asked | {"studies": studies, "cost": dict(cost)}


def open_tasks(config: Config) -> list[TaskData]:
    """The tasks' data; one that is not available is left out where the user said so. UserError where none is left."""
    tasks, reasons = [], []
    for name in config.tasks:
        try:
            tasks.append(open_task(config, name))
        except UserError as error:
            if not config.task.skip_unavailable:
                raise
            reasons.append(error)
            console.print(f"[yellow]{name} is left out: {error}")
    if not tasks:
        raise UserError(f"task.name: none of the {len(reasons)} tasks is available (the last one: {reasons[-1]})")
    return tasks


def open_studies(config: Config, run: RunDirectory, tasks: Sequence[str]) -> list[tuple[SearchStudy, list[str]]]:
    """The studies of a search, each with the tasks that judge its configurations."""
    judged = {"shared": list(tasks)} if config.search.objective == "shared" else {task: [task] for task in tasks}
    points = [*config.search.points, *(member.model_dump() for member in (config.member_with({}), paper_member(config)))]
    return [
        (SearchStudy(run.study(name), name, config.search, points, config.run.seed), names) for name, names in judged.items()
    ]


def paper_member(config: Config) -> MemberConfig:
    """The member with the paper's own settings, at the configured cost limit and mode of evaluation."""
    own = config.member_with({})
    kept = {"cost_limit": own.cost_limit, "seed": config.run.seed, "evaluation_mode": own.evaluation_mode}
    return MemberConfig.model_validate(PRESETS["paper"]["member"] | kept)


def reference_members(config: Config) -> list[MemberConfig]:
    """Members with every seed and cost limit that the search compares: what must be pretrained, and cloned beside."""
    own = config.member_with({})

    def compared(key: str) -> list[Any]:
        return config.search.space[key].examples() if key in config.search.space else [getattr(own, key)]

    pairs = itertools.product(compared("seed"), compared("cost_limit"))
    return [config.member_with({"seed": seed, "cost_limit": limit}) for seed, limit in pairs]


def stops(config: Config) -> list[int]:
    """The extraction steps after which packs are judged: the rungs, and the end."""
    first, steps = config.training.warm_up, config.training.steps
    return sorted({first + max(1, round(share * steps)) for share in (*config.search.rungs, 1.0)})


def evaluate_search(records: Sequence[SearchRecord], pool: RolloutPool) -> tuple[Records, Records, Records]:
    """Rows of the winners, of all configurations and of the winners' best points; the winners' curves and calibration."""
    rows: Records = []
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for record in records:
        best, winning = winner_rows(record, pool)
        rows += winning
        for data in record.tasks:
            rows += configuration_rows(record, data)
            found = winner_curves(record, data, best, pool)
            rows += online_best_rows(record, data, best, [curve for curve, _ in found], pool)
            pairs += found
    return rows, [curve for curve, _ in pairs], [calibration for _, calibration in pairs]
