"""Tests of the PNG figures by the pixels that they contain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import write_json
from drcorl_ray.report import rebuild
from drcorl_ray.report.figures import calibration_png
from drcorl_ray.report.figures import png as pictures
from drcorl_ray.runs.directory import RunDirectory
from tests.helpers.results import MadeSearch, make_calibration, make_curve, make_results, make_row, report

BLUE, RED, ORANGE, GOLD, PURPLE = (0.25, 0.55, 0.75), (0.87, 0.32, 0.33), (1.0, 0.6, 0.25), (1.0, 0.84, 0.0), (0.58, 0.4, 0.74)
EDGE_BLUE = (0.12, 0.47, 0.71)


def coloured(path: Path, rgb: tuple[float, float, float]) -> np.ndarray:
    """Return the positions (row, column) of pixels close to a colour, as shares of the picture's size."""
    picture = imread(path)[..., :3]
    near = np.argwhere(np.abs(picture - np.array(rgb)).max(-1) < 0.16)
    return near / picture.shape[:2]


def scatter(folder: Path, rows: list[dict], references=()) -> Path:
    tasks = sorted({row["task"] for row in rows})
    return pictures.scatter(folder / "scatter.png", tasks, rows, references)


def test_the_scatter_shows_every_point_and_costs_beyond_the_edge(tmp_path):
    """Fault: do not clip the costs, so that a bad policy is outside the picture."""
    rows = [
        make_row(normalized_cost=0.2, normalized_reward=0.9),
        make_row(normalized_cost=500.0, normalized_reward=0.1),
        make_row(algorithm="bc", normalized_cost=1.5, normalized_reward=0.5),
        make_row(selection="search_winner", normalized_cost=700.0, normalized_reward=0.8),
    ]
    blue, red, gold = (coloured(scatter(tmp_path, rows), rgb) for rgb in (BLUE, RED, GOLD))
    assert len(red) > 20
    blue = blue[blue[:, 0] < 0.82]  # the legend is below
    left, right = blue[blue[:, 1] < 0.5], blue[blue[:, 1] > 0.85]
    assert len(left) > 20  # at a cost of 0.2, near the top
    assert len(right) > 20  # at the edge, near the bottom
    assert np.median(left[:, 0]) < np.median(right[:, 0])
    assert (gold[:, 1] > 0.85).sum() > 40


def test_a_stopped_configuration_is_hollow(tmp_path):
    """A ring has fewer coloured pixels than a dot."""
    rows = [make_row(configuration=1, state=state) for state in ("complete", "stopped")]
    dot, ring = (len(coloured(scatter(tmp_path, [row]), BLUE)) for row in rows)
    assert 0 < ring < 0.7 * dot


def test_every_task_has_a_panel(tmp_path):
    rows = [make_row(task="A"), make_row(task="B", algorithm="bc_safe"), make_row(task="C", algorithm="bc")]
    path = scatter(tmp_path, rows)
    shape = imread(path).shape
    assert shape[1] > 3 * shape[0]
    for panel, rgb in enumerate((BLUE, ORANGE, RED)):
        columns = coloured(path, rgb)[:, 1]
        assert len(columns) > 20
        assert (np.floor(columns * 3) == panel).mean() > 0.9


def test_the_fifth_panel_starts_a_new_row(tmp_path):
    """It is below the first."""
    path = scatter(tmp_path, [make_row(task=f"T{index}", algorithm="bc") for index in range(5)])
    assert imread(path).shape[1] < 3 * imread(path).shape[0]
    red = coloured(path, RED)
    upper, lower = red[red[:, 0] < 0.45], red[red[:, 0] > 0.5]
    assert set(np.floor(upper[:, 1] * 4)) == {0, 1, 2, 3}
    assert set(np.floor(lower[:, 1] * 4)) == {0}


def test_references_are_drawn_in_the_panel_of_their_task(tmp_path):
    """Fault: draw the reference of a task in every panel."""
    reference = {"task": "B", "cost_limit": 2.5, "normalized_reward": 0.4321}
    green = coloured(scatter(tmp_path, [make_row(task="A"), make_row(task="B")], [reference]), (0.25, 0.65, 0.25))
    assert len(green) > 100
    assert (green[:, 1] > 0.5).all()


def test_curves_with_gaps_are_drawn(tmp_path):
    """A member without any value is left out; an entry without points has no curve."""
    curves = [make_curve(), make_curve(task="Empty", steps=[], normalized_reward=[[]])]
    text = report(tmp_path, make_results([make_row()], curves=curves))["report.md"]
    assert text.index("![Learning curves](curves.png)") < text.index("scatter.png")
    assert len(coloured(tmp_path / "curves.png", EDGE_BLUE)) > 100
    nothing = make_curve(normalized_reward=[[None] * 3] * 2, normalized_cost=[[None] * 3] * 2)
    report(tmp_path / "only", make_results([make_row()], curves=[nothing]))
    assert imread(tmp_path / "only" / "curves.png")[..., :3].std() > 0.01


