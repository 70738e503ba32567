"""The reference of the benchmarks: DRCORL's extraction for one member in plain nn.Modules and torch.optim.

It has the mathematics of the default configuration (a Dirac policy, gradient manipulation, a frozen behaviour model, offline
estimates). tests/benchmarks/test_benchmarks.py compares it with the population weight by weight. Nothing is batched over
members or critics. Shapes: B rows of a minibatch, K estimation states, S observation, A action.
"""

from __future__ import annotations

import copy
import math
import re
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.population import ACTIONS, EPISODE_LENGTH, OBSERVATIONS, SPEC, Settings
from drcorl_ray.tasks.scores import COST_EPSILON

CONDITIONS, FEATURES, EMBEDDING = 4, 64, 128


class MLP(nn.Module):
    """An MLP with ReLU, optional LayerNorm before each activation and an optional softplus output."""

    def __init__(self, inputs: int, hidden: list[int], outputs: int, layer_norm: bool = False, positive: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise([inputs, *hidden, outputs]))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden) if layer_norm else None
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for index, layer in enumerate(hidden):
            x = layer(x)
            x = torch.relu(x if self.norms is None else self.norms[index](x))
        return F.softplus(last(x)) if self.positive else last(x)


class Policy(nn.Module):
    def __init__(self, hidden: list[int]) -> None:
        super().__init__()
        self.mlp = MLP(OBSERVATIONS, hidden, 2 * ACTIONS)

    def forward(self, observations: Tensor) -> Tensor:
        return self.mlp(observations).chunk(2, dim=-1)[0].tanh()


class Block(nn.Module):
    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.mish(self.widen(self.norm(x))))


class Noise(nn.Module):
    def __init__(self, width: int, blocks: int, expansion: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(FEATURES, EMBEDDING), nn.Mish(), nn.Linear(EMBEDDING, EMBEDDING))
        self.input = nn.Linear(EMBEDDING + OBSERVATIONS + ACTIONS + CONDITIONS, width)
        self.blocks = nn.Sequential(*(Block(width, expansion) for _ in range(blocks)))
        self.output = nn.Linear(width, ACTIONS)
        half = FEATURES // 2
        quantiles = 0.5 + 0.5 * (torch.arange(half, dtype=torch.float64) + 0.5) / half
        self.register_buffer("frequencies", 4.0 * math.sqrt(2.0) * torch.erfinv(2.0 * quantiles - 1.0))

    def forward(self, noisy: Tensor, times: Tensor, observations: Tensor, conditions: Tensor) -> Tensor:
        phases = 2.0 * math.pi * times[:, None] * self.frequencies
        time = self.time(torch.cat([phases.sin(), phases.cos()], dim=-1))
        x = self.blocks(self.input(torch.cat([time, noisy, observations, conditions], dim=-1)))
        return self.output(F.mish(x))


