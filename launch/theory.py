"""Check section 3 of the paper in numbers: Theorem 3.1's rates and Proposition 3.1 on random tabular problems.

Prints two tables and writes theory.png into a folder (runs/theory if none is given); a minute.

python launch/theory.py [FOLDER]
"""

import sys

from drcorl_ray.commands.cli import guarded
from drcorl_ray.errors import UserError


def work() -> None:
    from pathlib import Path  # after the command line is checked: imports take a second

    from drcorl_ray.theory.study import check

    if len(sys.argv) > 2:
        raise UserError(f"one folder expected, got {len(sys.argv) - 1} arguments: python launch/theory.py [FOLDER]")
    check(Path(sys.argv[1] if len(sys.argv) == 2 else "runs/theory"))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
