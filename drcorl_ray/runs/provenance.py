"""The description of a run in results.json: commit, versions, machine, wall time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from drcorl_ray.runs.results import RESULTS_SCHEMA
from drcorl_ray.runs.schema import Machine, Results

_PACKAGES = ("drcorl_ray", "torch", "ray", "optuna", "gymnasium", "mujoco", "numpy", "pyarrow")


def describe_results(rows: Sequence[Mapping[str, Any]], wall_s: float, extra: Mapping[str, Any]) -> Results:
    """The content of results.json, the last file of a run: its presence says that the run is finished."""
    about = {"commit": _commit(), "versions": _versions(), "machine": _machine(), "wall_s": round(wall_s, 1), "argv": sys.argv}
    return cast("Results", {"schema": RESULTS_SCHEMA, "run": about | dict(extra), "rows": [dict(row) for row in rows]})


def _commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> Machine:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "gpus": gpus}
