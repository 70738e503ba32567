"""metrics.jsonl: one line for each report of a training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.io.files import append_text, read_bytes, read_lines, write_bytes


class MetricsLog:
    """Writes metrics.jsonl: {"task", "stage", "step", "total_steps", "seconds", "metrics": {name: [P values]}} per report.

    seconds: time since the last report. A restart at `from_step` removes the stage's later reports, as they will be repeated.
    """

    def __init__(self, path: Path, task: str, stage: str, total_steps: int, from_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._head = path, {"task": task, "stage": stage, "total_steps": total_steps}
        kept = [line for line in read_log(path) if (line["task"], line["stage"]) != (task, stage) or line["step"] <= from_step]
        content = "".join(json.dumps(line) + "\n" for line in kept).encode()
        if path.exists() and read_bytes(path) != content:  # also removes a half-written last line
            write_bytes(path, content)
        self._last = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        values = {name: [float(x) if np.isfinite(x) else None for x in array] for name, array in sorted(metrics.items())}
        now = time.monotonic()
        seconds, self._last = round(now - self._last, 3), now
        append_text(self._path, json.dumps(self._head | {"step": step, "seconds": seconds, "metrics": values}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a metrics log; skip a half-written last one; UserError if a line is not a report."""
    return read_lines(path, _is_report)


def _is_report(line: Mapping[str, Any]) -> bool:
    names_valid = all(isinstance(line.get(name), str) for name in ("task", "stage"))
    counts_valid = all(type(line.get(name)) is int and 0 <= line[name] < 2**63 for name in ("step", "total_steps"))
    metrics = line.get("metrics")
    metrics_valid = isinstance(metrics, dict) and all(isinstance(values, list) for values in metrics.values())
    return names_valid and counts_valid and metrics_valid and isinstance(line.get("seconds"), int | float)


def join_logs(path: Path, parts: Sequence[Path]) -> None:
    """Join the logs of populations that were trained separately: concatenate their members' values report by report."""
    lines = []
    for reports in zip(*map(read_log, parts), strict=True):
        values = {name: [x for line in reports for x in line["metrics"][name]] for name in reports[0]["metrics"]}
        lines.append(reports[0] | {"seconds": sum(line["seconds"] for line in reports), "metrics": values})
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
