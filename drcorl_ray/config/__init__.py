"""The configuration: one tree of frozen, validated sections (loading.py reads it from YAML files and arguments).

An unknown key is refused, with the nearest valid key in the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from drcorl_ray.config.algorithms import Algorithm, get_algorithm, user_algorithms
from drcorl_ray.config.base import Section, nearest, validate
from drcorl_ray.config.members import BaselineConfig, BaselineMember, MemberSettings, check_values, resolved_member
from drcorl_ray.config.registration import register_algorithm
from drcorl_ray.config.search import RangeConfig, SearchConfig
from drcorl_ray.config.sections import (
    DataConfig,
    EvaluationConfig,
    ExtractConfig,
    MemberConfig,
    PretrainConfig,
    RunConfig,
    ScalingConfig,
    TaskConfig,
)
from drcorl_ray.tasks.registry import all_tasks, canonical_name

__all__ = [
    "BaselineConfig",
    "BaselineMember",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExtractConfig",
    "MemberConfig",
    "MemberSettings",
    "PretrainConfig",
    "RangeConfig",
    "RunConfig",
    "ScalingConfig",
    "SearchConfig",
    "Section",
    "TaskConfig",
    "Training",
    "validate",
]

_QUANTILE, _ENSEMBLE = "behaviour_reward_quantile", "cost_ensemble"


@dataclass(frozen=True)
class Training:
    """A training schedule: steps before the policies change, steps that change them, rows of a global minibatch."""

    warm_up: int
    steps: int
    batch_size: int

    @property
    def total_steps(self) -> int:
        return self.warm_up + self.steps


class Config(Section):
    """All settings, by section; frozen. `population` lists overrides of the member's settings, one mapping per member.

    >>> import drcorl_ray
    >>> drcorl_ray.Config().task.name
    'PointCircle'
    """

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    extract: ExtractConfig = ExtractConfig()
    member: MemberConfig = MemberConfig()
    population: list[dict[str, Any]] = Field(
        default=[],
        description="members to train, each a mapping of settings that replace those of `member`; empty: one member",
    )
    baseline: BaselineConfig = Field(default_factory=BaselineConfig)  # built late: its sections depend on the registry
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    scaling: ScalingConfig = ScalingConfig()
    _user_algorithms: tuple[Algorithm, ...] = PrivateAttr(default=())

    def model_post_init(self, context: Any, /) -> None:
        self._user_algorithms = user_algorithms()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the configuration and register the user's algorithms in the process that unpickles it."""
        super().__setstate__(state)
        for algorithm in self._user_algorithms:
            register_algorithm(algorithm)

    @model_validator(mode="after")
    def _batch_divides(self) -> Config:
        for size in (self.pretrain.batch_size, self.training.batch_size):
            if size % self.scaling.workers:
                raise ValueError(f"batch_size {size} is not divisible by scaling.workers {self.scaling.workers}")
        return self

    @model_validator(mode="after")
    def _baselines_are_offline(self) -> Config:
        algorithm = get_algorithm(self.run.algorithm)
        if algorithm.pretrained:
            return self
        if self.evaluation.mode != "offline":
            raise ValueError(f"run.algorithm={self.run.algorithm} learns offline alone; remove evaluation.mode")
        if self.data.window_rows is not None and algorithm.whole_episodes:
            raise ValueError(f"run.algorithm={self.run.algorithm} learns from whole episodes; remove data.window_rows")
        return self

    @model_validator(mode="after")
    def _valid_population(self) -> Config:
        for number, overrides in enumerate(self.population):
            resolved_member(self, get_algorithm(self.run.algorithm), overrides, f"population.{number}")
        return self

    @model_validator(mode="after")
    def _valid_space(self) -> Config:
        check_values(self)
        return self

    @model_validator(mode="after")
    def _condition_is_trained(self) -> Config:
        """Refuse a condition (D7) that the behaviour model is not trained with."""
        if not get_algorithm(self.run.algorithm).pretrained:
            return self
        values = [overrides.get(_QUANTILE, self.member.behaviour_reward_quantile) for overrides in self.population or [{}]]
        searched = self.search.space[_QUANTILE].examples() if _QUANTILE in self.search.space else []
        values += searched
        if self.pretrain.condition_dropout == 1.0 and any(value is not None for value in values):
            remedy = f"remove {_QUANTILE} from search.space" if searched else f"set member.{_QUANTILE}=null"
            raise ValueError(f"pretrain.condition_dropout=1 trains an unconditioned behaviour model; {remedy}")
        if self.pretrain.condition_dropout == 0.0 and any(value is None for value in values):
            raise ValueError(f"pretrain.condition_dropout=0 trains no unconditioned behaviour model; set member.{_QUANTILE}")
        return self

    @model_validator(mode="after")
    def _critics_are_pretrained(self) -> Config:
        """Refuse a member, of `drcorl train` or of a search, that uses more cost critics than are pretrained."""
        if not get_algorithm(self.run.algorithm).pretrained:
            return self
        searched = self.search.space[_ENSEMBLE].examples() if _ENSEMBLE in self.search.space else []
        for overrides in [{}, *self.population, *({_ENSEMBLE: value} for value in searched)]:
            self.pretrain.cost_critics_for(getattr(self.member_with(overrides), _ENSEMBLE))
        return self

    @model_validator(mode="after")
    def _tasks_once(self) -> Config:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"task.name lists a task twice: {', '.join(self.tasks)}")
        return self

    @model_validator(mode="after")
    def _datasets_of_tasks(self) -> Config:
        known = {*self.tasks, *(task.name for task in all_tasks())}
        for name in self.data.dataset if isinstance(self.data.dataset, dict) else {}:
            if canonical_name(name) not in known:
                raise ValueError(f"data.dataset names {name!r}, which is no task{nearest(name, known)}")
        return self

    @property
    def tasks(self) -> list[str]:
        """The canonical names of the tasks, also where the user wrote environment ids."""
        names = [self.task.name] if isinstance(self.task.name, str) else self.task.name
        return [canonical_name(name) for name in names]

    def members(self) -> list[MemberSettings]:
        """Return the population of `drcorl train`: the configured member, overridden by each entry of `population`."""
        return [self.member_with(overrides) for overrides in self.population or [{}]]

    def member_with(self, overrides: Mapping[str, Any], algorithm: str | None = None) -> MemberSettings:
        """Return the configured member of an algorithm (None: run.algorithm) with some keys replaced; UserError if invalid."""
        return resolved_member(self, get_algorithm(algorithm or self.run.algorithm), overrides, "member")

    @property
    def training(self) -> Training:
        """The training schedule of run.algorithm."""
        return self.training_of(self.run.algorithm)

    def training_of(self, name: str) -> Training:
        """Return the training schedule of an algorithm; one without its own budget has that of a pretraining phase."""
        algorithm = get_algorithm(name)
        if algorithm.pretrained:
            return Training(self.extract.critic_steps, self.extract.steps, self.extract.batch_size)
        steps = self.baseline.steps or algorithm.steps or self.pretrain.steps
        return Training(0, steps, self.baseline.batch_size or algorithm.batch_size or self.pretrain.batch_size)

    def curve_steps(self) -> list[int]:
        """Return the steps whose policies are saved for the learning curves: evenly spaced, at reports, from the clone on."""
        schedule, report_steps, points = self.training, self.scaling.report_steps, self.evaluation.curve_points
        steps = (schedule.warm_up + schedule.steps * i / points for i in range(points + 1 if points else 0))
        return sorted({min(schedule.total_steps, -(-int(step) // report_steps) * report_steps) for step in steps} - {0})
