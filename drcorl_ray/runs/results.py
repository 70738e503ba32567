"""Reading results.json. A policy is loaded through here, so nothing heavier than io/ is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import read_json

if TYPE_CHECKING:
    from drcorl_ray.runs.schema import Results

RESULTS_SCHEMA = 1


def results_file(run: Path) -> Path:
    return run / "results.json"


def read_results(run: Path, otherwise: str = "name a finished run") -> Results:
    """The results of a finished run; UserError where there are none, or of another schema.

    otherwise: what the user can do instead of resuming an unfinished run.
    """
    path = results_file(run)
    if not path.exists():
        raise UserError(f"{run}: no finished run is there ({path.name} is missing); resume it or {otherwise}")
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA or not {"run", "rows"} <= results.keys():
        raise UserError(f"{path}: not results of schema {RESULTS_SCHEMA}; read it with the release that wrote it")
    return results  # type: ignore[return-value]