class EagerLearner:
    """Extraction of one member. conditions: [4]. states: estimation states [K, S]."""

    def __init__(self, settings: Settings, conditions: Tensor, states: Tensor, device: str, dtype: torch.dtype) -> None:
        pretrain, self.extract, self.member = settings.pretrain, settings.extract, settings.member
        self.pretrain = pretrain
        inputs, hidden, norm = OBSERVATIONS + ACTIONS, list(pretrain.critic_hidden), pretrain.critic_layer_norm

        def critic(positive: bool) -> MLP:
            return MLP(inputs, hidden, 1, norm, positive)

        self.policy = Policy(list(pretrain.actor_hidden))
        self.rewards = nn.ModuleList(critic(False) for _ in range(2))
        self.costs = nn.ModuleList(critic(pretrain.positive_cost) for _ in range(pretrain.cost_ensemble))
        self.noise = Noise(pretrain.noise_width, pretrain.noise_blocks, pretrain.noise_expansion).requires_grad_(False)
        for module in (self.policy, self.rewards, self.costs, self.noise):
            module.to(device, dtype)
        self.reward_targets, self.cost_targets = (copy.deepcopy(m).requires_grad_(False) for m in (self.rewards, self.costs))
        self.average = copy.deepcopy(self.policy).requires_grad_(False)
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), lr=self.member.actor_learning_rate)
        critics = [*self.rewards.parameters(), *self.costs.parameters()]
        self.critic_optimiser = torch.optim.Adam(critics, lr=self.member.critic_learning_rate)
        self.conditions, self.states = conditions.to(device, dtype), states.to(device, dtype)
        self.estimate, self.policy_steps = torch.zeros((), device=device, dtype=dtype), 0

    def step(self, batch: dict[str, Tensor], times: Tensor, noise: Tensor, rows: Tensor) -> Tensor:
        """Take a policy step on columns [B, …], times [B], noise [B, A] and rows [B] of `states`; return the cost estimate."""
        progress = self.policy_steps / self.extract.steps
        final = self.extract.final_learning_rate
        rate = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        actions = self.policy(batch["observations"])
        gradients = self._policy_gradients(batch["observations"], actions, times, noise)
        estimate = self._estimate(rows)
        self._critic_step(batch, rate)
        self._policy_step(*gradients, estimate, progress, rate)
        with torch.no_grad():
            for module, target in ((self.rewards, self.reward_targets), (self.costs, self.cost_targets)):
                for weight, slow in zip(module.parameters(), target.parameters(), strict=True):
                    slow.lerp_(weight, self.extract.target_step)
            share = max(1.0 - self.extract.policy_average, 1.0 / (self.policy_steps + 1))
            for weight, slow in zip(self.policy.parameters(), self.average.parameters(), strict=True):
                slow.lerp_(weight, share)
        self.policy_steps += 1
        return estimate

    def _critic_step(self, batch: dict[str, Tensor], rate: float) -> None:
        with torch.no_grad():
            following = torch.cat([batch["next_observations"], self.policy(batch["next_observations"])], dim=-1)
            alive = 1.0 - batch["terminals"]
            next_q_r = torch.stack([critic(following).squeeze(-1) for critic in self.reward_targets]).amin(0)
            target_r = batch["rewards"] * SPEC.reward_scale + self.pretrain.discount * alive * next_q_r
            horizon = 1.0 / (1.0 - self.pretrain.cost_discount)
            targets_c = []
            for critic in self.cost_targets:
                q = critic(following).squeeze(-1).clamp(0.0, SPEC.max_cost * horizon)
                ended = batch["terminals"] * SPEC.mean_cost * horizon
                targets_c.append(batch["costs"] + self.pretrain.cost_discount * (alive * q + ended))
        inputs = torch.cat([batch["observations"], batch["actions"]], dim=-1)
        loss = sum((critic(inputs).squeeze(-1) - target_r).square().mean() for critic in self.rewards)
        loss = loss + sum(
            (critic(inputs).squeeze(-1) - target).square().mean() for critic, target in zip(self.costs, targets_c, strict=True)
        )
        self.critic_optimiser.param_groups[0]["lr"] = self.member.critic_learning_rate * rate
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()

    def _policy_gradients(self, observations: Tensor, actions: Tensor, times: Tensor, noise: Tensor) -> list[Any]:
        """Return the gradients of Q_r, Q_c and log μ, each a list of tensors, and the mean norms of ∇_a Q_r and ∇_a Q_c."""
        at = actions.detach().requires_grad_()
        inputs = torch.cat([observations, at], dim=-1)
        q_r = torch.stack([critic(inputs).squeeze(-1) for critic in self.reward_targets]).amin(0)
        q_c = torch.stack([critic(inputs).squeeze(-1) for critic in self.cost_targets])
        q_c = q_c.mean(0) + self.member.k * q_c.std(0, correction=0)
        (for_reward,) = torch.autograd.grad(q_r.sum(), at)
        (for_cost,) = torch.autograd.grad(q_c.sum(), at)
        with torch.no_grad():
            log_alpha = -0.25 * times.square() * 19.9 - 0.05 * times
            alpha, sigma = log_alpha.exp()[:, None], (-torch.expm1(2.0 * log_alpha)).sqrt()[:, None]
            noisy = alpha * at + sigma * noise
            predicted = self.noise(noisy, times, observations, self.conditions.expand(len(times), -1))
            for_behaviour = -sigma.square() * (predicted - noise)
        parameters = list(self.policy.parameters())
        gradients = [
            torch.autograd.grad((actions * direction).sum(-1).mean(), parameters, retain_graph=True)
            for direction in (for_reward, for_cost, for_behaviour)
        ]
        return [*gradients, for_reward.norm(dim=-1).mean(), for_cost.norm(dim=-1).mean()]

    def _estimate(self, rows: Tensor) -> Tensor:
        """Update and return the smoothed estimate of the episode cost."""
        with torch.no_grad():
            states = self.states[rows]
            inputs = torch.cat([states, self.policy(states)], dim=-1)
            q = torch.stack([critic(inputs).squeeze(-1) for critic in self.cost_targets])
            bound = (q.mean(0) + self.member.k * q.std(0, correction=0)).mean()
            now = bound * (1.0 - self.pretrain.cost_discount) * EPISODE_LENGTH
            decay = self.extract.estimate_smoothing
            self.estimate.lerp_(now, 1.0 - decay)
            return self.estimate / (1.0 - decay ** (self.policy_steps + 1))

    def _policy_step(
        self,
        reward: Any,
        cost: Any,
        behaviour: Any,
        norm_r: Tensor,
        norm_c: Tensor,
        estimate: Tensor,
        progress: float,
        rate: float,
    ) -> None:
        """Take a policy step by Algorithm 3; its Python branch waits for the device, as in usual code."""
        shrink = 1.0 - self.member.slack_shrink * progress
        level = (estimate / (self.member.cost_limit + COST_EPSILON)).item()
        beta = self.member.beta_0
        reward = [beta / norm_r * g for g in reward]
        cost = [beta / norm_c * g for g in cost]
        if level <= 1.0 - self.member.slack_minus * shrink:
            ascent = [r + b for r, b in zip(reward, behaviour, strict=True)]
        elif level <= 1.0 + self.member.slack_plus * shrink:
            toward = torch.cat([(r + b).flatten() for r, b in zip(reward, behaviour, strict=True)])
            away = torch.cat([(b - c).flatten() for c, b in zip(cost, behaviour, strict=True)])
            dot = toward @ away
            if dot < 0:
                toward, away = toward - dot / (away @ away) * away, away - dot / (toward @ toward) * toward
            flat = (0.5 * (toward + away)).split([g.numel() for g in reward])
            ascent = [part.view_as(g) for part, g in zip(flat, reward, strict=True)]
        else:
            weight = self.extract.cost_step_reward_weight
            ascent = [weight * r - c + b for r, c, b in zip(reward, cost, behaviour, strict=True)]
        for parameter, gradient in zip(self.policy.parameters(), ascent, strict=True):
            parameter.grad = -gradient
        self.policy_optimiser.param_groups[0]["lr"] = self.member.actor_learning_rate * rate
        self.policy_optimiser.step()


def take_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy a network's weights, named as in the population's layout, into a module."""
    state = {key: value for key, value in module.state_dict().items() if key == "frequencies"}
    for name, tensor in weights.items():
        name = name.replace(".gain", ".weight").replace(".shift", ".bias").replace("time.1.", "time.2.")
        name = re.sub(r"(blocks\.\d+)\.([01])\.", lambda match: f"{match[1]}.{('widen', 'narrow')[int(match[2])]}.", name)
        state[name] = tensor.mT if tensor.ndim == 2 else tensor
    module.load_state_dict(state)
