"""Plotly figures of the HTML page. Every text from a run is escaped, because plotly.js interprets some HTML in labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from drcorl_ray.config.algorithms import shown_algorithm
from drcorl_ray.report.figures.frontier import BEST, Mark, Panel
from drcorl_ray.report.optuna_views import OFFLINE, JudgedConfiguration, Series, StudyView, pareto_front, quiet, ranked_keys
from drcorl_ray.report.tables.core import EDGE, WALL_PARTS, is_baseline, is_judged, is_winner, row_name, settings
from drcorl_ray.report.tables.paper import Cell
from drcorl_ray.runs.schema import Curve, Reference, Row, SearchCost

BLUE, RED, ORANGE, GOLD, GREEN, PURPLE, GREY = "#1f77b4", "#c0392b", "#e67e22", "#f5b301", "#2e8b57", "#7d3c98", "#9aa0a6"
PALETTE = qualitative.D3
_MARGIN = {"l": 60, "r": 20, "t": 44, "b": 50}


def hover(row: Row, keys: Sequence[str], *extra: str) -> str:
    """Return the hover text of a row: its name, the extra lines, its hyper-parameters."""
    return "<br>".join(escape(line) for line in (row_name(row), *extra, *settings(row, keys)))


def _scored(row: Row, keys: Sequence[str]) -> str:
    score = f"reward {row['normalized_reward']:.3f}, cost {row['normalized_cost']:.2f}"
    return hover(row, keys, score, f"episode cost {row['cost_mean']:.1f}, limit {row['cost_limit']:g}")


def layout(title: str, height: int, **options: Any) -> dict[str, Any]:
    return {"title": {"text": escape(title), "x": 0.02}, "height": height, "margin": _MARGIN, "hovermode": "closest"} | options


BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"}


def _plane(figure: go.Figure) -> None:
    """Set up the axes (cost to the right, reward upwards) and shade the unsafe side."""
    figure.add_vrect(x0=1, x1=EDGE * 1.04, fillcolor=RED, opacity=0.06, line_width=0, layer="below")
    figure.add_vline(x=1, line={"dash": "dash", "width": 1, "color": "black"}, annotation_text="cost limit")
    figure.update_xaxes(title_text=f"normalised cost (▸: over {EDGE:g})", range=[-0.08, EDGE * 1.04])
    figure.update_yaxes(title_text="normalised reward")


def scatter(task: str, rows: Sequence[Row], references: Sequence[Reference], keys: Sequence[str]) -> go.Figure:
    """Draw every evaluated policy of a task; hollow: stopped early; stars: winners' fresh scores, joined to search scores."""
    figure = go.Figure(layout=layout(task, 420, legend=BELOW))
    for name, group, marker in _groups(rows):
        figure.add_trace(_points(name, group, marker, keys))
    for row in filter(is_winner, rows):
        if "search_normalized_cost" in row and "search_normalized_reward" in row:
            figure.add_scatter(
                x=[min(row["search_normalized_cost"], EDGE), min(row["normalized_cost"], EDGE)],
                y=[row["search_normalized_reward"], row["normalized_reward"]],
                mode="lines", line={"color": "black", "width": 1, "dash": "dot"}, hoverinfo="skip", showlegend=False,
            )  # fmt: skip
    for value in {reference["normalized_reward"] for reference in references if reference["task"] == task}:
        figure.add_hline(
            y=value, line={"color": GREEN, "dash": "dot", "width": 1}, annotation_text="best safe episode of the data",
            annotation_font={"size": 11, "color": GREEN},
        )  # fmt: skip
    _plane(figure)
    return figure


def _groups(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row], dict[str, Any]]]:
    """Yield (legend, rows, marker) in drawing order."""
    policies = [row for row in rows if not is_baseline(row) and not is_winner(row)]
    stopped = [row for row in policies if row.get("state") == "stopped"]
    finished = [row for row in policies if row.get("state") != "stopped"]
    noun = "configuration" if any(map(is_judged, policies)) else "policy"
    yield "stopped early", stopped, {"symbol": "circle-open", "color": GREY, "size": 8}
    yield noun, finished, {"color": BLUE, "size": 9, "opacity": 0.75}
    for name in sorted({row["algorithm"] for row in filter(is_baseline, rows)}):
        group = [row for row in rows if is_baseline(row) and row["algorithm"] == name]
        yield name, group, {"color": shown_algorithm(name).color, "symbol": "diamond", "size": 10}
    star = {"symbol": "star", "color": GOLD, "size": 17, "line": {"color": "black", "width": 1}}
    yield "winner, fresh score", list(filter(is_winner, rows)), star


