"""metrics.jsonl: one line per report of a training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.io.files import append_text, read_bytes, read_lines, write_bytes


class MetricsLog:
    """metrics.jsonl: a line a report, {"task", "stage", "step", "total_steps", "seconds", "metrics": {name: [P values]}}.

    seconds: since the report before. A report that is repeated after a restart replaces its first version.
    """

    def __init__(self, path: Path, task: str, stage: str, total_steps: int, from_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._head = path, {"task": task, "stage": stage, "total_steps": total_steps}
        kept = [line for line in read_log(path) if (line["task"], line["stage"]) != (task, stage) or line["step"] <= from_step]
        content = "".join(json.dumps(line) + "\n" for line in kept).encode()
        if path.exists() and read_bytes(path) != content:  # a half-written line too must go before the next one
            write_bytes(path, content)
        self._last = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        values = {name: [float(x) if np.isfinite(x) else None for x in array] for name, array in sorted(metrics.items())}
        now = time.monotonic()
        seconds, self._last = round(now - self._last, 3), now
        append_text(self._path, json.dumps(self._head | {"step": step, "seconds": seconds, "metrics": values}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics log; a half-written last line is left out. UserError names one that is no report."""
    return read_lines(path, _is_report)


def _is_report(line: Mapping[str, Any]) -> bool:
    named = all(isinstance(line.get(name), str) for name in ("task", "stage"))
    counted = all(type(line.get(name)) is int and 0 <= line[name] < 2**63 for name in ("step", "total_steps"))
    metrics = line.get("metrics")
    lists = isinstance(metrics, dict) and all(isinstance(values, list) for values in metrics.values())
    return named and counted and lists and isinstance(line.get("seconds"), int | float)


def join_logs(path: Path, parts: Sequence[Path]) -> None:
    """Write as one the logs of populations that were trained apart, step by step."""
    lines = []
    for same in zip(*map(read_log, parts), strict=True):
        values = {name: [x for line in same for x in line["metrics"][name]] for name in same[0]["metrics"]}
        lines.append(same[0] | {"seconds": sum(line["seconds"] for line in same), "metrics": values})
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
