"""CDT's policies in numpy: causal transformers that act on an episode's last steps and its remaining targets.

The architecture is that of `method.baselines.transformer.CausalTransformer`, with the weights of trained members.
Shapes: P members, N episodes, n histories of t steps, S observation, A action.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.policy.population import TRANSFORMER, PolicyRunner, PopulationPolicy

_TOKENS = ("cost", "return", "state", "action")
_TARGET = "target"


@dataclass(frozen=True)
class TransformerPolicy(PopulationPolicy):
    """P causal transformers.

    weights: by name [P, …]. target: the cost and the return of an episode that each member aims at, [P, 2]. context: number
    of steps attended to. units: the network's inputs are √(cost to go / units[0]) and return to go / units[1].
    """

    weights: Mapping[str, np.ndarray]
    target: np.ndarray
    heads: int
    context: int
    units: tuple[float, float]

    @property
    def action_size(self) -> int:
        return self.weights["embed.action.weight"].shape[1]

    @property
    def memory(self) -> bool:
        return True

    def act(self, observations: np.ndarray) -> np.ndarray:
        actions = np.zeros((*observations.shape[:2], self.action_size), np.float32)
        self.begin(observations.shape[1]).act(observations, np.ones(observations.shape[:2], bool), actions)
        return actions

    def begin(self, episodes: int) -> PolicyRunner:
        return HistoryRunner(self, episodes)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.weights, _TARGET: self.target}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> TransformerPolicy:
        weights = {name: array for name, array in arrays.items() if name != _TARGET}
        return replace(self, weights=weights, target=arrays[_TARGET])

    def about(self) -> dict[str, Any]:
        return {"kind": TRANSFORMER, "heads": self.heads, "context": self.context, "units": list(self.units)}

    def next_actions(self, member: int, to_go: np.ndarray, states: np.ndarray, actions: np.ndarray, first: int) -> np.ndarray:
        """Return a member's next actions [n, A] after n histories of t steps that begin `first` steps into their episodes.

        to_go: cost and return to go [n, t, 2]. states: standardised observations [n, t, S]. actions: [n, t − 1, A]. Each
        history has its own matrix products, so that its bits do not depend on the others.
        """
        w = {name: array[member] for name, array in self.weights.items()}
        cost = np.sqrt(np.maximum(to_go[..., :1], 0.0) / np.float32(self.units[0]))
        inputs = {"cost": cost, "return": to_go[..., 1:] / np.float32(self.units[1]), "state": states}
        steps = states.shape[1]
        time = w["time"][np.minimum(np.arange(first, first + steps), len(w["time"]) - 1)]
        padded = np.concatenate([actions, np.zeros_like(actions, shape=(len(actions), 1, self.action_size))], axis=1)
        tokens = [_linear(w, f"embed.{name}", (inputs | {"action": padded})[name]) + time for name in _TOKENS]
        x = np.stack(tokens, axis=2).reshape(len(states), 4 * steps, -1)[:, :-1]  # the last action is unknown
        x = _norm(w, "embed.norm", x)
        blocks = _blocks(self.weights)
        for block in range(blocks):
            queries_from = -1 if block == blocks - 1 else 0  # only the last token of the last block is needed
            x = self._block(w, f"blocks.{block}", x, queries_from)
        mean = _linear(w, "policy", _norm(w, "out.norm", x[:, -1:]))[:, 0, : self.action_size]
        return np.clip(mean, -1.0, 1.0)

    def _block(self, w: Mapping[str, np.ndarray], name: str, x: np.ndarray, queries_from: int) -> np.ndarray:
        """Apply a block to tokens x [n, t, width]; return its outputs from token `queries_from` on."""
        count, tokens, width = x.shape
        qkv = _linear(w, f"{name}.qkv", _norm(w, f"{name}.norm.0", x))
        q, k, v = qkv.reshape(count, tokens, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        causal = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)[queries_from:]
        scores = q[:, :, queries_from:] @ k.swapaxes(-1, -2) / np.float32(math.sqrt(width // self.heads)) + causal
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x[:, queries_from:] + _linear(w, f"{name}.out", mixed.transpose(0, 2, 1, 3).reshape(count, -1, width))
        return x + _linear(w, f"{name}.1", _gelu(_linear(w, f"{name}.0", _norm(w, f"{name}.norm.1", x))))


class HistoryRunner(PolicyRunner):
    """Keeps a window of recent steps and the remaining cost and return targets of each episode."""

    def __init__(self, policies: TransformerPolicy, episodes: int) -> None:
        self._policies, self._step = policies, 0
        shape = (policies.members, episodes, policies.context)
        self._to_go = np.zeros((*shape, 2), np.float32)
        self._states = np.zeros((*shape, policies.observation_size), np.float32)
        self._actions = np.zeros((*shape, policies.action_size), np.float32)
        self._remaining = np.broadcast_to(policies.target[:, None], (*shape[:2], 2)).astype(np.float64)

    def act(self, observations: np.ndarray, active: np.ndarray, actions: np.ndarray) -> None:
        policies = self._policies
        last = min(self._step, policies.context - 1)  # the current step's place in the window
        if self._step >= policies.context:
            for window in (self._to_go, self._states, self._actions):
                window[:, :, :-1] = window[:, :, 1:]
        self._to_go[:, :, last], self._states[:, :, last] = self._remaining, policies.standardised(observations)
        for member in np.flatnonzero(active.any(axis=1)):
            rows = np.flatnonzero(active[member])
            actions[member, rows] = policies.next_actions(
                int(member),
                self._to_go[member, rows, : last + 1],
                self._states[member, rows, : last + 1],
                self._actions[member, rows, :last],
                self._step - last,
            )
        self._actions[:, :, last] = actions
        self._step += 1

    def note(self, rewards: np.ndarray, costs: np.ndarray) -> None:
        self._remaining -= np.stack([costs, rewards], axis=-1)


def _linear(w: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def _norm(w: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(1e-5))
    return centred / scale * w[f"{name}.gain"] + w[f"{name}.shift"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)))


def _blocks(names: Mapping[str, Any]) -> int:
    return sum(name.startswith("blocks.") and name.endswith(".qkv.weight") for name in names)


def assemble_transformer(file: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> TransformerPolicy:
    """Build a policy from a file's arrays [P, …] and metadata; UserError unless they are a complete transformer."""
    members_arrays = {name: array for name, array in arrays.items() if not name.startswith("observation_")}
    try:
        mean, std = arrays["observation_mean"], arrays["observation_std"]
        heads, context, units = meta["heads"], meta["context"], meta["units"]
        (members, times, width), (actions,) = members_arrays["time"].shape, members_arrays["embed.action.weight"].shape[1:2]
        expected = shapes(mean.size, actions, times, width, _blocks(members_arrays))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a complete policy ({error!r} is missing or wrong)") from error
    counts = all(type(count) is int and 1 <= count <= limit for count, limit in ((heads, width), (context, times)))
    scales = isinstance(units, list) and len(units) == 2 and all(isinstance(u, float) and 0 < u < math.inf for u in units)
    actual = {name: array.shape for name, array in members_arrays.items()}
    fits = actual == {name: (members, *shape) for name, shape in expected.items()}
    if not (counts and scales and fits and width % heads == 0 and mean.ndim == 1 and mean.shape == std.shape):
        raise UserError(f"{file}: not a policy (its sizes do not fit together)")
    weights = {name: array for name, array in members_arrays.items() if name != _TARGET}
    return TransformerPolicy(mean, std, weights, members_arrays[_TARGET], heads, context, (units[0], units[1]))


def shapes(states: int, actions: int, times: int, width: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a member's arrays by name."""
    sizes = dict(zip(_TOKENS, (1, 1, states, actions), strict=True))
    linear = {f"embed.{name}": (size, width) for name, size in sizes.items()}
    linear |= {"policy": (width, 2 * actions), "next_cost": (width, 1)}
    norms = ["embed.norm", "out.norm"]
    for block in range(blocks):
        name = f"blocks.{block}"
        linear |= {f"{name}.qkv": (width, 3 * width), f"{name}.out": (width, width)}
        linear |= {f"{name}.0": (width, 4 * width), f"{name}.1": (4 * width, width)}
        norms += [f"{name}.norm.0", f"{name}.norm.1"]
    shapes: dict[str, tuple[int, ...]] = {"time": (times, width), _TARGET: (2,)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[1:] for name, shape in linear.items()}
    return shapes | {f"{name}.{part}": (width,) for name in norms for part in ("gain", "shift")}
