"""The work of a step: FLOPs of its matrix products, bytes of its operations, and the number of operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_FREE = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::empty", "aten::empty_like"}


@dataclass(frozen=True)
class Work:
    """The counted work.

    flops: of matrix products; a multiplication and an addition count 1 each. bytes: read and written, summed over all
    operations. operations: number of operations that access memory; on a GPU each is one or more kernels.
    """

    flops: int
    bytes: int
    operations: int


def count_work(step: Callable[[], object]) -> Work:
    """Execute `step` once and count its operations as they are dispatched."""
    counter = _Counter()
    with counter:
        step()
    return Work(counter.flops, counter.bytes, counter.operations)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or func._schema.name in _FREE:
            return result
        self.operations += 1
        self.bytes += sum(_bytes(leaf) for leaf in tree_leaves([args, kwargs, result]) if isinstance(leaf, Tensor))
        if (flops := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += flops(*args, **kwargs, out_val=result)
        return result


def _bytes(tensor: Tensor) -> int:
    """Return the size of a tensor's memory; an expanded dimension counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()
