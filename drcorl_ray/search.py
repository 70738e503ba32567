"""Hyper-parameter search: packs of members as Ray Tune trials, all started from one pretrained artifact per task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from drcorl_ray.checkpoint import read_json, write_json
from drcorl_ray.cluster import connect
from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.store import read_store
from drcorl_ray.errors import UserError
from drcorl_ray.experiment import (
    FRESH_SEEDS,
    SEARCH_SEEDS,
    Records,
    episode_seeds,
    evaluate_baselines,
    finish,
    member_candidate,
    open_task,
    roll_out_curves,
    start_baselines,
)
from drcorl_ray.metrics import EpisodeStats, normalized_cost, normalized_reward
from drcorl_ray.policy import load_population
from drcorl_ray.population_search import PopulationSearch, open_study
from drcorl_ray.progress import Watcher, console, progress_bars
from drcorl_ray.results import best_safe_episodes, score
from drcorl_ray.rollout import RolloutPool, evaluate
from drcorl_ray.run_directory import MetricsLog, RunDirectory
from drcorl_ray.stages import (
    Placement,
    TaskData,
    advance,
    build_learner,
    load_artifact,
    load_stage,
    pretrain_seeds,
    save_stage,
)
from drcorl_ray.train import curve_steps, pretrain

STATE = "state.safetensors"


def search(config: Config) -> RunDirectory:
    """launch/tune.py: search every task's member configurations; UserError on anything the user can mend."""
    started = time.monotonic()
    if config.data.window_rows is not None:
        raise UserError("data.window_rows: packs hold their whole dataset on the device; leave it out, or use launch/train.py")
    tasks = [open_task(config, name) for name in config.tasks]
    run = RunDirectory.prepare(config)
    connect()
    rows: Records = []
    curves: Records = []
    with progress_bars() as bars, Watcher(config, run, bars), RolloutPool(config.evaluation.actors) as pool:
        for data in tasks:
            rows += search_task(config, data, run, pool)
            curves += winner_curves(config, data, run, pool)
    limits = [row["cost_limit"] for row in rows]
    finish(run, rows, curves, [reference for data in tasks for reference in best_safe_episodes(data, limits)], started)
    return run


def search_task(config: Config, data: TaskData, run: RunDirectory, pool: RolloutPool) -> Records:
    """One task: pretrain once, run the packs, evaluate the winners on fresh seeds beside the baselines."""
    member = config.member_with({})
    clones = start_baselines(config, data, [member])
    artifact = pretrain(config, data, run, pretrain_seeds([member]))
    run_packs(Pack(config, data, run, artifact))
    rows = configuration_rows(config, data, run)
    rows += winner_rows(config, data, run, pool, judged=len(rows))
    return rows + evaluate_baselines(config, data, run, clones, pool)


