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
from drcorl_ray.method import critics, diffusion, schedules
from drcorl_ray.method.actor import fold_condition, snapshot, standard_deviation
from drcorl_ray.method.adaptation import REGIONS, Decision, Multiplier, decide, manipulate
from drcorl_ray.method.estimation_states import Footprints
from drcorl_ray.method.hyperparameters import Hyperparameters
from drcorl_ray.method.networks import Weights
from drcorl_ray.method.online_data import OnlineData, OnlineResult
from drcorl_ray.method.pretrainer import Architectures, Metrics, ensemble_q, noise_loss, row_conditions
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch
from drcorl_ray.method.train_state import Trainable, flat_gradients
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.scores import COST_EPSILON

if TYPE_CHECKING:  # pydantic is for those who read settings, not for those who use them
    from drcorl_ray.config import EvaluationConfig, ExtractConfig, MemberConfig, PretrainConfig

_PER_MEMBER = ("sources", "conditions", "average", "estimate", "region_counts", "estimated_on")
_ESTIMATE_ROWS = 256  # states of `offline_estimate` that are evaluated at once
_STEP_OFFSET = 1 << 40  # extraction draws other numbers than pretraining at the same step


class Learner:
    """A population in extraction.

    pretrained: what `Pretrainer.result` returned, S seeds; sources: for each member its index among them. conditions: [P, 4],
    what each member asks of the behaviour model. footprints: where its cost is estimated.
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
        footprints: Footprints,
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
        self.footprints = footprints.to(device, dtype)
        self.nets = Architectures.from_config(spec, pretrain)
        self.sources = torch.tensor(list(sources), device=device)
        self.pretrained_noise = pretrained["noise.flat"].to(device, dtype)
        self.trainables = self._start(pretrained, device, dtype)
        self.noise_weights = self._behaviour_model()
        self.average = self.trainables["actor"].flat.clone()
        zeros = torch.zeros_like(self.hyper.cost_limit)
        self.multiplier = Multiplier.start(zeros)
        self.estimate, self.estimates = zeros.clone(), torch.zeros((), dtype=torch.float64, device=device)
        self.online = OnlineData(spec, evaluation, members, device, dtype)
        self.region_counts = torch.zeros(len(members), len(REGIONS), dtype=torch.int64, device=device)
        self.estimated_on = self._nearest_states()

    def _start(self, pretrained: Mapping[str, Tensor], device: torch.device | str, dtype: torch.dtype) -> dict[str, Trainable]:
        nets, ensemble = self.nets, self.pretrain.cost_ensemble

        def weights(name: str, copies: int = 1) -> Tensor:
            flat = pretrained[name].to(device, dtype)
            return flat.unflatten(0, (-1, copies))[self.sources].flatten(0, 1)

        actor = fold_condition(nets.conditioned_actor.layout, weights("actor.flat"), nets.actor.layout, self.conditions)
        trainables = {"actor": Trainable(nets.actor, actor)}
        for name, network, copies in (("q_reward", nets.reward_critic, 2), ("q_cost", nets.cost_critic, ensemble)):
            part = Trainable(network, weights(f"{name}.flat", copies), copies=copies, tracked=True)
            part.load(part.state() | {"target": weights(f"{name}.target", copies)})
            trainables[name] = part
        if self.extract.update_diffusion:
            trainables["noise"] = Trainable(nets.noise, weights("noise.flat"))
        return trainables

    def _behaviour_model(self) -> Weights:
        """The noise network's weights of each member; a frozen one of a single seed serves all of them without a copy."""
        if self.extract.update_diffusion:
            return self.trainables["noise"].weights
        flat, members = self.pretrained_noise, len(self.sources)
        return self.nets.noise.layout.split(flat.expand(members, -1) if len(flat) == 1 else flat[self.sources])

    @property
    def total_steps(self) -> int:
        return self.extract.critic_steps + self.extract.steps

    @property
    def used_critics(self) -> Tensor:
        """The cost critics that each member uses, [P, E, 1] bool; the others stand still."""
        return critics.in_use(self.hyper.cost_ensemble, self.pretrain.cost_ensemble)

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(self.hyper.seed, step + _STEP_OFFSET, self.first_row)

    def observe(self, evidence: OnlineResult) -> None:
        """Take in what rollouts found of the held policies, or else of those of this moment.

        From now on their cost estimate holds, and minibatches mix in what was appended.
        """
        policies = self.online.pending if self.online.pending_step >= 0 else self.average
        self.online.take(evidence, policies, self.hyper.cost_limit)

    def program(self, step: int) -> str:
        """What a step does: "critics" alone (D8), or the "policy" too."""
        return "critics" if step < self.extract.critic_steps else "policy"

    def prepare(self, step: int) -> None:
        """Choose the estimation states anew where that is due before a step."""
        policy_step = step - self.extract.critic_steps
        if policy_step >= 0 and policy_step % self.extract.estimate_interval == 0:
            self.estimated_on.copy_(self._nearest_states())

    @property
    def _critics(self) -> list[Trainable]:
        """What descends on its loss; the policy is moved by the safe adaptation."""
        return [part for name, part in self.trainables.items() if name != "actor"]

    def gradients(self, program: str, batch: Batch, draws: Draws) -> tuple[list[Tensor], Metrics]:
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
        if program == "policy":
            parts += [
                *self._policy_gradients(batch, actions, std, draws),
                self.estimate_cost(draws, actions.shape[1]),
            ]
        return parts, metrics | {f"critic/{name}_loss": loss.detach() for name, loss in losses.items()}

    def update(self, program: str, means: Sequence[Tensor], step: Tensor) -> Metrics:
        """Every decision and every change of a step; metrics [P]. step: scalar, on the device."""
        policy_step = (step - self.extract.critic_steps).clamp(min=0)
        progress = policy_step.double() / self.extract.steps
        rate = schedules.cosine(progress, self.extract.final_learning_rate)
        for part, gradient in zip(self._critics, means, strict=False):
            part.descend(gradient, self.hyper.critic_learning_rate * rate)
        metrics = {}
        if program == "policy":
            metrics = self._adapt(means[len(self._critics) :], policy_step, progress, rate)
        for name in ("q_reward", "q_cost"):
            self.trainables[name].track(self.extract.target_step)
        return metrics

    def _act(self, observations: Tensor, draws: Draws, stream: Stream) -> tuple[Tensor, Tensor]:
        """Reparameterised actions m + σz, and σ; [P, B, A] each."""
        actor = self.trainables["actor"]
        mean, log_std = actor.network(actor.weights, observations)
        std = standard_deviation(log_std, self.hyper.policy_class)
        return (mean + std * draws.normal(stream, *mean.shape[1:], dtype=mean.dtype), std) if self.stochastic else (mean, std)

    def _losses(self, batch: Batch, actions: Tensor, draws: Draws) -> tuple[dict[str, Tensor], Metrics]:
        """Critic losses [P]: TD on the policy's own actions (Eq. 19, App. C.1)."""
        q_reward, q_cost, used = self.trainables["q_reward"], self.trainables["q_cost"], self.used_critics
        with torch.no_grad():
            next_actions = self._act(batch.next_observations, draws, Stream.NEXT_POLICY_NOISE)[0]
            next_q_r = ensemble_q(q_reward, q_reward.target, batch.next_observations, next_actions).amin(1)
            next_q_c = ensemble_q(q_cost, q_cost.target, batch.next_observations, next_actions)
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
        q_r = ensemble_q(q_reward, q_reward.weights, batch.observations, batch.actions)
        q_c = ensemble_q(q_cost, q_cost.weights, batch.observations, batch.actions)
        losses = {"q_reward": critics.q_loss(q_r, reward_target), "q_cost": critics.q_loss(q_c * used, cost_target * used)}
        if self.pessimistic:
            q_c_policy = ensemble_q(q_cost, q_cost.weights, batch.observations, actions)
            losses["q_cost"] = losses["q_cost"] + critics.pessimism(q_c_policy * used, alpha=self.hyper.alpha)
        mean_cost, _ = critics.ensemble_moments(q_c.detach(), used)
        return losses, {"critic/q_reward": q_r.detach().mean((1, 2)), "critic/q_cost": mean_cost.mean(-1)}

    def _noise_loss(self, dataset: Batch, draws: Draws) -> Tensor:
        labels = row_conditions(dataset, self.spec, draws, self.pretrain.condition_dropout)
        return noise_loss(self.trainables["noise"], dataset, labels, draws, self.pretrain.noise_dropout)

    def _policy_gradients(self, batch: Batch, actions: Tensor, std: Tensor, draws: Draws) -> list[Tensor]:
        """The parts of Eq. 23, each an ascent direction [P, N]: of Q_r, of Q_c, of log μ; and the mean norms [P] of ∇_a Q."""
        q_reward, q_cost = self.trainables["q_reward"], self.trainables["q_cost"]
        at = actions.detach().requires_grad_()
        q_r = ensemble_q(q_reward, q_reward.target, batch.observations, at).amin(1)
        q_c = ensemble_q(q_cost, q_cost.target, batch.observations, at)
        q_c = critics.upper_confidence_bound(q_c, self.used_critics, k=self.hyper.k)
        (for_reward,) = torch.autograd.grad(q_r.sum(), at)
        (for_cost,) = torch.autograd.grad(q_c.sum(), at)
        for_behaviour, for_std = self._behaviour_directions(at.detach(), std.detach(), batch, draws)
        directions = (
            (actions * for_reward).sum(-1),
            (actions * for_cost).sum(-1),
            (actions * for_behaviour + std * for_std).sum(-1),
        )
        leaves = list(self.trainables["actor"].weights.values())
        gradients = [torch.autograd.grad(d.mean(-1).sum(), leaves, retain_graph=True) for d in directions]
        flat = [torch.cat([g.flatten(1) for g in gradient], dim=1) for gradient in gradients]
        return [*flat, for_reward.norm(dim=-1).mean(-1), for_cost.norm(dim=-1).mean(-1)]

    def _behaviour_directions(self, actions: Tensor, std: Tensor, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        (rows, size), dtype = actions.shape[1:], actions.dtype
        times = diffusion.spread(draws.uniform(Stream.REGULARISER_TIME, rows, dtype=dtype), diffusion.REGULARISER_TIMES)
        noise = draws.normal(Stream.REGULARISER_NOISE, rows, size, dtype=dtype)
        asked = self.conditions.unsqueeze(1).expand(-1, rows, -1)
        return diffusion.behaviour_direction(
            lambda noisy, t: self.nets.noise(self.noise_weights, noisy, t, batch.observations, asked),
            actions,
            std,
            times,
            noise,
        )

    def _nearest_states(self) -> Tensor:
        """Where the cost of the policies of this moment is estimated: states of the footprints, [P, K] (D15)."""
        actor = self.trainables["actor"]
        return self.footprints.choose(lambda states: actor.network(actor.weights, states)[0], len(self.sources))

    def estimate_cost(self, draws: Draws, rows: int) -> Tensor:
        """Offline estimate of each member's episode cost on `rows` of its estimation states (Eq. 24-25, App. B.1), [P]."""
        q_cost, states = self.trainables["q_cost"], self.footprints.observations[self.estimated_on]
        index = draws.integers(Stream.ESTIMATE_ROWS, rows, states.shape[1])
        with torch.no_grad():
            observations = states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
            actions = self._act(observations, draws, Stream.ESTIMATE_NOISE)[0]
            q = ensemble_q(q_cost, q_cost.target, observations, actions)
            bound = critics.upper_confidence_bound(q, self.used_critics, k=self.hyper.k)
            return critics.episodic_cost(bound, discount=self.pretrain.cost_discount, episode_length=self.spec.episode_length)

    def offline_estimate(self) -> tuple[Tensor, Tensor]:
        """What the critics expect of the averaged policies on all estimation states: episode cost and its deviation, [P] each.

        The estimate with any k (Eq. 24-25, App. B.1) is mean + k · deviation.
        """
        actor, q_cost = self.trainables["actor"], self.trainables["q_cost"]
        weights = self.nets.actor.layout.split(self.average)
        moments = []
        with torch.no_grad():
            for states in self.footprints.observations[self.estimated_on].split(_ESTIMATE_ROWS, dim=1):
                q = ensemble_q(q_cost, q_cost.target, states, actor.network(weights, states)[0])
                moments.append(critics.ensemble_moments(q, self.used_critics))
        mean, deviation = (
            critics.episodic_cost(
                torch.cat(parts, dim=-1), discount=self.pretrain.cost_discount, episode_length=self.spec.episode_length
            )
            for parts in zip(*moments, strict=True)
        )
        return mean, deviation

    def _adapt(self, parts: Sequence[Tensor], policy_step: Tensor, progress: Tensor, rate: Tensor) -> Metrics:
        """Safe adaptation and the policy's update from the averaged parts of the gradient (Algorithms 2-3, Eq. 12, 20-23)."""
        toward_reward, toward_cost, toward_behaviour, norm_reward, norm_cost, offline = parts
        hyper = self.hyper
        offline = self._smoothed(offline)
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
        if self.extract.normalize_action_gradients:
            tiny = torch.finfo(beta.dtype).tiny
            beta_reward, beta_cost = beta / norm_reward.clamp(min=tiny), beta / norm_cost.clamp(min=tiny)
        else:
            beta_reward = beta_cost = beta
        ascent, conflict = self._combine(
            beta_reward[:, None] * toward_reward, beta_cost[:, None] * toward_cost, toward_behaviour, decision
        )
        actor = self.trainables["actor"]
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

    def _combine(self, reward: Tensor, cost: Tensor, behaviour: Tensor, decision: Decision) -> tuple[Tensor, Tensor]:
        """The member's ascent direction [P, N], and whether its two gradients conflict [P]."""
        single = decision.reward_weight[:, None] * reward - decision.cost_weight[:, None] * cost + behaviour
        gradient_r, gradient_c = reward + behaviour, behaviour - cost
        both = manipulate(gradient_r, gradient_c)
        return torch.where(decision.band[:, None], both, single), (gradient_r * gradient_c).sum(-1) < 0

    def _smoothed(self, estimate: Tensor) -> Tensor:
        """Bias-corrected running average of the offline estimate (D16), [P]."""
        decay = self.extract.estimate_smoothing
        self.estimates += 1
        self.estimate.lerp_(estimate, 1.0 - decay)
        return self.estimate / (1.0 - decay**self.estimates).to(self.estimate.dtype)

    def policies(self, parameters: Tensor | None = None) -> PopulationPolicy:
        """The averaged deterministic policies, as numpy; or those of other actor parameters [P, N]."""
        weights = self.nets.actor.layout.split(self.average if parameters is None else parameters)
        return snapshot(self.nets.actor, weights, self.spec.observation_mean, self.spec.observation_std)

    def finite(self) -> Tensor:
        """Which members hold only finite weights, [P] bool; one that does not is lost, the others are untouched by it."""
        parts = [part.flat.isfinite().all(1).unflatten(0, (-1, part.copies)).all(1) for part in self.trainables.values()]
        return torch.stack(parts).all(0)

    def select(self, members: Sequence[int]) -> None:
        """Keep the given members, in the given order."""
        index = torch.tensor(list(members), device=self.sources.device)
        for part in self.trainables.values():
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
        for name, part in self.trainables.items():
            part.join(other.trainables[name])
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
        state = {f"{name}.{key}": x for name, part in self.trainables.items() for key, x in part.state().items()}
        state |= {f"multiplier.{key}": x for key, x in vars(self.multiplier).items()}
        state |= {f"online.{key}": x for key, x in self.online.state_dict().items()}
        names = ("average", "estimate", "estimates", "region_counts", "estimated_on")
        return state | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        online = {name.removeprefix("online."): x for name, x in state.items() if name.startswith("online.")}
        self.online.load_state_dict(online)
        for name, tensor in self.state_dict().items():
            if not name.startswith("online."):
                tensor.copy_(state[name])
