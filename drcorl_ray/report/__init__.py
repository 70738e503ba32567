"""The report of a run: report.html, report.md with its pictures, and tables on the terminal, all made from results.json.

For a search it also reads Optuna's studies and the metrics logs of the packs; the report says where they are missing.
"""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.io.files import write_bytes
from drcorl_ray.report.tables import paper, seeds
from drcorl_ray.report.tables.core import print_table
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.results import read_results
from drcorl_ray.runs.schema import Results

__all__ = ["print_table", "rebuild", "write_report"]


def rebuild(run: Path) -> None:
    """Write the report of a finished run again (`drcorl report`); raise UserError if the run has no results.json."""
    write_report(RunDirectory(run), read_results(run))


def write_report(run: RunDirectory, results: Results) -> None:
    """Write the files of the report and print its tables. results: the content of results.json (written or not)."""
    from drcorl_ray.report.build import write_files  # matplotlib, plotly and Optuna take seconds to import

    for name, content in write_files(run, results).items():
        write_bytes(run.path / name, content.encode())
    print_table(results)
    seeds.print_table(results)
    paper.print_tables(results)
