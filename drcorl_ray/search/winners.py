"""The winners of a search: its best configurations evaluated on fresh episodes, their curves, and their best points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drcorl_ray.config import SearchConfig
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.curves import roll_out_curves
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.evaluation.scoring import score
from drcorl_ray.evaluation.seeds import FRESH_SEEDS, episode_seeds
from drcorl_ray.io.console import console
from drcorl_ray.runs.schema import Calibration, Curve, Row, RowDetails
from drcorl_ray.search.finished_study import SearchRecord
from drcorl_ray.tasks.registry import Task


def fresh_episodes(search: SearchConfig, task: Task) -> int:
    """Return the number of episodes of the final evaluation; by default more if the task is cheap to simulate."""
    return search.fresh_episodes or (100 if task.cheap else 20)


def winner_rows(record: SearchRecord, pool: RolloutPool) -> tuple[list[int], list[Row]]:
    """Return the best configurations of each cost limit, the winner first, and their rows on every task from fresh episodes.

    The winner is the highest-ranked configuration that is also safe on fresh episodes. Choosing by fresh score would bias the
    estimate again. If none is safe, the order of the search is kept and a message says so. The tightest limit comes first.
    """
    ranking = record.study.ranking()
    limits = {number: record.member(number).cost_limit for number in ranking}
    winners: list[int] = []
    rows: list[Row] = []
    if not ranking:
        console.print(f"[red]{record.study.name}: no configuration finished with a finite policy")
    for limit, best in finalists(ranking, limits, record.config.search.winners).items():
        fresh = {number: [_winner_row(record, data, number, pool) for data in record.tasks] for number in best}
        safe = {number: all(row["normalized_cost"] <= 1 for row in fresh[number]) for number in best}
        order = sorted(best, key=lambda number: not safe[number])
        _announce(f"{record.study.name}, limit {limit:g}", order[0], best, safe)
        winners += order
        rows += [row for number in order for row in fresh[number]]
    return winners, rows


def finalists(ranking: Sequence[int], limits: Mapping[int, float], count: int) -> dict[float, list[int]]:
    """Return the first `count` configurations of each cost limit, the tightest limit first.

    Limits are separate because a looser one allows more reward.
    """
    return {limit: [number for number in ranking if limits[number] == limit][:count] for limit in sorted({*limits.values()})}


def _announce(name: str, selected: int, best: Sequence[int], safe: Mapping[int, bool]) -> None:
    if not any(safe.values()):
        console.print(f"[red]{name}: none of the best {len(best)} configurations was safe on fresh episodes")
    elif selected != best[0]:
        console.print(f"[yellow]{name}: configuration {best[0]} was best in the search but not safe on fresh episodes")


def _winner_row(record: SearchRecord, data: TaskData, number: int, pool: RolloutPool) -> Row:
    pack, index = record.path[number][-1]
    scores = record.result(pack, data.task)["members"][index]
    search_scores: RowDetails = {
        "search_normalized_reward": scores["normalized_reward"],
        "search_normalized_cost": scores["normalized_cost"],
    }
    info = record.row_info(number, data.task, "search_winner", search_scores)
    policies = record.policy(number, data.task)
    stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, fresh_episodes(record.config.search, data.task)))
    return score(record.run, data, policies, [info], stats, [f"winner-{number:04d}"], [number])[0]


def winner_curves(
    record: SearchRecord, data: TaskData, winners: Sequence[int], pool: RolloutPool
) -> list[tuple[Curve, Calibration]]:
    """Return the winners' true reward and cost along their training, and their calibration."""
    pairs = []
    for number in winners:
        label = f"{record.study.name} {number}"
        point_at = record.point_at(number, data.task)
        curve, calibration = roll_out_curves(
            data, [record.member(number)], record.config.curve_steps(), record.config.evaluation.curve_episodes, point_at, pool
        )
        pairs.append(({**curve, "label": label, "numbers": [number]}, {**calibration, "label": label}))
    return pairs


def online_best_rows(
    record: SearchRecord, data: TaskData, winners: Sequence[int], curves: Sequence[Curve], pool: RolloutPool
) -> list[Row]:
    """Evaluate each winner's policy at the best point of its curve, if it has a curve, on fresh episodes."""
    pairs = zip(winners, curves, strict=True)
    return [_online_best_row(record, data, number, best_step(curve), pool) for number, curve in pairs if curve["steps"]]


def best_step(curve: Curve) -> int:
    """Return the best step of a curve of one member: the safe point of highest reward, else the point of lowest cost."""
    reward, cost = (np.array(curve[name][0], np.float64) for name in ("normalized_reward", "normalized_cost"))
    safe = cost <= 1
    return curve["steps"][np.where(safe, reward, -np.inf).argmax() if safe.any() else np.nanargmin(cost)]


def _online_best_row(record: SearchRecord, data: TaskData, number: int, step: int, pool: RolloutPool) -> Row:
    info = record.row_info(number, data.task, "online_best", {"member_steps": step})
    policies = record.point_at(number, data.task)(step).policies
    stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, fresh_episodes(record.config.search, data.task)))
    return score(record.run, data, policies, [info], stats, [f"online-best-{number:04d}"], [number])[0]
