"""Build populations of the registered baselines; their learner classes are imported here, on demand."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

from drcorl_ray.config import BaselineMember, Config, MemberSettings
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.errors import UserError
from drcorl_ray.method.baselines import Baseline, Dataset, Settings


def baseline_class(name: str) -> type[Baseline]:
    """Return the learner class of an algorithm; UserError if it cannot be imported or is not a `Baseline`."""
    algorithm = get_algorithm(name)
    module, _, attribute = algorithm.learner.partition(":")
    try:
        learner = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"algorithm {name}: its learner {algorithm.learner!r} cannot be imported ({error})") from error
    if not (isinstance(learner, type) and issubclass(learner, Baseline)):
        raise UserError(f"algorithm {name}: its learner {algorithm.learner!r} is not a subclass of Baseline")
    return learner


def make_baseline(name: str, config: Config, data: Dataset, members: Sequence[MemberSettings], **placement: Any) -> Baseline:
    """Build an untrained population of an algorithm; placement: device, dtype, first_row."""
    algorithm = get_algorithm(name)
    varied = {key: key for key in algorithm.shared_member_settings}
    varied |= {key: f"{name}.{key}" for key in algorithm.member_settings}
    own_settings = config.baseline.of_algorithm(algorithm)
    settings = Settings(config.baseline, own_settings, config.pretrain, config.training_of(name).total_steps, varied)
    return baseline_class(name)(settings, data, cast("Sequence[BaselineMember]", members), **placement)
