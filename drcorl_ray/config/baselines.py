"""Settings of the baselines: those that several of them share, and those of one algorithm (docs/baselines.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from drcorl_ray.config.base import Fraction, Positive, Section, Widths


class SharedSettings(Section):
    """Settings that all baselines have or several of them use."""

    steps: PositiveInt | None = Field(
        default=None,
        description="training steps; none: the algorithm's default (100,000; BEAR-Lag: 300,000; the clones: pretrain.steps)",
    )
    batch_size: PositiveInt | None = Field(
        default=None,
        description="rows of a global minibatch; none: the algorithm's default (512; CDT: 2,048; the clones: "
        "pretrain.batch_size)",
    )
    learning_rate: Positive | None = Field(
        default=None,
        description="Adam's learning rate; none: the algorithm's default (1e-3; COptiDICE and CDT: 1e-4; the clones: "
        "pretrain.learning_rate)",
    )
    hidden: Widths = Field(default=[256, 256], description="widths of the hidden layers of policies and critics")
    vae_hidden: PositiveInt = Field(
        default=400, description="width of the two hidden layers of the behaviour's VAE (BCQ-Lag, BEAR-Lag, CPQ)"
    )
    vae_divergence: Annotated[float, Field(ge=0.0)] = Field(
        default=0.5, description="weight of the KL divergence in the VAE's loss"
    )
    discount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.99, description="γ, discount factor of rewards and costs"
    )
    target_step: Fraction = Field(default=0.005, description="Polyak step size of the target networks")
    sampled_actions: PositiveInt = Field(default=10, description="actions sampled per state (BCQ-Lag, BEAR-Lag, CPQ)")
    clip_weight: Fraction = Field(
        default=0.75, description="weight of the smaller of the two target Qs; the larger has the rest (BCQ-Lag, BEAR-Lag)"
    )


class BCQLagSettings(Section):
    perturbation: Fraction = Field(default=0.05, description="Φ, the largest change that is made to a decoded action")


class BEARLagSettings(Section):
    mmd_limit: Positive = Field(default=0.05, description="ε, limit on the maximum mean discrepancy (MMD) to the behaviour")
    mmd_sigma: Positive = Field(default=50.0, description="σ of the MMD's Gaussian kernel exp(−d²/(2σ))")


class CPQSettings(Section):
    ood_scale: Positive = Field(
        default=1.5,
        description="cost-to-go to which out-of-distribution actions are raised, as a multiple of the cost limit's",
    )


class COptiDICESettings(Section):
    alpha: Positive = Field(default=0.5, description="α, weight of the divergence from the data's distribution")
    cost_bound: Positive = Field(default=0.01, description="ε, KL radius of the upper bound on the cost")


class CDTSettings(Section):
    target_return: Fraction = Field(
        default=1.0,
        description="target return: 0 is the lowest and 1 the highest return of the data's episodes within the cost limit",
    )
    context: PositiveInt = Field(default=10, description="number of recent steps that the transformer attends to")
    embedding: PositiveInt = Field(default=128, description="width of the transformer's tokens")
    blocks: PositiveInt = Field(default=3, description="number of transformer blocks")
    heads: PositiveInt = Field(default=8, description="attention heads per block; must divide `embedding`")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.1, description="dropout rate of tokens and blocks")
    augmented: Fraction = Field(
        default=0.2, description="share of training windows whose target return is above the data's best at the target cost"
    )
    warm_up: PositiveInt = Field(default=500, description="training steps over which the learning rate rises to its value")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> CDTSettings:
        if self.embedding % self.heads:
            raise ValueError(f"embedding {self.embedding} is not divisible by heads {self.heads}")
        return self
