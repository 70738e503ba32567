"""The inputs of a report besides results.json: Optuna's studies and the metrics logs.

If they are missing, for example after copying results.json alone, the report omits the sections that need them.
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
    "adaptation/cost_estimate": "cost estimate used for adaptation",
    "critic/q_reward": "mean Q value of the reward (offline)",
}
SHARES = {
    "adaptation/safe": "reward steps",
    "adaptation/band": "both gradients",
    "adaptation/unsafe": "cost steps",
    "adaptation/conflict": "conflict",
}
_MOST_POINTS = 100
_SERIES = (*OFFLINE, *SHARES)


@dataclass(frozen=True)
class StudyView:
    """A study that results.json names, with its content as Optuna reads it from the journal (None: missing or damaged)."""

    name: str
    tasks: Sequence[str]
    optuna: optuna.Study | None

    def finished(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if self.optuna else []


def read_studies(run: RunDirectory, results: Results) -> list[StudyView]:
    """Load the studies of a search, sorted by name; a training run has none."""
    search = search_of(results)
    entries = sorted(search.get("studies", []) if search else [], key=lambda entry: entry["name"])
    return [StudyView(entry["name"], entry["tasks"], _load(run, entry)) for entry in entries]


def _load(run: RunDirectory, entry: StudyEntry) -> optuna.Study | None:
    """Return an in-memory copy, so that drawing cannot change the study; None if the journal is missing or damaged."""
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
    """Return the PED-ANOVA importances {"reward" | "cost": {key: share}}; the shares of a score sum to 1.

    A share says how much the key distinguishes the best configurations from the others; Optuna advises at least five best
    ones. A score is omitted if fewer than FEWEST_FINISHED trials have it or if all its values are equal.
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
    """Return the keys of `importances`, sorted by their share for the reward, the largest last."""
    by_reward = shares.get("reward", {})
    return sorted({key for by_key in shares.values() for key in by_key}, key=lambda key: by_reward.get(key, 0.0))


def _varies(scores: Sequence[float]) -> bool:
    """Whether there are enough finite scores and they differ; with equal scores every key would get the same share."""
    finite = [score for score in scores if math.isfinite(score)]
    return len(finite) >= FEWEST_FINISHED and len(set(finite)) > 1


def _cost(trial: FrozenTrial) -> float:
    values = trial.values or []
    return values[1] if len(values) == 2 else trial.user_attrs.get("normalized_cost", math.nan)


@dataclass(frozen=True)
class JudgedConfiguration:
    """The search score of a configuration over the tasks of its study: mean reward and largest cost, both normalised."""

    number: int
    state: str
    reward: float
    cost: float
    row: Row


def judged(results: Results, study: str) -> list[JudgedConfiguration]:
    """Return the configurations of a study that the search evaluated, sorted by number."""
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
    """Return a task's rows by configuration or member number, without online_best rows and baselines.

    A winner is represented by its row of fresh episodes instead of the one that the search judged.
    """
    rows = [row for row in results["rows"] if row["task"] == task and not is_baseline(row)]
    rows = [row for row in rows if row["selection"] != "online_best"]
    return {number(row): row for row in sorted(rows, key=is_winner)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the non-dominated (reward, cost) points, sorted by increasing cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0])):
        if not front or points[index][0] > points[front[-1]][0] or points[index] == points[front[-1]]:
            front.append(index)
    return front


@dataclass(frozen=True)
class Series:
    """The offline metrics along a training: steps [K], values {metric: [K]}, NaN where the log has no value."""

    steps: np.ndarray
    values: Mapping[str, np.ndarray]


def offline_curves(run: RunDirectory, results: Results) -> dict[str, dict[int, Series]]:
    """Return {task: {number: series}} with at most 100 points each; the number is a configuration's or a member's."""
    points: dict[tuple[str, int], dict[int, list[float]]] = {}
    search = search_of(results)
    logs = _pack_logs(run, search) if search else _training_log(run)
    for task, numbers, line in logs:
        for index, policy in enumerate(numbers):
            values = [_at(line["metrics"].get(metric), index) for metric in _SERIES]
            points.setdefault((task, policy), {})[line["step"]] = values
    curves: dict[str, dict[int, Series]] = {}
    for (task, policy), by_step in sorted(points.items()):
        curves.setdefault(task, {})[policy] = _series(by_step)
    return curves


def _at(values: Sequence[float | None] | None, index: int) -> float:
    value = values[index] if values is not None and index < len(values) else None
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
    """Yield (task, trial numbers of the members, log line) for every pack directory RUN/packs/STUDY-0003/TASK."""
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
    """Return the lines of the extraction stage; none for a damaged log, whose section the report then omits."""
    try:
        return [line for line in read_log(log) if "adaptation/cost_estimate" in line["metrics"]]
    except (UserError, OSError):
        return []
