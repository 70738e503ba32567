"""All private names of Optuna that the search uses (Optuna 5.0.0); no other module uses one."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial


def live_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return a writable trial: one that suggests parameters, reports values and sets attributes.

    `FrozenTrial._trial_id`: only `Study.ask` returns a `Trial`, but a resumed search writes to trials that an earlier process
    asked for. The public constructor of `Trial` takes the storage's id, which only this attribute holds.
    """
    return Trial(study, frozen._trial_id)


def restarted_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the trial without parameters, so that all are suggested again; for a trial that a kill left half suggested.

    `Trial._cached_frozen_trial`: a suggestion returns the value that the trial already has, which was drawn with a sampler
    state that is lost. Optuna has no public call that removes parameters from a running trial.
    """
    trial = live_trial(study, frozen)
    trial._cached_frozen_trial.params = {}
    trial._cached_frozen_trial.distributions = {}
    return trial


class NumberedQMCSampler(optuna.samplers.QMCSampler):
    """One quasi-random sequence for the whole study; a configuration's position in it is its number.

    `QMCSampler._find_sample_id`: Optuna counts the positions in an attribute of the study, so asking for the same trial again
    would return the next point. The position has no public setting.
    """

    def __init__(self, seed: int, number: int) -> None:
        seeds: Any = [seed, number]
        conditional = optuna.samplers.RandomSampler(seed=seeds)
        super().__init__(seed=seed, scramble=True, independent_sampler=conditional, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, Any]) -> int:
        return self._number
