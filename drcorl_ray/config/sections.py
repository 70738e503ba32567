"""The sections of a training run, of its evaluation and of its scaling.

A description names the deviation (D1, D2 …, listed in docs/method.md) where the default differs from the paper. The preset
`paper` (presets.py) sets these settings to the paper's values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.config.base import Fraction, NonNegative, Positive, Section, Widths
from drcorl_ray.config.filters import Filters
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import storage_path
from drcorl_ray.tasks.registry import canonical_name

EvaluationMode = Literal["offline", "online", "hybrid"]


def _known(name: str) -> str:
    try:
        get_algorithm(name)
    except UserError as error:
        raise ValueError(str(error)) from error
    return name


def _comparable(name: str) -> str:
    if get_algorithm(name).pretrained:
        raise ValueError(f"{name} is not trained beside a run; set run.algorithm={name}")
    return name


AlgorithmName = Annotated[str, AfterValidator(_known)]
BaselineName = Annotated[AlgorithmName, AfterValidator(_comparable)]


class RunConfig(Section):
    algorithm: AlgorithmName = Field(
        default="drcorl", description="learning algorithm: drcorl, or the name of a baseline (docs/baselines.md)"
    )
    preset: Literal["default", "paper"] = Field(
        default="default", description="base settings: `default`, or `paper` for the settings of the published paper"
    )
    dir: str | None = Field(
        default=None,
        description="folder or URI of the run, created if absent; a finished run is never overwritten. none: runs/TASK-TIME "
        "(inside run.storage if that is a URI)",
    )
    resume: bool = Field(default=False, description="resume the unfinished run in run.dir")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="seed of pretraining, and of every member that sets none"
    )
    storage: str = Field(
        default="runs/shared",
        description="folder or URI (s3://…) of the stores and pretrained weights, which all runs share",
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="mode of Weights & Biases; auto: online if you are logged in, else offline"
    )

    @property
    def storage_folder(self) -> Path:
        return storage_path(self.storage).absolute()


class TaskConfig(Section):
    name: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="PointCircle", description="name of the task, or a list of names for `tune` (docs/tasks.md)"
    )
    skip_unavailable: bool = Field(
        default=False, description="`tune`: skip tasks whose simulator or data are missing, with a message"
    )


class DataConfig(Section):
    dataset: str | dict[str, str] | None = Field(
        default=None,
        description="HDF5 file in DSRL's layout, or {task: file}; none: search DSRL_DATASET_DIR, then download the file",
    )
    filters: Filters = Field(default=Filters(), description="DSRL's dataset filters; the default keeps every row")
    window_rows: PositiveInt | None = Field(
        default=None, description="rows of a rolling window on the device; none: the whole dataset stays on the device"
    )
    refresh_steps: PositiveInt = Field(default=50, description="training steps between two refreshes of a rolling window")

    def dataset_of(self, task: str) -> str | None:
        """Return the dataset file that the user named for a task, if any."""
        if not isinstance(self.dataset, dict):
            return self.dataset
        return {canonical_name(name): file for name, file in self.dataset.items()}.get(task)


class PretrainConfig(Section):
    steps: PositiveInt = Field(default=20000, description="steps of each phase of pretraining: diffusion, policy, critics")
    batch_size: PositiveInt = Field(default=256, description="global minibatch size, split over the workers")
    noise_width: PositiveInt = Field(default=128, description="width of the diffusion's noise network (paper: 256, D24)")
    noise_blocks: PositiveInt = Field(default=3, description="residual blocks of the noise network")
    noise_expansion: PositiveInt = Field(default=3, description="factor by which a residual block widens (paper: 4, D24)")
    noise_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="dropout rate of the residual blocks (paper: 0.1, D24)"
    )
    noise_weight_decay: NonNegative = Field(
        default=1e-4, description="decoupled weight decay of the noise network (paper: 0, D24)"
    )
    actor_hidden: Widths = Field(default=[256, 256], description="widths of the policy's hidden layers")
    critic_hidden: Widths = Field(
        default=[128, 128], description="widths of the critics' hidden layers (paper: 256, 256; D24)"
    )
    critic_layer_norm: bool = Field(default=True, description="use LayerNorm in the critics (D1)")
    positive_cost: bool = Field(
        default=True, description="end the cost critics with a softplus, so that no cost-to-go is negative (D20)"
    )
    cost_ensemble: Annotated[int, Field(ge=1)] = Field(default=4, description="E, number of cost critics in the ensemble")
    learning_rate: Positive = Field(default=1e-3, description="Adam's learning rate at the start of each phase (D25)")
    final_learning_rate: Fraction = Field(
        default=0.05, description="final learning rate as a share of the initial one, reached along a cosine (D2)"
    )
    discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.99, description="γ, discount factor of the reward critics"
    )
    cost_discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.97, description="γ_c, discount factor of the cost critics (D3)"
    )
    expectile: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.7, description="expectile of the value regression in implicit Q-learning (Eq. 17)"
    )
    target_step: Fraction = Field(default=0.02, description="Polyak step size of the critics' target networks (D25)")
    monte_carlo_steps: Annotated[int, Field(ge=0)] = Field(
        default_factory=lambda values: values["steps"] // 5,
        description="first critic steps, which regress on Monte-Carlo returns; default: a fifth of pretrain.steps (D4)",
    )
    alpha: NonNegative = Field(default=0.0, description="α, pessimism of the cost critics during pretraining (Eq. 19, D5)")
    policy: Literal["regression", "score"] = Field(
        default="regression",
        description="how the clone is pretrained: by regression on the data's actions (D6), or by the diffusion's score",
    )
    condition_dropout: Fraction = Field(
        default=0.3,
        description="probability that the behaviour model's condition, (cost rate, reward rate), is hidden in training; "
        "1: never conditioned (D7)",
    )

    def cost_critics_for(self, cost_ensemble: int | None) -> int:
        """Return how many cost critics a member uses, by its cost_ensemble; UserError if fewer are pretrained."""
        if cost_ensemble is not None and cost_ensemble > self.cost_ensemble:
            raise UserError(
                f"member.cost_ensemble={cost_ensemble}: pretrain.cost_ensemble={self.cost_ensemble} cost critics are "
                "pretrained; lower member.cost_ensemble or raise pretrain.cost_ensemble"
            )
        return cost_ensemble or self.cost_ensemble


class ExtractConfig(Section):
    steps: PositiveInt = Field(default=600, description="policy steps; few, so that the critics stay valid (D21)")
    critic_steps: Annotated[int, Field(ge=0)] = Field(
        default=2000, description="steps that train only the critics, before the first policy step (D8)"
    )
    batch_size: PositiveInt = Field(default=256, description="global minibatch size, split over the workers")
    epoch_steps: PositiveInt = Field(default=100, description="steps of an epoch, the time unit of the β schedules (§5.3)")
    target_step: Fraction = Field(default=0.1, description="Polyak step size of the critics' target networks (D9)")
    clamp_cost_target: bool = Field(
        default=True, description="clamp the bootstrap of the cost target to [0, c_max/(1 − γ_c)] (D10)"
    )
    terminal_cost: bool = Field(
        default=True, description="after a terminal state, continue to charge the data's mean cost (D11)"
    )
    normalize_action_gradients: bool = Field(default=True, description="divide ∇_a Q by its mean norm over the batch (D12)")
    cost_step_reward_weight: NonNegative = Field(default=0.5, description="weight of ∇_a Q_r inside a cost step (D13)")
    final_learning_rate: Fraction = Field(
        default=0.03, description="final learning rate as a share of the initial one, reached along a cosine (D2)"
    )
    policy_average: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.99,
        description="decay of the exponential moving average of the policy weights; the average is the policy that is saved "
        "and evaluated (D14)",
    )
    estimate_states: Literal["nearest", "all"] = Field(
        default="nearest",
        description="estimation states: where the data acts most like the policy (nearest), or an even sample (all) (D15)",
    )
    estimate_interval: PositiveInt = Field(
        default=50, description="policy steps after which the estimation states are re-selected (D15)"
    )
    estimate_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.98, description="decay of the exponential moving average of the offline cost estimate (D16)"
    )
    update_diffusion: bool = Field(default=False, description="continue to train the diffusion during extraction (D17)")


class MemberConfig(Section):
    cost_limit: NonNegative = Field(default=10.0, description="l, limit on the mean undiscounted episode cost")
    k: float = Field(
        default=3.0, description="k, standard deviations that the cost UCB adds to the critics' mean (Eq. 24, D23)"
    )
    cost_ensemble: PositiveInt | None = Field(
        default=None, description="number of pretrained cost critics that this member uses (the first ones); none: all"
    )
    beta_schedule: Literal["constant", "sqrt", "linear"] = Field(default="constant", description="β over the epochs t (§5.3)")
    beta_0: NonNegative = Field(
        default=0.04, description="β₀; constant: β = β₀, sqrt: β = √(β₀ + β₁t), linear: β = β₀ + β₁t (D26)"
    )
    beta_1: NonNegative = Field(default=0.0, description="β₁, growth per epoch t of the schedules sqrt and linear")
    alpha: NonNegative = Field(default=0.0, description="α, pessimism of the cost critics during extraction (Eq. 19, D5)")
    slack_plus: NonNegative = Field(
        default=0.2, description="h⁺, upper slack: cost steps above a normalised cost estimate of 1 + h⁺ (also CRPO's h)"
    )
    slack_minus: Fraction = Field(
        default=0.5, description="h⁻, lower slack: reward steps below a normalised cost estimate of 1 − h⁻ (D22)"
    )
    slack_shrink: Fraction = Field(
        default=0.5, description="share of both slacks that is removed by the last step, linearly (App. D.2, D22)"
    )
    adaptation: Literal["gradient_manipulation", "crpo", "lagrangian"] = Field(
        default="gradient_manipulation",
        description="rule of safe adaptation: Algorithm 3 (gradient_manipulation), Algorithm 2 (crpo), or Eq. 22 with a PID "
        "multiplier (lagrangian)",
    )
    pid_proportional: NonNegative = Field(default=0.1, description="K_P, proportional gain of the Lagrangian multiplier")
    pid_integral: NonNegative = Field(default=0.003, description="K_I, integral gain of the Lagrangian multiplier")
    pid_derivative: NonNegative = Field(default=0.001, description="K_D, derivative gain of the Lagrangian multiplier")
    actor_learning_rate: NonNegative = Field(default=2e-4, description="Adam's learning rate for the policy (D21)")
    critic_learning_rate: NonNegative = Field(default=6e-4, description="Adam's learning rate for the critics")
    policy_class: Literal["dirac", "gaussian", "gaussian_constant"] = Field(
        default="dirac",
        description="policy class: deterministic, Gaussian with a learned deviation, or with a constant one (App. D.1, D27)",
    )
    behaviour_reward_quantile: Fraction | None = Field(
        default=0.75,
        description="reward rate on which the behaviour model is conditioned, as a quantile over the data's best episodes "
        "within the limit; none: not conditioned (D7)",
    )
    evaluation_mode: EvaluationMode | None = Field(
        default=None, description="source of this member's cost estimate: offline, online or hybrid; none: evaluation.mode"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(default=None, description="seed of the member; none: run.seed")


class EvaluationConfig(Section):
    mode: EvaluationMode = Field(
        default="offline",
        description="source of the cost estimate in training: the critics (offline), rollouts (online), or rollouts that are "
        "also learned from (hybrid)",
    )
    online_episodes: PositiveInt = Field(default=2, description="episodes of one online evaluation of a member")
    online_interval: PositiveInt = Field(default=6, description="policy steps between two online evaluations")
    online_staleness: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="policy steps between the start of an online evaluation and its use, in which learning continues; 0: the "
        "learner waits",
    )
    online_budget: Annotated[int, Field(ge=0)] = Field(
        default=250,
        description="episodes that a member may spend in training, repeated ones included; afterwards its estimate is offline",
    )
    hybrid_episodes: PositiveInt = Field(
        default=1, description="hybrid: episodes per online evaluation whose transitions are appended to the member's replay"
    )
    hybrid_transitions: Annotated[int, Field(ge=0)] = Field(
        default=10000, description="hybrid: total transitions that a member may append, spread over its training"
    )
    hybrid_share: Fraction = Field(
        default=0.25, description="hybrid: share of a member's minibatch that is drawn from its appended transitions"
    )
    episodes: PositiveInt = Field(default=20, description="fresh episodes per policy in the final evaluation")
    curve_points: Annotated[int, Field(ge=0)] = Field(
        default=5,
        description="points of the learning curves after the first, evenly spaced over the training; 0: no curves",
    )
    curve_episodes: PositiveInt = Field(default=5, description="episodes per point of the learning curves")
    actors: PositiveInt = Field(default=2, description="processes that roll out policies in parallel")
    baselines: list[BaselineName] = Field(
        default=["bc", "bc_safe"],
        description="algorithms trained beside run.algorithm, with the settings of the `baseline` section",
    )
    protocol: Literal["own", "dsrl"] = Field(
        default="own",
        description="`evaluate`: evaluate each policy by itself (own), or by DSRL's protocol (dsrl): 3 limits x 3 "
        "seeds x 20 episodes",
    )
    output: str | None = Field(default=None, description="`evaluate`: folder for evaluation.json and the videos")
    video: bool = Field(default=False, description="`evaluate`: save a GIF of one episode of each policy")

    @model_validator(mode="after")
    def _parts_fit(self) -> EvaluationConfig:
        if self.online_staleness > self.online_interval:
            raise ValueError(
                f"online_staleness {self.online_staleness} is above online_interval {self.online_interval}: "
                "an evaluation must take effect before the next one does"
            )
        if self.mode != "offline" and self.online_budget < self.online_episodes:
            raise ValueError(f"mode={self.mode}: online_budget {self.online_budget} is too small for one evaluation")
        if self.mode == "hybrid" and not (self.hybrid_transitions and self.hybrid_share):
            raise ValueError("mode=hybrid appends nothing with hybrid_transitions=0 or hybrid_share=0; use mode=online")
        if self.hybrid_episodes > self.online_episodes:
            raise ValueError(f"hybrid_episodes {self.hybrid_episodes} is above online_episodes {self.online_episodes}")
        return self


class ScalingConfig(Section):
    workers: PositiveInt = Field(default=1, description="data-parallel workers of Ray Train")
    use_gpu: bool = Field(default=False, description="train on GPUs: one per worker, scaling.gpus_per_pack per pack")
    cpus_per_worker: Positive = Field(
        default=1.0, description="CPUs booked by a worker or pack; also the number of its torch threads"
    )
    gpus_per_pack: Positive = Field(default=1.0, description="GPUs booked by a pack, such as 0.5, if scaling.use_gpu is on")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="precision of matrix products in training; tf32 needs a GPU"
    )
    fused: bool = Field(
        default=False, description="compile each training step: about a minute before the first step, then faster steps"
    )
    report_steps: PositiveInt = Field(
        default=100, description="training steps between two reports; each report saves the state"
    )
    cpus_per_actor: NonNegative = Field(
        default=0.0,
        description="CPUs booked by a rollout actor; 0 fits any machine, but only more than 0 makes a cluster add nodes",
    )
    worker_resource: str | None = Field(
        default=None, description="custom Ray resource that marks the nodes for workers and packs; none: any node"
    )
    actor_resource: str | None = Field(
        default=None, description="custom Ray resource that marks the nodes for rollout actors; none: any node"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, description="restarts of a failed worker or pack")

    @property
    def worker_resources(self) -> dict[str, float]:
        """The custom resources that a worker or pack books: an amount so small that any number of them fits on a node."""
        return {self.worker_resource: 0.001} if self.worker_resource else {}

    @property
    def actor_resources(self) -> dict[str, float]:
        """The custom resources that a rollout actor books."""
        return {self.actor_resource: 0.001} if self.actor_resource else {}