def test_results_without_rows_have_a_picture(tmp_path):
    report(tmp_path, make_results([]))
    assert imread(tmp_path / "scatter.png")[..., :3].std() > 0.01


def test_the_bars_of_the_importances_are_as_long_as_the_shares(tmp_path):
    path = pictures.importances(tmp_path / "i.png", {"A": {"reward": {"k": 0.8, "b": 0.2}, "cost": {"k": 0.4, "b": 0.6}}})
    blue, orange = (coloured(path, rgb) for rgb in (EDGE_BLUE, (1.0, 0.5, 0.05)))
    upper = [pixels[pixels[:, 0] < 0.45][:, 1] for pixels in (blue, orange)]  # k, the most important, is on top
    lower = [pixels[(pixels[:, 0] > 0.55) & (pixels[:, 1] < 0.65)][:, 1] for pixels in (blue, orange)]
    start = min(map(min, upper))
    assert (upper[0].max() - start) / (upper[1].max() - start) == pytest.approx(2.0, rel=0.05)
    assert lower[0].max() < lower[1].max()


def test_the_calibration_shows_unsafe_policies_estimated_safe_in_red(tmp_path):
    """Their true cost is above the limit, their estimate below; crosses mark them along the training. Fault: swap the axes."""
    entry = make_calibration(
        true_cost=[[20.0, 10.1, 5.0], [18.0, 30.2, None]], own_estimates=[[15.0, 8.0, 10.1], [20.0, 19.0, 3.0]]
    )
    path = calibration_png.calibration(tmp_path / "calibration.png", {"A": [entry], "B": [entry]})
    red, green = (coloured(path, rgb) for rgb in ((0.75, 0.22, 0.17), (0.18, 0.55, 0.34)))
    columns = red[red[:, 0] < 0.8][:, 1] * 4  # in panels; the legend is below
    for panel in range(4):
        right_half = (columns > panel + 0.5) & (columns < panel + 1)  # mid-training; the texts are left of it
        assert right_half.sum() > 20
    red, green = (pixels[(pixels[:, 1] < 0.25) & (pixels[:, 0] < 0.8)] for pixels in (red, green))
    assert len(green) > 40
    limit = green[:, 1].max()  # the true cost at which a safe policy meets its limit
    assert red[:, 1].min() > limit
    assert red[:, 0].min() > green[:, 0].min() - 0.02  # the highest estimate that is safe is at the limit


def test_a_calibration_without_points_is_drawn(tmp_path):
    entry = make_calibration(true_cost=[[None] * 3] * 2)
    text = report(tmp_path, make_results([make_row()], calibration=[entry]))["report.md"]
    assert "**too few points**" in text
    assert imread(tmp_path / "calibration.png")[..., :3].std() > 0.01


def test_a_search_has_all_its_pictures(tmp_path):
    text = report(tmp_path, MadeSearch(tmp_path, ("A", "B"), 12, multi_objective=True).results)["report.md"]
    for name in ("curves", "scatter", "frontier", "pareto", "importances", "parallel"):
        assert f"({name}.png)" in text
        assert imread(tmp_path / f"{name}.png")[..., :3].std() > 0.01
    assert len(coloured(tmp_path / "pareto.png", PURPLE)) > 100
    heights = [imread(tmp_path / "parallel.png").shape[0]]
    report(tmp_path / "one", MadeSearch(tmp_path / "one", ("A",), 12).results)
    heights.append(imread(tmp_path / "one" / "parallel.png").shape[0])
    assert heights[0] == 2 * heights[1]
    assert not (tmp_path / "one" / "pareto.png").exists()


def test_a_report_is_rebuilt_from_the_results(tmp_path):
    """Pictures of an older report that this one lacks are removed."""
    run = RunDirectory(tmp_path / "run")
    rows = [make_row(), make_row(algorithm="bc", normalized_cost=9.0)]
    references = [{"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.7}]
    results = make_results(rows, curves=[make_curve()], references=references)
    report(run.path, results)
    write_json(run.results, results)
    names = ("report.md", "report.html", "curves.png", "scatter.png")
    before = {name: (run.path / name).read_bytes() for name in names}
    for name in names:
        (run.path / name).unlink()
    for name in ("pareto.png", "calibration.png", "frontier.png"):
        (run.path / name).touch()
    rebuild(run.path)
    assert {name: (run.path / name).read_bytes() for name in names} == before
    assert {path.name for path in run.path.iterdir()} == {*names, "results.json"}
    with pytest.raises(UserError, match=r"results\.json is missing"):
        rebuild(tmp_path)
