"""The training state of a population's network: weights, Adam moments and target, each one flat buffer.

An update is a few passes over these buffers. Shapes: P members, G = P · copies networks, N weights of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ADAM_BETA_1, _ADAM_BETA_2, _ADAM_EPSILON = 0.9, 0.999, 1e-8

Reduce = Callable[[Tensor], Tensor]


class TrainState:
    """G networks of one architecture in training; `weights` are autograd leaves that share the storage of `flat` [G, N].

    network: an architecture with a `layout` and a call that takes the weights first (networks.py, actor.py). copies:
    networks per member (E for an ensemble). tracked: keep a target, which follows the weights by Polyak averaging.
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
        """Take one Adam step with decoupled weight decay along −gradient [G, N]; learning_rate: a number, or [P]."""
        if isinstance(learning_rate, Tensor) and learning_rate.ndim:
            learning_rate = learning_rate.repeat_interleave(self.copies)[:, None]
        self.updates += 1
        self.moment_1.lerp_(gradient, 1.0 - _ADAM_BETA_1)
        self.moment_2.mul_(_ADAM_BETA_2).addcmul_(gradient, gradient, value=1.0 - _ADAM_BETA_2)
        correction_1, correction_2 = (1.0 - beta**self.updates for beta in (_ADAM_BETA_1, _ADAM_BETA_2))
        root_2 = correction_2.sqrt()  # correcting the scalars instead of the moments saves a pass over them
        step_size = (learning_rate * root_2 / correction_1).to(self.flat.dtype)
        denominator = self.moment_2.sqrt().add_((_ADAM_EPSILON * root_2).to(self.flat.dtype))
        if weight_decay:
            self.flat.mul_(1.0 - weight_decay * learning_rate)
        self.flat.addcdiv_(self.moment_1 * step_size, denominator, value=-1.0)

    def track(self, step: float | Tensor) -> None:
        """Take a Polyak step of the target: target += step · (weights − target)."""
        assert self.target_flat is not None
        self.target_flat.lerp_(self.flat, step)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that a resumed run needs, by name."""
        state = {"flat": self.flat, "moment_1": self.moment_1, "moment_2": self.moment_2, "updates": self.updates}
        return state if self.target_flat is None else state | {"target": self.target_flat}

    def load(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned, in place."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def select(self, members: Tensor) -> None:
        """Keep the given members [K], in the given order (repeats allowed)."""
        rows = (members[:, None] * self.copies + torch.arange(self.copies, device=members.device)).flatten()
        self.flat, self.moment_1, self.moment_2 = self.flat[rows], self.moment_1[rows], self.moment_2[rows]
        self.target_flat = None if self.target_flat is None else self.target_flat[rows]
        self._bind()

    def join(self, other: TrainState) -> None:
        """Append the members of another population at the same step."""
        assert torch.equal(self.updates, other.updates)
        for name in ("flat", "moment_1", "moment_2"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        if self.target_flat is not None and other.target_flat is not None:
            self.target_flat = torch.cat([self.target_flat, other.target_flat])
        self._bind()


def finite_members(networks: Iterable[TrainState]) -> Tensor:
    """Return which members have only finite weights in all of their networks, [P] bool."""
    return torch.stack([x.flat.isfinite().all(1).unflatten(0, (-1, x.copies)).all(1) for x in networks]).all(0)


def named_state(networks: Mapping[str, TrainState]) -> dict[str, Tensor]:
    """Return the state of several networks by NAME.KEY."""
    return {f"{name}.{key}": tensor for name, network in networks.items() for key, tensor in network.state().items()}


def flat_gradients(loss: Tensor, networks: Sequence[TrainState]) -> list[Tensor]:
    """Return the gradients [G, N] of a sum of members' losses by each network's weights; each row is its own member's."""
    leaves = [list(network.weights.values()) for network in networks]
    gradients = iter(torch.autograd.grad(loss, [leaf for group in leaves for leaf in group]))
    return [torch.cat([next(gradients).flatten(1) for _ in group], dim=1) for group in leaves]


def reduce_together(tensors: Sequence[Tensor], reduce: Reduce) -> list[Tensor]:
    """Average several tensors over the workers in one flat all-reduce."""
    if reduce is no_reduce:
        return list(tensors)
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]))
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def no_reduce(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged: the reduction of a single worker."""
    return tensor
