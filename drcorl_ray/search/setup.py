"""Steps of a search before and after its packs: studies, members to pretrain, rungs, and the final evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from drcorl_ray.config import Config, MemberConfig, MemberSettings
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.config.presets import PRESETS
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.schema import Calibration, Curve, Row, Search, SearchCost, StudyEntry
from drcorl_ray.search.finished_study import SearchRecord, configuration_rows
from drcorl_ray.search.study import SearchStudy
from drcorl_ray.search.winners import online_best_rows, winner_curves, winner_rows


def describe_search(records: Sequence[SearchRecord], cost: SearchCost) -> Search:
    """Return the entry `search` of results.json."""
    settings = records[0].config.search
    studies: list[StudyEntry] = [
        {
            "name": record.study.name,
            "tasks": [data.task.name for data in record.tasks],
            "journal": str(record.study.path.relative_to(record.run.path)),
        }
        for record in records
    ]
    return {
        "objective": settings.objective,
        "sampler": settings.sampler,
        "multi_objective": settings.multi_objective,
        "studies": studies,
        "cost": cost,
    }


def open_studies(config: Config, run: RunDirectory, tasks: Sequence[str]) -> list[tuple[SearchStudy, list[str]]]:
    """Open the studies of a search; return each with the tasks on which its configurations are evaluated."""
    studies = {"shared": list(tasks)} if config.search.objective == "shared" else {task: [task] for task in tasks}
    paper = [paper_member(config)] if get_algorithm(config.run.algorithm).pretrained else []
    points = [*config.search.points, *(member.model_dump() for member in (config.member_with({}), *paper))]
    return [
        (SearchStudy(run.study(name), name, config.search, points, config.run.seed), names) for name, names in studies.items()
    ]


def paper_member(config: Config) -> MemberConfig:
    """Return the member with the paper's settings, at the configured cost limit and evaluation mode."""
    member = config.member_with({})
    kept = {"cost_limit": member.cost_limit, "seed": config.run.seed, "evaluation_mode": member.evaluation_mode}
    return MemberConfig.model_validate(PRESETS["paper"]["member"] | kept)


def reference_members(config: Config) -> list[MemberSettings]:
    """Return members with every seed and cost limit of the search: these are pretrained, and baselines train for the same."""
    member = config.member_with({})

    def compared(key: str) -> list[Any]:
        return config.search.space[key].examples() if key in config.search.space else [getattr(member, key)]

    pairs = itertools.product(compared("seed"), compared("cost_limit"))
    return [config.member_with({"seed": seed, "cost_limit": limit}) for seed, limit in pairs]


def stops(config: Config) -> list[int]:
    """Return the extraction steps after which packs are evaluated: the rungs and the end of training."""
    first, steps = config.training.warm_up, config.training.steps
    return sorted({first + max(1, round(share * steps)) for share in (*config.search.rungs, 1.0)})


def evaluate_search(records: Sequence[SearchRecord], pool: RolloutPool) -> tuple[list[Row], list[Curve], list[Calibration]]:
    """Return the rows of winners, of all configurations and of the winners' best points; the winners' curves; calibrations."""
    rows: list[Row] = []
    pairs: list[tuple[Curve, Calibration]] = []
    for record in records:
        best, winning = winner_rows(record, pool)
        rows += winning
        for data in record.tasks:
            rows += configuration_rows(record, data)
            measured = winner_curves(record, data, best, pool)
            rows += online_best_rows(record, data, best, [curve for curve, _ in measured], pool)
            pairs += measured
    return rows, [curve for curve, _ in pairs], [calibration for _, calibration in pairs]