@dataclass(frozen=True)
class Pack:
    """A Tune trainable: trains one pack of members and judges them by online episodes.

    Its state lies in RUN/packs/TASK-NUMBER: killed at any moment and started again, by Tune or by a resumed search, it goes
    on from its last report, and a finished pack only repeats its result.
    """

    config: Config
    data: TaskData
    run: RunDirectory
    artifact: Path

    def __call__(self, suggestion: dict[str, Any]) -> None:
        folder = pack_folder(self.run, self.data, suggestion["pack"])
        if not (folder / "result.json").exists():
            self._train(suggestion, folder)
            write_json(folder / "result.json", self._judge(suggestion, folder))
            (folder / STATE).unlink(missing_ok=True)
        members = read_json(folder / "result.json")["members"]
        safe = [m["normalized_reward"] for m in members if m["normalized_reward"] is not None and m["normalized_cost"] <= 1]
        tune.report({"members": members, "best_reward": max(safe, default=float("-inf"))})

    def _train(self, suggestion: dict[str, Any], folder: Path) -> None:
        config, data = self.config, self.data
        torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
        placement = Placement("cuda" if config.scaling.use_gpu else "cpu")
        members = pack_members(config, suggestion["members"])
        learner = build_learner(config, data, members, load_artifact(self.artifact), placement)
        replay = Replay(data.manifest, device=placement.device)
        replay.insert(read_store(data.store))
        state = folder / STATE
        step = load_stage(state, learner) if state.exists() else 0
        log = MetricsLog(folder / "metrics.jsonl", data.task.name, f"pack {suggestion['pack']}", learner.total_steps, step)
        while step < learner.total_steps:
            stop = min(learner.total_steps, step + config.scaling.report_steps)
            log.write(stop, advance(learner, replay.sample, config.extract.batch_size, step, stop))
            step = stop
            if step in curve_steps(config):
                learner.policies().save_population(self.run.curve(folder.name, step), {"step": step})
            save_stage(state, learner, step)
            tune.report({"step": step, "best_reward": float("-inf")})
        learner.policies().save_population(folder / "population.safetensors", {"finite": learner.finite().tolist()})

    def _judge(self, suggestion: dict[str, Any], folder: Path) -> dict[str, Any]:
        policies, meta = load_population(folder / "population.safetensors")
        finite = np.flatnonzero(meta["finite"]).tolist()
        seeds = episode_seeds(SEARCH_SEEDS, self.config.search.episodes)
        results = [dict(member, normalized_reward=None, normalized_cost=None) for member in suggestion["members"]]
        if finite:
            stats = evaluate(policies.select(finite), self.data.task, seeds)
            members = pack_members(self.config, suggestion["members"])
            limits = [members[member].cost_limit for member in finite]
            spec = self.data.spec
            rewards = normalized_reward(stats.returns, spec.return_min, spec.return_max).mean(1)
            costs = normalized_cost(stats.costs, np.array(limits)[:, None]).mean(1)
            for place, member in enumerate(finite):
                results[member] |= {
                    "normalized_reward": float(rewards[place]),
                    "normalized_cost": float(costs[place]),
                    "returns": stats.returns[place].tolist(),
                    "costs": stats.costs[place].tolist(),
                    "lengths": stats.lengths[place].tolist(),
                }
        return {"members": results, "seeds": seeds}


def pack_name(data: TaskData, pack: int) -> str:
    return f"{data.task.name}-{pack:04d}"


def pack_folder(run: RunDirectory, data: TaskData, pack: int) -> Path:
    return run.path / "packs" / pack_name(data, pack)


def pack_members(config: Config, members: Sequence[dict[str, Any]]) -> list[MemberConfig]:
    return [config.member_with(member["params"]) for member in members]


def study_path(run: RunDirectory, data: TaskData) -> Path:
    return run.path / "studies" / f"{data.task.name}.journal"


def run_packs(pack: Pack) -> None:
    """Run all packs of a search through Tune; UserError when one failed for good (its configurations stay open)."""
    config, settings = pack.config, pack.config.search
    searcher = PopulationSearch(
        study_path(pack.run, pack.data),
        pack.data.task.name,
        settings.space,
        configurations=settings.configurations,
        members_per_pack=settings.members_per_pack,
        first_points=[default_point(config)],
        seed=config.run.seed,
    )
    resources = {"CPU": config.scaling.cpus_per_worker}
    if config.scaling.use_gpu:
        resources["GPU"] = config.scaling.gpus_per_pack

    def trainable(suggestion: dict[str, Any]) -> None:
        pack(suggestion)

    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-(-settings.configurations // settings.members_per_pack) + len(searcher.unfinished),
            max_concurrent_trials=settings.concurrent_packs,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"pack-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"pack-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"{pack.data.task.name}-search-{int(time.time())}",
            storage_path=str(pack.run.ray),
            failure_config=tune.FailureConfig(max_failures=config.scaling.max_failures),
            verbose=0,
        ),
    )
    errors = tuner.fit().errors
    if not errors and searcher.open_configurations:  # Tune takes a first Ctrl-C for the end of the work
        raise KeyboardInterrupt
    if errors:
        reason = " ".join(str(errors[0]).split())[-400:]
        raise UserError(
            f"{len(errors)} packs of {pack.data.task.name} failed ({reason}); "
            f"mend it and add run.resume=true run.dir={pack.run.path}"
        )


