"""The section of the baselines: algorithms beside DRCORL, trained as populations by the same machinery (docs/baselines.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, model_validator

from drcorl_ray.config.base import Fraction, Section, Widths

Baseline = Literal["bc", "bc_safe", "bc_reward", "bc_frontier", "bcq_lag", "bear_lag", "cpq", "coptidice", "cdt"]
Algorithm = Literal["drcorl"] | Baseline
BASELINES: tuple[str, ...] = get_args(Baseline)
CLONES = ("bc", "bc_safe", "bc_reward", "bc_frontier")
LIMITLESS = ("bc", "bc_reward", "bc_frontier", "cdt")  # whose weights know no cost limit

_OWN: dict[str, dict[str, Any]] = {  # where it is not 100,000 steps, 512 rows, 1e-3
    "bear_lag": {"steps": 300_000},
    "coptidice": {"learning_rate": 1e-4},
    "cdt": {"batch_size": 2048, "learning_rate": 1e-4},
}


class BaselineConfig(Section):
    steps: PositiveInt | None = Field(
        default=None,
        description="steps; none: the algorithm's own (100,000; BEAR-Lag 300,000; cloning pretrain.steps)",
    )
    batch_size: PositiveInt | None = Field(
        default=None, description="global minibatch size; none: the algorithm's own (512; CDT 2,048; cloning pretrain's)"
    )
    hidden: Widths = Field(default=[256, 256], description="hidden layers of policies and critics")
    vae_hidden: PositiveInt = Field(default=400, description="width of the two hidden layers of the behaviour's VAE")
    vae_divergence: Annotated[float, Field(ge=0.0)] = Field(default=0.5, description="weight of the VAE's KL divergence")
    discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.99, description="γ of rewards and costs")
    target_step: Fraction = Field(default=0.005, description="Polyak step of the targets")
    sampled_actions: PositiveInt = Field(default=10, description="actions drawn per state (BCQ-Lag, BEAR-Lag, CPQ)")
    clip_weight: Fraction = Field(
        default=0.75, description="weight of the smaller of two target Qs, the rest on the larger (BCQ-Lag, BEAR-Lag)"
    )
    context: PositiveInt = Field(default=10, description="CDT: steps of history it attends to")
    embedding: PositiveInt = Field(default=128, description="CDT: width of its tokens")
    blocks: PositiveInt = Field(default=3, description="CDT: transformer blocks")
    heads: PositiveInt = Field(default=8, description="CDT: attention heads of a block")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.1, description="CDT: dropout of tokens and blocks")
    augmented: Fraction = Field(
        default=0.2, description="CDT: share of windows that are asked for more than the data has within a limit"
    )
    warm_up: PositiveInt = Field(default=500, description="CDT: steps over which the learning rate rises")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> BaselineConfig:
        if self.embedding % self.heads:
            raise ValueError(f"embedding {self.embedding} is not divisible by heads {self.heads}")
        return self

    def steps_of(self, algorithm: str) -> int:
        return self.steps or _OWN.get(algorithm, {}).get("steps", 100_000)

    def batch_size_of(self, algorithm: str) -> int:
        return self.batch_size or _OWN.get(algorithm, {}).get("batch_size", 512)

    @staticmethod
    def learning_rate_of(algorithm: str) -> float:
        return _OWN.get(algorithm, {}).get("learning_rate", 1e-3)
