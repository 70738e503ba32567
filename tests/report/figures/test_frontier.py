"""Tests of the frontier by hand: which policies are drawn, their positions, colours and shapes, and the data behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from drcorl_ray.report.figures import frontier
from drcorl_ray.report.figures import png as pictures
from drcorl_ray.report.figures.frontier import Mark, Panel, panels
from tests.helpers.results import make_results, make_row, report
from tests.report.figures.test_png import coloured
from tests.report.test_page import page

EPISODES = {"task": "PointCircle", "normalized_reward": [0.0, 0.25, 1.0, 0.5], "cost": [0.0, 60.0, 60.5, 400.0]}
REFERENCES = [
    {"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.5},
    {"task": "PointCircle", "cost_limit": 15.0, "normalized_reward": 0.6},
    {"task": "Other", "cost_limit": 20.0, "normalized_reward": 0.9},
]


def policy(number: int, limit: float, cost: float, reward: float, **changes: Any) -> dict[str, Any]:
    """A configuration of a search, with k = 0 for an even number, else k = 2."""
    config = {"cost_limit": limit, "k": 2.0 * (number % 2), "seed": 0} | changes.pop("config", {})
    row = make_row(configuration=number, cost_limit=limit, config=config, cost_mean=cost, normalized_reward=reward)
    return row | {"normalized_cost": cost / (limit + 0.1), "state": "complete"} | changes


def clone(name: str, limit: float, cost: float) -> dict[str, Any]:
    return make_row(algorithm=name, cost_limit=limit, cost_mean=cost, normalized_reward=0.3)


ROWS = [
    policy(0, 10.0, 7.0, 0.65, selection="search_winner"),
    policy(0, 10.0, 6.0, 0.7),
    policy(1, 10.0, 4.0, 0.6),
    policy(2, 20.0, 60.0, 0.9),
    policy(3, 20.0, 61.0, 0.8),
    policy(4, 20.0, 1.0, 0.1, state="stopped"),
    policy(1, 10.0, 2.0, 0.5, selection="online_best"),
    clone("bc", 10.0, 50.0),
    clone("bc", 20.0, 50.0),
    clone("bc_safe", 20.0, 300.0),
]


def panel(rows: Sequence[dict[str, Any]], **about: Any) -> Panel:
    [only] = panels(make_results(list(rows), **about))
    return only


def positions(marks: Sequence[Mark]) -> list[tuple[float, float, str]]:
    return [(mark.cost, mark.reward, mark.shape.png) for mark in marks]


def test_the_panel_has_the_policies_and_episodes_found_by_hand():
    """Faults: draw a winner's search score, a stopped or an online_best row; do not clip costs; set the edge by the data."""
    drawn = panel(ROWS, data_episodes=[EPISODES, EPISODES | {"task": "Other"}], references=REFERENCES)
    assert drawn.edge == 60.0
    assert sorted(positions(drawn.policies)) == [(4.0, 0.6, "s"), (7.0, 0.65, "o"), (60.0, 0.8, ">"), (60.0, 0.9, "o")]
    assert {name: shape.png for name, shape in drawn.shapes.items()} == {"k = 0": "o", "k = 2": "s"}
    low, high = drawn.colors[10.0], drawn.colors[20.0]
    assert list(drawn.colors) == [10.0, 20.0]
    assert low != high
    assert {(mark.row["cost_limit"], mark.color) for mark in drawn.policies} == {(10.0, low), (20.0, high)}
    assert positions(drawn.baselines) == [(50.0, 0.3, "X"), (50.0, 0.3, "X"), (60.0, 0.3, ">")]
    assert [mark.color for mark in drawn.baselines] == ["black", "black", high]
    assert (drawn.costs.tolist(), drawn.rewards.tolist(), drawn.beyond) == ([0.0, 60.0], [0.0, 0.25], 2)
    assert drawn.backdrop == "2 episodes of the data (2 more at higher cost)"
    assert drawn.best == {10.0: 0.5}


@pytest.mark.parametrize(
    ("configs", "names"),
    [
        ([{}, {}], ["policy"]),
        ([{"seed": 0}, {"seed": 1}], ["seed = 0", "seed = 1"]),
        ([{"seed": 0, "k": 1.0}, {"seed": 1, "k": 2.0}], ["k = 1, seed = 0", "k = 2, seed = 1"]),
        ([{"seed": 0, "k": 1.0, "beta_0": 0.1}, {"seed": 1, "k": 2.0, "beta_0": 0.2}], ["policy"]),
        ([{"seed": seed} for seed in range(6)], ["policy"]),
    ],
)
def test_shapes_distinguish_policies_with_few_differing_settings(configs, names):
    """The limit does not count, because the colour shows it. Fault: a sixth policy without a shape."""
    rows = [policy(2 * i, 10.0 + i, 1.0, 0.5, config=config) for i, config in enumerate(configs)]
    drawn = panel(rows)
    assert list(drawn.shapes) == names
    assert len({mark.shape for mark in drawn.policies}) == len(names)


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([], False),
        ([policy(0, 10.0, 1.0, 0.5), clone("bc", 10.0, 3.0)], False),
        ([policy(0, 10.0, 1.0, 0.5), policy(0, 10.0, 1.0, 0.5, selection="search_winner")], False),
        ([policy(0, 10.0, 1.0, 0.5), policy(1, 10.0, 1.0, 0.5)], True),
        ([policy(0, 10.0, 1.0, 0.5), clone("bc_safe", 20.0, 3.0)], True),
        ([make_row(member=0, cost_limit=0.0), make_row(member=1, cost_limit=0.0)], True),
    ],
)
def test_a_run_with_several_policies_or_limits_has_the_picture(tmp_path, rows, drawn):
    """This includes results without the data's episodes, as older versions wrote them."""
    texts = report(tmp_path, make_results(rows))
    assert (tmp_path / "frontier.png").exists() == drawn
    assert (f"![{frontier.TITLE}](frontier.png)" in texts["report.md"]) == drawn
    assert (frontier.TITLE in texts["report.html"]) == drawn
    if drawn:
        assert imread(tmp_path / "frontier.png")[..., :3].std() > 0.01


