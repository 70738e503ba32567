"""Write the report of a finished run again: report.html, report.md and its pictures.

All comes from its results.json, and for a search from its studies/ and packs/, where they are still there.

python launch/report.py runs/PointCircle-20261122-120000
"""

import sys

from drcorl_ray.commands.cli import guarded
from drcorl_ray.errors import UserError


def work() -> None:
    from drcorl_ray.io.storage import storage_path
    from drcorl_ray.report import rebuild  # after the command line is checked: imports take a second

    if len(sys.argv) != 2:
        raise UserError(f"one run directory expected, got {len(sys.argv) - 1} arguments: python launch/report.py RUN")
    rebuild(storage_path(sys.argv[1]))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