def default_point(config: Config) -> dict[str, Any]:
    """The configured member's own values, in the terms of the search space: the first configuration asked."""
    member = config.member_with({})
    point = {}
    for key, entry in config.search.space.items():
        value = getattr(member, key)
        if value is None:
            continue
        if entry.choices is None:
            value = min(max(value, entry.low), entry.high)
        elif value not in entry.choices:
            continue
        point[key] = value
    return point


def completed_packs(run: RunDirectory, data: TaskData) -> list[tuple[int, dict[str, Any]]]:
    folders = sorted((run.path / "packs").glob(f"{data.task.name}-*/result.json"))
    return [(int(path.parent.name.rsplit("-", 1)[1]), read_json(path)) for path in folders]


def configuration_rows(config: Config, data: TaskData, run: RunDirectory) -> Records:
    """A row for every configuration, as judged in the search."""
    rows: Records = []
    for pack, result in completed_packs(run, data):
        sound = [index for index, member in enumerate(result["members"]) if member["normalized_reward"] is not None]
        judged = [result["members"][index] for index in sound]
        policies, _ = load_population(pack_folder(run, data, pack) / "population.safetensors")
        returns, costs, lengths = (np.array([m[name] for m in judged]) for name in ("returns", "costs", "lengths"))
        candidates = [
            replace(member_candidate(config, member), online_episodes=len(result["seeds"]))
            for member in pack_members(config, judged)
        ]
        stats = EpisodeStats(returns, costs, lengths, np.array(result["seeds"]))
        rows += score(run, data, policies.select(sound), candidates, stats, f"search-{pack:04d}")
    return rows


@dataclass(frozen=True)
class Winner:
    """A winning configuration: its trial of the study, and its place in the pack that trained it."""

    trial: FrozenTrial
    pack: int
    index: int


def winners(config: Config, data: TaskData, run: RunDirectory) -> list[Winner]:
    """The best configurations of a task's search, safe ones first."""
    study = open_study(study_path(run, data), data.task.name, config.run.seed)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = []
    for trial in sorted(trials, key=_rank)[: config.search.winners]:
        pack = trial.user_attrs["pack"]
        numbers = [member["number"] for member in read_json(pack_folder(run, data, pack) / "result.json")["members"]]
        best.append(Winner(trial, pack, numbers.index(trial.number)))
    return best


def winner_rows(config: Config, data: TaskData, run: RunDirectory, pool: RolloutPool, judged: int) -> Records:
    """The winners, evaluated again on fresh seeds; without a safe configuration the least unsafe one, and it is said.

    judged: configurations that the search judged by online episodes.
    """
    best = winners(config, data, run)
    if not best:
        console.print(f"[red]{data.task.name}: no configuration finished with a finite policy")
    elif best[0].trial.user_attrs["normalized_cost"] > 1:
        console.print(f"[red]{data.task.name}: no configuration was safe; the least unsafe one is reported")
    rows: Records = []
    for place, winner in enumerate(best):
        population = load_population(pack_folder(run, data, winner.pack) / "population.safetensors")[0]
        policies = population.select([winner.index])
        candidate = replace(
            member_candidate(config, config.member_with(winner.trial.params)),
            selection="search_winner",
            online_episodes=judged * config.search.episodes,
        )
        stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, config.evaluation.episodes))
        rows += score(run, data, policies, [candidate], stats, f"winner-{place}")
    return rows


def winner_curves(config: Config, data: TaskData, run: RunDirectory, pool: RolloutPool) -> Records:
    """The winners' reward and cost along their training."""
    return [
        roll_out_curves(
            config,
            data,
            run,
            pack_name(data, winner.pack),
            {winner.index: config.member_with(winner.trial.params)},
            pool,
        )
        for winner in winners(config, data, run)
    ]


def _rank(trial: FrozenTrial) -> tuple[bool, float]:
    """Safe ones first, by reward; then the others, by how little they are over the limit."""
    cost = trial.user_attrs["normalized_cost"]
    assert trial.value is not None
    return (True, cost) if cost > 1 else (False, -trial.value)
