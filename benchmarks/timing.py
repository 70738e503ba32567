"""Timing of variants that take turns, and the limits of the machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of a call of each variant; the variants take turns, so that other load affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call()
    for _ in range(rounds):
        for name, call in variants.items():
            synchronize(device)
            began = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def copy_bandwidth(device: str) -> float:
    """Measure the bytes per second that copying a tensor much larger than any cache reads and writes."""
    source = torch.empty(2**28 if device.startswith("cuda") else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def matrix_rate(device: str, batches: int, rows: int, width: int) -> float:
    """Measure the FLOPs per second of batched products [batches, rows, width] × [batches, width, width]."""
    left, right = torch.randn(batches, rows, width, device=device), torch.randn(batches, width, width, device=device)
    seconds = interleaved({"bmm": lambda: torch.bmm(left, right)}, 20, device)["bmm"]
    return 2 * batches * rows * width * width / seconds


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "host": platform.platform()}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)


def write(path: str | None, results: Mapping[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nwritten: {path}")
