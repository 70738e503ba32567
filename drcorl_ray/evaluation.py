"""launch/evaluate.py: policies rolled out on fresh episodes, without Ray; tables, and where asked JSON and videos."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from drcorl_ray.checkpoint import write_bytes, write_json
from drcorl_ray.config import Config
from drcorl_ray.config.sections import EvaluationConfig
from drcorl_ray.envs import make_simulator
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import EpisodeStats, normalized_cost, normalized_reward
from drcorl_ray.policy import Policy, PopulationPolicy, load_policy
from drcorl_ray.progress import progress_bars, wide_console
from drcorl_ray.protocol import EPISODES, dsrl_groups, protocol_gaps, protocol_table
from drcorl_ray.rollout import MAX_ENVIRONMENTS, Rollouts, blocks, roll_out_in
from drcorl_ray.run_directory import read_results
from drcorl_ray.storage import named_file, storage_path
from drcorl_ray.tasks import Task, get_task

EVALUATION_SEEDS = 4_000_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A policy to evaluate. name: short, its own among those evaluated; about: its row of its run's results.json.

    return_range: the extreme episode returns of its dataset, or the task's reference; None where neither is known.
    """

    name: str
    file: Path
    policy: Policy
    task: Task
    about: Row
    return_range: tuple[float, float] | None

    @property
    def knows_returns(self) -> bool:
        return bool(self.policy.meta.get("return_range"))


def evaluate_files(paths: Sequence[str], config: Config) -> None:
    """Roll out policy files, and all those of run directories, and print a row for each.

    evaluation.protocol=dsrl prints DSRL's means too. evaluation.output=FOLDER writes FOLDER/evaluation.json, schema 1: `run`
    and `rows` as in results.json, a row also with name, safe, return_range and its episodes' seeds, returns, costs, lengths;
    `groups` as of `dsrl_groups`. evaluation.video=true writes FOLDER/NAME.gif. UserError on anything the user can mend.
    """
    began, settings = time.monotonic(), config.evaluation
    folder = _output_folder(settings)
    entries = load_entries(paths)
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + settings.episodes)
    with progress_bars() as bars:
        rows = score_policies(entries, seeds, bars)
    screen = wide_console()
    screen.print(_table(rows))
    groups = dsrl_groups(rows) if settings.protocol == "dsrl" else []
    if groups:
        screen.print(protocol_table(groups))
    for note in [*_notes(entries), *protocol_gaps(groups)]:
        screen.print(escape(note), highlight=False, soft_wrap=True)
    if folder is None:
        return
    from drcorl_ray.results import describe_results  # imports torch, which takes seconds

    write_json(
        folder / "evaluation.json",
        describe_results(rows, time.monotonic() - began, {"protocol": settings.protocol}) | {"groups": groups},
    )
    if settings.video:
        with progress_bars() as bars:
            failures = _record(entries, rows, folder, bars)
        for failure in failures:
            screen.print(escape(failure), highlight=False, soft_wrap=True)


def _output_folder(settings: EvaluationConfig) -> Path | None:
    """Where JSON and videos go, made now; UserError where that, or what was asked for, cannot be."""
    if settings.protocol == "dsrl" and settings.episodes != EPISODES:
        raise UserError(f"evaluation.protocol=dsrl has {EPISODES} episodes a policy; leave out evaluation.episodes")
    if settings.output is None:
        if settings.video:
            raise UserError("evaluation.video=true needs a folder for its files: add evaluation.output=FOLDER")
        return None
    folder = storage_path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"evaluation.output: cannot make the folder {folder} ({error.strerror})") from error
    return folder


def load_entries(paths: Sequence[str]) -> list[Entry]:
    """The policies of files and of run directories, each once; UserError where one is not an intact policy of a known task."""
    found: dict[Path, Path] = {}
    for file in (file for path in paths for file in _policy_files(storage_path(path))):
        found.setdefault(file.resolve(), file)
    files = list(found.values())
    if not files:
        raise UserError("no policy given: python launch/evaluate.py POLICY.safetensors|RUN … [section.key=value …]")
    return [_load(name, file) for name, file in zip(_names(files), files, strict=True)]


