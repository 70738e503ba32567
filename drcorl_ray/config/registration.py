"""Add a user's own algorithm to the registry in algorithms.py."""

from __future__ import annotations

import re

from drcorl_ray.config.algorithms import ALGORITHMS, BUILT_IN, Algorithm
from drcorl_ray.config.base import Section
from drcorl_ray.config.baselines import SharedSettings
from drcorl_ray.config.sections import MemberConfig
from drcorl_ray.errors import UserError


def register_algorithm(algorithm: Algorithm) -> Algorithm:
    """Register your own algorithm and return it; training, searches, comparisons, tables and figures then know it.

    Registering an equal entry again changes nothing. UserError if the name is taken or a value is not usable.

    >>> import drcorl_ray
    >>> own = drcorl_ray.Algorithm("my_bc", "My BC", learner="my_module:MyCloning", steps=5000)
    >>> drcorl_ray.register_algorithm(own).title
    'My BC'
    """
    if (problem := _problem(algorithm)) is not None:
        raise UserError(f"register_algorithm({algorithm.name!r}): {problem}")
    ALGORITHMS[algorithm.name] = algorithm
    return algorithm


def _problem(algorithm: Algorithm) -> str | None:
    """Return why an algorithm cannot be registered; None if it can."""
    name, settings = algorithm.name, algorithm.settings
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) or name in SharedSettings.model_fields:
        return "use a name of letters, digits, '_' and '-' that is no key of `baseline`; it names files and a section"
    if ALGORITHMS.get(name, algorithm) != algorithm:
        return f"{name!r} ({ALGORITHMS[name].learner}) is already an algorithm; choose another name"
    if not re.fullmatch(r"[\w.]+:\w+", algorithm.learner):
        return f'learner {algorithm.learner!r} is not of the form "package.module:Class"'
    if not algorithm.title or not re.fullmatch(r"#[0-9a-fA-F]{6}", algorithm.color):
        return f'give a title, and a color of the form "#rrggbb" (got {algorithm.color!r})'
    if settings is not None and not (isinstance(settings, type) and issubclass(settings, Section)):
        return "settings must be a subclass of drcorl_ray.config.Section"
    unknown = {*algorithm.member_settings} - {*(settings.model_fields if settings else ())}
    if unknown:
        return f"member_settings {', '.join(sorted(unknown))}: no key of its settings"
    unknown = {*algorithm.shared_member_settings} - {*MemberConfig.model_fields}
    if unknown:
        return f"shared_member_settings {', '.join(sorted(unknown))}: no key of `member`"
    if any(value is not None and not value > 0 for value in (algorithm.steps, algorithm.batch_size, algorithm.learning_rate)):
        return "steps, batch_size and learning_rate must be above 0, or None for the value of `pretrain`"
    if algorithm.pretrained and name not in BUILT_IN:
        return "only DRCORL starts from pretrained weights"
    return None
