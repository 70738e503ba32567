"""launch/evaluate.py: policies rolled out on fresh episodes, without Ray; tables, and where asked JSON and videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.progress import Progress

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.pool import LocalRolloutPool
from drcorl_ray.io.storage import named_file, storage_path
from drcorl_ray.policy.loading import Policy, load_policy
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.results import read_results, results_file
from drcorl_ray.runs.schema import EvaluatedRow, row_scores
from drcorl_ray.tasks.registry import Task, get_task
from drcorl_ray.tasks.scores import EpisodeStats


@dataclass(frozen=True)
class Entry:
    """A policy to evaluate. name: short, its own among those evaluated; about: its row of its run's results.json.

    return_range: the extreme episode returns of its dataset, or the task's reference; None where neither is known.
    """

    name: str
    file: Path
    policy: Policy
    task: Task
    about: dict[str, Any]
    return_range: tuple[float, float] | None

    @property
    def knows_returns(self) -> bool:
        return bool(self.policy.meta.get("return_range"))


def load_entries(paths: Sequence[str]) -> list[Entry]:
    """The policies of files and of run directories, each once; UserError where one is not an intact policy of a known task."""
    found: dict[Path, Path] = {}
    for file in (file for path in paths for file in _policy_files(storage_path(path))):
        found.setdefault(file.resolve(), file)
    files = list(found.values())
    if not files:
        raise UserError("no policy given; name policy files or run directories")
    return [_load(name, file) for name, file in zip(_names(files), files, strict=True)]


def _policy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    listing = results_file(path)
    try:
        files = [named_file(listing, row["policy"]) for row in read_results(path, "name a policy file")["rows"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{listing}: a row lists no policy ({error!r})") from error
    if not files:
        raise UserError(f"{listing}: lists no policy")
    return files


def _names(files: Sequence[Path]) -> list[str]:
    """File names without their ending; with as many of their folders as tell them all apart."""
    parts = [[part for part in file.resolve().with_suffix("").parts if part != "policies"] for file in files]
    for count in range(1, max(map(len, parts))):
        names = ["-".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["-".join(part[1:]) for part in parts]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


_TOLD: dict[str, Callable[[Any], bool]] = {  # by a policy that a run wrote
    "task": _is_text,
    "algorithm": _is_text,
    "config": lambda value: isinstance(value, dict),
    "seed": _is_number,
    "cost_limit": lambda value: _is_number(value) and value >= 0,
    "evaluation_mode": _is_text,
    "selection": _is_text,
}


def _load(name: str, file: Path) -> Entry:
    policy = load_policy(file)
    about = policy.meta.get("result")
    if not isinstance(about, dict) or not all(told(about.get(name)) for name, told in _TOLD.items()):
        raise UserError(f"{file}: the policy does not say its task and cost limit; it was not written by a run")
    if not policy.population.finite().all():
        raise UserError(f"{file}: the policy's weights are not all finite")
    try:
        task = get_task(about["task"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    known = policy.meta.get("return_range") or (task.return_min, task.return_max)
    if (
        not isinstance(known, list | tuple)
        or len(known) != 2
        or not all(value is None or _is_number(value) for value in known)
    ):
        raise UserError(f"{file}: its return_range {known!r} is not a pair of numbers")
    low, high = known
    return Entry(name, file, policy, task, about, None if low is None or high is None else (low, high))


def score_policies(entries: Sequence[Entry], seeds: Sequence[int], bars: Progress) -> list[EvaluatedRow]:
    """A row per policy, in order, after one episode of it per seed; policies that can be are rolled out side by side."""
    rows: dict[str, EvaluatedRow] = {}
    for alike in _alike(entries):
        stats = _roll_out(alike, seeds, bars)
        rows |= {entry.name: _row(entry, stats, member) for member, entry in enumerate(alike)}
    return [rows[entry.name] for entry in entries]


def _alike(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries that make one population: of one task, with arrays of equal shapes and meaning and equal statistics."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        population = entry.policy.population
        statistics = (population.observation_mean, population.observation_std)
        arrays = [(name, array.shape, array.dtype) for name, array in population.arrays().items()]
        meaning = json.dumps(population.about(), sort_keys=True)
        groups.setdefault((entry.task, meaning, *arrays, *(array.tobytes() for array in statistics)), []).append(entry)
    yield from groups.values()


def _roll_out(entries: Sequence[Entry], seeds: Sequence[int], bars: Progress) -> EpisodeStats:
    task, population = entries[0].task, PopulationPolicy.join([entry.policy.population for entry in entries])
    bar = bars.add_task(f"{task.name}: episodes", total=len(entries) * len(seeds), note="")
    with LocalRolloutPool(progress=lambda episodes: bars.advance(bar, episodes)) as pool:
        return pool.evaluate(population, task, seeds)


def _row(entry: Entry, stats: EpisodeStats, member: int) -> EvaluatedRow:
    returns, costs, lengths = stats.returns[member], stats.costs[member], stats.lengths[member]
    scores = row_scores(returns, costs, lengths, entry.about["cost_limit"], entry.return_range)
    row = {
        **entry.about,
        "name": entry.name,
        "policy": str(entry.file),
        **scores,
        "safe": scores["normalized_cost"] <= 1,
        "return_range": entry.return_range,
        "seeds": stats.seeds.tolist(),
        "returns": returns.tolist(),
        "costs": costs.tolist(),
        "lengths": lengths.tolist(),
    }
    return cast("EvaluatedRow", row)