def _policy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        files = [named_file(path / "results.json", row["policy"]) for row in read_results(path)["rows"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'results.json'}: a row lists no policy ({error!r})") from error
    if not files:
        raise UserError(f"{path / 'results.json'}: lists no policy")
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


def score_policies(entries: Sequence[Entry], seeds: Sequence[int], bars: Progress) -> list[Row]:
    """A row per policy, in order, after one episode of it per seed; policies that can be are rolled out side by side."""
    rows: dict[str, Row] = {}
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
    whole = Rollouts.empty(len(entries), seeds)
    bar = bars.add_task(f"{task.name}: episodes", total=whole.ran.size, note="")
    simulator = make_simulator(task)
    try:
        for members, episodes in blocks(len(entries), len(seeds), task.environments_per_process or MAX_ENVIRONMENTS):
            chosen = population.select(range(len(entries))[members])
            part = roll_out_in(simulator, chosen, task, seeds[episodes])
            whole.store(members, episodes, part)
            bars.advance(bar, part.ran.size)
    finally:
        simulator.close()
    return whole.stats


def _row(entry: Entry, stats: EpisodeStats, member: int) -> Row:
    returns, costs, lengths = stats.returns[member], stats.costs[member], stats.lengths[member]
    known = entry.return_range
    cost = float(normalized_cost(costs, entry.about["cost_limit"]).mean())
    return entry.about | {
        "name": entry.name,
        "policy": str(entry.file),
        "episodes": len(stats.seeds),
        "reward_mean": float(returns.mean()),
        "reward_std": float(returns.std()),
        "cost_mean": float(costs.mean()),
        "cost_std": float(costs.std()),
        "length_mean": float(lengths.mean()),
        "normalized_reward": float(normalized_reward(returns, *known).mean()) if known else None,
        "normalized_cost": cost,
        "safe": cost <= 1,
        "return_range": known,
        "seeds": stats.seeds.tolist(),
        "returns": returns.tolist(),
        "costs": costs.tolist(),
        "lengths": lengths.tolist(),
    }


def _table(rows: Sequence[Row]) -> Table:
    table = Table(
        Column("policy", overflow="fold"),
        "task",
        "limit",
        "return",
        "episode\ncost",
        "normalised\nreward",
        "normalised\ncost",
        "safe",
        "length",
    )
    for row in rows:
        reward = row["normalized_reward"]
        table.add_row(
            escape(row["name"]), row["task"], f"{row['cost_limit']:g}", f"{row['reward_mean']:.1f} ± {row['reward_std']:.1f}",
            f"{row['cost_mean']:.1f} ± {row['cost_std']:.1f}", "–" if reward is None else f"{reward:.3f}",
            f"{row['normalized_cost']:.2f}", "yes" if row["safe"] else "no", f"{row['length_mean']:.0f}",
            style="green" if row["safe"] else "red",
        )  # fmt: skip
    return table


def _notes(entries: Sequence[Entry]) -> list[str]:
    """One line on the policies whose files do not know the returns of their dataset."""
    old = [entry for entry in entries if not entry.knows_returns]
    if not old:
        return []
    ranges = {
        entry.task.name: "unknown" if entry.return_range is None else "{:g} to {:g}".format(*entry.return_range)
        for entry in old
    }
    used = ", ".join(f"{task} {known}" for task, known in ranges.items())
    who = old[0].name if len(old) == 1 else f"{len(old)} policies"
    return [f"{who}: no return range of the dataset in the file; reward normalised by the task's reference ({used})"]


def _record(entries: Sequence[Entry], rows: Sequence[Row], folder: Path, bars: Progress) -> list[str]:
    """Write the GIF of each policy's first episode; a line for each reason why there is none."""
    from drcorl_ray.video import record_episode  # matplotlib takes a second to import

    failures: dict[str, None] = {}
    bar = bars.add_task("videos", total=len(entries), note="")
    for entry, row in zip(entries, rows, strict=True):
        try:
            total, content = record_episode(entry.policy, entry.task, row["seeds"][0], row["lengths"][0])
            if total != row["returns"][0]:
                raise UserError(
                    f"{entry.name}: no video, the episode did not come out again ({total} for {row['returns'][0]})"
                )
            write_bytes(folder / f"{entry.name}.gif", content)
        except UserError as error:
            failures[str(error)] = None
        bars.advance(bar)
    return list(failures)
