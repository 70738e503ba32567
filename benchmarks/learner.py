"""Member-steps per second of extraction and pretraining, compared with one eager learner and the limits of the machine.

python -m benchmarks.learner [--device cuda] [--members 1 4 16] [--output FILE.json]

Needs only torch, numpy and safetensors. Takes two to three minutes on a CPU, about six (estimated) on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.eager import EagerLearner
from benchmarks.population import SPEC, Settings, make_learner, make_pretrainer, make_replay
from benchmarks.timing import copy_bandwidth, interleaved, machine, matrix_rate, table, write
from benchmarks.work import Work, count_work
from drcorl_ray.method.diffusion import REGULARISER_TIMES, spread
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import PRECISIONS, Runner, Stage, cuda_graphs, matrix_precision

POLICY_ONLY = {"critic_steps": 0, "steps": 10**6}
GPU_MEMBERS, CPU_MEMBERS = (1, 4, 16, 64, 256, 1024), (1, 4, 16)
ROWS = 256
EAGER_STEPS = 10
TARGETS = {("gpu", 1): "≥ 8", ("gpu", 256): "≥ 150", ("cpu", 1): "≥ 1"}


def main() -> int:
    options = parse()
    device, on_gpu = options.device, options.device.startswith("cuda")
    replay = make_replay(200_000 if on_gpu else 50_000, device)
    results: dict[str, Any] = {"machine": machine(device), "limits": limits(device), "rows": [], "failed": []}
    print(f"{results['machine']}\n{results['limits']}")
    for row in measure_variants(options, replay, results["limits"]):
        results["failed" if "error" in row else "rows"].append(row)
    results["rows"].sort(key=lambda row: row["members"])
    show(results["rows"], "gpu" if on_gpu else "cpu")
    results["pretraining"] = measure_pretraining(options.members[:3], replay, device)
    results["errors"] = precision_errors(replay, device)
    write(options.output, results)
    return 1 if results["failed"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--members", type=int, nargs="+")
    parser.add_argument(
        "--minutes",
        type=float,
        help="limit of the extraction part (4, on a CPU 1.5); later variants are skipped",
    )
    parser.add_argument("--output")
    options = parser.parse_args()
    options.minutes = options.minutes or (4.0 if options.device.startswith("cuda") else 1.5)
    options.members = options.members or (GPU_MEMBERS if options.device.startswith("cuda") else CPU_MEMBERS)
    return options


def limits(device: str) -> dict[str, float]:
    """Measure the machine's limits: bytes copied per second, and FLOPs per second of products in the critics' sizes."""
    batches = 1024 if device.startswith("cuda") else 8
    measured = {"copy_bytes_per_s": copy_bandwidth(device)}
    for precision in PRECISIONS:
        with matrix_precision(precision, torch.device(device)):
            measured[f"{precision}_flops_per_s"] = matrix_rate(device, batches, ROWS, 256)
    return measured


def eager_steps(replay: Replay, device: str) -> Callable[[], object]:
    """Return a function that takes EAGER_STEPS steps of the eager learner, minibatch sampling included."""
    settings = Settings(extract=POLICY_ONLY)
    states = replay.observations[:128]
    learner = EagerLearner(settings, torch.tensor([1.0, 0.0, 1.0, 0.5]), states, device, torch.float32)
    names = ("observations", "actions", "next_observations", "rewards", "costs", "terminals")
    columns = {name: getattr(replay, name).contiguous() for name in names}

    def step() -> None:
        index = torch.randint(len(columns["rewards"]), (ROWS,), device=device)
        times = spread(torch.rand(ROWS, device=device), REGULARISER_TIMES)
        noise = torch.randn(ROWS, SPEC.action_size, device=device)
        batch = {name: column[index] for name, column in columns.items()}
        learner.step(batch, times, noise, torch.randint(len(states), (ROWS,), device=device))

    return lambda: [step() for _ in range(EAGER_STEPS)]


def variants(members: Sequence[int], on_gpu: bool) -> list[tuple[int, str, str]]:
    """Return (members, execution, precision) of each variant, most important first; a CPU has neither TF32 nor graphs.

    On a GPU, graph variants with a target come first; the other compiled ones come last, because each takes half a minute to
    compile.
    """
    if on_gpu:
        order = [("graph", "fp32"), ("eager", "fp32"), ("graph", "tf32"), ("graph", "bf16")]
        order += [("graph, fused", precision) for precision in PRECISIONS]
    else:
        order = [("eager", "fp32"), ("eager", "bf16"), ("fused", "fp32")]
    combinations = [(count, *variant) for variant in order for count in members]
    return sorted(
        combinations, key=lambda one: not (on_gpu and ("gpu", one[0]) in TARGETS and "graph" in one[1] and one[2] == "fp32")
    )


def runner(stage: Stage, replay: Replay, device: str, execution: str, precision: str) -> Runner:
    capture = cuda_graphs() if "graph" in execution else None
    return Runner(stage, replay.sample, ROWS, device=device, capture=capture, fused="fused" in execution, precision=precision)


def measure_variants(options: argparse.Namespace, replay: Replay, limit: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield a row of results, or of the error, for each variant that starts within the time limit."""
    device = options.device
    baseline = eager_steps(replay, device)
    work = step_work(make_learner(Settings(extract=POLICY_ONLY), 1, device, estimation_states=2000), "policy", replay)
    began = time.perf_counter()
    for members, execution, precision in variants(options.members, device.startswith("cuda")):
        name = f"{members} members, {execution}, {precision}"
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{name}: skipped after {options.minutes} minutes")
            continue
        row = {"members": members, "execution": execution, "precision": precision}
        try:
            seconds, peak = measure_extraction(members, replay, device, baseline, execution, precision)
        except Exception as error:  # a variant that fails on this machine must not lose the others' results
            print(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            yield row | {"error": repr(error)}
            continue
        row |= {"peak_bytes": peak, **vars(work)} | rates(work, precision, *seconds, limit)
        print(f"{name}: {row['times_eager']:.2f} × eager", flush=True)
        yield row


def measure_extraction(
    members: int, replay: Replay, device: str, baseline: Callable[[], object], execution: str, precision: str
) -> tuple[tuple[float, float], int | None]:
    """Return the seconds of a step of the eager learner and of a member-step in a population, and the peak device memory."""
    peak_bytes(device)
    steps = max(5, (400 if device.startswith("cuda") else 40) // members)
    learner = make_learner(Settings(extract=POLICY_ONLY), members, device)
    # Starts at step 1, because the estimation states are selected before step 0 and then before every 50th step.
    call = partial(runner(learner, replay, device, execution, precision).advance, 1, 1 + steps)
    seconds = interleaved({"eager learner": baseline, "population": call}, 5, device)
    return (seconds["eager learner"] / EAGER_STEPS, seconds["population"] / (members * steps)), peak_bytes(device)


def rates(work: Work, precision: str, eager: float, member: float, limit: Mapping[str, float]) -> dict[str, float]:
    return {
        "member_steps_per_s": 1.0 / member,
        "times_eager": eager / member,
        "of_copy_bandwidth": work.bytes / member / limit["copy_bytes_per_s"],
        "of_matrix_rate": work.flops / member / limit[f"{precision}_flops_per_s"],
    }


def peak_bytes(device: str) -> int | None:
    """Return the peak device memory in bytes since the last call, and release unused memory; None on a CPU."""
    gc.collect()
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def step_work(stage: Any, step_kind: str, replay: Replay) -> Work:
    """Count the work of one step of a population of one."""
    clock = torch.zeros((), dtype=torch.int64, device=replay.rewards.device)

    def step() -> None:
        draws = stage.draws(clock)
        parts, _ = stage.gradients(step_kind, replay.sample(draws, ROWS), draws)
        stage.update(step_kind, parts, clock)

    step()
    return count_work(step)


def show(rows: list[dict[str, Any]], kind: str) -> None:
    first = rows[0]
    title = (
        f"Extraction: {first['flops'] / 1e9:.2f} GFLOP, {first['bytes'] / 1e6:.0f} MB and, "
        f"whatever the number of members, {first['operations']} operations a step"
    )
    head = ("members", "execution", "precision", "member-steps/s", "× eager", "target", "of copy bandwidth", "of bmm")
    table(
        title,
        head,
        [
            (
                row["members"], row["execution"], row["precision"], f"{row['member_steps_per_s']:.1f}",
                f"{row['times_eager']:.2f}", TARGETS.get((kind, row["members"]), ""),
                f"{row['of_copy_bandwidth']:.0%}", f"{row['of_matrix_rate']:.0%}",
            )
            for row in rows
        ],
    )  # fmt: skip


def measure_pretraining(members: Sequence[int], replay: Replay, device: str) -> list[dict[str, Any]]:
    """Measure member-steps per second of each phase by the number of seeds; on a GPU with CUDA graphs."""
    settings = Settings(pretrain={"steps": 10**6, "monte_carlo_steps": 0})
    execution, rows = "graph" if device.startswith("cuda") else "eager", []
    for seeds, (phase, step_kind) in itertools.product(members, enumerate(("diffusion", "policy", "critics"))):
        stage = make_pretrainer(settings, range(seeds), device)
        work = step_work(make_pretrainer(settings, [0], device), step_kind, replay)
        steps, start = max(5, 20 // seeds), phase * settings.pretrain.steps
        call = partial(runner(stage, replay, device, execution, "fp32").advance, start, start + steps)
        seconds = interleaved({step_kind: call}, 3, device)[step_kind]
        rows.append({"members": seeds, "program": step_kind, "member_steps_per_s": seeds * steps / seconds, **vars(work)})
    table(
        f"Pretraining, {execution}, fp32",
        ("members", "phase", "member-steps/s", "GFLOP", "MB", "operations"),
        [
            (
                row["members"], row["program"], f"{row['member_steps_per_s']:.1f}", f"{row['flops'] / 1e9:.2f}",
                f"{row['bytes'] / 1e6:.0f}", row["operations"],
            )
            for row in rows
        ],
    )  # fmt: skip
    return rows


def precision_errors(replay: Replay, device: str) -> list[dict[str, Any]]:
    """Return the relative errors of the parts of a step, compared with the same weights and minibatch in float64.

    The parts are the gradients of the losses and the terms of the policy step.
    """
    settings = Settings(extract=POLICY_ONLY)
    names = ("Q_r loss", "Q_c loss", "∇ Q_r", "∇ Q_c", "∇ log μ", "|∇_a Q_r|", "|∇_a Q_c|", "cost estimate")
    exact_replay = make_replay(2000, device, torch.float64)
    rounded_replay = make_replay(2000, device)

    def parts(precision: str, dtype: torch.dtype, source: Replay) -> list[torch.Tensor]:
        learner = make_learner(settings, 4, device, dtype, estimation_states=2000)
        draws = learner.draws(torch.zeros((), dtype=torch.int64, device=device))
        with matrix_precision(precision, torch.device(device)):
            return learner.gradients("policy", source.sample(Draws(draws.seeds, draws.step), ROWS), draws)[0]

    exact = parts("fp32", torch.float64, exact_replay)
    precisions = PRECISIONS if device.startswith("cuda") else ("fp32", "bf16")
    rows = []
    for precision in precisions:
        rounded = parts(precision, torch.float32, rounded_replay)
        errors = [((r.double() - e).norm() / e.norm()).item() for r, e in zip(rounded, exact, strict=True)]
        rows.append({"precision": precision, "errors": dict(zip(names, errors, strict=True))})
    table(
        "Relative error of the parts of a step against float64",
        ("precision", *names),
        [(row["precision"], *(f"{error:.1e}" for error in row["errors"].values())) for row in rows],
    )
    return rows


if __name__ == "__main__":
    sys.exit(main())
