"""The configuration: one tree of frozen, validated sections (config_file.py reads it from YAML and arguments).

Unknown keys are refused and the nearest valid one is named. Settings that differ from the print of the paper carry their
deviation's number (D1, D2 …, listed in docs/method.md); the `paper` preset (config_file.py) switches them back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from drcorl_ray.data.dsrl import Filters
from drcorl_ray.errors import UserError
from drcorl_ray.tasks import all_tasks, canonical_name

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
T = TypeVar("T", bound=BaseModel)
Widths = Annotated[list[PositiveInt], Field(min_length=1)]


_QUANTILE = "behaviour_reward_quantile"


class Section(BaseModel):
    """Frozen, with unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunConfig(Section):
    algorithm: Literal["drcorl"] = Field(default="drcorl", description="learning algorithm")
    preset: Literal["default", "paper"] = Field(
        default="default", description="base settings; `paper` is faithful to the print"
    )
    dir: str | None = Field(
        default=None, description="run directory, made if absent; a finished run is not overwritten; none: runs/TASK-TIME"
    )
    resume: bool = Field(default=False, description="continue the unfinished run in run.dir")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="seed of pretraining and of every member's stream"
    )
    storage: str = Field(
        default="runs/shared", description="folder of Parquet stores and pretrained artifacts, shared by all runs"
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="Weights & Biases; auto: online when logged in, else offline"
    )

    @property
    def storage_folder(self) -> Path:
        return Path(self.storage).expanduser().absolute()


class TaskConfig(Section):
    name: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="PointCircle", description="DSRL task name; launch/tune.py also takes a list"
    )
    skip_unavailable: bool = Field(
        default=False, description="launch/tune.py: leave out tasks whose simulator or data are absent, and say so"
    )


class DataConfig(Section):
    dataset: str | dict[str, str] | None = Field(
        default=None, description="DSRL-layout HDF5 file (or {task: file}); none: find it in DSRL_DATASET_DIR or download it"
    )
    filters: Filters = Field(default=Filters(), description="DSRL's filters of the dataset; the default keeps it as it is")
    window_rows: PositiveInt | None = Field(
        default=None, description="rows of a rolling window on the device; none: the whole dataset is resident"
    )
    refresh_steps: PositiveInt = Field(default=50, description="steps between two refreshes of a rolling window")


class PretrainConfig(Section):
    steps: PositiveInt = Field(default=10000, description="steps of each phase: diffusion, policy, critics")
    batch_size: PositiveInt = Field(default=256, description="global minibatch size, split over the workers")
    noise_width: PositiveInt = Field(default=128, description="width of the noise network (paper: 256)")
    noise_blocks: PositiveInt = Field(default=3, description="residual blocks of the noise network")
    noise_expansion: PositiveInt = Field(default=3, description="widening inside a residual block (paper: 4)")
    noise_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="dropout of the blocks (paper: 0.1)"
    )
    noise_weight_decay: NonNegative = Field(default=1e-4, description="decoupled weight decay of the noise network")
    actor_hidden: Widths = Field(default=[256, 256], description="hidden layers of the policy")
    critic_hidden: Widths = Field(default=[128, 128], description="hidden layers of the critics (paper: 256, 256)")
    critic_layer_norm: bool = Field(default=True, description="LayerNorm in the critics (D1)")
    cost_ensemble: Annotated[int, Field(ge=1)] = Field(default=4, description="E, cost critics in the ensemble")
    learning_rate: Positive = Field(default=1e-3, description="Adam learning rate at the start of each phase")
    final_learning_rate: Fraction = Field(
        default=0.05, description="last learning rate as a share of the first, by a cosine (D2)"
    )
    discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.99, description="γ of the reward critics")
    cost_discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.97, description="γ of the cost critics (D3)")
    expectile: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.7, description="expectile of the value regression (Eq. 17)"
    )
    target_step: Fraction = Field(default=0.02, description="Polyak step of the critics' targets (paper: 0.005)")
    monte_carlo_steps: Annotated[int, Field(ge=0)] = Field(
        default=2000, description="first critic steps that regress on Monte-Carlo returns (D4)"
    )
    alpha: NonNegative = Field(default=0.0, description="pessimism of the cost critics while pretraining (Eq. 19, D5)")
    policy: Literal["regression", "score"] = Field(
        default="regression", description="pretrain the policy by regression on the data (D6) or through the diffusion's score"
    )
    condition_dropout: Fraction = Field(
        default=0.3, description="chance that a (cost rate, reward rate) label is hidden; 1: a plain behaviour model (D7)"
    )


