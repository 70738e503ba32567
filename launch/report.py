"""Write the report of a finished run again, from its results.json alone.

python launch/report.py runs/PointCircle-20261122-120000
"""

import sys
from pathlib import Path

from drcorl_ray.cli import guarded
from drcorl_ray.errors import UserError


def work() -> None:
    from drcorl_ray.report import rebuild  # after the command line is checked: matplotlib takes a second to import

    if len(sys.argv) != 2:
        raise UserError(f"one run directory expected, got {len(sys.argv) - 1} arguments: python launch/report.py RUN")
    rebuild(Path(sys.argv[1]))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
