"""A population's trainable network: weights, Adam moments and target in flat buffers [G, N], a few passes an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ADAM_BETA_1, _ADAM_BETA_2, _ADAM_EPSILON = 0.9, 0.999, 1e-8

Reduce = Callable[[Tensor], Tensor]


class TrainState:
    """G networks of one architecture that are trained: `weights` are autograd leaves over `flat`'s storage.

    network: an architecture, with a `layout` and a call that takes the weights first (networks.py, policy.Actor).
    copies: networks per member (E of an ensemble), G = P · copies. tracked: keep a copy that follows by Polyak averaging.
    """

    def __init__(self, network: Any, flat: Tensor, *, copies: int = 1, tracked: bool = False) -> None:
        self.network, self.copies = network, copies
        self.flat = flat
        self.moment_1, self.moment_2 = torch.zeros_like(flat), torch.zeros_like(flat)
        self.updates = torch.zeros((), dtype=torch.float64, device=flat.device)
        self.target_flat = flat.clone() if tracked else None
        self._bind()

    def _bind(self) -> None:
        views = self.network.layout.split(self.flat)
        self.weights = {name: view.detach().requires_grad_() for name, view in views.items()}
        self.target = {} if self.target_flat is None else self.network.layout.split(self.target_flat)

    def descend(self, gradient: Tensor, learning_rate: Tensor | float, weight_decay: float = 0.0) -> None:
        """One Adam step (decoupled weight decay) along −gradient [G, N]; learning_rate: one of all or of each member [P]."""
        if isinstance(learning_rate, Tensor) and learning_rate.ndim:
            learning_rate = learning_rate.repeat_interleave(self.copies)[:, None]
        self.updates += 1
        self.moment_1.lerp_(gradient, 1.0 - _ADAM_BETA_1)
        self.moment_2.mul_(_ADAM_BETA_2).addcmul_(gradient, gradient, value=1.0 - _ADAM_BETA_2)
        correction_1, correction_2 = (1.0 - beta**self.updates for beta in (_ADAM_BETA_1, _ADAM_BETA_2))
        root_2 = correction_2.sqrt()  # the corrections go into the scalars, which saves a pass over the moments
        step_size = (learning_rate * root_2 / correction_1).to(self.flat.dtype)
        denominator = self.moment_2.sqrt().add_((_ADAM_EPSILON * root_2).to(self.flat.dtype))
        if weight_decay:
            self.flat.mul_(1.0 - weight_decay * learning_rate)
        self.flat.addcdiv_(self.moment_1 * step_size, denominator, value=-1.0)

    def track(self, step: float | Tensor) -> None:
        """Polyak step of the target: target += step · (weights − target)."""
        assert self.target_flat is not None
        self.target_flat.lerp_(self.flat, step)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        state = {"flat": self.flat, "moment_1": self.moment_1, "moment_2": self.moment_2, "updates": self.updates}
        return state if self.target_flat is None else state | {"target": self.target_flat}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned, in place."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def select(self, members: Tensor) -> None:
        """Keep the given members [K], in the given order (repeats allowed)."""
        rows = (members[:, None] * self.copies + torch.arange(self.copies, device=members.device)).flatten()
        self.flat, self.moment_1, self.moment_2 = self.flat[rows], self.moment_1[rows], self.moment_2[rows]
        self.target_flat = None if self.target_flat is None else self.target_flat[rows]
        self._bind()

    def join(self, other: TrainState) -> None:
        """Take in another population's members, at the same step, behind its own."""
        assert torch.equal(self.updates, other.updates)
        for name in ("flat", "moment_1", "moment_2"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        if self.target_flat is not None and other.target_flat is not None:
            self.target_flat = torch.cat([self.target_flat, other.target_flat])
        self._bind()


def finite_members(parts: Iterable[TrainState]) -> Tensor:
    """Which members have only finite weights in all of their networks, [P] bool."""
    return torch.stack([part.flat.isfinite().all(1).unflatten(0, (-1, part.copies)).all(1) for part in parts]).all(0)


def named_state(parts: Mapping[str, TrainState]) -> dict[str, Tensor]:
    """The state of several networks by NAME.KEY."""
    return {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state().items()}


def flat_gradients(loss: Tensor, networks: Sequence[TrainState]) -> list[Tensor]:
    """Gradients [G, N] of a sum of members' losses with respect to each of the networks: each row is its member's own."""
    leaves = [list(network.weights.values()) for network in networks]
    gradients = iter(torch.autograd.grad(loss, [leaf for group in leaves for leaf in group]))
    return [torch.cat([next(gradients).flatten(1) for _ in group], dim=1) for group in leaves]


def reduce_together(tensors: Sequence[Tensor], reduce: Reduce) -> list[Tensor]:
    """Average several tensors over the workers by one flat all-reduce."""
    if reduce is no_reduce:
        return list(tensors)
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def no_reduce(tensor: Tensor) -> Tensor:
    """The reduction of a single worker: nothing to average."""
    return tensor
