"""What a report reads beside results.json: Optuna's studies and the metrics logs.

A run that was copied without them has less to show.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import local_file, read_json
from drcorl_ray.io.storage import named_file
from drcorl_ray.report.tables.core import is_baseline, is_judged, is_winner, number, search_of
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.schema import Results, Row, Search, StudyEntry

FEWEST_FINISHED = 4
OFFLINE = {
    "adaptation/cost_estimate": "estimated episode cost, by which it adapts",
    "critic/q_reward": "mean Q of the reward (offline)",
}
SHARES = {
    "adaptation/safe": "reward steps",
    "adaptation/band": "both",
    "adaptation/unsafe": "cost steps",
    "adaptation/conflict": "conflict",
}
_MOST_POINTS = 100
_SERIES = (*OFFLINE, *SHARES)


@dataclass(frozen=True)
class StudyView:
    """A study of the run as results.json names it, and as Optuna reads it from its journal, if that file exists."""

    name: str
    tasks: Sequence[str]
    optuna: optuna.Study | None

    def finished(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if self.optuna else []


def read_studies(run: RunDirectory, results: Results) -> list[StudyView]:
    search = search_of(results)
    entries = sorted(search.get("studies", []) if search else [], key=lambda entry: entry["name"])
    return [StudyView(entry["name"], entry["tasks"], _load(run, entry)) for entry in entries]


def _load(run: RunDirectory, entry: StudyEntry) -> optuna.Study | None:
    """A copy in memory, so that drawing cannot change the study; None where the journal is absent or damaged."""
    path = named_file(run.results, entry["journal"])
    if not path.is_file():
        return None
    with quiet(), local_file(path) as journal:
        try:
            stored = optuna.load_study(study_name=entry["name"], storage=JournalStorage(JournalFileBackend(str(journal))))
            copy = optuna.create_study(directions=stored.directions)
            copy.add_trials(stored.get_trials(deepcopy=False))
        except (KeyError, ValueError, TypeError, OSError):
            return None
        if len(copy.directions) == 2:
            copy.set_metric_names(["reward", "cost"])
    return copy


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's developer warnings while drawing."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def importances(study: StudyView) -> dict[str, dict[str, float]]:
    """Shares, of sum 1, {"reward" | "cost": {key: share}}, by PED-ANOVA; of a score that enough trials have, not all alike.

    The share of a key says how much it tells the best configurations from the others; Optuna advises five or more of those.
    """
    trials = study.finished()
    if study.optuna is None or len(trials) < FEWEST_FINISHED or not any(trial.params for trial in trials):
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / len(trials))))
    scores = {"reward": lambda trial: -trial.values[0], "cost": _cost}
    with quiet():
        return {
            name: get_param_importances(study.optuna, evaluator=evaluator, target=score)
            for name, score in scores.items()
            if _varies([score(trial) for trial in trials])
        }


def ranked_keys(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The keys of `importances`, the one that tells most of the reward last."""
    by_reward = shares.get("reward", {})
    return sorted({key for by_key in shares.values() for key in by_key}, key=lambda key: by_reward.get(key, 0.0))


def _varies(scores: Sequence[float]) -> bool:
    """Whether there are enough scores, and not all the same: then every key would get the same share."""
    finite = [score for score in scores if math.isfinite(score)]
    return len(finite) >= FEWEST_FINISHED and len(set(finite)) > 1


def _cost(trial: FrozenTrial) -> float:
    values = trial.values or []
    return values[1] if len(values) == 2 else trial.user_attrs.get("normalized_cost", math.nan)


@dataclass(frozen=True)
class JudgedConfiguration:
    """A configuration's search score over its study's tasks: mean reward, worst cost."""

    number: int
    state: str
    reward: float
    cost: float
    row: Row


def judged(results: Results, study: str) -> list[JudgedConfiguration]:
    rows: dict[int, list[Row]] = {}
    for row in results["rows"]:
        if is_judged(row) and row.get("study") == study:
            rows.setdefault(number(row), []).append(row)
    return [
        JudgedConfiguration(
            configuration,
            "stopped" if any(row.get("state") == "stopped" for row in group) else "complete",
            float(np.mean([row["normalized_reward"] for row in group])),
            max(row["normalized_cost"] for row in group),
            group[0],
        )
        for configuration, group in sorted(rows.items())
    ]


def policies(results: Results, task: str) -> dict[int, Row]:
    """A task's policies by configuration, or member: a winner's fresh row for its judged one; no online_best, no baselines."""
    rows = [row for row in results["rows"] if row["task"] == task and not is_baseline(row)]
    rows = [row for row in rows if row["selection"] != "online_best"]
    return {number(row): row for row in sorted(rows, key=is_winner)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising cost, of the (reward, cost) that no other point beats in one and equals or beats in the other."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0])):
        if not front or points[index][0] > points[front[-1]][0] or points[index] == points[front[-1]]:
            front.append(index)
    return front


@dataclass(frozen=True)
class Series:
    """An offline metric along a training: steps [K], values {metric: [K]}, NaN where the log has none."""

    steps: np.ndarray
    values: Mapping[str, np.ndarray]


def offline_curves(run: RunDirectory, results: Results) -> dict[str, dict[int, Series]]:
    """{task: {configuration, or member of a training run: series}}, at most 100 points each."""
    points: dict[tuple[str, int], dict[int, list[float]]] = {}
    search = search_of(results)
    logs = _pack_logs(run, search) if search else _training_log(run)
    for task, numbers, line in logs:
        for place, policy in enumerate(numbers):
            values = [_at(line["metrics"].get(metric), place) for metric in _SERIES]
            points.setdefault((task, policy), {})[line["step"]] = values
    curves: dict[str, dict[int, Series]] = {}
    for (task, policy), by_step in sorted(points.items()):
        curves.setdefault(task, {})[policy] = _series(by_step)
    return curves


def _at(values: Sequence[float | None] | None, place: int) -> float:
    value = values[place] if values is not None and place < len(values) else None
    return math.nan if value is None else value


def _series(by_step: Mapping[int, list[float]]) -> Series:
    steps = np.array(sorted(by_step))
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_POINTS)).round().astype(int))
    values = np.array([by_step[step] for step in steps[kept]], np.float32)
    return Series(steps[kept], dict(zip(_SERIES, values.T, strict=True)))


def _training_log(run: RunDirectory) -> Iterator[tuple[str, Sequence[int], Mapping[str, Any]]]:
    for line in _extraction(run.metrics):
        yield line["task"], range(len(line["metrics"]["adaptation/cost_estimate"])), line


def _pack_logs(run: RunDirectory, search: Search) -> Iterator[tuple[str, Sequence[int], Mapping[str, Any]]]:
    """RUN/packs/STUDY-0003/TASK: the log, and the trial numbers of its members from result.json."""
    names = {entry["name"] for entry in search["studies"]}
    for path in sorted((run.path / "packs").glob("*/*/result.json")):
        if path.parent.parent.name.rsplit("-", 1)[0] not in names:
            continue
        try:
            numbers = [member["number"] for member in read_json(path)["members"]]
        except (UserError, KeyError, TypeError):
            continue
        for line in _extraction(path.with_name("metrics.jsonl")):
            yield path.parent.name, numbers, line


def _extraction(log: Path) -> list[dict[str, Any]]:
    """Return no lines for a damaged log; the report omits that section."""
    try:
        return [line for line in read_log(log) if "adaptation/cost_estimate" in line["metrics"]]
    except (UserError, OSError):
        return []
