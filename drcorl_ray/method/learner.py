"""Policy extraction (Algorithm 1, lines 7-13): P members, each with its own hyper-parameters, advanced by one program.

One step reads as Algorithm 1: critic losses, the three parts of the policy gradient, the cost estimate (`gradients`); then,
from their means over the workers, every decision and change, the same on all of them (`update`). Knows nothing of Ray, files
or simulators.
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
from drcorl_ray.method.networks import Weights
from drcorl_ray.method.online_data import OnlineData, OnlineResult
from drcorl_ray.method.policy_gradient import action_gradients, policy_gradients
from drcorl_ray.method.protocols import Metrics, Sampler
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch, Replay
from drcorl_ray.method.train_state import TrainState, finite_members, flat_gradients, named_state
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.scores import COST_EPSILON

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import EvaluationConfig, ExtractConfig, MemberConfig, PretrainConfig

_PER_MEMBER = ("sources", "conditions", "average", "estimate", "region_counts", "estimated_on")
_STEP_OFFSET = 1 << 40  # extraction draws other numbers than pretraining at the same step


class Learner:
    """A population in extraction.

    pretrained: what `Pretrainer.result` returned, S seeds; sources: for each member its index among them. conditions: [P, 4],
    what each member asks of the behaviour model. estimation_states: where its cost is estimated.
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
        self.spec, self.pretrain, self.extract = spec, pretrain, extract
        self.first_row = first_row
        self.hyper = Hyperparameters.from_config(members, pretrain, device, dtype)
        # What no member of the pack needs is not computed; where one does, the others' part is an exact zero.
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
        """The noise network's weights of each member; a frozen one of a single seed serves all of them without a copy."""
        if self.extract.update_diffusion:
            return self.networks["noise"].weights
        flat, members = self.pretrained_noise, len(self.sources)
        return self.architectures.noise.layout.split(flat.expand(members, -1) if len(flat) == 1 else flat[self.sources])

    @property
    def total_steps(self) -> int:
        return self.extract.critic_steps + self.extract.steps

    @property
    def used_critics(self) -> Tensor:
        """The cost critics that each member uses, [P, E, 1] bool; the others stand still."""
        return critics.in_use(self.hyper.cost_ensemble, self.pretrain.cost_ensemble)

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.hyper.seed, step + _STEP_OFFSET, self.first_row)

    def observe(self, result: OnlineResult) -> None:
        """Take in what rollouts found of the held policies, or else of those of this moment.

        From now on their cost estimate holds, and minibatches mix in what was appended.
        """
        policies = self.online.pending if self.online.pending_step >= 0 else self.average
        self.online.take(result, policies, self.hyper.cost_limit)

    def sampler(self, replay: Replay) -> Sampler:
        return replay.sample

    def as_online(self) -> Learner | None:
        return self if bool(self.online.online.any()) else None

    def step_kind(self, step: int) -> str:
        """What a step does: "critics" alone (D8), or the "policy" too."""
        return "critics" if step < self.extract.critic_steps else "policy"

    def prepare(self, step: int) -> None:
        """Choose the estimation states anew where that is due before a step."""
        policy_step = step - self.extract.critic_steps
        if policy_step >= 0 and policy_step % self.extract.estimate_interval == 0:
            self.estimated_on.copy_(self._nearest_states())

    @property
    def _critics(self) -> list[TrainState]:
        """What descends on its loss; the policy is moved by the safe adaptation."""
        return [part for name, part in self.networks.items() if name != "actor"]

    def gradients(self, step_kind: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
        """All that is averaged over the workers, in the order `update` takes it, and metrics [P]; changes nothing.

        batch: of the dataset. A hybrid member's critics and policy also see its appended transitions, the behaviour model
        never.
        """
        dataset, batch = batch, self.online.mix(batch, draws)
        actions, std = self._act(batch.observations, draws, Stream.POLICY_NOISE)
        losses, metrics = self._losses(batch, actions.detach(), draws)
        if self.extract.update_diffusion:
            losses["noise"] = self._noise_loss(dataset, draws)
        parts = flat_gradients(torch.stack(list(losses.values())).sum(), self._critics)
        if step_kind == "policy":
            parts += [
                *self._policy_gradients(batch, actions, std, draws),
                self.estimate_cost(draws, actions.shape[1]),
            ]
        return parts, metrics | {f"critic/{name}_loss": loss.detach() for name, loss in losses.items()}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Every decision and every change of a step; metrics [P]. step: scalar, on the device."""
        policy_step = (step - self.extract.critic_steps).clamp(min=0)
        progress = policy_step.double() / self.extract.steps
        rate = schedules.cosine(progress, self.extract.final_learning_rate)
        for part, gradient in zip(self._critics, means, strict=False):
            part.descend(gradient, self.hyper.critic_learning_rate * rate)
        metrics = {}
        if step_kind == "policy":
            metrics = self._adapt(means[len(self._critics) :], policy_step, progress, rate)
        for name in ("q_reward", "q_cost"):
            self.networks[name].track(self.extract.target_step)
        return metrics

    def _act(self, observations: Tensor, draws: Draws, stream: Stream) -> tuple[Tensor, Tensor]:
        """Reparameterised actions m + σz, and σ; [P, B, A] each."""
        actor = self.networks["actor"]
        mean, log_std = actor.network(actor.weights, observations)
        std = standard_deviation(log_std, self.hyper.policy_class)
        return (mean + std * draws.normal(stream, *mean.shape[1:], dtype=mean.dtype), std) if self.stochastic else (mean, std)

    def _losses(self, batch: Batch, actions: Tensor, draws: Draws) -> tuple[dict[str, Tensor], Metrics]:
        """Critic losses [P]: TD on the policy's own actions (Eq. 19, App. C.1)."""
        q_reward, q_cost, used = self.networks["q_reward"], self.networks["q_cost"], self.used_critics
        with torch.no_grad():
            next_actions = self._act(batch.next_observations, draws, Stream.NEXT_POLICY_NOISE)[0]
            next_q_r = critics.ensemble_q(q_reward, q_reward.target, batch.next_observations, next_actions).amin(1)
            next_q_c = critics.ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions)
            reward_target = critics.reward_target(
                batch.rewards * self.spec.reward_scale, batch.terminals, next_q_r, discount=self.pretrain.discount
            )
            horizon = 1.0 / (1.0 - self.pretrain.cost_discount)
            cost_target = critics.cost_target(
                batch.costs,
                batch.terminals,
                next_q_c,
                discount=self.pretrain.cost_discount,
                ceiling=self.spec.max_cost * horizon if self.extract.clamp_cost_target else None,
                terminal_value=self.spec.mean_cost * horizon if self.extract.terminal_cost else 0.0,
            )
        q_r = critics.ensemble_q(q_reward, q_reward.weights, batch.observations, batch.actions)
        q_c = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, batch.actions)
        losses = {"q_reward": critics.q_loss(q_r, reward_target), "q_cost": critics.q_loss(q_c * used, cost_target * used)}
        if self.pessimistic:
            q_c_policy = critics.ensemble_q(q_cost, q_cost.weights, batch.observations, actions)
            losses["q_cost"] = losses["q_cost"] + critics.pessimism(q_c_policy * used, alpha=self.hyper.alpha)
        mean_cost, _ = critics.ensemble_moments(q_c.detach(), used)
        return losses, {"critic/q_reward": q_r.detach().mean((1, 2)), "critic/q_cost": mean_cost.mean(-1)}

    def _noise_loss(self, dataset: Batch, draws: Draws) -> Tensor:
        labels = row_conditions(dataset, self.spec, draws, self.pretrain.condition_dropout)
        return noise_loss(self.networks["noise"], dataset, labels, draws, self.pretrain.noise_dropout)

    def _policy_gradients(self, batch: Batch, actions: Tensor, std: Tensor, draws: Draws) -> list[Tensor]:
        """The parts of Eq. 23, each an ascent direction [P, N]: of Q_r, of Q_c, of log μ; and the mean norms [P] of ∇_a Q."""
        part, asked = self.networks, self.conditions.unsqueeze(1).expand(-1, actions.shape[1], -1)
        for_reward, for_cost = action_gradients(
            part["q_reward"], part["q_cost"], self.used_critics, batch.observations, actions, k=self.hyper.k
        )
        for_behaviour, for_std = behaviour_directions(
            self.architectures.noise, self.noise_weights, asked, batch.observations, actions.detach(), std.detach(), draws
        )
        surrogates = (
            (actions * for_reward).sum(-1),
            (actions * for_cost).sum(-1),
            (actions * for_behaviour + std * for_std).sum(-1),
        )
        norms = (for_reward.norm(dim=-1).mean(-1), for_cost.norm(dim=-1).mean(-1))
        return [*policy_gradients(part["actor"], surrogates), *norms]

    def _nearest_states(self) -> Tensor:
        """Where the cost of the policies of this moment is estimated: states of the estimation_states, [P, K] (D15)."""
        actor = self.networks["actor"]
        return self.estimation_states.choose(lambda states: actor.network(actor.weights, states)[0], len(self.sources))

    def estimate_cost(self, draws: Draws, rows: int) -> Tensor:
        """Offline estimate of each member's episode cost on `rows` of its estimation states, [P]."""
        states = self.estimation_states.observations[self.estimated_on]
        index = draws.integers(Stream.ESTIMATE_ROWS, rows, states.shape[1])
        with torch.no_grad():
            chosen = states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
            actions = self._act(chosen, draws, Stream.ESTIMATE_NOISE)[0]
            return upper_estimate(self.networks["q_cost"], self.used_critics, chosen, actions, k=self.hyper.k, **self._horizon)

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """Episode cost of the averaged policies on all estimation states: mean and deviation over the critics, [P] each."""
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
        """Safe adaptation and the policy's update from the averaged parts of the gradient (Algorithms 2-3, Eq. 12, 20-23)."""
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
        """The averaged deterministic policies, as numpy; or those of other actor parameters [P, N]."""
        weights = self.architectures.actor.layout.split(self.average if parameters is None else parameters)
        return snapshot(self.architectures.actor, weights, self.spec.observation_mean, self.spec.observation_std)

    def finite(self) -> Tensor:
        """Which members hold only finite weights, [P] bool; one that does not is lost, the others are untouched by it."""
        return finite_members(self.networks.values())

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        index = torch.tensor(list(members), device=self.sources.device)
        for part in self.networks.values():
            part.select(index)
        for name in _PER_MEMBER:
            setattr(self, name, getattr(self, name)[index])
        self.noise_weights = self._behaviour_model()
        self.hyper = self.hyper.select(index)
        self.multiplier = self.multiplier.select(index)
        self.online.select(index)

    def join(self, other: Learner) -> None:
        """Take in another population's members, at the same step and from the same `pretrained`, behind its own."""
        assert torch.equal(self.estimates, other.estimates)
        for name, part in self.networks.items():
            part.join(other.networks[name])
        for name in _PER_MEMBER:
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.noise_weights = self._behaviour_model()
        self.hyper = self.hyper.join(other.hyper)
        self.multiplier = self.multiplier.join(other.multiplier)
        self.online.join(other.online)
        self.stochastic |= other.stochastic
        self.pessimistic |= other.pessimistic

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor a resumed extraction needs beyond the constructor's arguments."""
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
