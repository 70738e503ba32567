"""A training run from configuration to report: data, pretraining, extraction, baselines, evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray

from drcorl_ray import comparison
from drcorl_ray.checkpoint import write_json
from drcorl_ray.cluster import connect
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.curves import load_curve_point, roll_out_curves
from drcorl_ray.data.source import task_store
from drcorl_ray.envs import make_simulator
from drcorl_ray.errors import UserError
from drcorl_ray.policy import PopulationPolicy, load_population
from drcorl_ray.progress import Watcher, console, progress_bars
from drcorl_ray.report import write_report
from drcorl_ray.results import Candidate, Selection, best_safe_episodes, data_episodes, describe_results, score
from drcorl_ray.rollout_pool import RolloutPool
from drcorl_ray.run_directory import RunDirectory
from drcorl_ray.stages import TaskData, pretrain_seeds
from drcorl_ray.tracking import Tracker
from drcorl_ray.train import extract, pretrain

Records = list[dict[str, Any]]

# No two purposes share episode seeds: see also curves.CURVE_SEEDS, evaluation.EVALUATION_SEEDS and online.ONLINE_SEEDS.
FRESH_SEEDS, SEARCH_SEEDS = 1_000_000, 3_000_000


def episode_seeds(first: int, episodes: int) -> list[int]:
    return list(range(first, first + episodes))


def train(config: Config) -> RunDirectory:
    """launch/train.py: every member of the population on the one task; UserError on anything the user can mend."""
    started = time.monotonic()
    if len(config.tasks) != 1:
        raise UserError(f"task.name lists {len(config.tasks)} tasks; launch/train.py takes one, launch/tune.py takes several")
    data = open_task(config, config.tasks[0])
    run = RunDirectory.prepare(config)
    members = config.members()
    connect()
    _name_idle_cpus(config)
    with (
        run.alone(),
        progress_bars() as bars,
        Tracker(config, run) as tracker,
        Watcher(run, bars, tracker.log),
        RolloutPool.of(config) as pool,
    ):
        waits = config.scaling.use_gpu  # for the GPU that the main job holds, and would wait for
        pending = None if waits else comparison.start(config, data, run, members)
        artifacts = pretrain(config, data, run, pretrain_seeds(members))
        population = extract(config, data, run, members, artifacts)
        pending = comparison.start(config, data, run, members) if waits else pending
        rows = evaluate_population(config, data, run, members, population, pool)
        rows += comparison.rows(data, run, pending, pool, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
        curve, calibration = roll_out_curves(
            config, data, members, lambda step: load_curve_point(run.curve(data.task.name, step)), pool
        )
    references = best_safe_episodes(data, [member.cost_limit for member in members])
    measured = {"curves": [curve], "calibration": [calibration], "references": references}
    finish(run, rows, started, measured | {"data_episodes": [data_episodes(data)]})
    return run


def finish(run: RunDirectory, rows: Records, started: float, extra: Mapping[str, Any]) -> None:
    """Write the report and, last, results.json, with `extra` in its description of the run."""
    results = describe_results(rows, time.monotonic() - started, extra)
    write_report(run, results)
    write_json(run.results, results)
    console.print(f"report: {run.path / 'report.html'}")


def _name_idle_cpus(config: Config) -> None:
    """Say how to use them, where a training on CPUs would leave half of a machine's or more without work."""
    cpus = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    booked, threads = config.scaling.workers * config.scaling.cpus_per_worker, cpus // config.scaling.workers
    if not config.scaling.use_gpu and 2 * booked <= cpus:
        console.print(f"training on {booked:g} of {cpus} CPUs; scaling.cpus_per_worker={threads} uses more")


def open_task(config: Config, task_name: str) -> TaskData:
    """A task's data, made ready; a simulator that cannot run is reported now and not after the training."""
    make_simulator(task_name).close()
    with console.status(f"{task_name}: reading the dataset"):
        return TaskData.open(task_store(config, task_name))


def evaluate_population(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberConfig], population: Path, pool: RolloutPool
) -> Records:
    """Rows of the last policies on fresh episodes, and of those that online evaluations chose during the training.

    A member that diverged has none, and is named.
    """
    policies, meta = load_population(population)
    sound = [member for member, finite in enumerate(meta["finite"]) if finite]
    for member in sorted(set(range(policies.members)) - set(sound)):
        console.print(f"[red]{data.task.name}: member {member} diverged (non-finite weights) and is left out")

    def rows(policies: PopulationPolicy, places: Sequence[int], selection: Selection, suffix: str = "") -> Records:
        if not places:
            return []
        stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
        taken = [(meta["online_episodes"][place], meta["appended_transitions"][place]) for place in places]
        candidates = [
            member_candidate(config, members[place], *numbers, selection) for place, numbers in zip(places, taken, strict=True)
        ]
        labels = [f"{config.run.algorithm}-{place:03d}{suffix}" for place in places]
        return score(run, data, policies, candidates, stats, labels, places)

    last = rows(policies.select(sound), sound, "last")
    if not run.online_best(data.task.name).exists():
        return last
    best, chosen = load_population(run.online_best(data.task.name))
    return last + rows(best, chosen["members"], "online_best", "-online-best")


def member_candidate(
    config: Config,
    member: MemberConfig,
    online_episodes: int,
    appended: int,
    selection: Selection = "last",
    details: Mapping[str, Any] = MappingProxyType({}),
) -> Candidate:
    """online_episodes: spent on it in training and selection; appended: transitions it learnt from beside the dataset."""
    assert member.seed is not None
    assert member.evaluation_mode is not None
    settings = config.evaluation
    online = {
        "online_staleness": settings.online_staleness,
        "online_budget": settings.online_budget,
        "appended_transitions": appended,
        "appended_budget": settings.hybrid_transitions if member.evaluation_mode == "hybrid" else 0,
    }
    return Candidate(
        config.run.algorithm,
        member.model_dump(),
        member.seed,
        member.cost_limit,
        selection,
        online_episodes,
        member.evaluation_mode,
        details if member.evaluation_mode == "offline" else {**details, **online},
    )
