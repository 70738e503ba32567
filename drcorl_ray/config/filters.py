"""DSRL's dataset filters, as settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Filters(BaseModel):
    """DSRL's filters, which thin or corrupt a dataset, under DSRL's parameter names; the default changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    density: float = Field(
        default=1.0, gt=0, le=1, description="share to keep of a grid of episodes over cost and return; 1: all"
    )
    outliers_percent: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of episodes to turn from risky ones into outliers: lower cost, higher reward",
    )
    noise_scale: float | None = Field(
        default=None, ge=0, description="noise added to the observations, as a multiple of their standard deviation"
    )
    inpaint_ranges: tuple[tuple[float, float, float, float], ...] | None = Field(
        default=None,
        description="regions of episodes to cut out: (cost min, cost max, return min, return max), each in [0, 1]",
    )
    epsilon: float | None = Field(
        default=None, description="remove tempting episodes (> 0) or risky ones (< 0) near the best return"
    )
    target_cost: float | None = Field(
        default=None, description="limit on the undiscounted episode cost; outliers_percent and epsilon need it"
    )
    seed: int = Field(default=1234, description="seed of the filters' random choices")
