"""A step is a function of tensors on the device only, so a CUDA graph of it repeats it exactly."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drcorl_ray.config.algorithms import baselines
from drcorl_ray.method.baselines import Baseline
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.pretrainer import Pretrainer
from drcorl_ray.method.random import Draws
from drcorl_ray.method.runner import Runner, Step, cuda_graphs, matrix_precision
from tests.helpers.baselines import baseline_config, feed, make_population
from tests.helpers.learners import make_learner, make_spec, make_table, pretrain, sampler, small_config, take_step

SPEC = make_spec(3, 2)
TABLE = make_table(200, 3, 2)
MEMBERS = [
    {"seed": 1},
    {"seed": 2, "k": 0.0, "alpha": 0.1, "cost_ensemble": 3},
    {"seed": 3, "adaptation": "crpo", "cost_limit": 3.0, "policy_class": "gaussian"},
    {"seed": 4, "adaptation": "lagrangian", "evaluation_mode": "hybrid"},
]
CONFIG = small_config("extract.update_diffusion=true", "extract.estimate_interval=3", "pretrain.noise_dropout=0.1")
ROWS = CONFIG.extract.batch_size


def fresh_learner(**kw: Any) -> Learner:
    return make_learner(CONFIG, SPEC, MEMBERS, pretrain(CONFIG, SPEC, TABLE, [0], 4).result(), **kw)


def fresh_pretrainer(**kw: Any) -> Pretrainer:
    return Pretrainer(SPEC, CONFIG.pretrain, [1, 2], dtype=torch.float64, **kw)


def fresh_baseline(name: str, **kw: Any) -> Baseline:
    return make_population(name, baseline_config("baseline.steps=4", "baseline.batch_size=16"), [{}, {"seed": 4}], SPEC, **kw)


STAGES: dict[str, Callable[..., Any]] = {"pretrain": fresh_pretrainer, "extract": fresh_learner}
STAGES |= {name: partial(fresh_baseline, name) for name in (algorithm.name for algorithm in baselines())}


class Counted:
    """A stage of two step kinds that reports its step, and one more metric every third step."""

    def __init__(self) -> None:
        self.prepared: list[int] = []

    def step_kind(self, step: int) -> str:
        return "rare" if step % 3 == 0 else "usual"

    def prepare(self, step: int) -> None:
        self.prepared.append(step)

    def draws(self, step: int | Tensor) -> Draws:
        return Draws(torch.tensor([0]), step)

    def gradients(self, step_kind: str, batch: object, draws: Draws) -> tuple[list[Tensor], dict[str, Tensor]]:
        assert isinstance(draws.step, Tensor)
        return [torch.ones(3)], {"step": draws.step.double()[None]}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> dict[str, Tensor]:
        assert [mean.tolist() for mean in means] == [[2.0, 2.0, 2.0]]
        return {"rare": 10.0 * step[None]} if step_kind == "rare" else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def test_metrics_are_means_over_the_steps_that_reported_them():
    """Fault: every sum is divided by the number of all steps, or sums carry over into the next interval."""
    stage = Counted()
    runner = Runner(stage, lambda draws, rows: None, 4, reduce=lambda flat: 2 * flat)  # pyright: ignore
    for start in (2, 11):
        metrics = runner.advance(start, start + 5)
        expected = {"step": [start + 2.0], "rare": [{2: 45.0, 11: 135.0}[start]]}
        assert {name: value.tolist() for name, value in metrics.items()} == expected
    assert stage.prepared == [2, 3, 4, 5, 6, 11, 12, 13, 14, 15]


class Times(Counted):
    """Reports `factor` at every step."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def gradients(self, step_kind: str, batch: object, draws: Draws) -> tuple[list[Tensor], dict[str, Tensor]]:
        return [torch.ones(3)], {"factor": self.factor * torch.ones(1)}

    def update(self, step_kind: str, means: Sequence[Tensor], step: Tensor) -> dict[str, Tensor]:
        return {}


@pytest.mark.nightly
def test_a_process_compiles_for_one_stage_after_another():
    """A search trains its packs in this way. Fault: the compilations of earlier stages count towards torch's limit."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for factor in (2, 3):
            runner = Runner(Times(factor), lambda draws, rows: None, 4, fused=True)  # pyright: ignore
            assert runner.advance(1, 3)["factor"].tolist() == [factor]


def test_a_stage_is_freed_with_its_runner():
    """So a pack's GPU memory is free for the next pack. Fault: the runner keeps a function that refers to the runner."""
    stage = fresh_learner()
    Runner(stage, sampler(TABLE), ROWS).advance(0, 1)
    reference = weakref.ref(stage)
    gc.disable()
    try:
        del stage
        assert reference() is None
    finally:
        gc.enable()


def replayed(step: Step) -> Step:
    """Run three steps of warm-up, then return the step: the same operations on the same tensors, like a CUDA graph."""
    for _ in range(3):
        step()
    return step


@pytest.mark.parametrize("name", STAGES)
def test_warm_up_and_capture_do_not_change_the_training(name):
    """Fault: the state, the clock or the sums are not restored."""
    ends = []
    for capture in (None, replayed):
        stage = STAGES[name]()
        runner = Runner(stage, feed(stage, TABLE), ROWS, capture=capture)
        reports = [runner.advance(0, 3), runner.advance(3, stage.total_steps)]
        numbers = [{key: value.tobytes() for key, value in report.items()} for report in reports]
        ends.append((numbers, {key: tensor.numpy().tobytes() for key, tensor in stage.state_dict().items()}))
    assert ends[0] == ends[1]