class ExtractConfig(Section):
    steps: PositiveInt = Field(default=2500, description="policy steps")
    critic_steps: Annotated[int, Field(ge=0)] = Field(
        default=2000, description="critic-only steps before the first policy step (D8)"
    )
    batch_size: PositiveInt = Field(default=256, description="global minibatch size, split over the workers")
    epoch_steps: PositiveInt = Field(default=100, description="steps of one epoch, the unit of time of the β schedules")
    target_step: Fraction = Field(default=0.1, description="Polyak step of the critics' targets (D9)")
    clamp_cost_target: bool = Field(default=True, description="clamp the TD target's bootstrap to [0, c_max/(1 − γ_c)] (D10)")
    terminal_cost: bool = Field(default=True, description="at a terminal, go on paying the data's mean cost (D11)")
    normalize_action_gradients: bool = Field(default=True, description="divide ∇_a Q by its mean norm over the batch (D12)")
    cost_step_reward_weight: NonNegative = Field(default=0.5, description="weight of ∇_a Q_r inside a cost step (D13)")
    final_learning_rate: Fraction = Field(
        default=0.03, description="last learning rate as a share of the first, by a cosine (D2)"
    )
    policy_average: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.99, description="decay of the policy's running average, which is what leaves the learner (D14)"
    )
    estimate_states: Literal["low_cost", "all"] = Field(
        default="low_cost", description="states on which the cost is estimated: low-cost high-return stretches, or all (D15)"
    )
    estimate_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.98, description="decay of the running average of the cost estimate (D16)"
    )
    update_diffusion: bool = Field(default=False, description="go on training the diffusion during extraction (D17)")


