"""The report of a run: report.html, report.md and its pictures, and a table on the terminal, all made from results.json.

A search adds what lies beside it: Optuna's studies and the packs' metrics logs; where they are missing it is said.
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
    """launch/report.py: write the report of a finished run again; UserError where there is none."""
    write_report(RunDirectory(run), read_results(run))


def write_report(run: RunDirectory, results: Results) -> None:
    """Write the report's files and print its table. results: what results.json holds, or will."""
    from drcorl_ray.report.build import write_files  # matplotlib, plotly and Optuna take seconds to import

    for name, content in write_files(run, results).items():
        write_bytes(run.path / name, content.encode())
    print_table(results)
    seeds.print_table(results)
    paper.print_tables(results)
