"""launch/evaluate.py: policy files rolled out on fresh episodes, without Ray; a table, and on request JSON and GIFs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from drcorl_ray.checkpoint import write_json
from drcorl_ray.config import Config
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import normalized_cost, normalized_reward
from drcorl_ray.policy import Policy, load_policy
from drcorl_ray.progress import console, wide_console
from drcorl_ray.results import describe_results
from drcorl_ray.rollout import evaluate
from drcorl_ray.run_directory import read_results
from drcorl_ray.tasks import get_task
from drcorl_ray.video import record_episode

EVALUATION_SEEDS = 4_000_000
PROTOCOL_EPISODES = 20  # of DSRL's protocol, which also wants
PROTOCOL_LIMITS = PROTOCOL_SEEDS = 3

Row = dict[str, Any]


def evaluate_files(arguments: Sequence[str], config: Config) -> None:
    """Roll out policy files, and all those of run directories; print a row for each, and the protocol's means if asked.

    With `evaluation.output` the rows, episode by episode, go to FOLDER/evaluation.json, and with `evaluation.video` one
    episode of each policy to FOLDER/*.gif. UserError where an argument is no policy of a run.
    """
    settings, began = config.evaluation, time.monotonic()
    if settings.video and settings.output is None:
        raise UserError("evaluation.video=true needs evaluation.output=FOLDER for the GIFs")
    files = [file for argument in arguments for file in _policy_files(Path(argument))]
    if not files:
        raise UserError("no policy given: python launch/evaluate.py POLICY.safetensors|RUN … [evaluation.episodes=N]")
    policies = [_load(file) for file in files]
    episodes = PROTOCOL_EPISODES if settings.protocol == "dsrl" else settings.episodes
    seeds = list(range(EVALUATION_SEEDS, EVALUATION_SEEDS + episodes))
    work = list(zip(files, policies, strict=True))
    shown = track(work, "evaluating", console=console, disable=not console.is_terminal)
    rows = [_roll_out(file, policy, seeds) for file, policy in shown]
    wide_console().print(_table(rows), highlight=False)
    for note in _notes(rows):
        wide_console().print(escape(note), highlight=False)
    if settings.protocol == "dsrl":
        wide_console().print(_protocol_table(rows), *map(escape, _gaps(rows)), sep="\n", highlight=False)
    if settings.output is not None:
        folder = Path(settings.output).expanduser()
        results = describe_results(rows, time.monotonic() - began, {"protocol": settings.protocol})
        write_json(folder / "evaluation.json", results)
        if settings.video:
            _record(work, seeds[0], folder)


def _policy_files(path: Path) -> list[Path]:
    return [path / row["policy"] for row in read_results(path)["rows"]] if path.is_dir() else [path]


def _load(file: Path) -> Policy:
    policy = load_policy(file)
    result = policy.meta.get("result")
    if not isinstance(result, dict) or not {"task", "cost_limit", "algorithm", "seed"} <= result.keys():
        raise UserError(f"{file}: the policy does not say its task and cost limit; it was not written by a run")
    return policy


def _roll_out(file: Path, policy: Policy, seeds: Sequence[int]) -> Row:
    about, task = policy.meta["result"], get_task(policy.meta["result"]["task"])
    stats = evaluate(policy.population, task, seeds)
    returns, costs = stats.returns[0], stats.costs[0]
    low, high = policy.meta.get("return_range") or (task.return_min, task.return_max)
    reward = None if low is None or high is None else float(normalized_reward(returns, low, high).mean())
    kept = ("task", "algorithm", "evaluation_mode", "selection", "seed", "cost_limit")
    return {name: about.get(name) for name in kept} | {
        "policy": str(file),
        "episodes": len(seeds),
        "reward_mean": float(returns.mean()),
        "reward_std": float(returns.std()),
        "cost_mean": float(costs.mean()),
        "cost_std": float(costs.std()),
        "length_mean": float(stats.lengths.mean()),
        "normalized_reward": reward,
        "normalized_cost": float(normalized_cost(costs, about["cost_limit"]).mean()),
        "return_range": "dataset" if policy.meta.get("return_range") else "task" if reward is not None else None,
        "returns": returns.tolist(),
        "costs": costs.tolist(),
        "lengths": stats.lengths[0].tolist(),
        "seeds": list(seeds),
    }


def _table(rows: Sequence[Row]) -> Table:
    table = Table("policy", "task", "limit", "return", "episode cost", "reward", "cost", "safe", "length")
    for row in rows:
        safe = row["normalized_cost"] <= 1
        reward = "–" if row["normalized_reward"] is None else f"{row['normalized_reward']:.3f}"
        table.add_row(
            escape(Path(row["policy"]).stem), row["task"], f"{row['cost_limit']:g}",
            f"{row['reward_mean']:.1f} ± {row['reward_std']:.1f}", f"{row['cost_mean']:.1f} ± {row['cost_std']:.1f}",
            reward, f"{row['normalized_cost']:.2f}", "yes" if safe else "no", f"{row['length_mean']:.0f}",
            style="green" if safe else "red",
        )  # fmt: skip
    return table


def _notes(rows: Sequence[Row]) -> list[str]:
    count = sum(row["return_range"] != "dataset" for row in rows)
    note = f"{count} policies do not know their dataset's returns: their reward is normalised by DSRL's for the task, if any"
    return [note] if count else []


def protocol_groups(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[float, list[Row]]]:
    """Rows by (task, algorithm, evaluation mode, selection), and in each by cost limit; both in order."""
    groups: dict[tuple[str, ...], dict[float, list[Row]]] = {}
    for row in rows:
        name = tuple(str(row[key]) for key in ("task", "algorithm", "evaluation_mode", "selection"))
        groups.setdefault(name, {}).setdefault(row["cost_limit"], []).append(row)
    return {name: dict(sorted(groups[name].items())) for name in sorted(groups)}


def _protocol_table(rows: Iterable[Row]) -> Table:
    """Mean ± standard deviation over the seeds for each limit, and over limits × seeds as DSRL reports it."""
    table = Table("task", "algorithm", "mode", "selection", "limit", "seeds", "reward", "cost", "safe")
    for name, cells in protocol_groups(rows).items():
        everything = [row for cell in cells.values() for row in cell]
        for limit, cell in [*((f"{limit:g}", cell) for limit, cell in cells.items()), ("all", everything)]:
            cost = np.array([row["normalized_cost"] for row in cell])
            reward = np.array([np.nan if row["normalized_reward"] is None else row["normalized_reward"] for row in cell])
            safe = cost.mean() <= 1
            table.add_row(
                *name, limit, str(len({row["seed"] for row in cell})), f"{reward.mean():.3f} ± {reward.std():.3f}",
                f"{cost.mean():.2f} ± {cost.std():.2f}", "yes" if safe else "no",
                style=("green" if safe else "red") + (" bold" if limit == "all" else ""), end_section=limit == "all",
            )  # fmt: skip
    return table


def _gaps(rows: Iterable[Row]) -> list[str]:
    """What is missing of the protocol, a line a group."""
    lines = []
    for name, cells in protocol_groups(rows).items():
        missing = [f"{len(cells)} of {PROTOCOL_LIMITS} cost limits"] if len(cells) < PROTOCOL_LIMITS else []
        seeds = {limit: len({row["seed"] for row in cell}) for limit, cell in cells.items()}
        missing += [f"limit {limit:g}: {n} of {PROTOCOL_SEEDS} seeds" for limit, n in seeds.items() if n < PROTOCOL_SEEDS]
        if missing:
            lines.append(f"{' '.join(name)} is not the whole protocol: {', '.join(missing)}")
    return lines


def _record(work: Iterable[tuple[Path, Policy]], seed: int, folder: Path) -> None:
    for file, policy in work:
        target = folder / f"{file.stem}.gif"
        try:
            record_episode(policy, get_task(policy.meta["result"]["task"]), seed, target)
        except UserError as error:
            console.print(f"[yellow]{escape(str(error))}")
        else:
            console.print(f"{target}", highlight=False)
