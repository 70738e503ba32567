"""A step is a function of tensors on the device alone, so that a CUDA graph of it does what it did."""

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
    """A stage of two programs that reports its step, and every third step something more."""

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
    """Fault: divide every sum by the number of steps, or add one interval's to the next's."""
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
def test_a_process_compiles_for_one_stage_after_the_other():
    """As a search trains its packs. Fault: what was compiled for those before counts towards torch's limit."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for factor in (2, 3):
            runner = Runner(Times(factor), lambda draws, rows: None, 4, fused=True)  # pyright: ignore
            assert runner.advance(1, 3)["factor"].tolist() == [factor]


def test_what_a_runner_held_is_given_back_with_it():
    """A pack's memory on a GPU. Fault: keep a function that refers to the runner in the runner."""
    stage = fresh_learner()
    Runner(stage, sampler(TABLE), ROWS).advance(0, 1)
    held = weakref.ref(stage)
    gc.disable()
    try:
        del stage
        assert held() is None
    finally:
        gc.enable()


def replayed(step: Step) -> Step:
    """As a CUDA graph does: three steps of warm-up, then the same operations on the same tensors."""
    for _ in range(3):
        step()
    return step


@pytest.mark.parametrize("name", STAGES)
def test_warming_up_and_capturing_leave_no_trace(name):
    """Fault: do not put the state, the clock or the sums back."""
    ends = []
    for capture in (None, replayed):
        stage = STAGES[name]()
        runner = Runner(stage, feed(stage, TABLE), ROWS, capture=capture)
        reports = [runner.advance(0, 3), runner.advance(3, stage.total_steps)]
        numbers = [{key: value.tobytes() for key, value in report.items()} for report in reports]
        ends.append((numbers, {key: tensor.numpy().tobytes() for key, tensor in stage.state_dict().items()}))
    assert ends[0] == ends[1]


def tensors_of(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that an object holds, however deep."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from tensors_of(value, seen)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_of(value, seen)
    elif type(thing).__module__.startswith("drcorl_ray"):
        yield from tensors_of(vars(thing), seen)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_changes_only_what_the_state_names_and_moves_no_tensor(name):
    """What a graph reads must stay where it was, and what it writes must be saved.

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
        for tensor, place, value in before.values():
            assert tensor.data_ptr() == place
            if tensor.untyped_storage().data_ptr() not in saved:
                assert torch.equal(tensor, value)


def on_meta(thing: Any) -> Any:
    """A copy whose tensors have shapes alone."""
    if isinstance(thing, Tensor):
        return thing.detach().to("meta").requires_grad_(thing.requires_grad)
    if isinstance(thing, Mapping) and type(thing) is dict:
        return {key: on_meta(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing)(on_meta(value) for value in thing)
    if type(thing).__module__.startswith("drcorl_ray") and hasattr(thing, "__dict__") and not isinstance(thing, type | dict):
        twin = copy.copy(thing)
        for key, value in vars(thing).items():
            object.__setattr__(twin, key, on_meta(value))
        return twin
    return thing


class OnlyOn(TorchDispatchMode):
    """Refuses a tensor of another device in any operation: its value would be frozen into a graph, or waited for."""

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
    """On tensors without values whatever asks for one fails. Fault: `.item()`, `torch.tensor(0.5)`, a boolean index."""
    stage, clock = STAGES[name](), on_meta(torch.tensor(0))
    sample = feed(stage, TABLE, on_meta)
    stage = on_meta(stage)
    for step_kind in {stage.step_kind(step) for step in range(stage.total_steps)}:
        for guard in (nullcontext(), OnlyOn("meta")):  # the first step may keep constants
            with guard:
                draws = stage.draws(clock)
                parts, _ = stage.gradients(step_kind, sample(draws, ROWS), draws)
                stage.update(step_kind, parts, clock)


def test_bfloat16_rounds_products_and_nothing_that_is_kept():
    """Eight bits of mantissa, which networks this small feel most. Fault: round nothing, or cast the weights."""
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


def test_what_leaves_the_device_is_seen():
    number = torch.zeros((), device="meta")
    with OnlyOn("meta"), pytest.raises(AssertionError, match="meets the cpu"):
        number + torch.tensor(0.5)
    with pytest.raises(RuntimeError, match="meta"):
        number.item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "pretrain" else pytest.param(name, marks=pytest.mark.nightly) for name in STAGES]
)
def test_a_fused_step_does_what_its_operations_do(name):
    """On this machine's compiler, in float64, the last step kind of each. Fault: fuse with the number of the first step."""
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
def test_a_graph_does_what_its_steps_do(name, fused):
    ends = []
    for options in ({}, {"capture": cuda_graphs(), "fused": fused}):
        stage = STAGES[name](device="cuda")
        table = {key: column.cuda() for key, column in TABLE.items()}
        reports = Runner(stage, feed(stage, table), ROWS, device="cuda", **options).advance(0, stage.total_steps)
        ends.append((reports, stage.state_dict()))
    assert_same(*ends)
