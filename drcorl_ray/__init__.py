"""drcorl_ray: diffusion-regularised constrained offline reinforcement learning, population-batched, on Ray.

The public names are loaded when they are first used: `import drcorl_ray` is quick and imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drcorl_ray.commands.evaluate import evaluate
    from drcorl_ray.commands.report import report
    from drcorl_ray.commands.train import train
    from drcorl_ray.commands.tune import search
    from drcorl_ray.config import Config
    from drcorl_ray.config.algorithms import Algorithm
    from drcorl_ray.config.loading import load_config
    from drcorl_ray.config.registration import register_algorithm
    from drcorl_ray.errors import UserError
    from drcorl_ray.policy.loading import Policy, load_policy
    from drcorl_ray.tasks.registry import register_task

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Config",
    "Policy",
    "UserError",
    "__version__",
    "evaluate",
    "load_config",
    "load_policy",
    "register_algorithm",
    "register_task",
    "report",
    "search",
    "train",
]

_MODULES = {
    "Algorithm": "config.algorithms",
    "Config": "config",
    "Policy": "policy.loading",
    "UserError": "errors",
    "evaluate": "commands.evaluate",
    "load_config": "config.loading",
    "load_policy": "policy.loading",
    "register_algorithm": "config.registration",
    "register_task": "tasks.registry",
    "report": "commands.report",
    "search": "commands.tune",
    "train": "commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose functions `search` and `report` stay in place when its packages of the same names are imported.

    Importing drcorl_ray.search would otherwise put that package in place of the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
