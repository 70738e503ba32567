"""Number of members in a pack: `search.members_per_pack`, or for `auto` the result of a short measurement."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from drcorl_ray.distributed.ray_tune import on_pack_resources
from drcorl_ray.io.console import console
from drcorl_ray.io.files import read_json, write_json
from drcorl_ray.search.pack import PackTrainer

GAIN = 1.1  # a pack of twice the size must reduce the time per member by at least this factor
MEMORY_SHARE = 0.9  # of a pack's share of the GPU memory
_STEPS, _ROUNDS = 3, 3


@dataclass(frozen=True)
class PackCost:
    """Cost of a pack of `members`: seconds from its start to the end of its training, and peak device memory in bytes."""

    members: int
    seconds: float
    memory: int = 0


def pack_size(trainer: PackTrainer, configurations: int) -> int:
    """Return the members per pack; `auto` is measured once, on the resources of a pack, and kept in RUN/pack_size.json."""
    settings, path = trainer.config.search, trainer.run.pack_size
    if settings.members_per_pack != "auto":
        return settings.members_per_pack
    if not path.exists():
        costs = on_pack_resources(trainer.config.scaling, _measure, trainer, configurations)
        smallest = settings.reduction_factor if settings.rungs else 1
        members = max(cheapest(costs).members, min(smallest, configurations))
        write_json(path, {"members_per_pack": members, "measured": [asdict(cost) for cost in costs]})
        per_member = ", ".join(f"{cost.seconds / cost.members:.0f} s in one of {cost.members}" for cost in costs)
        console.print(f"packs of {members} members (a member's training takes {per_member})")
    return int(read_json(path)["members_per_pack"])


def cheapest(costs: list[PackCost]) -> PackCost:
    """Return the last of the growing packs that trained a member faster than the one before it by the factor GAIN."""
    for smaller, larger in itertools.pairwise(costs):
        if smaller.seconds / smaller.members < GAIN * larger.seconds / larger.members:
            return smaller
    return costs[-1]


def growing(measure: Callable[[int], PackCost], limit: int, memory: float) -> list[PackCost]:
    """Return the costs of packs of 1, 2, 4 … members.

    Stop at the first size that is not faster per member, exceeds `limit` members, or does not fit into `memory` bytes.
    """
    costs = [measure(1)]
    while (members := 2 * costs[-1].members) <= limit and 2 * costs[-1].memory <= memory:
        try:
            costs.append(measure(members))
        except torch.OutOfMemoryError:
            break
        if cheapest(costs) is not costs[-1]:
            break
    return costs


def _measure(trainer: PackTrainer, limit: int) -> list[PackCost]:
    """Measure packs on the first task; runs in a process with the resources of a pack."""
    scaling, task = trainer.config.scaling, next(iter(trainer.stores))
    memory = torch.cuda.get_device_properties(0).total_memory if scaling.use_gpu else 0
    trainer.open(task)
    return growing(lambda members: _cost(trainer, task, members), limit, MEMORY_SHARE * scaling.gpus_per_pack * memory)


def _cost(trainer: PackTrainer, task: str, members: int) -> PackCost:
    """Extrapolate a pack's cost from a few policy steps."""
    if trainer.config.scaling.use_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    data, replay = trainer.open(task)
    learner = trainer.build(data, [trainer.config.member_with({})] * members)
    runner, first = trainer.runner(learner, replay), trainer.config.training.warm_up
    runner.advance(first, first + 1)
    ready = time.perf_counter() - began
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        runner.advance(first + 1, first + 1 + _STEPS)
        times.append((time.perf_counter() - began) / _STEPS)
    memory = torch.cuda.max_memory_allocated() if trainer.config.scaling.use_gpu else 0
    return PackCost(members, ready + learner.total_steps * statistics.median(times), memory)
