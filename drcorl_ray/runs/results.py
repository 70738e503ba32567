"""Reading results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import read_json

RESULTS_SCHEMA = 1


def read_results(run: Path) -> dict[str, Any]:
    """The results of a finished run; UserError where there are none, or of another schema."""
    path = run / "results.json"
    if not path.exists():
        raise UserError(f"{run}: no finished run is there (results.json is missing)")
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA or not {"run", "rows"} <= results.keys():
        raise UserError(f"{path}: not results of schema {RESULTS_SCHEMA}; read it with the release that wrote it")
    return results
