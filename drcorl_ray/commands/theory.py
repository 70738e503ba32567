"""Check section 3 of the paper in numbers: Theorem 3.1's rates and Proposition 3.1 on random tabular problems.

Prints two tables and writes theory.png into a folder (runs/theory if none is given); a minute.

drcorl theory [FOLDER]
"""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.theory.study import check


def theory(folder: str = "runs/theory") -> None:
    """Print the tables and write theory.png into the folder, which is made if it is absent."""
    check(Path(folder))