def tensors_of(value: Any, visited: set[int]) -> Iterator[Tensor]:
    """Yield every tensor that an object holds, at any depth."""
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item, visited)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item, visited)
    elif type(value).__module__.startswith("drcorl_ray"):
        yield from tensors_of(vars(value), visited)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_changes_only_tensors_of_the_state_and_moves_none(name):
    """The tensors that a graph reads must keep their address, and those that it writes must be in the saved state.

    Fault: `self.estimate = self.estimate.lerp(…)`.
    """
    stage = STAGES[name]()
    sample = feed(stage, TABLE)
    for step in range(stage.total_steps):
        before = {id(tensor): (tensor, tensor.data_ptr(), tensor.clone()) for tensor in tensors_of(stage, set())}
        stage.prepare(step)
        saved = {tensor.untyped_storage().data_ptr() for tensor in stage.state_dict().values()}
        take_step(stage, sample, ROWS, step)
        after = {id(tensor) for tensor in tensors_of(stage, set())}
        assert after == before.keys()
        for tensor, address, value in before.values():
            assert tensor.data_ptr() == address
            if tensor.untyped_storage().data_ptr() not in saved:
                assert torch.equal(tensor, value)


def on_meta(value: Any) -> Any:
    """Return a copy whose tensors have shapes but no values."""
    if isinstance(value, Tensor):
        return value.detach().to("meta").requires_grad_(value.requires_grad)
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: on_meta(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_meta(item) for item in value)
    if type(value).__module__.startswith("drcorl_ray") and hasattr(value, "__dict__") and not isinstance(value, type | dict):
        twin = copy.copy(value)
        for key, item in vars(value).items():
            object.__setattr__(twin, key, on_meta(item))
        return twin
    return value


class OnlyOn(TorchDispatchMode):
    """Refuses tensors of another device in any operation: a graph would freeze their value, or a step would wait for it."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves([args, kwargs, result]):
            assert not isinstance(leaf, Tensor) or leaf.device.type == self.device, f"{func} meets the {leaf.device}"
        return result


@pytest.mark.parametrize("name", STAGES)
def test_a_step_never_leaves_the_device(name):
    """On meta tensors every operation that needs a value fails. Fault: `.item()`, `torch.tensor(0.5)`, a boolean index."""
    stage, clock = STAGES[name](), on_meta(torch.tensor(0))
    sample = feed(stage, TABLE, on_meta)
    stage = on_meta(stage)
    for step_kind in {stage.step_kind(step) for step in range(stage.total_steps)}:
        for guard in (nullcontext(), OnlyOn("meta")):  # the first step may create constants
            with guard:
                draws = stage.draws(clock)
                parts, _ = stage.gradients(step_kind, sample(draws, ROWS), draws)
                stage.update(step_kind, parts, clock)


def test_bfloat16_rounds_products_and_nothing_that_is_stored():
    """Gradients deviate as expected of eight bits of mantissa; weights stay float32. Fault: no rounding, or cast weights."""
    gradients = {}
    for precision in ("fp32", "bf16"):
        learner = fresh_learner(dtype=torch.float32)
        draws = learner.draws(8)
        with matrix_precision(precision, torch.device("cpu")):
            parts, _ = learner.gradients("policy", sampler(float32(TABLE))(draws, ROWS), draws)
        gradients[precision] = parts
    for rounded, exact in zip(gradients["bf16"], gradients["fp32"], strict=True):
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert 1e-4 < error < 0.5
    runner = Runner(learner, sampler(float32(TABLE)), ROWS, precision="bf16")
    runner.advance(0, 3)
    assert all(part.flat.dtype == torch.float32 for part in learner.networks.values())


def float32(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: column.float() for name, column in table.items()}


def test_the_guard_detects_tensors_of_another_device():
    number = torch.zeros((), device="meta")
    with OnlyOn("meta"), pytest.raises(AssertionError, match="meets the cpu"):
        number + torch.tensor(0.5)
    with pytest.raises(RuntimeError, match="meta"):
        number.item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "pretrain" else pytest.param(name, marks=pytest.mark.nightly) for name in STAGES]
)
def test_a_fused_step_equals_the_eager_step(name):
    """With this machine's compiler, in float64, for each stage's last step kind. Fault: the step's number is a constant."""
    ends = []
    for fused in (False, True):
        stage = STAGES[name]()
        reports = Runner(stage, feed(stage, TABLE), ROWS, fused=fused).advance(stage.total_steps - 2, stage.total_steps)
        ends.append((reports, stage.state_dict()))
    assert_same(*ends)


def assert_same(plain: tuple[Any, dict[str, Tensor]], other: tuple[Any, dict[str, Tensor]]) -> None:
    for key, value in plain[0].items():
        torch.testing.assert_close(torch.from_numpy(other[0][key]), torch.from_numpy(value), rtol=1e-9, atol=1e-11, msg=key)
    for key, tensor in plain[1].items():
        torch.testing.assert_close(other[1][key], tensor, rtol=1e-9, atol=1e-11, msg=key)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_a_cuda_graph_equals_its_steps(name, fused):
    ends = []
    for options in ({}, {"capture": cuda_graphs(), "fused": fused}):
        stage = STAGES[name](device="cuda")
        table = {key: column.cuda() for key, column in TABLE.items()}
        reports = Runner(stage, feed(stage, table), ROWS, device="cuda", **options).advance(0, stage.total_steps)
        ends.append((reports, stage.state_dict()))
    assert_same(*ends)
