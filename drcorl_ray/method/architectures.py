"""The networks of DRCORL, and their state at the start of extraction from pretrained weights.

Shapes: P members, N weights of one network, C inputs of the condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method.actor import Actor, fold_condition
from drcorl_ray.method.networks import MLP, NoiseNetwork
from drcorl_ray.method.train_state import TrainState

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import PretrainConfig

CONDITIONS = 4  # C: inputs of the behaviour model that label its cost and reward rates (D7)


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

    def start_extraction(
        self,
        pretrained: Mapping[str, Tensor],
        sources: Tensor,
        conditions: Tensor,
        cost_ensemble: int,
        *,
        update_diffusion: bool,
    ) -> dict[str, TrainState]:
        """Return the members' networks at the start of extraction.

        pretrained: weights and targets of all seeds, [seeds · copies, N] each. sources: index of each member's seed [P].
        conditions: the condition [P, C] to which each member's policy is fixed.
        """

        def weights(name: str, copies: int = 1) -> Tensor:
            return pretrained[name].unflatten(0, (-1, copies))[sources].flatten(0, 1)

        actor = fold_condition(self.conditioned_actor.layout, weights("actor.flat"), self.actor.layout, conditions)
        networks = {"actor": TrainState(self.actor, actor)}
        for name, network, copies in (("q_reward", self.reward_critic, 2), ("q_cost", self.cost_critic, cost_ensemble)):
            critic = TrainState(network, weights(f"{name}.flat", copies), copies=copies, tracked=True)
            critic.load(critic.state() | {"target": weights(f"{name}.target", copies)})
            networks[name] = critic
        if update_diffusion:
            networks["noise"] = TrainState(self.noise, weights("noise.flat"))
        return networks