def test_a_task_has_its_own_panel_and_edge():
    rows = [row | {"task": task} for task in "AB" for row in (policy(0, 10.0, 1.0, 0.5), policy(1, 10.0, 1.0, 0.5))]
    rows += [policy(0, 10.0, 1.0, 0.5, task="C"), policy(2, 50.0, 1.0, 0.5, task="B")]
    drawn = panels(make_results(rows, data_episodes=[EPISODES | {"task": "B"}]))
    assert [(panel.task, panel.edge, len(panel.costs), panel.beyond) for panel in drawn] == [
        ("A", 30.0, 0, 0),
        ("B", 150.0, 3, 1),
    ]


def test_the_picture_shows_limits_in_their_colours_and_policies_at_their_costs(tmp_path):
    """The limit 20 is at a third of the axis and its policy of cost 50 is right of it. Fault: draw normalised costs."""
    rows = [policy(0, 10.0, 2.0, 0.2), policy(2, 20.0, 50.0, 0.8)]
    drawn = panel(rows, data_episodes=[EPISODES | {"cost": [30.0] * 4}])
    path = pictures.frontier(tmp_path / "frontier.png", [drawn])
    low, high = (coloured(path, to_rgb(color)) for color in drawn.colors.values())
    low, high = (pixels[pixels[:, 0] < 0.75] for pixels in (low, high))  # the legend is below
    lines = [np.bincount((pixels[:, 1] * 1000).astype(int)).argmax() / 1000 for pixels in (low, high)]
    one = lines[1] - lines[0]  # ten units of cost
    left, right = low[low[:, 1] < lines[0] - 0.5 * one], high[high[:, 1] > lines[1] + 0.5 * one]
    assert np.median(left[:, 1]) == pytest.approx(lines[0] - 0.8 * one, abs=0.01)
    assert np.median(right[:, 1]) == pytest.approx(lines[1] + 3.0 * one, abs=0.01)
    assert np.median(left[:, 0]) > np.median(right[:, 0])
    grey = coloured(path, (0.7, 0.7, 0.7))
    behind = grey[np.abs(grey[:, 1] - (lines[1] + one)) < 0.02]
    assert len(behind) > 20
    without = pictures.frontier(tmp_path / "without.png", [panel(rows)])
    assert len(coloured(without, (0.7, 0.7, 0.7))) < len(grey)


def test_clones_are_hollow(tmp_path):
    """Only the outline of a clone has its colour; a policy is filled. Fault: fill both."""
    rows = [policy(0, 10.0, 1.0, 0.1), policy(2, 20.0, 1.0, 0.1)]
    for name, other in (("filled", policy(4, 30.0, 50.0, 0.3)), ("hollow", clone("bc_safe", 30.0, 50.0))):
        drawn = panel([*rows, other])
        pixels = coloured(pictures.frontier(tmp_path / f"{name}.png", [drawn]), to_rgb(drawn.colors[30.0]))
        mark = pixels[(pixels[:, 1] > 0.5) & (pixels[:, 0] < 0.5)]
        middle = (mark.min(0) + mark.max(0)) / 2
        assert len(mark) > 60
        assert (np.abs(mark - middle).max(1) < 0.002).any() == (name == "filled")


def test_the_page_has_every_policy_the_limits_and_the_data(tmp_path):
    results = make_results(ROWS, search={"studies": []}, data_episodes=[EPISODES], references=REFERENCES)
    figure = page(tmp_path, results).titled("PointCircle: reward against episode cost")
    traces = {trace["name"]: trace for trace in figure["data"] if trace["visible"]}
    low, high = traces["limit 10"], traces["limit 20"]
    points = sorted(zip(low["x"], low["y"], low["marker"]["symbol"], strict=True))
    assert points == [(4.0, 0.6, "square"), (7.0, 0.65, "circle")]
    assert sorted(zip(high["x"], high["y"], strict=True)) == [(60.0, 0.8), (60.0, 0.9)]
    assert "configuration 3" in high["text"][high["marker"]["symbol"].index("triangle-right")]
    assert "episode cost 61.0, limit 20" in high["text"][high["y"].index(0.8)]
    assert "k = 2" in low["text"][low["x"].index(4.0)]
    assert traces["bc"]["marker"]["symbol"] == ["x-open", "x-open"]
    assert traces["bc_safe"]["marker"]["symbol"] == ["triangle-right-open"]
    assert traces[frontier.BEST]["x"] == [10.0]
    data = traces["2 episodes of the data (2 more at higher cost)"]
    assert (data["x"], data["y"]) == ([0.0, 60.0], [0.0, 0.25])
    lines = {shape["name"]: (shape["x0"], shape["legendgroup"]) for shape in figure["layout"]["shapes"]}
    assert lines == {"limit 10": (10.0, low["legendgroup"]), "limit 20": (20.0, high["legendgroup"])}
    assert figure["layout"]["xaxis"]["range"][1] == pytest.approx(60.0, rel=0.05)