class MemberConfig(Section):
    cost_limit: NonNegative = Field(default=10.0, description="l, limit on the undiscounted episode cost")
    k: float = Field(default=2.0, description="standard deviations of the cost UCB (Eq. 24)")
    beta_schedule: Literal["constant", "sqrt", "linear"] = Field(default="constant", description="β over epochs t")
    beta_0: NonNegative = Field(default=0.01, description="constant: β; sqrt: √(β₀ + β₁t); linear: β₀ + β₁t")
    beta_1: NonNegative = Field(default=0.0, description="growth of β per epoch")
    alpha: NonNegative = Field(default=0.0, description="pessimism of the cost critics during extraction (Eq. 19, D5)")
    slack_plus: NonNegative = Field(default=0.2, description="h⁺, upper slack on the normalised cost (h of CRPO)")
    slack_minus: Fraction = Field(default=0.2, description="h⁻, lower slack on the normalised cost")
    slack_shrink: Fraction = Field(default=1.0, description="share of the slack that is gone at the last step, linearly")
    adaptation: Literal["gradient_manipulation", "crpo", "lagrangian"] = Field(
        default="gradient_manipulation", description="Algorithm 3, Algorithm 2, or Eq. 22 with a PID multiplier"
    )
    pid_proportional: NonNegative = Field(default=0.1, description="K_P of the multiplier")
    pid_integral: NonNegative = Field(default=0.003, description="K_I of the multiplier")
    pid_derivative: NonNegative = Field(default=0.001, description="K_D of the multiplier")
    actor_learning_rate: NonNegative = Field(default=3e-4, description="Adam learning rate of the policy (paper: 6e-4)")
    critic_learning_rate: NonNegative = Field(default=6e-4, description="Adam learning rate of the critics")
    policy_class: Literal["dirac", "gaussian", "gaussian_constant"] = Field(
        default="dirac", description="policy class (App. D.1)"
    )
    behaviour_reward_quantile: Fraction | None = Field(
        default=0.8,
        description="reward rate asked of the behaviour model, a quantile of its low-cost rows; none: not conditioned (D7)",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(default=None, description="seed of this member; none: run.seed")


class EvaluationConfig(Section):
    mode: Literal["offline"] = Field(default="offline", description="where the cost estimate of training comes from")
    episodes: PositiveInt = Field(default=20, description="fresh episodes per policy of the final evaluation")
    curve_points: Annotated[int, Field(ge=0)] = Field(
        default=5, description="policies along the training that are rolled out for the curves"
    )
    curve_episodes: PositiveInt = Field(default=5, description="episodes per point of the curves")
    actors: PositiveInt = Field(default=2, description="parallel rollout actors")
    baselines: list[Literal["bc", "bc_safe"]] = Field(
        default=["bc", "bc_safe"], description="behaviour cloning of all the data, of its episodes within the limit"
    )


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
    members_per_pack: PositiveInt = Field(default=4, description="P, members trained side by side in one Tune trial")
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
    winners: PositiveInt = Field(default=3, description="best configurations that are evaluated again on fresh seeds")
    fresh_episodes: PositiveInt | None = Field(
        default=None, description="fresh episodes of a winner; none: 100 on tasks that are cheap to simulate, else 20"
    )
    space: dict[str, RangeConfig] = Field(
        default={
            "k": RangeConfig(low=0.0, high=4.0),
            "beta_0": RangeConfig(low=0.003, high=0.1, log=True),
            "slack_plus": RangeConfig(low=0.0, high=0.4),
            "slack_minus": RangeConfig(low=0.0, high=0.4),
        },
        description="searched keys of the member section: {key: {low, high, log} or {choices}, with an optional `when`}",
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
    def _known_members(self) -> SearchConfig:
        if not self.space:
            raise ValueError("space: nothing is searched; name at least one key of member")
        for key, entry in self.space.items():
            if key in ("seed", "cost_limit") and self.sampler != "grid":
                raise ValueError(f"space.{key}: {key}s are not searched, only compared; use sampler=grid and choices")
            if key not in MemberConfig.model_fields:
                raise ValueError(f"space.{key} is not a key of member{nearest(key, MemberConfig.model_fields)}")
            for value in entry.examples():
                try:
                    MemberConfig.model_validate({key: value})
                except ValidationError as error:
                    message = error.errors()[0]["msg"]
                    raise ValueError(f"space.{key}: {value!r:.60} is no value of member.{key} ({message})") from error
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


class ScalingConfig(Section):
    workers: PositiveInt = Field(default=1, description="data-parallel workers of Ray Train")
    use_gpu: bool = Field(default=False, description="one GPU per worker, and a share of one per pack")
    cpus_per_worker: Positive = Field(default=1.0, description="CPUs of a worker or pack; also its torch threads")
    gpus_per_pack: Positive = Field(default=1.0, description="share of a GPU that a pack owns when scaling.use_gpu is on")
    report_steps: PositiveInt = Field(default=500, description="steps between two reports, each with a checkpoint")
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, description="restarts of a failed worker or pack")


class Config(Section):
    """The whole tree; `population` lists overrides of `member`, one mapping a member, for launch/train.py."""

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    extract: ExtractConfig = ExtractConfig()
    member: MemberConfig = MemberConfig()
    population: list[dict[str, Any]] = Field(
        default=[], description="overrides of `member`, one mapping per member; none: one member"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    scaling: ScalingConfig = ScalingConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> Config:
        for section in (self.pretrain, self.extract):
            if section.batch_size % self.scaling.workers:
                raise ValueError(f"batch_size {section.batch_size} is not divisible by scaling.workers {self.scaling.workers}")
        return self

    @model_validator(mode="after")
    def _valid_population(self) -> Config:
        for number, overrides in enumerate(self.population):
            validate(MemberConfig, self.member.model_dump() | overrides, f"population.{number}")
        return self

    @model_validator(mode="after")
    def _condition_is_trained(self) -> Config:
        """A behaviour model can only be asked for what its training showed it."""
        asked = [overrides.get(_QUANTILE, self.member.behaviour_reward_quantile) for overrides in self.population or [{}]]
        searched = self.search.space[_QUANTILE].examples() if _QUANTILE in self.search.space else []
        asked += searched
        if self.pretrain.condition_dropout == 1.0 and any(value is not None for value in asked):
            where = f"take {_QUANTILE} out of search.space" if searched else f"set member.{_QUANTILE}=null"
            raise ValueError(f"pretrain.condition_dropout=1 trains a plain behaviour model; {where}")
        if self.pretrain.condition_dropout == 0.0 and any(value is None for value in asked):
            raise ValueError(f"pretrain.condition_dropout=0 trains no plain behaviour model; give member.{_QUANTILE}")
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
        """The tasks' own names, also where the user wrote environment ids."""
        names = [self.task.name] if isinstance(self.task.name, str) else self.task.name
        return [canonical_name(name) for name in names]

    def members(self) -> list[MemberConfig]:
        """The population of launch/train.py: `member` with each entry of `population` laid over it."""
        return [self.member_with(overrides) for overrides in self.population or [{}]]

    def member_with(self, overrides: Mapping[str, Any]) -> MemberConfig:
        """`member` with some keys replaced and its seed settled; UserError where one is invalid."""
        values = self.member.model_dump() | dict(overrides)
        if values["seed"] is None:
            values["seed"] = self.run.seed
        return validate(MemberConfig, values, "member")

    def dataset_of(self, task: str) -> str | None:
        """The dataset file the user named for a task, if any."""
        if not isinstance(self.data.dataset, dict):
            return self.data.dataset
        return {canonical_name(name): file for name, file in self.data.dataset.items()}.get(task)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint "; did you mean …?" or the list of valid names."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names)}"


def validate(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """The values as a model; UserError names the first wrong one, and for an unknown key the nearest valid one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {_explain(model, first)}") from error


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'config'}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.60})"
    section: Any = model
    for part in path[:-1]:
        if get_origin(section) is dict:  # search.space: its keys are free, its values are sections
            section = get_args(section)[1]
            continue
        section = getattr(section, "model_fields", {}).get(part)
        section = section and section.annotation
    return f"unknown key {'.'.join(path)}{nearest(path[-1], getattr(section, 'model_fields', {}))}"
