"""Pretraining (Algorithm 1, lines 2-5): the behaviour diffusion, the cloned policy, the critics. Independent of k, β, h and l.

Three phases of equal length, in the printed order. Each of the S seeds is a member of the population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method import critics, diffusion
from drcorl_ray.method.actor import Actor, regression_loss
from drcorl_ray.method.networks import MLP, NoiseNetwork, Weights
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.schedules import cosine
from drcorl_ray.method.train_state import Trainable, flat_gradients

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import PretrainConfig

CONDITIONS = 4
PHASES = ("diffusion", "policy", "critics")

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Architectures:
    """The networks of one task and pretraining configuration."""

    noise: NoiseNetwork
    conditioned_actor: Actor
    actor: Actor
    reward_critic: MLP
    cost_critic: MLP
    value: MLP

    @classmethod
    def from_config(cls, spec: DataSpec, config: PretrainConfig) -> Architectures:
        s, a, hidden = spec.observation_size, spec.action_size, tuple(config.critic_hidden)
        return cls(
            NoiseNetwork(s, a, CONDITIONS, config.noise_width, config.noise_blocks, config.noise_expansion),
            Actor(s + CONDITIONS, tuple(config.actor_hidden), a),
            Actor(s, tuple(config.actor_hidden), a),
            MLP(s + a, hidden, 1, config.critic_layer_norm),
            MLP(s + a, hidden, 1, config.critic_layer_norm, positive=config.positive_cost),
            MLP(s, hidden, 1, config.critic_layer_norm),
        )


def ensemble_q(critic: Trainable, weights: Weights, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_i(s, a) of every critic of every member, [P, E, B], for s [P, B, S] and a [P, B, A]."""
    inputs = torch.cat([observations, actions], dim=-1)
    inputs = inputs.unsqueeze(1).expand(-1, critic.copies, -1, -1).flatten(0, 1)
    return critic.network(weights, inputs).squeeze(-1).unflatten(0, (-1, critic.copies))


def row_conditions(batch: Batch, spec: DataSpec, draws: Draws, dropout: float) -> Tensor:
    """Labels [P, B, 4] of the rows for the behaviour model, each of the two rates hidden with chance `dropout` (D7)."""
    rows, dtype = batch.rewards.shape[1], batch.rewards.dtype
    shown = draws.keep(Stream.CONDITION_DROPOUT, 1.0 - dropout, rows, 2).to(dtype)
    reward = (batch.reward_rates - spec.reward_rate_mean) / spec.reward_rate_std
    labels = torch.stack([batch.cost_rates.sqrt(), reward], dim=-1) * shown
    return torch.stack([shown[..., 0], labels[..., 0], shown[..., 1], labels[..., 1]], dim=-1)


def noise_loss(noise: Trainable, batch: Batch, conditions: Tensor, draws: Draws, dropout: float) -> Tensor:
    """Eq. 5 on a minibatch, [P]."""
    network = noise.network
    assert isinstance(network, NoiseNetwork)
    (rows, actions), dtype = batch.actions.shape[1:], batch.actions.dtype
    times = diffusion.spread(draws.uniform(Stream.DIFFUSION_TIME, rows, dtype=dtype), diffusion.TRAINING_TIMES)
    z = draws.normal(Stream.DIFFUSION_NOISE, rows, actions, dtype=dtype)
    noisy = diffusion.perturb(batch.actions, z, times)
    masks = network.dropout_masks(draws, rows, dropout, dtype)
    return diffusion.diffusion_loss(network(noise.weights, noisy, times, batch.observations, conditions, masks), z)


