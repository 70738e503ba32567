"""CDT's causal transformer over (cost to go, return to go, state, action) tokens, as a function of named weights.

Shapes: P members, G networks, B windows of a minibatch, T steps of a window, S observation, A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from drcorl_ray.method.networks import Entry, Layout, Weights, apply_linear, apply_norm, linear, norm
from drcorl_ray.method.random import Draws, Stream

TOKENS = ("cost", "return", "state", "action")
_LOG_STD_RANGE = (-5.0, 2.0)
_TIME_BOUND = 0.02 * math.sqrt(3.0)  # the bound of a uniform distribution with standard deviation 0.02


@dataclass(frozen=True)
class Context:
    """Windows of T steps, oldest first.

    to_go: cost and return to go, `scaled`, [G, B, T, 2]. states: [G, B, T, S]. actions: [G, B, T, A]. times: steps since the
    episode's start, [G, B, T] int64. valid: false for steps before the episode's start, [G, B, T] bool.
    """

    to_go: Tensor
    states: Tensor
    actions: Tensor
    times: Tensor
    valid: Tensor


@dataclass(frozen=True)
class CausalTransformer:
    """A pre-norm transformer with four tokens per step.

    The state's token predicts μ and log σ of the action; the action's token predicts the logit of a cost.
    """

    states: int
    actions: int
    episode_length: int
    width: int
    blocks: int
    heads: int

    @cached_property
    def layout(self) -> Layout:
        sizes = {"cost": 1, "return": 1, "state": self.states, "action": self.actions}
        layout = Layout({"time": Entry((self.episode_length + 1, self.width), _TIME_BOUND)})
        for name in TOKENS:
            layout.update(linear(sizes[name], self.width, f"embed.{name}"))
        layout.update(norm(self.width, "embed.norm"))
        for block in range(self.blocks):
            name, width = f"blocks.{block}", self.width
            layout.update(norm(width, f"{name}.norm.0") | linear(width, 3 * width, f"{name}.qkv"))
            layout.update(linear(width, width, f"{name}.out"))
            layout.update(norm(width, f"{name}.norm.1") | linear(width, 4 * width, f"{name}.0"))
            layout.update(linear(4 * width, width, f"{name}.1"))
        layout.update(norm(self.width, "out.norm") | linear(self.width, 2 * self.actions, "policy"))
        layout.update(linear(self.width, 1, "next_cost"))
        return layout

    def masks(self, draws: Draws, rows: int, steps: int, dropout: float, dtype: torch.dtype) -> Tensor | None:
        """Return scaled dropout masks of the tokens and of both branches of each block, [P, B, 1 + 2 · blocks, 4T, width]."""
        if dropout == 0.0:
            return None
        keep = draws.keep(Stream.DROPOUT, 1.0 - dropout, rows, 1 + 2 * self.blocks, len(TOKENS) * steps, self.width)
        return keep.to(dtype) / (1.0 - dropout)

    def __call__(self, weights: Weights, context: Context, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return for every step μ and log σ of the action, [G, B, T, A] each, and the logit of a cost, [G, B, T]."""
        rows, steps = context.times.shape[1:]
        x = apply_norm(weights, "embed.norm", self._embedded(weights, context).flatten(1, 2))
        x = _dropped(x, masks, 0)
        attended = _visible(context.valid)
        for block in range(self.blocks):
            name = f"blocks.{block}"
            out = self._attention(weights, name, apply_norm(weights, f"{name}.norm.0", x), rows, attended)
            x = x + _dropped(out, masks, 1 + 2 * block)
            hidden = apply_linear(weights, f"{name}.0", apply_norm(weights, f"{name}.norm.1", x))
            x = x + _dropped(apply_linear(weights, f"{name}.1", F.gelu(hidden, approximate="tanh")), masks, 2 + 2 * block)
        x = apply_norm(weights, "out.norm", x).unflatten(1, (rows, steps, len(TOKENS)))
        mean, log_std = _over_rows(weights, "policy", x[..., 2, :]).chunk(2, dim=-1)
        logit = _over_rows(weights, "next_cost", x[..., 3, :]).squeeze(-1)
        dtype = context.states.dtype
        return mean.to(dtype), log_std.to(dtype).clamp(*_LOG_STD_RANGE), logit.to(dtype)

    def _embedded(self, weights: Weights, context: Context) -> Tensor:
        """Embed the tokens of a context, [G, B, 4T, width]."""
        members = torch.arange(len(context.times), device=context.times.device)[:, None, None]
        time = weights["time"][members, context.times.clamp(max=self.episode_length)]
        inputs = {"cost": context.to_go[..., :1], "return": context.to_go[..., 1:], "state": context.states}
        tokens = [_over_rows(weights, f"embed.{name}", (inputs | {"action": context.actions})[name]) + time for name in TOKENS]
        return torch.stack(tokens, dim=3).flatten(2, 3)

    def _attention(self, weights: Weights, name: str, x: Tensor, rows: int, visible: Tensor) -> Tensor:
        """Apply multi-head self-attention within each row's tokens; x [G, B · 4T, width], visible [G, B, 4T, 4T] bool."""
        members, width = len(x), self.width // self.heads
        qkv = apply_linear(weights, f"{name}.qkv", x).view(members * rows, -1, 3, self.heads, width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / math.sqrt(width)).masked_fill(~visible.flatten(0, 1).unsqueeze(1), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(members, -1, self.width)
        return apply_linear(weights, f"{name}.out", mixed)


def scaled(to_go: Tensor, units: tuple[float, float]) -> Tensor:
    """Scale costs and returns to go [..., 2] for their tokens: the next LayerNorm would flatten values in the hundreds."""
    cost, total = to_go.unbind(-1)
    return torch.stack([(cost.clamp(min=0.0) / units[0]).sqrt(), total / units[1]], dim=-1)


def _over_rows(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Apply a linear layer to the last dimension of x [G, B, T, …]."""
    return apply_linear(weights, name, x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def _visible(valid: Tensor) -> Tensor:
    """Return which tokens each token attends to, [G, B, 4T, 4T] bool: itself, and earlier tokens of valid steps [G, B, T]."""
    tokens = valid.repeat_interleave(len(TOKENS), dim=-1)
    count = tokens.shape[-1]
    earlier = torch.ones(count, count, dtype=torch.bool, device=valid.device).tril()
    return (earlier & tokens.unsqueeze(-2)) | torch.eye(count, dtype=torch.bool, device=valid.device)


def _dropped(x: Tensor, masks: Tensor | None, branch: int) -> Tensor:
    """Apply the dropout mask of a branch to tokens x [G, B · 4T, width]."""
    return x if masks is None else x * masks[:, :, branch].flatten(1, 2)
