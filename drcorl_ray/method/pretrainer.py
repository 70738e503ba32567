"""Pretraining (Algorithm 1, lines 2-5): the behaviour model, the clone, the critics. Independent of k, β, h and l.

Three phases of equal length, in the paper's order. Each seed is a member of the population.

Shapes: P members (one per seed), E cost critics, B rows of a minibatch, A action, N weights of one network; `copies` is 2 for
the twin reward critics and E for the cost critics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method import critics
from drcorl_ray.method.actor import Actor, regression_loss
from drcorl_ray.method.architectures import Architectures
from drcorl_ray.method.behaviour_model import behaviour_directions, noise_loss, row_conditions
from drcorl_ray.method.interfaces import Metrics, Sampler
from drcorl_ray.method.networks import MLP, NoiseNetwork
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.schedules import cosine
from drcorl_ray.method.train_state import TrainState, flat_gradients, named_state

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import PretrainConfig

PHASES = ("diffusion", "policy", "critics")


class Pretrainer:
    """P pretrainings side by side.

    A step is a function of the state, the minibatch and the step's random numbers; it uses no generator and never waits for
    the host.
    """

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
        architectures = Architectures.from_config(spec, config)

        def train_state(
            network: NoiseNetwork | Actor | MLP, number: int, copies: int = 1, tracked: bool = False
        ) -> TrainState:
            return TrainState(
                network, network.layout.initialise(self.seeds, number, copies, dtype), copies=copies, tracked=tracked
            )

        self.networks = {
            "noise": train_state(architectures.noise, 0),
            "actor": train_state(architectures.conditioned_actor, 1),
            "value": train_state(architectures.value, 2),
            "q_reward": train_state(architectures.reward_critic, 3, copies=2, tracked=True),
            "q_cost": train_state(architectures.cost_critic, 4, copies=config.cost_ensemble, tracked=True),
        }

    @property
    def total_steps(self) -> int:
        return len(PHASES) * self.config.steps

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.seeds, step, self.first_row)

    def sampler(self, replay: Replay) -> Sampler:
        return replay.sample

    def step_kind(self, step: int) -> str:
        """Return the step's phase; the critics' phase begins with "returns" (D4), before "critics" (Eq. 17-19)."""
        phase, phase_step = divmod(step, self.config.steps)
        returns = PHASES[phase] == "critics" and phase_step < self.config.monte_carlo_steps
        return "returns" if returns else PHASES[phase]

    def prepare(self, step: int) -> None:
        """No host-side work is needed between steps."""

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """Return the gradients [P · copies, N] of the networks that the phase trains, and metrics [P]; change nothing."""
        if step_kind in ("diffusion", "policy"):
            conditions = row_conditions(batch, self.spec, draws, self.config.condition_dropout)
            compute_loss = self._diffusion_loss if step_kind == "diffusion" else self._policy_loss
            loss, metrics = compute_loss(batch, draws, conditions)
        else:
            loss, metrics = self._critics_loss(batch, draws, returns=step_kind == "returns")
        return flat_gradients(loss.sum(), self._trained(step_kind)), metrics

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Descend along the averaged gradients. step: scalar, on the device."""
        progress = (step % self.config.steps).double() / self.config.steps
        rate = self.config.learning_rate * cosine(progress, self.config.final_learning_rate)
        weight_decay = self.config.noise_weight_decay if step_kind == "diffusion" else 0.0
        for network, gradient in zip(self._trained(step_kind), means, strict=True):
            network.descend(gradient, rate, weight_decay)
            if network.target_flat is not None:
                network.track(self.config.target_step)
        return {}

    def _trained(self, step_kind: str) -> list[TrainState]:
        names = {"diffusion": ["noise"], "policy": ["actor"]}.get(step_kind, ["value", "q_reward", "q_cost"])
        return [self.networks[name] for name in names]

    def _diffusion_loss(self, batch: Batch, draws: Draws, conditions: Tensor) -> tuple[Tensor, Metrics]:
        loss = noise_loss(self.networks["noise"], batch, conditions, draws, self.config.noise_dropout)
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
        """Return a loss [P] whose gradient is minus the ascent direction of log μ: cloning by the score, Eq. 8 with Q ≡ 0."""
        noise, std = self.networks["noise"], log_std.exp()
        by_mean, by_std = behaviour_directions(noise.network, noise.weights, conditions, batch.observations, mean, std, draws)
        return -(mean * by_mean + std * by_std).sum(-1).mean(-1)

    def _critics_loss(self, batch: Batch, draws: Draws, *, returns: bool) -> tuple[Tensor, Metrics]:
        config = self.config
        value, q_reward, q_cost = (self.networks[name] for name in ("value", "q_reward", "q_cost"))
        with torch.no_grad():
            target_q = critics.ensemble_q(q_reward, q_reward.target, batch.observations, batch.actions)
            reward_target, cost_target = self._returns(batch) if returns else self._critic_targets(batch, draws)

        # Value.
        v = value.network(value.weights, batch.observations).squeeze(-1)
        loss_v = critics.value_loss(target_q, v, expectile=config.expectile)

        # Reward critics.
        q_r = critics.ensemble_q(q_reward, q_reward.weights, batch.observations, batch.actions)
        loss_r = critics.q_loss(q_r, reward_target)

        # Cost critics.
        q_c = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, batch.actions)
        loss_c = critics.q_loss(q_c, cost_target)
        loss = loss_v + loss_r + loss_c
        if config.alpha:
            with torch.no_grad():
                policy_actions = self._act(batch.observations, self._full_conditions(batch, draws))[0]
            q_c_policy = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, policy_actions)
            loss = loss + critics.pessimism(q_c_policy, alpha=config.alpha)
        return loss, {
            "critic/value_loss": loss_v.detach(),
            "critic/reward_loss": loss_r.detach(),
            "critic/cost_loss": loss_c.detach(),
            "critic/q_reward": q_r.detach().mean((1, 2)),
            "critic/q_cost": q_c.detach().mean((1, 2)),
        }

    def _returns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the discounted sums at the rows' observed rates, as targets [P, 1, B] of both critics (D4)."""
        config = self.config
        reward_return = batch.reward_rates * (self.spec.reward_scale / (1.0 - config.discount))
        cost_return = batch.cost_rates / (1.0 - config.cost_discount)
        return reward_return.unsqueeze(1), cost_return.unsqueeze(1)

    def _critic_targets(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the targets of Eq. 18 [P, 1, B] and of Eq. 19 [P, E, B], with a' from the clone."""
        config = self.config
        value, q_cost = self.networks["value"], self.networks["q_cost"]
        next_value = value.network(value.weights, batch.next_observations).squeeze(-1)
        next_actions = self._act(batch.next_observations, self._full_conditions(batch, draws))[0]
        next_q = critics.ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions)
        return (
            critics.reward_target(
                batch.rewards * self.spec.reward_scale, batch.terminals, next_value, discount=config.discount
            ),
            critics.cost_target(
                batch.costs, batch.terminals, next_q, discount=config.cost_discount, ceiling=None, terminal_value=0.0
            ),
        )

    def _full_conditions(self, batch: Batch, draws: Draws) -> Tensor:
        """Return the rows' labels [P, B, 4] without dropout, with which the clone acts as the rows' episodes did.

        A behaviour model without conditions (`condition_dropout` = 1) gets hidden labels.
        """
        return row_conditions(batch, self.spec, draws, float(self.config.condition_dropout == 1.0))

    def _act(self, observations: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        actor = self.networks["actor"]
        return actor.network(actor.weights, torch.cat([observations, conditions], dim=-1))

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed pretraining needs."""
        return named_state(self.networks)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, network in self.networks.items():
            network.load({key: state[f"{name}.{key}"] for key in network.state()})

    def result(self) -> dict[str, Tensor]:
        """Return the pretrained weights: weights and targets [P · copies, N] by name, without optimiser state."""
        kept = ("flat", "target")
        return {key: x.clone() for key, x in self.state_dict().items() if key.rsplit(".", 1)[1] in kept}
