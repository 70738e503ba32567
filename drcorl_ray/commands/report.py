"""Write the report of a finished run again: report.html, report.md and its pictures.

It is made from results.json and, for a search, from studies/ and packs/ if they still exist.

drcorl report runs/PointCircle-20261122-120000
"""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.io.storage import storage_path
from drcorl_ray.report import rebuild


def report(run: str | Path) -> Path:
    """Write the report of a finished run again, print its tables, and return the path of report.html.

    run: the run's directory, on this machine or in an object store. UserError if it holds no finished run.

    >>> import drcorl_ray
    >>> page = drcorl_ray.report("runs/circle")
    >>> page.name
    'report.html'
    """
    folder = storage_path(str(run))
    rebuild(folder)
    return folder / "report.html"
