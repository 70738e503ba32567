"""The base class of the baselines: a population trained by one algorithm, advanced by `method.runner.Runner`.

An algorithm defines its networks and other state (`_start`), its losses (`losses`) and how it acts (`actions`, `policies`).
As in DRCORL's learner, a step takes all gradients at the same weights and then applies all changes.

Shapes: P members, B rows of a minibatch, S observation, A action, N weights of one network, E critics or episodes, K states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec, EpisodeTotals
from drcorl_ray.method.actor import snapshot
from drcorl_ray.method.baselines.parts import VAE
from drcorl_ray.method.critics import ensemble_q, episodic_cost, q_loss
from drcorl_ray.method.interfaces import Metrics, Sampler
from drcorl_ray.method.networks import MLP
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState, finite_members, flat_gradients, named_state
from drcorl_ray.policy.population import PopulationPolicy

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import BaselineConfig, BaselineMember, PretrainConfig

RETURN_RANGE = 300.0  # the data's return range after scaling; as the common implementation's 0.1 gives on velocity tasks


@dataclass(frozen=True)
class Dataset:
    """The data that a baseline uses besides minibatches.

    starts: the first observation of each of the E episodes [E, S]. states: evenly spaced observations of the dataset [K, S].
    Both are standardised.
    """

    spec: DataSpec
    episodes: EpisodeTotals
    starts: Tensor
    states: Tensor


@dataclass(frozen=True)
class Losses:
    """Result of one forward pass: per-member losses, the statistics that `adjust` needs, and metrics; all [P].

    The losses are summed, so a loss that must not train a network uses that network's `frozen` weights.
    """

    values: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The settings that all members of a population have in common.

    shared: the `baseline` section. own: the algorithm's own section, None if it has none. pretrain: the section whose
    network, steps and rates cloning uses. member_settings: the settings that may differ between members, {name in
    `Baseline.hyper`: attribute of a member}.
    """

    shared: BaselineConfig
    own: Any
    pretrain: PretrainConfig
    total_steps: int
    member_settings: Mapping[str, str]


