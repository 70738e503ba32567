"""A Tune searcher that asks Optuna for a whole pack of configurations per Tune trial and tells their results one by one.

The study, in Optuna's journal storage, is the truth: a search that died is taken up from it alone. Its trials carry the
number of their pack; those that are still running belong to unfinished packs, which are handed out again first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from drcorl_ray.config import RangeConfig

COST_CONSTRAINT = "normalized_cost - 1"  # feasible where ≤ 0


def distribution(entry: RangeConfig) -> BaseDistribution:
    if entry.choices is not None:
        return CategoricalDistribution(entry.choices)
    assert entry.low is not None
    assert entry.high is not None
    return FloatDistribution(entry.low, entry.high, log=entry.log)


def sampler(seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler as it asks after `trials` trials."""
    return optuna.samplers.TPESampler(seed=[seed, trials], multivariate=True)  # type: ignore[arg-type]


def open_study(path: Path, name: str, seed: int) -> optuna.Study:
    """The study of one task; Optuna's own tools open it too: `JournalStorage(JournalFileBackend(path))`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", sampler=sampler(seed, 0), load_if_exists=True
    )


class PopulationSearch(Searcher):
    """Suggests `{"pack": number, "members": [{"number": trial, "params": {…}}, …]}`.

    A pack's last report carries `{"members": [{"number", "normalized_reward", "normalized_cost"}, …]}`; a member with no
    finite score is told as failed. first_points are asked before the sampler's own.
    """

    def __init__(
        self,
        study: Path,
        name: str,
        space: Mapping[str, RangeConfig],
        *,
        configurations: int,
        members_per_pack: int,
        first_points: Sequence[Mapping[str, Any]],
        seed: int,
    ) -> None:
        super().__init__(metric="best_reward", mode="max")
        self._where = study, name, seed
        self._space = {key: distribution(entry) for key, entry in space.items()}
        self._configurations, self._members_per_pack = configurations, members_per_pack
        self._packs: dict[str, int] = {}
        self._study: optuna.Study | None = None
        self.unfinished = self._take_up()
        if not self.study.get_trials(deepcopy=False):
            for point in first_points:
                self.study.enqueue_trial(dict(point))

    @property
    def study(self) -> optuna.Study:
        if self._study is None:
            self._study = open_study(*self._where)
        return self._study

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_study": None}  # Tune pickles its searcher; the database is opened anew

    def _take_up(self) -> list[int]:
        """Numbers of the packs that a dead search left unfinished; a trial asked but never put into a pack is given up."""
        packs = set()
        for trial in self._running():
            if "pack" in trial.user_attrs:
                packs.add(trial.user_attrs["pack"])
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
        return sorted(packs)

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    @property
    def open_configurations(self) -> int:
        """Configurations that the search still owes: not asked yet, or asked and without a result."""
        trials = self.study.get_trials(deepcopy=False)
        return self._configurations - sum(trial.state.is_finished() and "pack" in trial.user_attrs for trial in trials)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        pack = self._packs.get(trial_id)
        if pack is None:
            pack = self.unfinished.pop(0) if self.unfinished else self._ask()
            if pack is None:
                return Searcher.FINISHED
            self._packs[trial_id] = pack
        members = [trial for trial in self._running() if trial.user_attrs.get("pack") == pack]
        return {"pack": pack, "members": [{"number": trial.number, "params": trial.params} for trial in members]}

    def _ask(self) -> int | None:
        """Ask Optuna for the next pack; None when the search has all its configurations."""
        trials = self.study.get_trials(deepcopy=False)
        counted = [t for t in trials if t.state not in (TrialState.FAIL, TrialState.WAITING) or "pack" in t.user_attrs]
        size = min(self._members_per_pack, self._configurations - len(counted))
        if size <= 0:
            return None
        # Seeded by what is in the study, a resumed search goes on drawing where the dead one stopped.
        self.study.sampler = sampler(self._where[2], len(trials))
        pack = 1 + max((trial.user_attrs.get("pack", -1) for trial in trials), default=-1)
        for _ in range(size):
            self.study.ask(self._space).set_user_attr("pack", pack)
        return pack

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the pack's results; after an error its configurations stay open, for a resumed search to finish."""
        if error or not result:
            return
        open_trials = {trial.number: trial for trial in self._running()}
        for member in result.get("members", []):
            frozen = open_trials.get(member["number"])
            if frozen is None:
                continue
            reward, cost = member["normalized_reward"], member["normalized_cost"]
            if reward is None or not (math.isfinite(reward) and math.isfinite(cost)):
                self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            trial.set_user_attr("normalized_cost", cost)
            trial.set_constraint(COST_CONSTRAINT, cost - 1.0)
            self.study.tell(trial, reward)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Packs report their members at the end only."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk at every moment."""
        Path(checkpoint_path).write_text("see the study\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
