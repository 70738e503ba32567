"""The section of a search, and the ranges of its space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from drcorl_ray.config.base import Section, nearest


class RangeConfig(Section):
    """One searched key: a range of real numbers (logarithmic if said) or a list of choices.

    when: {another key of the space: its values with which this one matters}; otherwise the member keeps its own value.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    when: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _range_or_choices(self) -> RangeConfig:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if len(bounds) != (2 if self.choices is None else 0):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and not (self.low and self.low > 0):
            raise ValueError("a logarithmic range needs low > 0")
        return self

    def examples(self) -> list[Any]:
        """Values it may take: every choice; or both ends of the range and a point between them."""
        if self.low is None or self.high is None:
            return list(self.choices or [])
        return [self.low, self.low + 0.382 * (self.high - self.low), self.high]

    def holds(self, value: Any) -> bool:
        if self.low is None or self.high is None:
            return value in (self.choices or [])
        return isinstance(value, int | float) and self.low <= value <= self.high

    def matters(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the key is searched beside the values chosen so far."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())


class SearchConfig(Section):
    objective: Literal["per_task", "shared"] = Field(
        default="per_task", description="one winner per task, or one for all of them: mean reward, worst cost"
    )
    sampler: Literal["tpe", "cmaes", "qmc", "random", "grid"] = Field(
        default="tpe", description="how Optuna asks; grid: every combination of the space's choices"
    )
    multi_objective: bool = Field(
        default=False, description="search the Pareto front of reward and cost, in place of reward under the limit"
    )
    configurations: PositiveInt = Field(default=8, description="configurations per task (shared: in all; grid: all it has)")
    members_per_pack: PositiveInt | Literal["auto"] = Field(
        default=4, description="P, members trained side by side in one Tune trial; auto: measured where packs are trained"
    )
    concurrent_packs: PositiveInt = Field(
        default=2, description="packs of one task under way before the oldest one's results must be in"
    )
    rungs: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[], description="shares of extract.steps after which a pack is judged and cut (successive halving)"
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        default=2, description="a rung keeps one in this many; new configurations take the place of the others"
    )
    points: list[dict[str, Any]] = Field(
        default=[], description="configurations asked first, before the member's own and the paper's: keys of the space"
    )
    episodes: PositiveInt = Field(default=10, description="online episodes that judge a configuration")
    winners: PositiveInt = Field(
        default=3, description="best configurations, of each cost limit, that are evaluated again on fresh seeds"
    )
    fresh_episodes: PositiveInt | None = Field(
        default=None, description="fresh episodes of a winner; none: 100 on tasks that are cheap to simulate, else 20"
    )
    space: dict[str, RangeConfig] = Field(
        default={
            "k": RangeConfig(low=0.0, high=4.0),
            "beta_0": RangeConfig(low=0.01, high=0.1, log=True),
            "slack_plus": RangeConfig(low=0.0, high=0.4),
            "slack_minus": RangeConfig(low=0.2, high=0.8),
        },
        description="searched settings (default: DRCORL's): {key: {low, high, log} or {choices}, with an optional `when`}",
    )

    @model_validator(mode="after")
    def _rungs_rise(self) -> SearchConfig:
        if self.rungs != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, got {self.rungs}")
        return self

    @model_validator(mode="after")
    def _sampler_can(self) -> SearchConfig:
        if self.multi_objective and self.sampler == "cmaes":
            raise ValueError("sampler=cmaes knows one objective only; leave multi_objective out, or use tpe")
        if self.rungs and self.members_per_pack == 1:
            raise ValueError("rungs cut a pack, and members_per_pack=1 leaves nothing to cut")
        if self.multi_objective and self.rungs:
            raise ValueError("rungs stop members by their reward under the limit; a multi_objective search has none")
        ranges = [key for key, entry in self.space.items() if entry.choices is None]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"sampler=grid needs choices, and space.{ranges[0]} is a range")
        return self

    @model_validator(mode="after")
    def _searchable_keys(self) -> SearchConfig:
        if not self.space:
            raise ValueError("space: nothing is searched; name at least one setting of members")
        for key in self.space:
            if key in ("seed", "cost_limit") and self.sampler != "grid":
                raise ValueError(f"space.{key}: {key}s are not searched, only compared; use sampler=grid and choices")
        return self

    @model_validator(mode="after")
    def _known_points(self) -> SearchConfig:
        for number, point in enumerate(self.points):
            for key, value in point.items():
                entry = self.space.get(key)
                if entry is None:
                    raise ValueError(f"points.{number}.{key} is not a key of the space{nearest(key, self.space)}")
                if not entry.holds(value):
                    raise ValueError(f"points.{number}.{key}: {value!r:.60} is outside of space.{key}")
        return self

    @model_validator(mode="after")
    def _known_conditions(self) -> SearchConfig:
        keys = list(self.space)
        for place, (key, entry) in enumerate(self.space.items()):
            for other, values in entry.when.items():
                if other not in keys[:place]:
                    raise ValueError(f"space.{key}.when.{other}: {other} must be a key of the space, before {key}")
                choices = self.space[other].choices
                if choices is None or any(value not in choices for value in values):
                    raise ValueError(f"space.{key}.when.{other}: {values} are not among the choices of {other}")
        return self
