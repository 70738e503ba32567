"""The algorithms that a run is compared with: trained beside it, one population each, and shown in its results.

They are trained in a Ray task of their own, whose states lie in RUN/baselines/TASK-ALGORITHM: a killed one goes on, a
finished one is not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions
import torch

from drcorl_ray.baselines.cdt import target
from drcorl_ray.config import CLONES, LIMITLESS, Config, MemberConfig
from drcorl_ray.data.replay import Replay
from drcorl_ray.data.store import read_store
from drcorl_ray.errors import UserError
from drcorl_ray.policy import load_population
from drcorl_ray.progress import console
from drcorl_ray.results import Candidate, score
from drcorl_ray.rollout_pool import RolloutPool
from drcorl_ray.run_directory import MetricsLog, RunDirectory
from drcorl_ray.stages import Placement, TaskData, build_baseline, build_runner, report_intervals, sampler_of, save_last
from drcorl_ray.states import States

POPULATION = "population.safetensors"
_REPORTS = 200  # of a training; its state may be large


@dataclass(frozen=True)
class Compared:
    """One algorithm's population, the candidates of its rows, and which member each one is."""

    algorithm: str
    members: tuple[MemberConfig, ...]
    candidates: tuple[Candidate, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Pending:
    """Populations under way in a Ray task."""

    compared: tuple[Compared, ...]
    result: Any


def plan(config: Config, data: TaskData, members: Sequence[MemberConfig]) -> list[Compared]:
    """Each algorithm of evaluation.baselines, but the run's own, at every seed and cost limit of the members.

    What knows no limit is trained once for all of them; CDT is told of each when it acts. A limit that no episode of the
    data keeps has no `bc_safe`.
    """
    cells = sorted({(member.seed, member.cost_limit) for member in members})
    others = [name for name in config.evaluation.baselines if name != config.run.algorithm]
    return [found for name in others if (found := _compared(config, data, name, cells)).members]


def _compared(config: Config, data: TaskData, algorithm: str, cells: Sequence[tuple[int | None, float]]) -> Compared:
    cheapest = data.episodes.costs.min()
    places: dict[tuple[int | None, float | None], int] = {}
    members, candidates, chosen = [], [], []
    for seed, limit in cells:
        if algorithm == "bc_safe" and limit < cheapest:
            continue
        known = None if algorithm in LIMITLESS else limit
        member = config.member_with({"seed": seed, "cost_limit": limit, "evaluation_mode": "offline"})
        if (seed, known) not in places:
            places[seed, known] = len(members)
            members.append(member)
        assert member.seed is not None
        own = {"seed": seed, "cost_limit": known} if algorithm in CLONES else member.model_dump()
        candidates.append(Candidate(algorithm, own, member.seed, limit, details={"baseline": True}))
        chosen.append(places[seed, known])
    return Compared(algorithm, tuple(members), tuple(candidates), tuple(chosen))


def start(
    config: Config, data: TaskData, run: RunDirectory, members: Sequence[MemberConfig], cpus: float = 0.0
) -> Pending | None:
    """Train what the run is compared with beside the main job; None where there is nothing.

    cpus: that are booked; none where a Ray Train job comes next, which would wait for them until it gives up.
    """
    compared = tuple(plan(config, data, members))
    if not compared:
        return None
    scaling = config.scaling
    heavy = _device(config, compared) == "cuda"
    task = ray.remote(train).options(
        num_cpus=cpus,
        num_gpus=scaling.gpus_per_pack if heavy else 0,
        resources=scaling.worker_resources if heavy else scaling.actor_resources,
        max_retries=scaling.max_failures,
    )  # beside the actors, where they have machines of their own: without a CPU booked it could land on a cluster's head
    return Pending(compared, task.remote(config, data, run, compared))


def _device(config: Config, compared: Sequence[Compared]) -> str:
    """Clones alone are not worth a GPU."""
    heavy = any(each.algorithm not in CLONES for each in compared)
    return "cuda" if config.scaling.use_gpu and heavy else "cpu"


def train(config: Config, data: TaskData, run: RunDirectory, compared: Sequence[Compared]) -> None:
    """Leave the finished population of each algorithm in its folder; UserError where a member has no rows to learn from."""
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))
    device = _device(config, compared)
    replay = Replay(data.manifest, device=device)
    replay.insert(read_store(data.store))
    for each in compared:
        if not (run.baseline(data.task.name, each.algorithm) / POPULATION).exists():
            _train_one(config, data, run, each, replay, Placement(device))


def _train_one(
    config: Config, data: TaskData, run: RunDirectory, compared: Compared, replay: Replay, placement: Placement
) -> None:
    algorithm, folder = compared.algorithm, run.baseline(data.task.name, compared.algorithm)
    learner, states = build_baseline(config, data, algorithm, compared.members, placement), States(folder)
    step, damages = states.load(learner)
    for damage in damages:
        run.note(f"{data.task.name}, {algorithm}: {damage}; going on from step {step}")
    log = MetricsLog(folder / "metrics.jsonl", data.task.name, algorithm, learner.total_steps, step)
    rows = config.training_of(algorithm).batch_size
    runner = build_runner(learner, sampler_of(learner, replay), rows, placement, config.scaling)
    interval = max(config.scaling.report_steps, learner.total_steps // _REPORTS)
    for first, stop in report_intervals(step, learner.total_steps, interval):
        log.write(stop, runner.advance(first, stop))
        states.save(learner, stop)
    save_last(folder / POPULATION, learner)


def rows(
    data: TaskData, run: RunDirectory, pending: Pending | None, pool: RolloutPool, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of the trained populations on episodes of the given seeds; a policy that diverged has none, and is named."""
    if pending is None:
        return []
    try:
        ray.get(pending.result)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{data.task.name}: training the baselines failed ({reason})") from error
    found = []
    for compared in pending.compared:
        path = run.baseline(data.task.name, compared.algorithm) / POPULATION
        found += _rows(data, run, compared, path, pool, seeds)
    return found


def _rows(
    data: TaskData, run: RunDirectory, compared: Compared, path: Path, pool: RolloutPool, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    policies, meta = load_population(path)
    sound = [place for place, member in enumerate(compared.places) if meta["finite"][member]]
    if len(sound) < len(compared.places):
        console.print(f"[red]{data.task.name}: {compared.algorithm} diverged (non-finite weights) and is left out in part")
    if not sound:
        return []
    chosen = policies.select([compared.places[place] for place in sound])
    candidates = [compared.candidates[place] for place in sound]
    if compared.algorithm == "cdt":
        asked = [target(data.episodes, each.cost_limit, each.config["cdt_target_return"]) for each in candidates]
        chosen = chosen.with_arrays(chosen.arrays() | {"target": np.array(asked, np.float32)})
    stats = pool.evaluate(chosen, data.task, seeds)
    return score(run, data, chosen, candidates, stats, [_label(candidate) for candidate in candidates])


def _label(candidate: Candidate) -> str:
    return f"{candidate.algorithm}-limit-{candidate.cost_limit:g}-seed-{candidate.seed}"
