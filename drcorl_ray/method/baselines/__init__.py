"""Algorithms beside DRCORL, as populations: behaviour cloning, BCQ-Lag, BEAR-Lag, CPQ, COptiDICE, CDT (docs/baselines.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drcorl_ray.method.baselines.base import Baseline, Dataset
from drcorl_ray.method.baselines.behaviour_cloning import Cloning
from drcorl_ray.method.baselines.cdt import CDT
from drcorl_ray.method.baselines.coptidice import COptiDICE
from drcorl_ray.method.baselines.cpq import CPQ
from drcorl_ray.method.baselines.lagrangian import BCQLag, BEARLag

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import Config, MemberConfig

__all__ = ["Baseline", "Dataset", "make_baseline"]

_ALGORITHMS: dict[str, type[Baseline]] = {
    "bc": Cloning,
    "bc_safe": Cloning,
    "bc_reward": Cloning,
    "bc_frontier": Cloning,
    "bcq_lag": BCQLag,
    "bear_lag": BEARLag,
    "cpq": CPQ,
    "coptidice": COptiDICE,
    "cdt": CDT,
}


def make_baseline(
    algorithm: str, config: Config, data: Dataset, members: Sequence[MemberConfig], **placement: Any
) -> Baseline:
    """A population of an algorithm at its start; placement: device, dtype, first_row."""
    return _ALGORITHMS[algorithm](algorithm, config, data, members, **placement)
