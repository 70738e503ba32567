"""The PNG of the offline estimate against the truth, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes

from drcorl_ray.report.figures.axes import grid, save
from drcorl_ray.report.figures.calibration import KIND_COLORS, LINES, MOST_NAMED
from drcorl_ray.report.tables.calibration import KINDS, Point, points, training_k_name
from drcorl_ray.report.tables.core import EDGE
from drcorl_ray.runs.schema import Calibration


def calibration(path: Path, tasks: Mapping[str, Sequence[Calibration]]) -> Path:
    """Draw two panels per task: the members' offline estimates against the truth, and their errors along the training."""
    figure, axes = grid(2 * len(tasks), width=5.2, height=4.6)
    for (task, entries), scatter, curves in zip(tasks.items(), axes[::2], axes[1::2], strict=True):
        policies = points(entries)
        _draw_scatter(scatter, policies)
        scatter.set(
            xlabel=f"true normalised cost (capped at {EDGE:g})",
            ylabel=f"estimated normalised cost, {training_k_name(entries)}",
            title=task,
        )
        _draw_errors(curves, policies)
        curves.set(xlabel="extraction step", ylabel=f"estimate − truth, in limits (each capped at {EDGE:g})", title=task)
        for axis in (scatter, curves):
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[1]:
                axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return save(figure, path)


def _draw_scatter(axis: Axes, policies: Sequence[Point]) -> None:
    """Colour the policies by their quadrant; red: unsafe policies that the estimate would accept."""
    for kind, label in KINDS.items():
        group = [point for point in policies if point.kind == kind]
        axis.errorbar(
            [point.drawn[0] for point in group], [point.drawn[2] for point in group], xerr=[point.drawn[1] for point in group],
            fmt="o", markersize=6, elinewidth=0.8, color=KIND_COLORS[kind], label=f"{len(group)} {label}",
        )  # fmt: skip
    low, top = -0.1, EDGE + 0.1
    axis.plot([0, EDGE], [0, EDGE], color="grey", linestyle=":", linewidth=1)
    for line in (axis.axvline, axis.axhline):
        line(1.0, color="black", linestyle="--", linewidth=1)
    axis.fill_between([1.0, top], low, 1.0, color=KIND_COLORS[True, False], alpha=0.16, linewidth=0)
    axis.set(xlim=(low, top), ylim=(low, top))


def _draw_errors(axis: Axes, policies: Sequence[Point]) -> None:
    members = list(dict.fromkeys(point.member for point in policies))
    for member, color in zip(members, cycle(LINES)):
        line = [point for point in policies if point.member == member]
        label = member if len(members) <= MOST_NAMED else None
        axis.plot(
            [point.step for point in line], [point.error for point in line], marker="o", markersize=3, color=color, label=label
        )
    wrong = [point for point in policies if point.kind == (True, False)]
    if wrong:
        style = {"marker": "X", "s": 60, "color": KIND_COLORS[True, False], "edgecolor": "white", "zorder": 3}
        axis.scatter([point.step for point in wrong], [point.error for point in wrong], label=KINDS[True, False], **style)
    top = 1.15 * max([0.5, *(abs(point.error) for point in policies)])
    axis.axhline(0.0, color="black", linestyle=":", linewidth=1)
    axis.axhspan(-top, 0.0, color=KIND_COLORS[True, False], alpha=0.06)
    axis.annotate("too high: cautious", (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=8)
    axis.annotate("too low: dangerous", (0.02, 0.02), xycoords="axes fraction", fontsize=8, color=KIND_COLORS[True, False])
    axis.set_ylim(-top, top)
