"""A training run from configuration to report: data, pretraining, extraction, baselines, evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions

from drcorl_ray.baselines.behaviour_cloning import Clone, clone
from drcorl_ray.cluster import connect
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.data.source import task_store
from drcorl_ray.envs import make_simulator
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import normalized_cost, normalized_reward
from drcorl_ray.policy import PopulationPolicy, load_population
from drcorl_ray.progress import Watcher, console, progress_bars
from drcorl_ray.report import write_report
from drcorl_ray.results import Candidate, best_safe_episodes, score, write_results
from drcorl_ray.rollout import RolloutPool
from drcorl_ray.run_directory import RunDirectory
from drcorl_ray.stages import TaskData, pretrain_seeds
from drcorl_ray.train import curve_steps, extract, pretrain

Records = list[dict[str, Any]]

# Episode seeds of the final evaluation, of the training curves and of a search's judgement never overlap.
FRESH_SEEDS, CURVE_SEEDS, SEARCH_SEEDS = 1_000_000, 2_000_000, 3_000_000


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
    with progress_bars() as bars, Watcher(config, run, bars), RolloutPool(config.evaluation.actors) as pool:
        clones = start_baselines(config, data, members)
        artifact = pretrain(config, data, run, pretrain_seeds(members))
        population = extract(config, data, run, members, artifact)
        rows = evaluate_population(config, data, run, members, population, pool)
        rows += evaluate_baselines(config, data, run, clones, pool)
        curves = [roll_out_curves(config, data, run, data.task.name, dict(enumerate(members)), pool)]
    references = best_safe_episodes(data, (member.cost_limit for member in members))
    finish(run, rows, curves, references, started)
    return run


def finish(run: RunDirectory, rows: Records, curves: Records, references: Records, started: float) -> None:
    """Write the report and, last, results.json."""
    write_report(run, rows, curves, references)
    write_results(run, rows, time.monotonic() - started, {"curves": curves, "references": references})
    console.print(f"report: {run.path / 'report.md'}")


def open_task(config: Config, task_name: str) -> TaskData:
    """A task's data, made ready; a simulator that cannot run is reported now and not after the training."""
    make_simulator(task_name).close()
    with console.status(f"{task_name}: reading the dataset"):
        return TaskData.open(task_store(config, task_name))


def evaluate_population(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberConfig], population: Path, pool: RolloutPool
) -> Records:
    """Rows of the last policies on fresh episodes; a member that diverged has none, and is named."""
    policies, meta = load_population(population)
    sound = [member for member, finite in enumerate(meta["finite"]) if finite]
    for member in sorted(set(range(policies.members)) - set(sound)):
        console.print(f"[red]{data.task.name}: member {member} diverged (non-finite weights) and is left out")
    if not sound:
        return []
    stats = pool.evaluate(policies.select(sound), data.task, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
    candidates = [member_candidate(config, members[member]) for member in sound]
    return score(run, data, policies.select(sound), candidates, stats, config.run.algorithm)


def member_candidate(config: Config, member: MemberConfig) -> Candidate:
    assert member.seed is not None
    return Candidate(
        config.run.algorithm, member.model_dump(), member.seed, member.cost_limit, evaluation_mode=config.evaluation.mode
    )


@dataclass(frozen=True)
class PendingClones:
    """Cloned policies under way in a Ray task."""

    candidates: list[Candidate]
    result: Any


def start_baselines(config: Config, data: TaskData, members: Sequence[MemberConfig]) -> PendingClones | None:
    """Train the behaviour clones beside the main job: `bc` per seed, `bc_safe` per seed and cost limit.

    A cost limit that no episode of the data keeps has no `bc_safe`.
    """
    clones, candidates = [], []
    cheapest = min(data.manifest.episode_costs)
    limits = sorted({member.cost_limit for member in members})
    for seed in pretrain_seeds(members):
        for limit in limits:
            wanted = {"bc": Clone(seed, None), "bc_safe": Clone(seed, limit)}
            for name in config.evaluation.baselines:
                if name == "bc_safe" and np.float32(limit) < np.float32(cheapest):
                    continue
                clones.append(wanted[name])
                candidates.append(Candidate(name, asdict(wanted[name]), seed, limit))
    if not clones:
        return None
    # It books no CPU: booked before Ray Train asks for its workers, it would keep them waiting until they give up.
    task = ray.remote(clone).options(num_cpus=0, max_retries=config.scaling.max_failures)
    return PendingClones(candidates, task.remote(data, config.pretrain, clones))


def evaluate_baselines(
    config: Config, data: TaskData, run: RunDirectory, pending: PendingClones | None, pool: RolloutPool
) -> Records:
    if pending is None:
        return []
    try:
        policies: PopulationPolicy = ray.get(pending.result)
    except ray.exceptions.RayError as error:
        raise UserError(f"{data.task.name}: cloning failed ({str(error).strip().splitlines()[-1]})") from error
    stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
    return score(run, data, policies, pending.candidates, stats, "baseline")


def roll_out_curves(
    config: Config, data: TaskData, run: RunDirectory, name: str, members: Mapping[int, MemberConfig], pool: RolloutPool
) -> dict[str, Any]:
    """True reward and cost of policies along the training, measured afterwards: nothing is chosen by them.

    name: of the kept populations (`RunDirectory.curve`); members: by their place in those.
    {"task", "steps": [K], "normalized_reward", "normalized_cost": [P][K]}; a policy that is not finite has no value.
    """
    seeds = episode_seeds(CURVE_SEEDS, config.evaluation.curve_episodes)
    limits = np.array([member.cost_limit for member in members.values()])[:, None]
    steps, rewards, costs = [], [], []
    for step in curve_steps(config):
        policies = load_population(run.curve(name, step))[0].select(list(members))
        finite = np.flatnonzero(policies.finite()).tolist()
        reward, cost = (np.full(policies.members, np.nan) for _ in range(2))
        if finite:
            stats = pool.evaluate(policies.select(finite), data.task, seeds)
            reward[finite] = normalized_reward(stats.returns, data.spec.return_min, data.spec.return_max).mean(1)
            cost[finite] = normalized_cost(stats.costs, limits[finite]).mean(1)
        steps.append(step)
        rewards.append(reward)
        costs.append(cost)

    def by_member(values: list[np.ndarray]) -> list[list[float | None]]:
        return [[None if np.isnan(x) else float(x) for x in member] for member in np.array(values).T]

    return {
        "task": data.task.name,
        "steps": steps,
        "normalized_reward": by_member(rewards),
        "normalized_cost": by_member(costs),
    }
