"""Advance a stage: each step draws, samples, trains and sums its metrics on the device; on a GPU as a CUDA graph.

A stage is a `Pretrainer`, a `Learner` or a `Baseline`. Work on the host (`prepare`, rollouts, refreshing the replay) happens
between steps. A step itself is a function of tensors only, so replaying its graph repeats exactly what the step does.

Shapes: P members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drcorl_ray.method.interfaces import Sampler, Stage
from drcorl_ray.method.train_state import Reduce, no_reduce, reduce_together

WARM_UP_STEPS = 3  # before a capture, as torch recommends; their effects are undone
PRECISIONS = ("fp32", "tf32", "bf16")

Step = Callable[[], None]
Capture = Callable[[Step], Step]


class Runner:
    """Advances one stage; the stage's members must stay the same during the runner's life.

    sample: draws a step's minibatch, e.g. `Replay.sample`; it must not wait for the host. rows: of a minibatch on this
    worker. reduce: averages a flat tensor over the workers. capture: makes a replay of a step (`cuda_graphs`); None: steps
    run eagerly. fused: compile a step's arithmetic into few kernels. precision: of matrix products, one of PRECISIONS.
    """

    def __init__(
        self,
        stage: Stage,
        sample: Sampler,
        rows: int,
        *,
        device: torch.device | str = "cpu",
        reduce: Reduce = no_reduce,
        capture: Capture | None = None,
        fused: bool = False,
        precision: str = "fp32",
    ) -> None:
        self._stage, self._sample, self._rows, self._reduce, self._capture = stage, sample, rows, reduce, capture
        if fused:
            torch.compiler.reset()  # drops what earlier stages of this process compiled, which counts towards torch's limit
        self._gradients = _fused(stage.gradients) if fused else stage.gradients
        self._update = _fused(stage.update) if fused else stage.update
        self._device, self._precision = torch.device(device), precision
        self._clock = torch.zeros((), dtype=torch.int64, device=device)
        self._sums: dict[str, Tensor] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._replays: dict[str, Step] = {}

    def advance(self, start: int, stop: int, before: Callable[[int], object] = lambda step: None) -> dict[str, np.ndarray]:
        """Run the steps start … stop − 1 and return each metric's mean [P] over the steps that reported it.

        before: called with the number of each step before it.
        """
        self._clock.fill_(start)
        for total in self._sums.values():
            total.zero_()
        ran: Counter[str] = Counter()
        for step in range(start, stop):
            before(step)
            self._stage.prepare(step)
            step_kind = self._stage.step_kind(step)
            self._run(step_kind)
            ran[step_kind] += 1
        counts: Counter[str] = Counter()
        for step_kind, steps in ran.items():
            counts.update(dict.fromkeys(self._names[step_kind], steps))
        return {name: (self._sums[name] / count).cpu().numpy() for name, count in counts.items()}

    def _run(self, step_kind: str) -> None:
        if self._capture is None:
            self._step(step_kind)
            return
        if step_kind not in self._replays:
            self._replays[step_kind] = self._captured(partial(self._step, step_kind), self._capture)
        self._replays[step_kind]()

    def _captured(self, step: Step, capture: Capture) -> Step:
        """Return a replay of `step`; the warm-up and the capture do not change the stage's state."""
        state = {name: tensor.clone() for name, tensor in self._stage.state_dict().items()}
        clock, sums = self._clock.clone(), {name: total.clone() for name, total in self._sums.items()}
        replay = capture(step)
        self._stage.load_state_dict(state)
        self._clock.copy_(clock)
        for name, total in self._sums.items():
            total.copy_(sums.get(name, torch.zeros_like(total)))
        return replay

    def _step(self, step_kind: str) -> None:
        draws = self._stage.draws(self._clock)
        with matrix_precision(self._precision, self._device):
            parts, metrics = self._gradients(step_kind, self._sample(draws, self._rows), draws)
        metrics |= self._update(step_kind, reduce_together(parts, self._reduce), self._clock)
        self._names[step_kind] = tuple(metrics)
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
            self._sums[name] += value
        self._clock += 1


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Set how factors of matrix products are rounded: not at all, to TF32 (on a GPU), or to bfloat16; sums stay in float32.

    Inputs and outputs of networks, losses, gradients, weights and moments keep their precision.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        # Cached casts of weights would outlive their update in a captured graph.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled as a whole, gradients included, with a version for every step kind and shape."""
    import torch._dynamo.config as compiler  # importing it takes seconds; only processes that compile pay for it

    compiled = torch.compile(function, dynamic=False, fullgraph=True)

    def call(*args: Any) -> Any:
        with compiler.patch(trace_autograd_ops=True):
            return compiled(*args)

    return call


def cuda_graphs() -> Capture:
    """Return a capture that records steps as CUDA graphs after a warm-up on a side stream; a replay uses the same tensors.

    Only one graph is replayed at a time, so all graphs share one memory pool for their intermediate results.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that refreshes the rolling window and NCCL's threads call CUDA during the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
        return graph.replay

    return capture
