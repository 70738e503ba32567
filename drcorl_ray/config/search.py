"""The section of a search, and the entries of its search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from drcorl_ray.config.base import Section, nearest


class RangeConfig(Section):
    """One searched key: a range of real numbers (sampled on a log scale if `log`) or a list of choices.

    when: {another key of the space: values}; this key is searched only if that key has one of these values. Otherwise the
    member keeps its own value.
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
        """Return values that the key may take: every choice, or both ends of the range and a point between them."""
        if self.low is None or self.high is None:
            return list(self.choices or [])
        return [self.low, self.low + 0.382 * (self.high - self.low), self.high]

    def holds(self, value: Any) -> bool:
        """Whether the value is among the choices or inside the range."""
        if self.low is None or self.high is None:
            return value in (self.choices or [])
        return isinstance(value, int | float) and self.low <= value <= self.high

    def matters(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the key is searched, given the values chosen so far (`when`)."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())


class SearchConfig(Section):
    objective: Literal["per_task", "shared"] = Field(
        default="per_task",
        description="select one winner per task, or one for all tasks by their mean reward and largest cost (shared)",
    )
    sampler: Literal["tpe", "cmaes", "qmc", "random", "grid"] = Field(
        default="tpe", description="Optuna's sampler; grid: every combination of the space's choices, once"
    )
    multi_objective: bool = Field(
        default=False, description="search the Pareto front of reward and cost, instead of the reward within the cost limit"
    )
    configurations: PositiveInt = Field(
        default=8, description="configurations to try per task (shared: in total; grid: ignored)"
    )
    members_per_pack: PositiveInt | Literal["auto"] = Field(
        default=4,
        description="P, members of a pack, which is one Ray Tune trial; auto: chosen by a measurement before the first pack",
    )
    concurrent_packs: PositiveInt = Field(
        default=2, description="packs of one task that may run before the oldest one's results are told to Optuna"
    )
    rungs: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[],
        description="shares of the policy steps, in rising order, after which a pack's poorer members are stopped (successive "
        "halving)",
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        default=2, description="a rung keeps one member in this many; new configurations replace the others"
    )
    points: list[dict[str, Any]] = Field(
        default=[],
        description="configurations to try first, before the configured member and the paper's settings: a list of {key of "
        "the space: value}",
    )
    episodes: PositiveInt = Field(default=10, description="episodes by which a configuration is scored")
    winners: PositiveInt = Field(
        default=3, description="number of best configurations, per cost limit, that are evaluated again on fresh episodes"
    )
    fresh_episodes: PositiveInt | None = Field(
        default=None,
        description="fresh episodes for each of these configurations; none: 100 on tasks that are cheap to simulate, else 20",
    )
    space: dict[str, RangeConfig] = Field(
        default={
            "k": RangeConfig(low=0.0, high=4.0),
            "beta_0": RangeConfig(low=0.01, high=0.1, log=True),
            "slack_plus": RangeConfig(low=0.0, high=0.4),
            "slack_minus": RangeConfig(low=0.2, high=0.8),
        },
        description="searched settings: {key: {low, high, log} or {choices}, with an optional `when`} (docs/search.md); the "
        "default is for DRCORL",
    )

    @model_validator(mode="after")
    def _rungs_rise(self) -> SearchConfig:
        if self.rungs != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, got {self.rungs}")
        return self

    @model_validator(mode="after")
    def _sampler_can(self) -> SearchConfig:
        if self.multi_objective and self.sampler == "cmaes":
            raise ValueError("sampler=cmaes has one objective only; remove multi_objective, or use sampler=tpe")
        if self.rungs and self.members_per_pack == 1:
            raise ValueError("rungs stop members of a pack, and members_per_pack=1 leaves nothing to cut")
        if self.multi_objective and self.rungs:
            raise ValueError("rungs rank members by their reward within the limit; remove rungs from a multi_objective search")
        ranges = [key for key, entry in self.space.items() if entry.choices is None]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"sampler=grid needs choices, and space.{ranges[0]} is a range")
        return self

    @model_validator(mode="after")
    def _searchable_keys(self) -> SearchConfig:
        if not self.space:
            raise ValueError("space: nothing is searched; name at least one setting of a member")
        for key in self.space:
            if key in ("seed", "cost_limit") and self.sampler != "grid":
                raise ValueError(f"space.{key}: {key}s are not searched, only compared; use sampler=grid with choices")
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
        for index, (key, entry) in enumerate(self.space.items()):
            for other, values in entry.when.items():
                if other not in keys[:index]:
                    raise ValueError(f"space.{key}.when.{other}: {other} must be a key of the space, before {key}")
                choices = self.space[other].choices
                if choices is None or any(value not in choices for value in values):
                    raise ValueError(f"space.{key}.when.{other}: {values} are not among the choices of {other}")
        return self
