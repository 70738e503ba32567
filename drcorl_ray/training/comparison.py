"""The baselines that a run is compared with: which populations, and how one of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from drcorl_ray.config import CLONES, LIMITLESS, Config, MemberConfig
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.scoring import RowInfo
from drcorl_ray.method.replay import Replay
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.training.build import Placement, build_baseline, build_runner, sampler_of
from drcorl_ray.training.checkpoint import States
from drcorl_ray.training.loop import report_intervals, save_last

POPULATION = "population.safetensors"


_REPORTS = 200  # of a training; its state may be large


@dataclass(frozen=True)
class Compared:
    """One algorithm's population, what its rows say of it, and the member that each row is of."""

    algorithm: str
    members: tuple[MemberConfig, ...]
    infos: tuple[RowInfo, ...]
    places: tuple[int, ...]


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
    members, infos, chosen = [], [], []
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
        infos.append(RowInfo(algorithm, own, member.seed, limit, details={"baseline": True}))
        chosen.append(places[seed, known])
    return Compared(algorithm, tuple(members), tuple(infos), tuple(chosen))


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


def _label(info: RowInfo) -> str:
    return f"{info.algorithm}-limit-{info.cost_limit:g}-seed-{info.seed}"
