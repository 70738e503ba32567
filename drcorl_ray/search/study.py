"""One Optuna study: suggests configurations, stores their scores and ranks them.

The study is stored in Optuna's journal storage; the number of a configuration is the number of its trial. Asking for the same
number twice returns the same configuration, even if a killed process left the trial half suggested, because the sampler is
seeded for seeds number.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from drcorl_ray.config import RangeConfig, SearchConfig
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import storage_of
from drcorl_ray.search.optuna_private import NumberedQMCSampler, live_trial, restarted_trial

COST_CONSTRAINT = "normalized_cost - 1"  # feasible if ≤ 0
_ASKED = "asked"  # user attribute of a trial that has all of its parameters


@dataclass(frozen=True)
class Score:
    """A configuration's normalised reward and cost (Eq. 26), both None if its policy is not finite."""

    reward: float | None
    cost: float | None

    @property
    def finite(self) -> bool:
        return all(value is not None and math.isfinite(value) for value in (self.reward, self.cost))

    def merit(self) -> tuple[bool, float]:
        """Return a sort key: safe scores first, by descending reward; then unsafe ones, by ascending cost."""
        assert self.reward is not None
        assert self.cost is not None
        return (True, self.cost) if self.cost > 1 else (False, -self.reward)


def load_study(path: Path, name: str, *, multi_objective: bool = False) -> optuna.Study:
    """Open the study in a local journal file, or create it; UserError if Optuna cannot read the file.

    Optuna's own tools open the same file with `JournalStorage(JournalFileBackend(path))`.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 + multi_objective]
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, optuna.exceptions.OptunaError) as error:
        raise UserError(f"{path}: Optuna cannot read it ({' '.join(str(error).split())}); restore it from a copy") from error


class SearchStudy:
    """The study of a search. It suggests `first_points` (cut to the space) before those of the sampler."""

    def __init__(
        self, path: Path, name: str, settings: SearchConfig, first_points: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self.path, self.name, self.settings, self._seed = path, name, settings, seed
        self._journal = storage_of(path).working_copy(path)
        self.optuna = load_study(self._journal.file, name, multi_objective=settings.multi_objective)
        points = [fit(settings.space, point) for point in first_points]
        if settings.sampler == "grid":
            points = [*(point for point in points if point in grid(settings.space)), *grid(settings.space)]
        points = [point for index, point in enumerate(points) if point not in points[:index]]
        self.configurations = len(points) if settings.sampler == "grid" else settings.configurations
        for point in points[len(self._trials()) : self.configurations]:
            self.optuna.enqueue_trial(point)

    def keep(self) -> None:
        """Copy the journal to its object store, if the study's path is in one.

        A resumed search can start from any earlier copy: it asks and tells again what is missing.
        """
        self._journal.save()

    def _trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def ask(self, number: int) -> dict[str, Any]:
        """Return configuration `number` as {key: value}: the next one, or one that was asked before."""
        trials = self._trials()
        frozen = trials[number] if number < len(trials) else None
        if frozen is not None and _ASKED in frozen.user_attrs:
            return frozen.params
        with warnings.catch_warnings(action="ignore"):  # for experimental samplers
            self.optuna.sampler = sampler(self.settings, self._seed, number)
            if frozen is not None and frozen.state == TrialState.RUNNING:
                trial = restarted_trial(self.optuna, frozen)
            else:
                trial = self.optuna.ask()
            assert trial.number == number, f"{self.path}: trial {trial.number} was asked instead of {number}"
            params: dict[str, Any] = {}
            for key, entry in self.settings.space.items():
                if entry.matters(params):
                    params[key] = _suggest(trial, key, entry)
        trial.set_user_attr(_ASKED, True)
        return params

    def tell(self, number: int, score: Score, steps: int, *, stopped: bool) -> None:
        """Store a configuration's score after `steps` extraction steps; a second call for the same number changes nothing."""
        frozen = self._trials()[number]
        if frozen.state.is_finished():
            return
        if not score.finite:
            self.optuna.tell(number, state=TrialState.FAIL)
            return
        assert score.reward is not None
        assert score.cost is not None
        trial = live_trial(self.optuna, frozen)
        trial.set_user_attr("normalized_reward", score.reward)
        trial.set_user_attr("normalized_cost", score.cost)
        trial.set_user_attr("member_steps", steps)
        if not self.settings.multi_objective:
            trial.set_constraint(COST_CONSTRAINT, score.cost - 1.0)
        with warnings.catch_warnings(action="ignore"):  # CMA-ES ignores constraints, see _objective
            if stopped:
                trial.report(self._objective(score), steps)
                self.optuna.tell(number, state=TrialState.PRUNED)
            elif self.settings.multi_objective:
                self.optuna.tell(number, [score.reward, score.cost])
            else:
                self.optuna.tell(number, self._objective(score))

    def _objective(self, score: Score) -> float:
        """Return the reward; for CMA-ES, which has no constraints, minus the excess of the normalised cost over 1."""
        assert score.reward is not None
        assert score.cost is not None
        return score.reward - max(0.0, score.cost - 1.0) if self.settings.sampler == "cmaes" else score.reward

    def ranking(self) -> list[int]:
        """Return the configurations that were trained to the end and are finite, the best first."""
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        return [trial.number for trial in sorted(complete, key=lambda trial: told_score(trial).merit())]


def told_score(trial: FrozenTrial) -> Score:
    """Return the score that `SearchStudy.tell` stored in a trial."""
    return Score(trial.user_attrs.get("normalized_reward"), trial.user_attrs.get("normalized_cost"))


def sampler(settings: SearchConfig, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that suggests configuration `number`."""
    seeds: Any = [seed, number]
    match settings.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seeds, multivariate=True, group=True)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seeds, warn_independent_sampling=False)
        case "qmc":
            return NumberedQMCSampler(seed, number)
        case "random" | "grid":  # the points of a grid are enqueued
            return optuna.samplers.RandomSampler(seed=seeds)


def fit(space: Mapping[str, RangeConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the space can hold: numbers are clamped to their range, choices and conditions must match."""
    point: dict[str, Any] = {}
    for key, entry in space.items():
        value = values.get(key)
        if not entry.matters(point):
            continue
        if entry.choices is not None:
            if value in entry.choices:
                point[key] = value
        elif value is not None and entry.low is not None and entry.high is not None:
            point[key] = min(max(value, entry.low), entry.high)
    return point


def grid(space: Mapping[str, RangeConfig]) -> list[dict[str, Any]]:
    """Return every combination of a space of choices once, without the keys whose conditions it does not meet."""
    points: list[dict[str, Any]] = []
    for values in itertools.product(*(entry.choices or [] for entry in space.values())):
        point = fit(space, dict(zip(space, values, strict=True)))
        if point not in points:
            points.append(point)
    return points


def _suggest(trial: Trial, key: str, entry: RangeConfig) -> Any:
    if entry.choices is not None:
        return trial.suggest_categorical(key, entry.choices)
    assert entry.low is not None
    assert entry.high is not None
    return trial.suggest_float(key, entry.low, entry.high, log=entry.log)
