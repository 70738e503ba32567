"""Load policies from files and runs, and roll them out on fresh episodes without Ray (`drcorl evaluate`)."""

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
    """A policy to evaluate.

    name: short, and different for each policy of an evaluation. about: the policy's row of its run's results.json.
    return_range: the extreme episode returns of its dataset, or the task's reference; None if neither is known.
    """

    name: str
    file: Path
    policy: Policy
    task: Task
    about: dict[str, Any]
    return_range: tuple[float, float] | None

    @property
    def knows_returns(self) -> bool:
        """Whether the policy file has the extreme episode returns of its dataset."""
        return bool(self.policy.meta.get("return_range"))


def load_entries(paths: Sequence[str]) -> list[Entry]:
    """Load the policies of files and run directories, each once; UserError if one is no intact policy of a known task."""
    by_path: dict[Path, Path] = {}
    for file in (file for path in paths for file in _policy_files(storage_path(path))):
        by_path.setdefault(file.resolve(), file)
    files = list(by_path.values())
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
    """Return file names without suffix, preceded by as many folders as make all of them different."""
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


_REQUIRED: dict[str, Callable[[Any], bool]] = {  # columns of the row in a policy that a run wrote
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
    if not isinstance(about, dict) or not all(valid(about.get(column)) for column, valid in _REQUIRED.items()):
        raise UserError(f"{file}: the policy does not say its task and cost limit; it was not written by a run")
    if not policy.population.finite().all():
        raise UserError(f"{file}: the policy's weights are not all finite")
    try:
        task = get_task(about["task"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    bounds = policy.meta.get("return_range") or (task.return_min, task.return_max)
    if (
        not isinstance(bounds, list | tuple)
        or len(bounds) != 2
        or not all(value is None or _is_number(value) for value in bounds)
    ):
        raise UserError(f"{file}: its return_range {bounds!r} is not a pair of numbers")
    low, high = bounds
    return Entry(name, file, policy, task, about, None if low is None or high is None else (low, high))


def score_policies(entries: Sequence[Entry], seeds: Sequence[int], bars: Progress) -> list[EvaluatedRow]:
    """Roll out one episode per policy and seed; return a row per policy, in order. Similar policies run side by side."""
    rows: dict[str, EvaluatedRow] = {}
    for group in _populations(entries):
        stats = _roll_out(group, seeds, bars)
        rows |= {entry.name: _row(entry, stats, member) for member, entry in enumerate(group)}
    return [rows[entry.name] for entry in entries]


def _populations(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Group entries that can form one population: the same task, the same array shapes and meaning, equal statistics."""
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
