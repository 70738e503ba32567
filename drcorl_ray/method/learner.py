"""Policy extraction (Algorithm 1, lines 7-13): P members with their own hyper-parameters, trained by the same operations.

`gradients` computes what a step of Algorithm 1 needs: the critics' gradients, the three parts of the policy gradient and the
cost estimate. `update` takes their means over the workers and makes every decision and change, identically on each worker.

Shapes: P members, E cost critics, B rows of a minibatch, A action, N weights of one network, K estimation states of a member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drcorl_ray.data.spec import DataSpec
from drcorl_ray.method import critics, schedules
from drcorl_ray.method.actor import snapshot, standard_deviation
from drcorl_ray.method.adaptation import REGIONS, Multiplier, combine, decide
from drcorl_ray.method.architectures import Architectures
from drcorl_ray.method.behaviour_model import behaviour_directions, noise_loss, row_conditions
from drcorl_ray.method.cost_estimate import Horizon, estimate_moments, running_mean, upper_estimate
from drcorl_ray.method.estimation_states import EstimationStates
from drcorl_ray.method.hyperparameters import Hyperparameters
from drcorl_ray.method.interfaces import Metrics, Sampler
from drcorl_ray.method.networks import Weights
from drcorl_ray.method.online_data import OnlineData, OnlineResult
from drcorl_ray.method.policy_gradient import action_gradients, policy_gradients
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState, finite_members, flat_gradients, named_state
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.scores import COST_EPSILON

if TYPE_CHECKING:  # type-only import: the GPU benchmarks must run without pydantic
    from drcorl_ray.config import EvaluationConfig, ExtractConfig, MemberConfig, PretrainConfig

_PER_MEMBER = ("sources", "conditions", "average", "estimate", "region_counts", "estimated_on")
_STEP_OFFSET = 1 << 40  # so that extraction and pretraining draw different numbers at the same step


class Learner:
    """A population of P members in policy extraction.

    pretrained: the result of `Pretrainer.result` for several seeds. sources: each member's index among these seeds.
    conditions: each member's condition of the behaviour model [P, 4]. estimation_states: the states on which the members'
    cost is estimated. first_row: index in the global minibatch of this worker's first row.
    """

    def __init__(
        self,
        spec: DataSpec,
        pretrain: PretrainConfig,
        extract: ExtractConfig,
        members: Sequence[MemberConfig],
        pretrained: Mapping[str, Tensor],
        *,
        evaluation: EvaluationConfig,
        sources: Sequence[int],
        conditions: Tensor,
        estimation_states: EstimationStates,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        first_row: int = 0,
    ) -> None:
        self.spec, self.pretrain, self.extract, self.first_row = spec, pretrain, extract, first_row
        self.hyper = Hyperparameters.from_config(members, pretrain, device, dtype)
        # A term that no member needs is not computed. If one member needs it, it is exactly zero for the others.
        self.stochastic = any(member.policy_class != "dirac" for member in members)
        self.pessimistic = any(member.alpha > 0.0 for member in members)
        self.conditions = conditions.to(device, dtype)
        self.estimation_states = estimation_states.to(device, dtype)
        self.architectures = Architectures.from_config(spec, pretrain)
        self.sources = torch.tensor(list(sources), device=device)
        pretrained = {name: flat.to(device, dtype) for name, flat in pretrained.items()}
        self.pretrained_noise = pretrained["noise.flat"]
        self.networks = self.architectures.start_extraction(
            pretrained, self.sources, self.conditions, pretrain.cost_ensemble, update_diffusion=extract.update_diffusion
        )
        self.noise_weights = self._behaviour_model()
        self.average = self.networks["actor"].flat.clone()
        zeros = torch.zeros_like(self.hyper.cost_limit)
        self.multiplier = Multiplier.start(zeros)
        self.estimate, self.estimates = zeros.clone(), torch.zeros((), dtype=torch.float64, device=device)
        self.online = OnlineData(spec, evaluation, members, device, dtype)
        self.region_counts = torch.zeros(len(members), len(REGIONS), dtype=torch.int64, device=device)
        self.estimated_on = self._nearest_states()

    def _behaviour_model(self) -> Weights:
        """Return the noise network's weights of each member; the fixed ones of a single seed are a view, not P copies."""
        if self.extract.update_diffusion:
            return self.networks["noise"].weights
        flat, members = self.pretrained_noise, len(self.sources)
        return self.architectures.noise.layout.split(flat.expand(members, -1) if len(flat) == 1 else flat[self.sources])

    @property
    def total_steps(self) -> int:
        return self.extract.critic_steps + self.extract.steps

    @property
    def used_critics(self) -> Tensor:
        """Mask of the cost critics that each member uses, [P, E, 1] bool; the others are not trained."""
        return critics.in_use(self.hyper.cost_ensemble, self.pretrain.cost_ensemble)

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.hyper.seed, step + _STEP_OFFSET, self.first_row)

    def observe(self, result: OnlineResult) -> None:
        """Use the result of an online evaluation of the pending policies, or of the present ones if none are pending.

        From the next step on, its costs are the members' cost estimates and minibatches include its transitions.
        """
        policies = self.online.pending if self.online.pending_step >= 0 else self.average
        self.online.take(result, policies, self.hyper.cost_limit)

    def sampler(self, replay: Replay) -> Sampler:
        return replay.sample

    def as_online(self) -> Learner | None:
        return self if bool(self.online.online.any()) else None

    def step_kind(self, step: int) -> str:
        """Return "critics" if the step trains only the critics (D8), "policy" if it also trains the policy."""
        return "critics" if step < self.extract.critic_steps else "policy"

    def prepare(self, step: int) -> None:
        """Every `estimate_interval` policy steps, re-select the states on which the cost is estimated."""
        policy_step = step - self.extract.critic_steps
        if policy_step >= 0 and policy_step % self.extract.estimate_interval == 0:
            self.estimated_on.copy_(self._nearest_states())

    @property
    def _descending(self) -> list[TrainState]:
        """The networks that descend on a loss: all but the policy, which the safe adaptation updates."""
        return [network for name, network in self.networks.items() if name != "actor"]

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """Return all tensors that are averaged over the workers, in the order of `update`, and metrics [P]; change nothing.

        batch: rows of the dataset. A hybrid member's critics and policy also learn from its appended transitions; the
        behaviour model learns from the dataset only.
        """
        dataset, batch = batch, self.online.mix(batch, draws)
        actions, std = self._act(batch.observations, draws, Stream.POLICY_NOISE)

        # Reward critics and cost critics.
        losses, metrics = self._critic_losses(batch, actions.detach(), draws)

        # Behaviour model.
        if self.extract.update_diffusion:
            labels = row_conditions(dataset, self.spec, draws, self.pretrain.condition_dropout)
            losses["noise"] = noise_loss(self.networks["noise"], dataset, labels, draws, self.pretrain.noise_dropout)
        parts = flat_gradients(torch.stack(list(losses.values())).sum(), self._descending)

        # Policy.
        if step_kind == "policy":
            parts += self._policy_gradients(batch, actions, std, draws)
            parts.append(self.estimate_cost(draws, actions.shape[1]))
        return parts, metrics | {f"critic/{name}_loss": loss.detach() for name, loss in losses.items()}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Make every decision and change of a step from the averaged tensors; metrics [P]. step: scalar, on the device."""
        policy_step = (step - self.extract.critic_steps).clamp(min=0)
        progress = policy_step.double() / self.extract.steps
        rate = schedules.cosine(progress, self.extract.final_learning_rate)
        descending = self._descending
        for network, gradient in zip(descending, means, strict=False):
            network.descend(gradient, self.hyper.critic_learning_rate * rate)
        metrics = self._adapt(means[len(descending) :], policy_step, progress, rate) if step_kind == "policy" else {}
        for name in ("q_reward", "q_cost"):
            self.networks[name].track(self.extract.target_step)
        return metrics

    def _act(self, observations: Tensor, draws: Draws, stream: Stream) -> tuple[Tensor, Tensor]:
        """Return reparameterised actions m + σz and σ, [P, B, A] each."""
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, observations)
        std = standard_deviation(log_std, self.hyper.policy_class)
        return (mean + std * draws.normal(stream, *mean.shape[1:], dtype=mean.dtype), std) if self.stochastic else (mean, std)

    def _critic_losses(self, batch: Batch, actions: Tensor, draws: Draws) -> tuple[dict[str, Tensor], Metrics]:
        """Return both critics' losses [P], TD on the policy's own actions (Eq. 19, App. C.1), and metrics [P]."""
        q_reward, q_cost, used = self.networks["q_reward"], self.networks["q_cost"], self.used_critics
        with torch.no_grad():
            next_actions = self._act(batch.next_observations, draws, Stream.NEXT_POLICY_NOISE)[0]

        # Reward critics.
        with torch.no_grad():
            next_q_r = critics.ensemble_q(q_reward, q_reward.target, batch.next_observations, next_actions).amin(1)
            reward_target = critics.reward_target(
                batch.rewards * self.spec.reward_scale, batch.terminals, next_q_r, discount=self.pretrain.discount
            )
        q_r = critics.ensemble_q(q_reward, q_reward.weights, batch.observations, batch.actions)
        losses = {"q_reward": critics.q_loss(q_r, reward_target)}

        # Cost critics.
        with torch.no_grad():
            next_q_c = critics.ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions)
            discount = self.pretrain.cost_discount
            horizon = 1.0 / (1.0 - discount)
            ceiling = self.spec.max_cost * horizon if self.extract.clamp_cost_target else None
            after_terminal = self.spec.mean_cost * horizon if self.extract.terminal_cost else 0.0
            cost_target = critics.cost_target(
                batch.costs, batch.terminals, next_q_c, discount=discount, ceiling=ceiling, terminal_value=after_terminal
            )
        q_c = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, batch.actions)
        losses["q_cost"] = critics.q_loss(q_c * used, cost_target * used)
        if self.pessimistic:
            q_c_policy = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, actions)
            losses["q_cost"] = losses["q_cost"] + critics.pessimism(q_c_policy * used, alpha=self.hyper.alpha)
        mean_cost, _ = critics.ensemble_moments(q_c.detach(), used)
        return losses, {"critic/q_reward": q_r.detach().mean((1, 2)), "critic/q_cost": mean_cost.mean(-1)}

    def _policy_gradients(self, batch: Batch, actions: Tensor, std: Tensor, draws: Draws) -> list[Tensor]:
        """Return the parts of Eq. 23, ascent directions [P, N] of Q_r, Q_c and log μ, and the mean norms [P] of both ∇_a Q."""
        q_reward, q_cost, states = self.networks["q_reward"], self.networks["q_cost"], batch.observations
        by_reward, by_cost = action_gradients(q_reward, q_cost, self.used_critics, states, actions, k=self.hyper.k)
        conditions = self.conditions.unsqueeze(1).expand(-1, actions.shape[1], -1)
        by_behaviour, by_behaviour_std = behaviour_directions(
            self.architectures.noise, self.noise_weights, conditions, states, actions.detach(), std.detach(), draws
        )
        surrogates = (
            (actions * by_reward).sum(-1),
            (actions * by_cost).sum(-1),
            (actions * by_behaviour + std * by_behaviour_std).sum(-1),
        )
        norms = (by_reward.norm(dim=-1).mean(-1), by_cost.norm(dim=-1).mean(-1))
        return [*policy_gradients(self.networks["actor"], surrogates), *norms]

    def _nearest_states(self) -> Tensor:
        """Return the indices [P, K] of the states on which the present policies' cost is estimated (D15)."""
        actor = self.networks["actor"]
        return self.estimation_states.choose(lambda states: actor.network(actor.weights, states)[0], len(self.sources))

    def estimate_cost(self, draws: Draws, rows: int) -> Tensor:
        """Return the offline estimate of each member's episode cost [P] on `rows` of its estimation states."""
        states = self.estimation_states.observations[self.estimated_on]
        index = draws.integers(Stream.ESTIMATE_ROWS, rows, states.shape[1])
        with torch.no_grad():
            states = states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
            actions = self._act(states, draws, Stream.ESTIMATE_NOISE)[0]
            return upper_estimate(self.networks["q_cost"], self.used_critics, states, actions, k=self.hyper.k, **self._horizon)

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """Return the averaged policies' episode cost on all estimation states: mean and std over the critics, [P] each."""
        actor, states = self.networks["actor"].network, self.estimation_states.observations[self.estimated_on]
        weights = self.architectures.actor.layout.split(self.average)
        with torch.no_grad():
            return estimate_moments(
                self.networks["q_cost"], self.used_critics, states, lambda x: actor(weights, x)[0], **self._horizon
            )

    @property
    def _horizon(self) -> Horizon:
        return {"discount": self.pretrain.cost_discount, "episode_length": self.spec.episode_length}

    def _adapt(self, parts: Sequence[Tensor], policy_step: Tensor, progress: Tensor, rate: Tensor) -> Metrics:
        """Update the policy by safe adaptation from the averaged parts of its gradient (Algorithms 2-3, Eq. 12, 20-23)."""
        toward_reward, toward_cost, toward_behaviour, norm_reward, norm_cost, offline = parts
        hyper = self.hyper
        offline = running_mean(self.estimate, self.estimates, offline, decay=self.extract.estimate_smoothing)
        cost = self.online.known(offline) / (hyper.cost_limit + COST_EPSILON)
        self.multiplier.update(
            cost, proportional=hyper.pid_proportional, integral=hyper.pid_integral, derivative=hyper.pid_derivative
        )
        slack_plus, slack_minus = (
            schedules.slack(start, hyper.slack_shrink, progress) for start in (hyper.slack_plus, hyper.slack_minus)
        )
        decision = decide(
            cost,
            hyper.adaptation,
            self.multiplier.value,
            slack_plus=slack_plus,
            slack_minus=slack_minus,
            cost_step_reward_weight=self.extract.cost_step_reward_weight,
        )
        beta = schedules.beta(hyper.beta_schedule, hyper.beta_0, hyper.beta_1, policy_step / self.extract.epoch_steps)
        weight_reward, weight_cost = (
            beta / norm.clamp(min=torch.finfo(norm.dtype).tiny) if self.extract.normalize_action_gradients else beta
            for norm in (norm_reward, norm_cost)
        )
        ascent, conflict = combine(
            weight_reward[:, None] * toward_reward, weight_cost[:, None] * toward_cost, toward_behaviour, decision
        )
        actor = self.networks["actor"]
        actor.descend(-ascent, hyper.actor_learning_rate * rate)
        share = (1.0 / (policy_step + 1)).clamp(min=1.0 - self.extract.policy_average)
        self.average.lerp_(actor.flat, share.to(actor.flat.dtype))
        self.region_counts.scatter_add_(1, decision.region[:, None], torch.ones_like(decision.region[:, None]))
        regions = {f"adaptation/{name}": (decision.region == i).to(cost.dtype) for i, name in enumerate(REGIONS)}
        return regions | {
            "adaptation/cost_estimate": cost * (hyper.cost_limit + COST_EPSILON),
            "adaptation/offline_estimate": offline,
            "adaptation/online_episodes": self.online.episodes.to(cost.dtype),
            "adaptation/conflict": conflict.to(cost.dtype),
            "adaptation/multiplier": self.multiplier.value.clone(),
            "adaptation/slack_plus": slack_plus,
            "policy/beta": beta,
            "policy/gradient_norm": ascent.norm(dim=-1),
        }

    def policies(self, parameters: Tensor | None = None) -> PopulationPolicy:
        """Return the deterministic policies as numpy arrays, with the given weights [P, N] or else the averaged ones."""
        weights = self.architectures.actor.layout.split(self.average if parameters is None else parameters)
        return snapshot(self.architectures.actor, weights, self.spec.observation_mean, self.spec.observation_std)

    def finite(self) -> Tensor:
        """Return which members have only finite weights, [P] bool; a member that diverges does not affect the others."""
        return finite_members(self.networks.values())

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        index = torch.tensor(list(members), device=self.sources.device)
        for network in self.networks.values():
            network.select(index)
        for name in _PER_MEMBER:
            setattr(self, name, getattr(self, name)[index])
        self.noise_weights = self._behaviour_model()
        self.hyper = self.hyper.select(index)
        self.multiplier = self.multiplier.select(index)
        self.online.select(index)

    def join(self, other: Learner) -> None:
        """Append the members of another population at the same step, from the same `pretrained`."""
        assert torch.equal(self.estimates, other.estimates)
        for name, network in self.networks.items():
            network.join(other.networks[name])
        for name in _PER_MEMBER:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.noise_weights = self._behaviour_model()
        self.hyper = self.hyper.join(other.hyper)
        self.multiplier = self.multiplier.join(other.multiplier)
        self.online.join(other.online)
        self.stochastic |= other.stochastic
        self.pessimistic |= other.pessimistic

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed extraction needs beyond the constructor's arguments."""
        state = named_state(self.networks) | {f"multiplier.{key}": x for key, x in vars(self.multiplier).items()}
        state |= {f"online.{key}": x for key, x in self.online.state_dict().items()}
        names = ("average", "estimate", "estimates", "region_counts", "estimated_on")
        return state | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        online = {name.removeprefix("online."): x for name, x in state.items() if name.startswith("online.")}
        self.online.load_state_dict(online)
        for name, tensor in self.state_dict().items():
            if not name.startswith("online."):
                tensor.copy_(state[name])
