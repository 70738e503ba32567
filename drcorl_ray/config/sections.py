"""The sections of a training run, of its evaluation and of its scaling.

Settings that differ from the print of the paper carry their deviation's number (D1, D2 …, listed in docs/method.md); the
`paper` preset (config_file.py) switches them back.
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
        raise ValueError(f"{name} is not trained beside a run; give run.algorithm={name}")
    return name


AlgorithmName = Annotated[str, AfterValidator(_known)]
BaselineName = Annotated[AlgorithmName, AfterValidator(_comparable)]


class RunConfig(Section):
    algorithm: AlgorithmName = Field(
        default="drcorl", description="learning algorithm: DRCORL, or a baseline (docs/baselines.md)"
    )
    preset: Literal["default", "paper"] = Field(
        default="default", description="base settings; `paper` is faithful to the print"
    )
    dir: str | None = Field(
        default=None,
        description="folder or URI, made if absent, a finished run is kept; none: runs/TASK-TIME (of a URI in run.storage)",
    )
    resume: bool = Field(default=False, description="continue the unfinished run in run.dir")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="seed of pretraining and of every member's stream"
    )
    storage: str = Field(
        default="runs/shared",
        description="folder or URI (s3://…) of stores and pretrained weights, shared by all runs",
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="Weights & Biases; auto: online when logged in, else offline"
    )

    @property
    def storage_folder(self) -> Path:
        return storage_path(self.storage).absolute()


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

    def dataset_of(self, task: str) -> str | None:
        """The dataset file that the user named for a task, if any."""
        if not isinstance(self.dataset, dict):
            return self.dataset
        return {canonical_name(name): file for name, file in self.dataset.items()}.get(task)


class PretrainConfig(Section):
    steps: PositiveInt = Field(default=20000, description="steps of each phase: diffusion, policy, critics")
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
    positive_cost: bool = Field(default=True, description="a softplus ends the cost critics: no cost-to-go is negative (D20)")
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
        default_factory=lambda values: values["steps"] // 5,
        description="first critic steps that regress on Monte-Carlo returns; by default a fifth of the steps (D4)",
    )
    alpha: NonNegative = Field(default=0.0, description="pessimism of the cost critics while pretraining (Eq. 19, D5)")
    policy: Literal["regression", "score"] = Field(
        default="regression", description="pretrain the policy by regression on the data (D6) or through the diffusion's score"
    )
    condition_dropout: Fraction = Field(
        default=0.3, description="chance that a (cost rate, reward rate) label is hidden; 1: a plain behaviour model (D7)"
    )

    def cost_critics_for(self, asked: int | None) -> int:
        """Cost critics of a member with `asked` as its cost_ensemble; UserError where fewer are pretrained."""
        if asked is not None and asked > self.cost_ensemble:
            raise UserError(
                f"member.cost_ensemble={asked}: pretrain.cost_ensemble={self.cost_ensemble} cost critics are pretrained; "
                "ask for fewer, or pretrain more"
            )
        return asked or self.cost_ensemble


class ExtractConfig(Section):
    steps: PositiveInt = Field(default=600, description="policy steps; few, so that the critics know the policy (D21)")
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
    estimate_states: Literal["nearest", "all"] = Field(
        default="nearest",
        description="states on which the cost is estimated: where the data acts like the policy, or all (D15)",
    )
    estimate_interval: PositiveInt = Field(
        default=50, description="policy steps after which those states are chosen anew, as the policy has moved (D15)"
    )
    estimate_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.98, description="decay of the running average of the cost estimate (D16)"
    )
    update_diffusion: bool = Field(default=False, description="go on training the diffusion during extraction (D17)")


class MemberConfig(Section):
    cost_limit: NonNegative = Field(default=10.0, description="l, limit on the undiscounted episode cost")
    k: float = Field(default=3.0, description="standard deviations of the cost UCB (Eq. 24, D23)")
    cost_ensemble: PositiveInt | None = Field(
        default=None, description="E of this member: it uses the first E cost critics; none: all that are pretrained"
    )
    beta_schedule: Literal["constant", "sqrt", "linear"] = Field(default="constant", description="β over epochs t")
    beta_0: NonNegative = Field(default=0.04, description="constant: β; sqrt: √(β₀ + β₁t); linear: β₀ + β₁t")
    beta_1: NonNegative = Field(default=0.0, description="growth of β per epoch")
    alpha: NonNegative = Field(default=0.0, description="pessimism of the cost critics during extraction (Eq. 19, D5)")
    slack_plus: NonNegative = Field(default=0.2, description="h⁺, upper slack on the normalised cost (h of CRPO)")
    slack_minus: Fraction = Field(default=0.5, description="h⁻, lower slack on the normalised cost (D22)")
    slack_shrink: Fraction = Field(default=0.5, description="share of the slack that is gone at the last step, linearly (D22)")
    adaptation: Literal["gradient_manipulation", "crpo", "lagrangian"] = Field(
        default="gradient_manipulation", description="Algorithm 3, Algorithm 2, or Eq. 22 with a PID multiplier"
    )
    pid_proportional: NonNegative = Field(default=0.1, description="K_P of the multiplier")
    pid_integral: NonNegative = Field(default=0.003, description="K_I of the multiplier")
    pid_derivative: NonNegative = Field(default=0.001, description="K_D of the multiplier")
    actor_learning_rate: NonNegative = Field(default=2e-4, description="Adam learning rate of the policy (D21)")
    critic_learning_rate: NonNegative = Field(default=6e-4, description="Adam learning rate of the critics")
    policy_class: Literal["dirac", "gaussian", "gaussian_constant"] = Field(
        default="dirac", description="policy class (App. D.1)"
    )
    behaviour_reward_quantile: Fraction | None = Field(
        default=0.75,
        description="reward rate asked of the behaviour model, a quantile over the best episodes within the limit; none: not "
        "conditioned (D7)",
    )
    evaluation_mode: EvaluationMode | None = Field(
        default=None, description="where this member's cost estimate comes from; none: evaluation.mode"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(default=None, description="seed of this member; none: run.seed")


class EvaluationConfig(Section):
    mode: EvaluationMode = Field(
        default="offline",
        description="where training's cost estimate comes from: the critics, rollouts, or rollouts that are learnt from too",
    )
    online_episodes: PositiveInt = Field(default=2, description="episodes a member spends on one online evaluation")
    online_interval: PositiveInt = Field(default=6, description="policy steps between two online evaluations")
    online_staleness: Annotated[int, Field(ge=0)] = Field(
        default=0, description="steps that learning goes on between an online evaluation's begin and its use; 0: it waits"
    )
    online_budget: Annotated[int, Field(ge=0)] = Field(
        default=250, description="episodes a member may spend in training, repeated ones too; then its estimate is offline"
    )
    hybrid_episodes: PositiveInt = Field(
        default=1, description="hybrid: episodes of an online evaluation whose transitions are appended to the member's replay"
    )
    hybrid_transitions: Annotated[int, Field(ge=0)] = Field(
        default=10000, description="hybrid: transitions a member may append in all, spread over its training"
    )
    hybrid_share: Fraction = Field(
        default=0.25, description="hybrid: share of a member's minibatch that its appended transitions take"
    )
    episodes: PositiveInt = Field(default=20, description="fresh episodes per policy of the final evaluation")
    curve_points: Annotated[int, Field(ge=0)] = Field(
        default=5, description="policies along the training that are rolled out for the curves"
    )
    curve_episodes: PositiveInt = Field(default=5, description="episodes per point of the curves")
    actors: PositiveInt = Field(default=2, description="parallel rollout actors")
    baselines: list[BaselineName] = Field(
        default=["bc", "bc_safe"], description="algorithms trained beside the run's own, by the `baseline` section"
    )
    protocol: Literal["own", "dsrl"] = Field(
        default="own", description="launch/evaluate.py: each policy alone, or DSRL's 3 limits x 3 seeds x 20 episodes"
    )
    output: str | None = Field(default=None, description="launch/evaluate.py: folder of evaluation.json and of videos")
    video: bool = Field(default=False, description="launch/evaluate.py: a GIF of one episode of each policy")

    @model_validator(mode="after")
    def _parts_fit(self) -> EvaluationConfig:
        if self.online_staleness > self.online_interval:
            raise ValueError(
                f"online_staleness {self.online_staleness} is above online_interval {self.online_interval}: "
                "an evaluation must arrive before the next one does"
            )
        if self.mode != "offline" and self.online_budget < self.online_episodes:
            raise ValueError(f"mode={self.mode}: online_budget {self.online_budget} does not pay for one evaluation")
        if self.mode == "hybrid" and not (self.hybrid_transitions and self.hybrid_share):
            raise ValueError("mode=hybrid appends nothing with hybrid_transitions=0 or hybrid_share=0; use mode=online")
        if self.hybrid_episodes > self.online_episodes:
            raise ValueError(f"hybrid_episodes {self.hybrid_episodes} is above online_episodes {self.online_episodes}")
        return self


class ScalingConfig(Section):
    workers: PositiveInt = Field(default=1, description="data-parallel workers of Ray Train")
    use_gpu: bool = Field(default=False, description="one GPU per worker, and a share of one per pack")
    cpus_per_worker: Positive = Field(default=1.0, description="CPUs of a worker or pack; also its torch threads")
    gpus_per_pack: Positive = Field(default=1.0, description="share of a GPU that a pack owns when scaling.use_gpu is on")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="of matrix products while training; tf32 is for GPUs alone"
    )
    fused: bool = Field(
        default=False, description="compile each step into few kernels: a minute before the first step, quicker ones after"
    )
    report_steps: PositiveInt = Field(default=100, description="steps between two reports, each with a checkpoint")
    cpus_per_actor: NonNegative = Field(
        default=0.0, description="CPUs that a rollout actor books; 0 fits any machine, a cluster grows by more than 0 alone"
    )
    worker_resource: str | None = Field(
        default=None, description="custom Ray resource of the nodes on which workers and packs run; none: any node"
    )
    actor_resource: str | None = Field(
        default=None, description="custom Ray resource of the nodes on which rollout actors run; none: any node"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, description="restarts of a failed worker or pack")

    @property
    def worker_resources(self) -> dict[str, float]:
        """The custom resources that a worker or pack books: so little that any number of them fits on a node."""
        return {self.worker_resource: 0.001} if self.worker_resource else {}

    @property
    def actor_resources(self) -> dict[str, float]:
        """The custom resources that a rollout actor books."""
        return {self.actor_resource: 0.001} if self.actor_resource else {}
