"""Helpers of the PNG figures: a grid of panels, saving a figure, and shading the unsafe side of a panel."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl

from drcorl_ray.io.files import write_bytes
from drcorl_ray.report.tables.core import EDGE

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_MOST_COLUMNS = 4


def grid(panels: int, width: float = 4.8, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Return a figure with that many panels (at least one), at most four in a row. width, height: of a panel, in inches."""
    columns = max(1, min(panels, _MOST_COLUMNS))
    rows = max(1, -(-panels // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    cells = list(axes.flat)
    for axis in cells[max(panels, 1) :]:
        axis.set_axis_off()
    return figure, cells[: max(panels, 1)]


def save(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    plt.close(figure)
    write_bytes(path, content.getvalue())
    return path


def unsafe_side(axis: Axes) -> None:
    axis.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axis.axvspan(1.0, EDGE * 1.03, color="tab:red", alpha=0.06)
    axis.set_xlim(-0.05, EDGE * 1.03)
    axis.grid(alpha=0.3)
