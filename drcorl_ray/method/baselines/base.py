"""What the baselines share: a population of learners in one of their algorithms, advanced by `method.runner.Runner`.

An algorithm says what its networks and other state are (`_start`), what descends on which loss (`losses`), and how it acts.
All gradients of a step are taken at the same weights, as in DRCORL's learner, and then every change is made at once.
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
from drcorl_ray.method.critics import ensemble_q, episodic_cost
from drcorl_ray.method.networks import MLP
from drcorl_ray.method.protocols import Metrics, Sampler
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState, flat_gradients
from drcorl_ray.policy.population import PopulationPolicy

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import BaselineConfig, BaselineMember, PretrainConfig

RETURN_RANGE = 300.0  # the data's return range after scaling: about what the common implementation's 0.1 gives velocity tasks


@dataclass(frozen=True)
class Dataset:
    """What a baseline knows of its task's data beside minibatches.

    starts [E, S]: each episode's first observation; states [K, S]: an even selection of all; both standardised.
    """

    spec: DataSpec
    episodes: EpisodeTotals
    starts: Tensor
    states: Tensor


@dataclass(frozen=True)
class Losses:
    """Result of one forward pass: per-member losses, the statistics that `adjust` needs, and metrics; all [P].

    All losses are summed, so a network that one of them must not move takes part in it with `frozen` weights.
    """

    values: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The settings of a population that all its members have in common.

    shared: the `baseline` section. own: the algorithm's section, None where it has none. pretrain: what cloning is trained
    like. member_settings: {name in `Baseline.hyper`: a member's attribute} of those that may differ between members.
    """

    shared: BaselineConfig
    own: Any
    pretrain: PretrainConfig
    total_steps: int
    member_settings: Mapping[str, str]


