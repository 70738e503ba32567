"""Plotly figures of the offline estimate against the truth. Both are normalised (Eq. 26), so that every cost limit is at 1."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from drcorl_ray.report.figures.plotly import BELOW, GREEN, GREY, ORANGE, PALETTE, RED, layout
from drcorl_ray.report.tables.calibration import KINDS, Agreement, Point, k_name, other_k, points, training_k_name
from drcorl_ray.report.tables.core import EDGE
from drcorl_ray.runs.schema import Calibration

KIND_COLORS = {(True, True): GREEN, (True, False): RED, (False, True): ORANGE, (False, False): GREY}
LINES = [color for color in PALETTE if color != "#D62728"]  # red is reserved for unsafe policies
MOST_NAMED = 10  # members in a legend
_HEIGHT = 450
_LOW, _HIGH = -0.5, EDGE + 0.5  # range of the axes, with room for the texts
_SYMBOLS = {
    (False, False): "circle",
    (True, False): "triangle-right",
    (False, True): "triangle-up",
    (True, True): "triangle-ne",
}


def scatter(task: str, entries: Sequence[Calibration]) -> go.Figure:
    """Draw a filled point per policy, estimated with the training k; a click in the legend adds hollow ones of another k."""
    legend = BELOW | {"title": {"text": "also show"}}
    figure = go.Figure(layout=layout(f"{task}: estimate against truth", _HEIGHT, legend=legend))
    trained, k_label = points(entries), training_k_name(entries)
    _quadrants(figure, Agreement(task, "", trained))
    others = other_k(entries)
    shades = [0.85 * index / max(1, len(others) - 1) for index in range(len(others))]
    for k, color in zip(others, sample_colorscale("Plasma", shades), strict=True):
        marker = {"symbol": "circle-open", "size": 9, "color": color, "line": {"width": 2}}
        figure.add_trace(_markers(points(entries, k), marker, name=k_name(k), visible="legendonly"))
    marker = {
        "symbol": [_SYMBOLS[true > EDGE, estimate > EDGE] for true, _, estimate in (point.normalized for point in trained)],
        "size": 11,
        "color": [KIND_COLORS[point.kind] for point in trained],
        "line": {"color": "white", "width": 1},
    }
    bars = {"array": [point.drawn[1] for point in trained], "color": GREY, "thickness": 1, "width": 0}
    figure.add_trace(_markers(trained, marker, name=k_label, showlegend=False, error_x=bars))
    ticks = {"tickvals": [0, 0.5, 1, 1.5, 2, 2.5, 3], "ticktext": ["0", "0.5", "limit", "1.5", "2", "2.5", "3"]}
    axis = {"range": [_LOW, _HIGH], "zeroline": False} | ticks
    figure.update_xaxes(title_text=f"true normalised cost (▸: over {EDGE:g})", **axis)
    figure.update_yaxes(title_text=f"estimated normalised cost, {k_label} (▴: over {EDGE:g})", **axis)
    return figure


def _markers(policies: Sequence[Point], marker: dict[str, Any], **options: Any) -> go.Scatter:
    return go.Scatter(
        x=[point.drawn[0] for point in policies],
        y=[point.drawn[2] for point in policies],
        mode="markers",
        marker=marker,
        text=list(map(_hover, policies)),
        hovertemplate="%{text}<extra></extra>",
        **options,
    )


def _hover(point: Point) -> str:
    return (
        f"{escape(point.member)}, step {point.step}<br>estimated cost {point.estimate:.1f} with k = {point.k:g}<br>"
        f"true cost {point.true:.1f} ± {point.true_se:.1f}, limit {point.limit:g}<br>{KINDS[point.kind]}"
    )


def _quadrants(figure: go.Figure, agreement: Agreement) -> None:
    """Label each quadrant with its name and number of policies; red: unsafe policies that the estimate would accept."""
    for (estimated_safe, safe), label in KINDS.items():
        x, y = ((_LOW, 1) if inside else (1, _HIGH) for inside in (safe, estimated_safe))
        color, opacity = KIND_COLORS[estimated_safe, safe], 0.16 if estimated_safe and not safe else 0.06
        box = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
        figure.add_shape(type="rect", fillcolor=color, opacity=opacity, line_width=0, layer="below", **box)
        figure.add_annotation(
            x=_LOW if safe else _HIGH, y=_LOW if estimated_safe else _HIGH, xanchor="left" if safe else "right",
            yanchor="bottom" if estimated_safe else "top", align="left" if safe else "right", showarrow=False,
            text=f'<b style="font-size:18px">{agreement.counts[estimated_safe, safe]}</b> {label}',
            font={"size": 12, "color": color},
        )  # fmt: skip
    for line in ({"x0": 1, "x1": 1, "y0": _LOW, "y1": _HIGH}, {"x0": _LOW, "x1": _HIGH, "y0": 1, "y1": 1}):
        figure.add_shape(type="line", line={"dash": "dash", "width": 1}, **line)
    figure.add_shape(type="line", x0=0, x1=EDGE, y0=0, y1=EDGE, line={"dash": "dot", "width": 1, "color": GREY})


def errors(task: str, entries: Sequence[Calibration]) -> go.Figure:
    """Draw estimate − truth along the training, one line per member; crosses: estimated safe, truly unsafe."""
    figure = go.Figure(layout=layout(f"{task}: estimation error during training", _HEIGHT, legend=BELOW))
    policies = points(entries)
    top = 1.15 * max([0.5, *(abs(point.error) for point in policies)])
    names = list(dict.fromkeys(point.member for point in policies))
    for index, name in enumerate(names):
        line = [point for point in policies if point.member == name]
        figure.add_scatter(
            x=[point.step for point in line], y=[point.error for point in line], name=escape(name), mode="lines+markers",
            line_color=LINES[index % len(LINES)], text=list(map(_hover, line)), hovertemplate="%{text}<extra></extra>",
            showlegend=len(names) <= MOST_NAMED,
        )  # fmt: skip
    wrong = [point for point in policies if point.kind == (True, False)]
    figure.add_scatter(
        x=[point.step for point in wrong], y=[point.error for point in wrong], name=KINDS[True, False], mode="markers",
        marker={"symbol": "x", "size": 11, "color": RED, "line": {"color": "white", "width": 1}}, hoverinfo="skip",
        visible=bool(wrong),
    )  # fmt: skip
    figure.add_hrect(y0=-top, y1=0, fillcolor=RED, opacity=0.06, line_width=0, layer="below")
    figure.add_hline(y=0, line={"dash": "dot", "width": 1})
    for y, text in ((top, "too high: cautious"), (-top, "too low: dangerous")):
        figure.add_annotation(
            x=0, xref="paper", y=y, text=text, showarrow=False, xanchor="left", yanchor="top" if y > 0 else "bottom",
            font={"color": ORANGE if y > 0 else RED},
        )  # fmt: skip
    figure.update_xaxes(title_text="extraction step")
    figure.update_yaxes(
        title_text=f"estimate − truth, in cost limits (each capped at {EDGE:g})", range=[-top, top], zeroline=False
    )
    return figure