class Baseline(ABC):
    """P members trained offline by one algorithm (`method.interfaces.Population`).

    hyper: the members' settings, [P] each: cost_limit, learning_rate and those named in `Settings.member_settings`.
    networks: the trained networks by name. scalars: other state by name, [P, …] each. statistic_names: the statistics that
    `losses` returns and `adjust` receives, in their order.
    """

    statistic_names: tuple[str, ...] = ()

    @classmethod
    def can_learn(cls, episodes: EpisodeTotals, cost_limit: float) -> bool:
        """Return whether a dataset with these episodes has rows to learn from at this cost limit."""
        return True

    @classmethod
    def for_limits(
        cls, policies: PopulationPolicy, episodes: EpisodeTotals, members: Sequence[BaselineMember]
    ) -> PopulationPolicy:
        """Return the policies with the members' limits set; for algorithms that receive the limit only when they act."""
        return policies

    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        members: Sequence[BaselineMember],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        first_row: int = 0,
    ) -> None:
        self.shared, self.own, self.pretrain = settings.shared, settings.own, settings.pretrain
        self.total_steps = settings.total_steps
        self.data, self.spec, self.first_row = data, data.spec, first_row
        self.device, self.dtype = torch.device(device), dtype
        self.starts, self.states = (x.to(device, dtype) for x in (data.starts, data.states))
        self.seeds = torch.tensor([member.seed for member in members], device=device)
        names = {"learning_rate": "learning_rate", "cost_limit": "cost_limit", **settings.member_settings}
        self.hyper = {
            name: torch.tensor([getattr(member, key) for member in members], device=device, dtype=dtype)
            for name, key in names.items()
        }
        self.networks: dict[str, TrainState] = {}
        self.scalars: dict[str, Tensor] = {}
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Create `networks` (by `_add`) and `scalars`."""

    @abstractmethod
    def losses(self, batch: Batch, draws: Draws) -> Losses:
        """Return the losses of this minibatch, their statistics and metrics; change nothing."""

    @abstractmethod
    def actions(self, observations: Tensor) -> Tensor:
        """Return the deterministic policies' actions [P, B, A] for standardised observations [P, B, S]."""

    @abstractmethod
    def policies(self) -> PopulationPolicy:
        """Return the deterministic policies as numpy arrays."""

    def adjust(self, statistics: Mapping[str, Tensor]) -> Metrics:
        """Update `scalars` from the means of the statistics [P] over the workers, and return metrics [P]."""
        return {}

    def _add(self, name: str, network: object, copies: int = 1, tracked: bool = False) -> TrainState:
        number = len(self.networks) + 1
        flat = network.layout.initialise(self.seeds, number, copies, self.dtype)  # type: ignore[attr-defined]
        self.networks[name] = TrainState(network, flat, copies=copies, tracked=tracked)
        return self.networks[name]

    def _add_vae_and_critics(self) -> VAE:
        """Add a VAE of the behaviour, and twin critics with targets for the reward and for the cost."""
        spec = self.spec
        vae = VAE(spec.observation_size, spec.action_size, self.shared.vae_hidden)
        self._add("encoder", vae.encoder)
        self._add("decoder", vae.decoder)
        for name in ("q_reward", "q_cost"):
            critic = MLP(spec.observation_size + spec.action_size, tuple(self.shared.hidden), 1)
            self._add(name, critic, copies=2, tracked=True)
        return vae

    def critic_losses(self, batch: Batch, reward_target: Tensor, cost_target: Tensor) -> dict[str, Tensor]:
        """Return the losses [P] of the twin critics on the data's actions, for targets [P, B] of reward and cost."""
        losses = {}
        for name, target in (("q_reward", reward_target), ("q_cost", cost_target)):
            critic = self.networks[name]
            losses[name] = q_loss(ensemble_q(critic, critic.weights, batch.observations, batch.actions), target.unsqueeze(1))
        return losses

    def snapshot(self, name: str) -> PopulationPolicy:
        """Return the policies of an actor network whose first A outputs are the means before the tanh."""
        actor = self.networks[name]
        return snapshot(actor.network, actor.weights, self.spec.observation_mean, self.spec.observation_std)

    @property
    def cost_threshold(self) -> Tensor:
        """The cost limit as a discounted cost-to-go, l·(1 − γ^L)/((1 − γ)·L) [P], for L steps per episode."""
        gamma, length = self.shared.discount, self.spec.episode_length
        return self.hyper["cost_limit"] * ((1.0 - gamma**length) / ((1.0 - gamma) * length))

    @property
    def reward_scale(self) -> float:
        return RETURN_RANGE / (self.spec.return_max - self.spec.return_min)

    def sampler(self, replay: Replay) -> Sampler:
        """Return how a step draws its minibatch from a replay."""
        return replay.sample

    def as_online(self) -> None:
        """Return None: baselines learn offline only."""
        return

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.seeds, step, self.first_row)

    def step_kind(self, step: int) -> str:
        return "step"

    def prepare(self, step: int) -> None:
        """No host-side work is needed between steps."""
        return

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """Return all tensors that are averaged over the workers, in the order of `update`, and metrics [P]; change nothing."""
        losses = self.losses(batch, draws)
        parts = flat_gradients(torch.stack(list(losses.values.values())).sum(), list(self.networks.values()))
        metrics = {f"baseline/{name}_loss": loss.detach() for name, loss in losses.values.items()}
        return [*parts, *(losses.statistics[name] for name in self.statistic_names)], {**losses.metrics, **metrics}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Make every change of a step from the averaged tensors; metrics [P]. step: scalar, on the device."""
        for network, gradient in zip(self.networks.values(), means, strict=False):
            self._descend(network, gradient, step)
        metrics = self.adjust(dict(zip(self.statistic_names, means[len(self.networks) :], strict=True)))
        for network in self.networks.values():
            if network.target_flat is not None:
                network.track(self.shared.target_step)
        return metrics

    def _descend(self, network: TrainState, gradient: Tensor, step: Tensor) -> None:
        """Update one network along its averaged gradient; algorithms with other rates override it."""
        network.descend(gradient, self.hyper["learning_rate"])

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """Return the estimated episode cost on `states`: mean and std over the cost critics, [P] each; NaN without critics."""
        if "q_cost" not in self.networks:
            unknown = torch.full_like(self.hyper["cost_limit"], torch.nan)
            return unknown, unknown
        critic = self.networks["q_cost"]
        with torch.no_grad():
            states = self.states.expand(len(self.seeds), -1, -1)
            q = ensemble_q(critic, critic.weights, states, self.actions(states))
            return self.episode_cost(q.mean(1)), self.episode_cost(q.std(1, correction=0))

    def episode_cost(self, q_cost: Tensor) -> Tensor:
        """Return the episode cost [P] that a cost critic's values [P, B] stand for."""
        return episodic_cost(q_cost, discount=self.shared.discount, episode_length=self.spec.episode_length)

    def finite(self) -> Tensor:
        """Return which members have only finite weights, [P] bool."""
        return finite_members(self.networks.values())

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        index = torch.tensor(list(members), device=self.device)
        for network in self.networks.values():
            network.select(index)
        self.seeds = self.seeds[index]
        self.hyper, self.scalars = ({name: x[index] for name, x in group.items()} for group in (self.hyper, self.scalars))

    def join(self, other: Baseline) -> None:
        """Append the members of another population of the same algorithm, at the same step."""
        for name, network in self.networks.items():
            network.join(other.networks[name])
        self.seeds = torch.cat([self.seeds, other.seeds])
        self.hyper, self.scalars = (
            {name: torch.cat([x, theirs[name]]) for name, x in mine.items()}
            for mine, theirs in ((self.hyper, other.hyper), (self.scalars, other.scalars))
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed training needs beyond the constructor's arguments."""
        return named_state(self.networks) | {f"scalars.{name}": x for name, x in self.scalars.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def frozen(network: TrainState) -> dict[str, Tensor]:
    """Return a network's weights, detached, for a loss that must not train it."""
    return {name: weight.detach() for name, weight in network.weights.items()}


def repeated(states: Tensor, times: int) -> Tensor:
    """Repeat each row of [P, B, S] `times` times in succession, [P, B · times, S]."""
    return states.repeat_interleave(times, dim=1)
