"""Settings of the baselines, the algorithms beside DRCORL: the shared ones, and each one's own (docs/baselines.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from drcorl_ray.config.base import Fraction, Positive, Section, Widths


class SharedSettings(Section):
    """What all baselines have, or several of them use."""

    steps: PositiveInt | None = Field(
        default=None,
        description="training steps; none: the algorithm's own (100,000; BEAR-Lag 300,000; cloning pretrain.steps)",
    )
    batch_size: PositiveInt | None = Field(
        default=None, description="global minibatch size; none: the algorithm's own (512; CDT 2,048; cloning pretrain's)"
    )
    learning_rate: Positive | None = Field(
        default=None,
        description="Adam learning rate; none: the algorithm's own (1e-3; COptiDICE, CDT 1e-4; cloning pretrain's)",
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


class BCQLagSettings(Section):
    perturbation: Fraction = Field(default=0.05, description="Φ, the largest change of a decoded action")


class BEARLagSettings(Section):
    mmd_limit: Positive = Field(default=0.05, description="ε, limit on the MMD to the behaviour")
    mmd_sigma: Positive = Field(default=50.0, description="σ of the MMD's Gaussian kernel exp(−d²/2σ)")


class CPQSettings(Section):
    ood_scale: Positive = Field(
        default=1.5, description="cost-to-go that out-of-distribution actions are pushed to, as a multiple of the limit's"
    )


class COptiDICESettings(Section):
    alpha: Positive = Field(default=0.5, description="α, weight of the divergence from the data")
    cost_bound: Positive = Field(default=0.01, description="ε, KL radius of the upper bound on the cost")


class CDTSettings(Section):
    target_return: Fraction = Field(
        default=1.0, description="target return, 1: that of the data's best episode within the limit, 0: of its worst"
    )
    context: PositiveInt = Field(default=10, description="steps of history that the transformer attends to")
    embedding: PositiveInt = Field(default=128, description="width of its tokens")
    blocks: PositiveInt = Field(default=3, description="transformer blocks")
    heads: PositiveInt = Field(default=8, description="attention heads of a block")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.1, description="dropout of tokens and blocks")
    augmented: Fraction = Field(
        default=0.2, description="share of windows whose targets are above what the data reached within a limit"
    )
    warm_up: PositiveInt = Field(default=500, description="steps over which the learning rate rises")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> CDTSettings:
        if self.embedding % self.heads:
            raise ValueError(f"embedding {self.embedding} is not divisible by heads {self.heads}")
        return self
