"""The registry of learning algorithms: one entry holds everything that the rest of the program knows about an algorithm.

The learner's class is given as a string and imported only when a population is built, so this module needs no torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import NamedTuple

from drcorl_ray.config.base import Section
from drcorl_ray.config.baselines import (
    BCQLagSettings,
    BEARLagSettings,
    CDTSettings,
    COptiDICESettings,
    CPQSettings,
)
from drcorl_ray.errors import UserError


class Marker(NamedTuple):
    """A marker by its name in matplotlib (`png`) and in plotly (`page`)."""

    png: str
    page: str


_MARKER = Marker("H", "hexagon2")


@dataclass(frozen=True)
class Algorithm:
    """A learning algorithm.

    name: its name in settings, files and results. title: its name in tables. color ("#rrggbb"), marker: its looks in figures.
    learner: "package.module:Class", a subclass of `drcorl_ray.method.baselines.Baseline` (except DRCORL's).
    settings: the model of its own section, `baseline.NAME`; None if it has none. member_settings: the keys of that section
    that may differ between the members of a population. shared_member_settings: the keys of `member` that it uses besides the
    cost limit and the seed.
    steps, batch_size (rows of a global minibatch), learning_rate: its budget if `baseline` sets none; None: the value of
    `pretrain`.
    limit_agnostic: its weights do not depend on the cost limit. limit_conditioned: its policies receive the limit when they
    act. whole_episodes: it learns from whole episodes, so it refuses data.window_rows. light: its training does not need a
    GPU. pretrained: it starts from pretrained weights, and its members have the keys of the `member` section (DRCORL).

    >>> import drcorl_ray
    >>> drcorl_ray.Algorithm("my_bc", "My BC", learner="my_module:MyCloning", steps=5000).color
    '#2f4f4f'
    """

    name: str
    title: str
    learner: str
    color: str = "#2f4f4f"
    marker: Marker = _MARKER
    settings: type[Section] | None = None
    member_settings: tuple[str, ...] = ()
    shared_member_settings: tuple[str, ...] = ()
    steps: int | None = 100_000
    batch_size: int | None = 512
    learning_rate: float | None = 1e-3
    limit_agnostic: bool = False
    limit_conditioned: bool = False
    whole_episodes: bool = False
    light: bool = False
    pretrained: bool = False

    @property
    def limit_blind(self) -> bool:
        """Whether its policies act the same at every cost limit."""
        return self.limit_agnostic and not self.limit_conditioned

    @property
    def own_keys(self) -> dict[str, str]:
        """Its own settings as {"NAME.key", the key of a member: key of the section}."""
        return {f"{self.name}.{key}": key for key in (self.settings.model_fields if self.settings else ())}


def get_algorithm(name: str) -> Algorithm:
    """Return the algorithm of that name; UserError names the nearest one and lists all."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    close = difflib.get_close_matches(str(name), ALGORITHMS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown algorithm {name!r:.60}; {hint}valid: {', '.join(ALGORITHMS)}")


def algorithms() -> list[Algorithm]:
    """Return DRCORL, the built-in baselines, and the algorithms registered in this process, in that order."""
    return list(ALGORITHMS.values())


def baselines() -> list[Algorithm]:
    """Return all algorithms except DRCORL."""
    return [algorithm for algorithm in algorithms() if not algorithm.pretrained]


def shown_algorithm(name: str) -> Algorithm:
    """Return the algorithm of that name for tables and figures; an unregistered one gets default looks."""
    return ALGORITHMS.get(name) or Algorithm(name, name, learner="")


def user_algorithms() -> tuple[Algorithm, ...]:
    """Return the algorithms that the user registered in this process."""
    return tuple(algorithm for name, algorithm in ALGORITHMS.items() if name not in BUILT_IN)


_BASELINES = "drcorl_ray.method.baselines"
_CLONING = {"steps": None, "batch_size": None, "learning_rate": None, "whole_episodes": True, "light": True}
_PID = ("pid_proportional", "pid_integral", "pid_derivative")
BUILT_IN: dict[str, Algorithm] = {
    entry.name: entry
    for entry in (
        Algorithm(
            "drcorl", "DRCORL", "drcorl_ray.method.learner:Learner", "#1f77b4", Marker("o", "circle"), pretrained=True
        ),
        Algorithm(
            "bc", "BC", f"{_BASELINES}.behaviour_cloning:Cloning", "#d62728", Marker("X", "x"), limit_agnostic=True, **_CLONING
        ),
        Algorithm(
            "bc_safe", "BC-Safe", f"{_BASELINES}.behaviour_cloning:SafeCloning", "#ff7f0e", Marker("D", "diamond"), **_CLONING
        ),
        Algorithm(
            "bc_reward", "BC-Reward", f"{_BASELINES}.behaviour_cloning:RewardCloning", "#8c564b", Marker("*", "star"),
            limit_agnostic=True, **_CLONING,
        ),
        Algorithm(
            "bc_frontier", "BC-Frontier", f"{_BASELINES}.behaviour_cloning:FrontierCloning", "#bcbd22",
            Marker("h", "hexagon"), limit_agnostic=True, **_CLONING,
        ),
        Algorithm(
            "bcq_lag", "BCQ-Lag", f"{_BASELINES}.lagrangian:BCQLag", "#9467bd", Marker("p", "pentagon"), BCQLagSettings,
            ("perturbation",), _PID,
        ),
        Algorithm(
            "bear_lag", "BEAR-Lag", f"{_BASELINES}.lagrangian:BEARLag", "#e377c2", Marker("8", "octagon"), BEARLagSettings,
            ("mmd_limit", "mmd_sigma"), _PID, steps=300_000,
        ),
        Algorithm(
            "cdt", "CDT", f"{_BASELINES}.cdt:CDT", "#000000", Marker("P", "cross"), CDTSettings, ("target_return",),
            batch_size=2048, learning_rate=1e-4, limit_agnostic=True, limit_conditioned=True, whole_episodes=True,
        ),
        Algorithm("cpq", "CPQ", f"{_BASELINES}.cpq:CPQ", "#17becf", Marker("<", "triangle-left"), CPQSettings, ("ood_scale",)),
        Algorithm(
            "coptidice", "COptiDICE", f"{_BASELINES}.coptidice:COptiDICE", "#7f7f7f", Marker("d", "diamond-tall"),
            COptiDICESettings, ("alpha", "cost_bound"), learning_rate=1e-4,
        ),
    )
}  # fmt: skip
ALGORITHMS = dict(BUILT_IN)