class Baseline(ABC):
    """P members in training by one algorithm; the interface of `method.learner.Learner` as far as offline training goes.

    hyper: the members' settings, [P] each: cost_limit, learning_rate and those named in `Settings.member_settings`.
    networks: networks; scalars: other state, [P, …] each. statistic_names: the statistics of its losses, in their order.
    """

    statistic_names: tuple[str, ...] = ()

    @classmethod
    def can_learn(cls, episodes: EpisodeTotals, cost_limit: float) -> bool:
        """Whether a dataset with these episodes has anything to learn from at a cost limit."""
        return True

    @classmethod
    def for_limits(
        cls, policies: PopulationPolicy, episodes: EpisodeTotals, members: Sequence[BaselineMember]
    ) -> PopulationPolicy:
        """The policies [P] of algorithms that ignore the limit in training, told the members' limits."""
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
        """Fill `networks` and `scalars`."""

    @abstractmethod
    def losses(self, batch: Batch, draws: Draws) -> Losses:
        """What descends on this minibatch; changes nothing."""

    @abstractmethod
    def actions(self, observations: Tensor) -> Tensor:
        """The deterministic policies' actions [P, B, A] for standardised observations [P, B, S]."""

    @abstractmethod
    def policies(self) -> PopulationPolicy:
        """The deterministic policies, as numpy."""

    def adjust(self, statistics: Mapping[str, Tensor]) -> Metrics:
        """Update the state that follows rules of its own, from the statistics' means over the workers; metrics [P]."""
        return {}

    def _add(self, name: str, network: object, copies: int = 1, tracked: bool = False) -> TrainState:
        number = len(self.networks) + 1
        flat = network.layout.initialise(self.seeds, number, copies, self.dtype)  # type: ignore[attr-defined]
        part = TrainState(network, flat, copies=copies, tracked=tracked)
        self.networks[name] = part
        return part

    def _add_vae_and_critics(self) -> VAE:
        """The behaviour's VAE, and twin critics of reward and of cost, with targets."""
        spec = self.spec
        vae = VAE(spec.observation_size, spec.action_size, self.shared.vae_hidden)
        self._add("encoder", vae.encoder)
        self._add("decoder", vae.decoder)
        for name in ("q_reward", "q_cost"):
            critic = MLP(spec.observation_size + spec.action_size, tuple(self.shared.hidden), 1)
            self._add(name, critic, copies=2, tracked=True)
        return vae

    def snapshot(self, name: str) -> PopulationPolicy:
        """The policies of an actor whose first outputs are their means before the tanh."""
        part = self.networks[name]
        return snapshot(part.network, part.weights, self.spec.observation_mean, self.spec.observation_std)

    @property
    def cost_threshold(self) -> Tensor:
        """The limit as a discounted cost-to-go: l·(1 − γ^L)/((1 − γ)·L), [P]."""
        gamma, length = self.shared.discount, self.spec.episode_length
        return self.hyper["cost_limit"] * ((1.0 - gamma**length) / ((1.0 - gamma) * length))

    @property
    def reward_scale(self) -> float:
        return RETURN_RANGE / (self.spec.return_max - self.spec.return_min)

    def sampler(self, replay: Replay) -> Sampler:
        """What a step learns from."""
        return replay.sample

    def as_online(self) -> None:
        """None: baselines learn offline only."""
        return

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.seeds, step, self.first_row)

    def step_kind(self, step: int) -> str:
        return "step"

    def prepare(self, step: int) -> None:
        """No host-side work is needed between steps."""
        return

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """All that is averaged over the workers, in the order `update` takes it, and metrics [P]; changes nothing."""
        found = self.losses(batch, draws)
        parts = flat_gradients(torch.stack(list(found.values.values())).sum(), list(self.networks.values()))
        named = {f"baseline/{name}_loss": loss.detach() for name, loss in found.values.items()}
        return [*parts, *(found.statistics[name] for name in self.statistic_names)], {**found.metrics, **named}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Every change of a step; metrics [P]. step: scalar, on the device."""
        for part, gradient in zip(self.networks.values(), means, strict=False):
            self._descend(part, gradient, step)
        metrics = self.adjust(dict(zip(self.statistic_names, means[len(self.networks) :], strict=True)))
        for part in self.networks.values():
            if part.target_flat is not None:
                part.track(self.shared.target_step)
        return metrics

    def _descend(self, part: TrainState, gradient: Tensor, step: Tensor) -> None:
        part.descend(gradient, self.hyper["learning_rate"])

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """What the cost critics expect on `states`: episode cost and its deviation, [P] each; NaN where there are none."""
        if "q_cost" not in self.networks:
            unknown = torch.full_like(self.hyper["cost_limit"], torch.nan)
            return unknown, unknown
        critic = self.networks["q_cost"]
        with torch.no_grad():
            states = self.states.expand(len(self.seeds), -1, -1)
            q = ensemble_q(critic, critic.weights, states, self.actions(states))
            about = {"discount": self.shared.discount, "episode_length": self.spec.episode_length}
            return episodic_cost(q.mean(1), **about), episodic_cost(q.std(1, correction=0), **about)

    def finite(self) -> Tensor:
        """Which members hold only finite weights, [P] bool."""
        parts = [part.flat.isfinite().all(1).unflatten(0, (-1, part.copies)).all(1) for part in self.networks.values()]
        return torch.stack(parts).all(0)

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        index = torch.tensor(list(members), device=self.device)
        for part in self.networks.values():
            part.select(index)
        self.seeds = self.seeds[index]
        self.hyper, self.scalars = ({name: x[index] for name, x in own.items()} for own in (self.hyper, self.scalars))

    def join(self, other: Baseline) -> None:
        """Take in another population's members, at the same step, behind its own."""
        for name, part in self.networks.items():
            part.join(other.networks[name])
        self.seeds = torch.cat([self.seeds, other.seeds])
        self.hyper, self.scalars = (
            {name: torch.cat([x, theirs[name]]) for name, x in own.items()}
            for own, theirs in ((self.hyper, other.hyper), (self.scalars, other.scalars))
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor a resumed training needs beyond the constructor's arguments."""
        state = {f"{name}.{key}": x for name, part in self.networks.items() for key, x in part.state().items()}
        return state | {f"scalars.{name}": x for name, x in self.scalars.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def frozen(part: TrainState) -> dict[str, Tensor]:
    """A network's weights for a loss that must not move them."""
    return {name: weight.detach() for name, weight in part.weights.items()}


def repeated(states: Tensor, times: int) -> Tensor:
    """Each row [P, B, S] `times` times in a row, [P, B · times, S]."""
    return states.repeat_interleave(times, dim=1)