class Pretrainer:
    """S pretrainings side by side. A step is pure in (state, batch, draws): no generator, no host synchronisation."""

    def __init__(
        self,
        spec: DataSpec,
        config: PretrainConfig,
        seeds: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        first_row: int = 0,
    ) -> None:
        self.spec, self.config, self.first_row = spec, config, first_row
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64, device=device)
        nets = Architectures.from_config(spec, config)

        def trainable(network: NoiseNetwork | Actor | MLP, number: int, copies: int = 1, tracked: bool = False) -> Trainable:
            return Trainable(
                network, network.layout.initialise(self.seeds, number, copies, dtype), copies=copies, tracked=tracked
            )

        self.trainables = {
            "noise": trainable(nets.noise, 0),
            "actor": trainable(nets.conditioned_actor, 1),
            "value": trainable(nets.value, 2),
            "q_reward": trainable(nets.reward_critic, 3, copies=2, tracked=True),
            "q_cost": trainable(nets.cost_critic, 4, copies=config.cost_ensemble, tracked=True),
        }

    @property
    def total_steps(self) -> int:
        return len(PHASES) * self.config.steps

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.seeds, step, self.first_row)

    def program(self, step: int) -> str:
        """What a step does: the phase, whose last has "returns" (D4) before the "critics" of Eq. 17-19."""
        phase, phase_step = divmod(step, self.config.steps)
        returns = PHASES[phase] == "critics" and phase_step < self.config.monte_carlo_steps
        return "returns" if returns else PHASES[phase]

    def prepare(self, step: int) -> None:
        """Nothing is due between steps."""

    def gradients(self, program: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """Gradients [S · copies, N] of what the phase trains, and metrics [S]; changes nothing."""
        if program in ("diffusion", "policy"):
            conditions = row_conditions(batch, self.spec, draws, self.config.condition_dropout)
            loss_of = self._diffusion_loss if program == "diffusion" else self._policy_loss
            loss, metrics = loss_of(batch, draws, conditions)
        else:
            loss, metrics = self._critics_loss(batch, draws, returns=program == "returns")
        return flat_gradients(loss.sum(), self._trained(program)), metrics

    def update(self, program: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Descend along the averaged gradients. step: scalar, on the device."""
        progress = (step % self.config.steps).double() / self.config.steps
        rate = self.config.learning_rate * cosine(progress, self.config.final_learning_rate)
        weight_decay = self.config.noise_weight_decay if program == "diffusion" else 0.0
        for part, gradient in zip(self._trained(program), means, strict=True):
            part.descend(gradient, rate, weight_decay)
            if part.target_flat is not None:
                part.track(self.config.target_step)
        return {}

    def _trained(self, program: str) -> list[Trainable]:
        names = {"diffusion": ["noise"], "policy": ["actor"]}.get(program, ["value", "q_reward", "q_cost"])
        return [self.trainables[name] for name in names]

    def _diffusion_loss(self, batch: Batch, draws: Draws, conditions: Tensor) -> tuple[Tensor, Metrics]:
        loss = noise_loss(self.trainables["noise"], batch, conditions, draws, self.config.noise_dropout)
        return loss, {"pretrain/diffusion_loss": loss.detach()}

    def _policy_loss(self, batch: Batch, draws: Draws, conditions: Tensor) -> tuple[Tensor, Metrics]:
        mean, log_std = self._act(batch.observations, conditions)
        if self.config.policy == "regression":
            loss = regression_loss(mean, log_std, batch.actions)
        else:
            loss = self._score_loss(mean, log_std, batch, draws, conditions)
        error = (mean - batch.actions).square().sum(-1).mean(-1)
        return loss, {"pretrain/policy_error": error.detach()}

    def _score_loss(self, mean: Tensor, log_std: Tensor, batch: Batch, draws: Draws, conditions: Tensor) -> Tensor:
        """A loss whose gradient is minus the behaviour's ascent direction: cloning through the score, Eq. 8 with Q ≡ 0."""
        (rows, size), dtype = mean.shape[1:], mean.dtype
        times = diffusion.spread(draws.uniform(Stream.REGULARISER_TIME, rows, dtype=dtype), diffusion.REGULARISER_TIMES)
        z = draws.normal(Stream.REGULARISER_NOISE, rows, size, dtype=dtype)
        noise = self.trainables["noise"]
        std = log_std.exp()
        for_mean, for_std = diffusion.behaviour_direction(
            lambda noisy, t: noise.network(noise.weights, noisy, t, batch.observations, conditions), mean, std, times, z
        )
        return -(mean * for_mean + std * for_std).sum(-1).mean(-1)

    def _critics_loss(self, batch: Batch, draws: Draws, *, returns: bool) -> tuple[Tensor, Metrics]:
        config = self.config
        value, q_reward, q_cost = (self.trainables[name] for name in ("value", "q_reward", "q_cost"))
        with torch.no_grad():
            target_q = ensemble_q(q_reward, q_reward.target, batch.observations, batch.actions)
            reward_target, cost_target = self._returns(batch) if returns else self._critic_targets(batch, draws)
        v = value.network(value.weights, batch.observations).squeeze(-1)
        q_r = ensemble_q(q_reward, q_reward.weights, batch.observations, batch.actions)
        q_c = ensemble_q(q_cost, q_cost.weights, batch.observations, batch.actions)
        loss_v = critics.value_loss(target_q, v, expectile=config.expectile)
        loss_r, loss_c = critics.q_loss(q_r, reward_target), critics.q_loss(q_c, cost_target)
        loss = loss_v + loss_r + loss_c
        if config.alpha:
            with torch.no_grad():
                on_policy = self._act(batch.observations, self._own_conditions(batch, draws))[0]
            q_on_policy = ensemble_q(q_cost, q_cost.weights, batch.observations, on_policy)
            loss = loss + critics.pessimism(q_on_policy, alpha=config.alpha)
        return loss, {
            "critic/value_loss": loss_v.detach(),
            "critic/reward_loss": loss_r.detach(),
            "critic/cost_loss": loss_c.detach(),
            "critic/q_reward": q_r.detach().mean((1, 2)),
            "critic/q_cost": q_c.detach().mean((1, 2)),
        }

    def _returns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Monte-Carlo returns (D4)."""
        config = self.config
        reward_return = batch.reward_rates * (self.spec.reward_scale / (1.0 - config.discount))
        cost_return = batch.cost_rates / (1.0 - config.cost_discount)
        return reward_return.unsqueeze(1), cost_return.unsqueeze(1)

    def _critic_targets(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Eq. 18 and Eq. 19 with a' from the cloned policy."""
        config = self.config
        value, q_cost = self.trainables["value"], self.trainables["q_cost"]
        next_value = value.network(value.weights, batch.next_observations).squeeze(-1)
        next_actions = self._act(batch.next_observations, self._own_conditions(batch, draws))[0]
        next_q = ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions)
        return (
            critics.reward_target(
                batch.rewards * self.spec.reward_scale, batch.terminals, next_value, discount=config.discount
            ),
            critics.cost_target(
                batch.costs, batch.terminals, next_q, discount=config.cost_discount, ceiling=None, terminal_value=0.0
            ),
        )

    def _own_conditions(self, batch: Batch, draws: Draws) -> Tensor:
        """Each row's labels in full (all hidden for a plain behaviour model): the clone acts as the row's episode did."""
        return row_conditions(batch, self.spec, draws, float(self.config.condition_dropout == 1.0))

    def _act(self, observations: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        actor = self.trainables["actor"]
        return actor.network(actor.weights, torch.cat([observations, conditions], dim=-1))

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor a resumed pretraining needs."""
        return {f"{name}.{key}": x for name, part in self.trainables.items() for key, x in part.state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, part in self.trainables.items():
            part.load({key: state[f"{name}.{key}"] for key in part.state()})

    def result(self) -> dict[str, Tensor]:
        """What extraction starts from: weights and targets [S · copies, N] by name, without optimiser state."""
        wanted = ("flat", "target")
        return {key: x.clone() for key, x in self.state_dict().items() if key.rsplit(".", 1)[1] in wanted}