def _points(name: str, rows: Sequence[Row], marker: dict[str, Any], keys: Sequence[str]) -> go.Scatter:
    beyond = [row["normalized_cost"] > EDGE for row in rows]
    symbol, open_ = marker.get("symbol", "circle"), "-open" if "open" in marker.get("symbol", "") else ""
    symbols = [f"triangle-right{open_}" if far and symbol != "star" else symbol for far in beyond]
    return go.Scatter(
        name=name,
        x=[min(row["normalized_cost"], EDGE) for row in rows],
        y=[row["normalized_reward"] for row in rows],
        mode="markers",
        marker=marker | {"symbol": symbols},
        text=[_scored(row, keys) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        visible=bool(rows),
        cliponaxis=False,
    )


def frontier(panel: Panel, keys: Sequence[str]) -> go.Figure:
    """Draw the policies over the data's own episodes; hollow: baselines. A click on a limit's legend hides its policies."""
    figure = go.Figure(layout=layout(f"{panel.task}: reward against episode cost", 520, legend=BELOW))
    faint = {"color": GREY, "size": 4, "opacity": 0.5}
    figure.add_trace(_plain(panel.backdrop, panel.costs.tolist(), np.round(panel.rewards, 4).tolist(), faint))
    dash = {"symbol": "line-ew", "size": 7, "line": {"width": 3, "color": [panel.colors[limit] for limit in panel.best]}}
    figure.add_trace(_plain(BEST, list(panel.best), list(panel.best.values()), dash))
    for name in panel.algorithms:
        figure.add_trace(_marks(name, [mark for mark in panel.baselines if mark.row["algorithm"] == name], keys, "-open"))
    for limit, color in panel.colors.items():
        name, marks = f"limit {limit:g}", [mark for mark in panel.policies if mark.row["cost_limit"] == limit]
        legend: dict[str, Any] = {"name": name, "legendgroup": name}
        figure.add_vline(x=limit, line={"dash": "dash", "width": 1, "color": color}, showlegend=True, **legend)
        figure.add_trace(_marks(name, marks, keys).update(showlegend=False, **legend))
    for name, shape in panel.shapes.items():
        figure.add_trace(_plain(escape(name), [None], [None], {"symbol": shape.page, "size": 11, "color": GREY}))
    figure.update_xaxes(title_text=panel.axis, range=[-0.02 * panel.edge, 1.03 * panel.edge])
    figure.update_yaxes(title_text="normalised reward")
    return figure


def _plain(name: str, x: Sequence[Any], y: Sequence[Any], marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(name=name, x=x, y=y, mode="markers", marker=marker, hoverinfo="skip", visible=bool(x))


def _marks(name: str, marks: Sequence[Mark], keys: Sequence[str], suffix: str = "") -> go.Scatter:
    return go.Scatter(
        name=name,
        x=[mark.cost for mark in marks],
        y=[mark.reward for mark in marks],
        mode="markers",
        marker={"size": 11, "color": [m.color for m in marks], "symbol": [m.shape.page + suffix for m in marks]},
        text=[_scored(mark.row, keys) for mark in marks],
        hovertemplate="%{text}<extra></extra>",
        visible=bool(marks),
        cliponaxis=False,
    )


def pareto(study: str, configurations: Sequence[JudgedConfiguration], keys: Sequence[str]) -> go.Figure:
    """Draw the finished configurations of a study and their Pareto front."""
    finished = [point for point in configurations if point.state == "complete"]
    front = [finished[index] for index in pareto_front([(point.reward, point.cost) for point in finished])]
    figure = go.Figure(layout=layout(study, 420, legend=BELOW))
    styles: list[tuple[str, list[JudgedConfiguration], dict[str, Any]]] = [
        ("configuration", finished, {"mode": "markers", "marker": {"color": BLUE, "opacity": 0.5}}),
        ("Pareto front", front, {"mode": "lines+markers", "line": {"shape": "hv", "color": PURPLE}, "marker": {"size": 10}}),
    ]
    for name, points, style in styles:
        texts = [hover(p.row, keys, f"mean reward {p.reward:.3f}, worst cost {p.cost:.2f}") for p in points]
        x, y = [min(point.cost, EDGE) for point in points], [point.reward for point in points]
        figure.add_scatter(name=name, x=x, y=y, text=texts, hovertemplate="%{text}<extra></extra>", **style)
    _plane(figure)
    return figure


def importances(study: str, shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw a pair of bars per key. shares: {"reward" | "cost": {key: share}}."""
    keys = ranked_keys(shares)
    figure = go.Figure(layout=layout(study, 130 + 34 * len(keys), legend=BELOW | {"y": -0.35}, barmode="group"))
    for score, color in (("cost", ORANGE), ("reward", BLUE)):
        if score in shares:
            values = [shares[score].get(key, 0.0) for key in keys]
            figure.add_bar(name=f"for the {score}", y=list(map(escape, keys)), x=values, orientation="h", marker_color=color)
    figure.update_traces(hovertemplate="%{y}: %{x:.2f}<extra></extra>")
    figure.update_xaxes(range=[0, 1], title_text="importance")
    figure.update_yaxes(automargin=True)
    return figure


def parallel(study: StudyView) -> go.Figure:
    """Return Optuna's own figure: one line per finished configuration, dotted if it is not safe."""
    from optuna.visualization import plot_parallel_coordinate

    assert study.optuna is not None
    with quiet():
        figure = plot_parallel_coordinate(study.optuna, target_name="reward")
    return figure.update_layout(**layout(study.name, 420, margin=_MARGIN | {"t": 70}))


def true_curves(task: str, curves: Sequence[Curve], paper_score: Cell | None = None) -> go.Figure:
    """Draw true reward and cost along the training, one line per member. paper_score: DRCORL's in the paper's Table 1."""
    figure = _two_panels(task, "normalised reward", "normalised cost")
    lines = [
        (str(curve.get("label", f"member {member}")), curve, member)
        for curve in curves
        for member in range(len(curve["normalized_reward"]))
    ]
    for index, (label, curve, member) in enumerate(lines):
        color, name = PALETTE[index % len(PALETTE)], escape(label)
        for column, score in enumerate(("normalized_reward", "normalized_cost"), 1):
            figure.add_scatter(
                x=curve["steps"], y=curve[score][member], name=name, legendgroup=name, row=1, col=column, line_color=color,
                mode="lines+markers", showlegend=column == 1 and len(lines) <= len(PALETTE),
                hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    _limit(figure, 1, column=2)
    for column, value in enumerate((paper_score.reward, paper_score.cost) if paper_score else (), 1):
        _horizontal(figure, value, column, "paper, limit 10", "dot")
    return figure


def offline_curves(task: str, series: Mapping[int, Series], rows: Mapping[int, Row], keys: Sequence[str]) -> dict[str, Any]:
    """Draw the offline metrics of every configuration (or member). rows: {number: row} of the judged ones.

    Returns plotly's dict, because a thousand lines take seconds as graph objects.
    """
    figure = _two_panels(task, *OFFLINE.values())
    for limit in {row["cost_limit"] for row in rows.values()}:
        _limit(figure, limit, column=1)
    lines = []
    for number, line in sorted(series.items(), key=lambda item: _status(rows.get(item[0]))[1]):
        color, width, status = _status(rows.get(number))
        text = hover(rows[number], keys, status) if number in rows else f"{number}: {status}"
        style = {"type": "scatter", "mode": "lines", "line": {"color": color, "width": width}, "opacity": 0.7}
        for metric, axes in zip(OFFLINE, ({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2"}), strict=True):
            lines.append(
                style | axes | {
                    "x": line.steps.tolist(), "y": [float(f"{value:.4g}") for value in line.values[metric]],
                    "hovertemplate": f"{text}<br>step %{{x}}: %{{y:.3g}}<extra></extra>", "showlegend": False,
                }
            )  # fmt: skip
    return figure.to_dict() | {"data": lines}


def _status(row: Row | None) -> tuple[str, float, str]:
    """Return colour, line width and word for the state of a configuration or member."""
    if row is None:
        return GREY, 0.8, "not judged"
    if row.get("state") == "stopped":
        return GREY, 0.9, "stopped early"
    if is_winner(row):
        return GOLD, 3.5, "winner"
    return (BLUE, 1.4, "safe") if row["normalized_cost"] <= 1 else (RED, 1.2, "not safe")


def _two_panels(title: str, *labels: str) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    figure.update_layout(**layout(title, 380))
    figure.update_xaxes(title_text="extraction step")
    for column, label in enumerate(labels, 1):
        figure.update_yaxes(title_text=label, row=1, col=column)
    return figure


def _limit(figure: go.Figure, value: float, column: int) -> None:
    _horizontal(figure, value, column, "cost limit", "dash")


def _horizontal(figure: go.Figure, value: float, column: int, text: str, dash: str) -> None:
    style: dict[str, Any] = {"line": {"dash": dash, "width": 1}, "col": column, "exclude_empty_subplots": False}
    figure.add_hline(y=value, annotation_text=text, **style)


def wall_time(cost: SearchCost) -> go.Figure:
    """Draw the parts of the wall time as one stacked bar."""
    margin = {"l": 10, "r": 10, "t": 10, "b": 40}
    figure = go.Figure(
        layout=layout("", 150, barmode="stack", margin=margin, legend=BELOW | {"y": -0.6, "traceorder": "normal"})
    )
    for (key, label), color in zip(WALL_PARTS.items(), (PURPLE, BLUE, ORANGE, GREY), strict=True):
        value = cost.get(key) or 0.0
        figure.add_bar(
            name=label, x=[value], y=[""], orientation="h", marker_color=color,
            hovertemplate=f"{label}: %{{x:.1f}} s<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="seconds")
    return figure
