"""Train DRCORL on one task: pretrain once, extract a population of policies, evaluate them, write the report.

drcorl train                                                       # the built-in PointCircle
drcorl train velocity.yaml task.name=HopperVelocity data.dataset=FILE.hdf5
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from drcorl_ray.commands.common import finish, open_task, resumable
from drcorl_ray.config import Config, MemberSettings
from drcorl_ray.config.loading import as_config
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed import comparison
from drcorl_ray.distributed.cluster import connect, cpus_of_largest_machine
from drcorl_ray.distributed.pretraining import pretrain
from drcorl_ray.distributed.ray_train import extract
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.curves import load_curve_point, roll_out_curves
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.evaluation.references import best_safe_episodes, data_episodes
from drcorl_ray.evaluation.scoring import member_info, score
from drcorl_ray.evaluation.seeds import FRESH_SEEDS, episode_seeds
from drcorl_ray.io.console import console, progress_bars
from drcorl_ray.policy.loading import load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.progress import Watcher
from drcorl_ray.runs.schema import Row, Selection
from drcorl_ray.runs.tracking import Tracker
from drcorl_ray.training.pretrained import pretrain_seeds


def train(settings: Config | Sequence[str] = ()) -> RunDirectory:
    """Train every member of the population on the one task, and return the run's directory.

    settings: a Config, or the arguments of `drcorl train`: `[CONFIG.yaml …] [section.key=value …]`. Joins a running Ray, or
    starts one. Results are in `results.json` of the directory; `drcorl_ray.load_policy` reads its policies. UserError on
    anything that the user can fix.

    >>> import drcorl_ray
    >>> run = drcorl_ray.train(["settings.yaml", "task.name=PointCircle", "run.dir=runs/circle"])
    >>> run.results.name
    'results.json'
    """
    started, config = time.monotonic(), as_config(settings)
    if len(config.tasks) != 1:
        raise UserError(f"task.name lists {len(config.tasks)} tasks; `train` takes one, `tune` takes several")
    data = open_task(config, config.tasks[0])
    run = RunDirectory.prepare(config)
    with resumable(run):
        _train(config, data, run, started)
    return run


def _train(config: Config, data: TaskData, run: RunDirectory, started: float) -> None:
    members = config.members()
    connect()
    _name_idle_cpus(config)
    with (
        run.locked(),
        progress_bars() as bars,
        Tracker(config.run.wandb, config.model_dump(), run) as tracker,
        Watcher(run, bars, tracker.log),
        RayRolloutPool.from_config(config.evaluation.actors, config.scaling) as pool,
    ):
        after = config.scaling.use_gpu  # the main job holds the GPU until it ends
        pending = None if after else comparison.start(config, data, run, members)
        weights = pretrain(config, data, run, pretrain_seeds(members))
        population = extract(config, data, run, members, weights)
        pending = comparison.start(config, data, run, members) if after else pending
        rows = evaluate_population(config, data, run, members, population, pool)
        rows += comparison.rows(data, run, pending, pool, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
        curve, calibration = roll_out_curves(
            data,
            members,
            config.curve_steps(),
            config.evaluation.curve_episodes,
            lambda step: load_curve_point(run.curve(data.task.name, step)),
            pool,
        )
    references = best_safe_episodes(data, [member.cost_limit for member in members])
    measured = {"curves": [curve], "calibration": [calibration], "references": references}
    finish(config, run, rows, started, measured | {"data_episodes": [data_episodes(data)]})


def _name_idle_cpus(config: Config) -> None:
    """Suggest a larger `scaling.cpus_per_worker` when at least half of the CPUs would be idle."""
    cpus = cpus_of_largest_machine()
    booked, threads = config.scaling.workers * config.scaling.cpus_per_worker, cpus // config.scaling.workers
    if not config.scaling.use_gpu and 2 * booked <= cpus:
        console.print(f"training on {booked:g} of {cpus} CPUs; scaling.cpus_per_worker={threads} uses more")


def evaluate_population(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberSettings], population: Path, pool: RolloutPool
) -> list[Row]:
    """Return rows of the last policies on fresh episodes, and of the best policies of online evaluations.

    A member that diverged gets no row; its name is printed.
    """
    policies, meta = load_population(population)
    sound = [member for member, is_finite in enumerate(meta["finite"]) if is_finite]
    for member in sorted(set(range(policies.members)) - set(sound)):
        console.print(f"[red]{data.task.name}: member {member} diverged (non-finite weights) and is left out")

    def rows(policies: PopulationPolicy, numbers: Sequence[int], selection: Selection, suffix: str = "") -> list[Row]:
        if not numbers:
            return []
        stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
        infos = [
            member_info(
                config.run.algorithm,
                config.evaluation,
                members[number],
                meta["online_episodes"][number],
                meta["appended_transitions"][number],
                selection,
            )
            for number in numbers
        ]
        labels = [f"{config.run.algorithm}-{number:03d}{suffix}" for number in numbers]
        return score(run, data, policies, infos, stats, labels, numbers)

    last = rows(policies.select(sound), sound, "last")
    if not run.online_best(data.task.name).exists():
        return last
    best, best_meta = load_population(run.online_best(data.task.name))
    return last + rows(best, best_meta["members"], "online_best", "-online-best")
