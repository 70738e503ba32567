"""DSRL's dataset filters, as settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Filters(BaseModel):
    """DSRL's ways to thin or to trouble a data set, by its own parameter names; the default changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    density: float = Field(default=1.0, gt=0, le=1, description="share of the trajectories' grid to keep; 1 keeps all")
    outliers_percent: float | None = Field(
        default=None, gt=0, lt=1, description="share of risky episodes disguised as safe ones"
    )
    noise_scale: float | None = Field(default=None, ge=0, description="observation noise, in standard deviations")
    inpaint_ranges: tuple[tuple[float, float, float, float], ...] | None = Field(
        default=None, description="regions to cut out: (cost min, max, return min, max), each in [0, 1]"
    )
    epsilon: float | None = Field(
        default=None, description="drops tempting episodes (> 0) or risky ones (< 0) near the best return"
    )
    target_cost: float | None = Field(
        default=None, description="undiscounted episode cost limit, needed by outliers_percent and epsilon"
    )
    seed: int = Field(default=1234, description="seed of the filters")
