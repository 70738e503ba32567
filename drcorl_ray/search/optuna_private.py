"""The private names of Optuna that a search relies on, as they are in Optuna 5.0.0. No other module touches one."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial


def live_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """A trial of the study that can be written to: it suggests parameters, reports values and sets attributes.

    `FrozenTrial._trial_id`: Optuna hands out a `Trial` from `Study.ask` alone, and a resumed search writes to trials that an
    earlier process asked for. `Trial`'s public constructor takes the storage's id, which only this attribute holds.
    """
    return Trial(study, frozen._trial_id)


def restarted_trial(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """A trial without parameters, to be asked again from the first one; for a trial whose asking a kill cut short.

    `Trial._cached_frozen_trial`: a suggestion returns the value that the trial has already, which was drawn with the state of
    a sampler that is lost. Optuna has no public call that removes parameters from a running trial.
    """
    trial = live_trial(study, frozen)
    trial._cached_frozen_trial.params = {}
    trial._cached_frozen_trial.distributions = {}
    return trial


class NumberedQMCSampler(optuna.samplers.QMCSampler):
    """One quasi-random sequence for the whole study, in which a configuration's position is its number.

    `QMCSampler._find_sample_id`: Optuna counts the positions in an attribute of the study, so that asking again for the same
    trial would return the next point; the position has no public setting.
    """

    def __init__(self, seed: int, number: int) -> None:
        each: Any = [seed, number]
        conditional = optuna.samplers.RandomSampler(seed=each)
        super().__init__(seed=seed, scramble=True, independent_sampler=conditional, warn_independent_sampling=False)
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, Any]) -> int:
        return self._number
