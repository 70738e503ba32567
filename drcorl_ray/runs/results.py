"""Read results.json. Loading a policy uses this module, so it imports nothing heavier than io/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import read_json

if TYPE_CHECKING:
    from drcorl_ray.runs.schema import Results

RESULTS_SCHEMA = 1


def results_file(run: Path) -> Path:
    """Return the path of results.json in a run's directory."""
    return run / "results.json"


def read_results(run: Path, otherwise: str = "name a finished run") -> Results:
    """Read the results of a finished run; UserError if there are none or they have another schema.

    otherwise: for the message, what the user can do instead of resuming an unfinished run.
    """
    path = results_file(run)
    if not path.exists():
        raise UserError(f"{run}: not a finished run ({path.name} is missing); resume it or {otherwise}")
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA or not {"run", "rows"} <= results.keys():
        raise UserError(f"{path}: not results of schema {RESULTS_SCHEMA}; read it with the release that wrote it")
    return results  # type: ignore[return-value]
