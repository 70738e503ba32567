"""Rows of results.json by hand (Eq. 26), and the report made of them: numbers in the table, pictures that show something."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from drcorl_ray.checkpoint import read_json
from drcorl_ray.data.dsrl import make_dataset
from drcorl_ray.data.store import Source, convert
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import EpisodeStats
from drcorl_ray.policy import load_policy
from drcorl_ray.report import rebuild, write_report
from drcorl_ray.results import Candidate, best_safe_episode, best_safe_episodes, score, write_results
from drcorl_ray.run_directory import RunDirectory
from drcorl_ray.stages import TaskData
from tests.data.helpers import make_columns
from tests.test_policy import make_population, observations

# design.md §8, and the episodes' mean length
ROW_NAMES = {
    "task", "algorithm", "member", "config", "seed", "cost_limit", "dataset_sha256", "evaluation_mode", "selection",
    "online_episodes", "episodes", "reward_mean", "reward_std", "cost_mean", "cost_std", "length_mean", "normalized_reward",
    "normalized_cost", "policy",
}  # fmt: skip
HEADER = ["task", "algorithm", "limit", "selection", "reward", "cost", "safe", "episode cost", "length", "episodes"]


@pytest.fixture
def data(tmp_path):
    """Four episodes of returns -2, 4, 18, 8 and costs 0, 3, 9, 3."""
    columns = make_columns(8)
    columns["rewards"] = np.array([-1, -1, 2, 2, 9, 9, 4, 4], np.float32)
    columns["costs"] = np.array([0, 0, 1, 2, 4, 5, 3, 0], np.float32)
    columns["terminals"] = np.zeros(8, bool)
    columns["timeouts"] = np.tile([False, True], 4)
    folder = tmp_path / "store"
    convert(make_dataset(columns), folder, task="PointCircle", source=Source(file_name="a.hdf5", sha256="ab" * 32))
    return TaskData.open(folder)


STATS = EpisodeStats(
    returns=np.array([[2.0, 6.0], [18.0, 18.0]]),
    costs=np.array([[3.0, 12.0], [0.0, 0.0]]),
    lengths=np.array([[200, 100], [200, 200]]),
    seeds=np.array([5, 6]),
)


def test_rows_by_hand(tmp_path, data):
    """Fault: subtract the data's least cost, forget the 0.1, or divide by R_max instead of the range."""
    run = RunDirectory(tmp_path / "run")
    candidates = [
        Candidate("drcorl", {"k": 1.5}, seed=3, cost_limit=9.9),
        Candidate("bc", {"cost_limit": None}, seed=4, cost_limit=0.0, selection="search_winner", online_episodes=40),
    ]
    population = make_population(2)
    first, second = score(run, data, population, candidates, STATS, "drcorl")
    assert first == {
        "task": "PointCircle",
        "algorithm": "drcorl",
        "member": 0,
        "config": {"k": 1.5},
        "seed": 3,
        "cost_limit": 9.9,
        "dataset_sha256": "ab" * 32,
        "evaluation_mode": "offline",
        "selection": "last",
        "online_episodes": 0,
        "episodes": 2,
        "reward_mean": 4.0,
        "reward_std": 2.0,
        "cost_mean": 7.5,
        "cost_std": 4.5,
        "length_mean": 150.0,
        "normalized_reward": pytest.approx((4.0 - -2.0) / (18.0 - -2.0), abs=1e-15),
        "normalized_cost": pytest.approx((3.0 + 12.0) / 2 / 10.0, abs=1e-15),
        "policy": "policies/PointCircle-drcorl-000.safetensors",
    }
    assert first.keys() == second.keys() == ROW_NAMES
    assert (second["selection"], second["online_episodes"], second["normalized_reward"]) == ("search_winner", 40, 1.0)
    assert second["normalized_cost"] == 0.0
    for member, row in enumerate((first, second)):
        policy = load_policy(run.path / row["policy"])
        assert policy.meta["result"] == row
        states = observations(3)
        np.testing.assert_array_equal(policy.act(states), population.select([member]).act(states[None])[0])


def test_a_cost_limit_of_zero_stays_finite(tmp_path, data):
    [row, _] = score(RunDirectory(tmp_path), data, make_population(2), [Candidate("drcorl", {}, 0, 0.0)] * 2, STATS, "drcorl")
    assert row["normalized_cost"] == pytest.approx(75.0)


@pytest.mark.parametrize(("limit", "best"), [(0.0, 0.0), (2.99, 0.0), (3.0, 0.5), (8.0, 0.5), (9.0, 1.0), (-0.5, None)])
def test_best_safe_episode(data, limit, best):
    """The limit itself is safe. Fault: < for ≤, or the cheapest episode in place of the best."""
    assert best_safe_episode(data, limit) == best


def test_references_are_the_limits_that_the_data_keep(data):
    assert best_safe_episodes(data, [9.0, 3.0, -0.5, 3.0]) == [
        {"task": "PointCircle", "cost_limit": 3.0, "normalized_reward": 0.5},
        {"task": "PointCircle", "cost_limit": 9.0, "normalized_reward": 1.0},
    ]


def test_results_say_what_made_them(tmp_path):
    run = RunDirectory(tmp_path)
    write_results(run, [make_row()], 12.345, {"curves": [make_curve()]})
    content = read_json(run.results)
    assert content["schema"] == 1
    assert content["rows"] == [make_row()]
    assert content["run"].keys() >= {"commit", "versions", "machine", "wall_s", "argv", "curves"}
    assert content["run"]["versions"].keys() >= {"python", "torch", "numpy"}
    assert content["run"]["wall_s"] == 12.3


def make_row(**changes) -> dict:
    return {
        "task": "PointCircle",
        "algorithm": "drcorl",
        "member": 0,
        "config": {},
        "seed": 0,
        "cost_limit": 10.0,
        "dataset_sha256": "0",
        "evaluation_mode": "offline",
        "selection": "last",
        "online_episodes": 0,
        "episodes": 20,
        "reward_mean": 100.0,
        "reward_std": 1.0,
        "cost_mean": 5.04,
        "cost_std": 2.5,
        "length_mean": 199.6,
        "normalized_reward": 0.8125,
        "normalized_cost": 0.5,
        "policy": "p",
    } | changes


def make_curve(**changes) -> dict:
    curve = {"task": "PointCircle", "steps": [10, 20, 30]}
    curve |= {"normalized_reward": [[0.1, None, 0.5], [None, None, None]], "normalized_cost": [[2.0, 1.0, 0.5]] * 2}
    return curve | changes


def make_report(folder: Path, rows: list[dict], curves: list[dict], references=()) -> tuple[str, list[list[str]]]:
    """The report's text and its table's cells; a warning on the way is an error."""
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(RunDirectory(folder), rows, curves, references)
    text = (folder / "report.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [len(line) for line in table] == [10] * len(table)
    return text, table


def coloured(path: Path, rgb: tuple[float, float, float]) -> np.ndarray:
    """Positions (row, column), as shares of the picture, of the pixels of about that colour."""
    picture = imread(path)[..., :3]
    near = np.argwhere(np.abs(picture - np.array(rgb)).max(-1) < 0.16)
    return near / picture.shape[:2]


BLUE, RED, ORANGE, GOLD = (0.25, 0.55, 0.75), (0.87, 0.32, 0.33), (1.0, 0.6, 0.25), (1.0, 0.84, 0.0)


def test_the_table_has_the_numbers_and_safe_cells_are_bold(tmp_path):
    """Fault: bold where the cost is below the limit itself, or by the mean of something else."""
    rows = [
        make_row(algorithm="bc", normalized_cost=1.004, normalized_reward=0.9),
        make_row(normalized_cost=1.0, cost_limit=10.0, length_mean=199.6),
        make_row(selection="search_winner", normalized_reward=-0.25, normalized_cost=12.345, cost_limit=2.5),
    ]
    text, table = make_report(tmp_path, rows, [])
    assert table[0] == HEADER
    assert table[2:] == [
        ["PointCircle", "drcorl", "2.5", "search_winner", "-0.250", "12.35", "no", "5.0 ± 2.5", "200", "20"],
        ["PointCircle", "drcorl", "10", "last", "**0.812**", "**1.00**", "yes", "5.0 ± 2.5", "200", "20"],
        ["PointCircle", "bc", "10", "last", "0.900", "1.00", "no", "5.0 ± 2.5", "200", "20"],
    ]
    assert "![Reward against cost](scatter.png)" in text
    assert "curves.png" not in text
    assert not (tmp_path / "curves.png").exists()


def test_rows_are_ordered_by_task_limit_and_interest(tmp_path):
    rows = [
        make_row(task=task, cost_limit=limit, algorithm=algorithm, selection=selection)
        for algorithm, selection in (("bc", "last"), ("drcorl", "last"), ("drcorl", "search_winner"))
        for limit in (20.0, 5.0)
        for task in ("B", "A")
    ]
    _, table = make_report(tmp_path, rows, [])
    group = [["drcorl", "search_winner"], ["drcorl", "last"], ["bc", "last"]]
    expected = [
        [task, algorithm, limit, selection] for task in "AB" for limit in ("5", "20") for algorithm, selection in group
    ]
    assert [cells[:4] for cells in table[2:]] == expected


def test_the_terminal_shows_the_same_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    write_report(RunDirectory(tmp_path), [make_row()], [])
    shown = capsys.readouterr().out
    for word in ("PointCircle", "drcorl", "0.812", "0.50", "5.0 ± 2.5"):
        assert word in shown


def test_the_scatter_shows_every_point_and_costs_beyond_the_edge(tmp_path):
    """Fault: draw the costs as they are, so that a bad policy is outside of the picture."""
    rows = [
        make_row(normalized_cost=0.2, normalized_reward=0.9),
        make_row(normalized_cost=500.0, normalized_reward=0.1),
        make_row(algorithm="bc", normalized_cost=1.5, normalized_reward=0.5),
        make_row(selection="search_winner", normalized_cost=700.0, normalized_reward=0.8),
    ]
    make_report(tmp_path, rows, [])
    blue, red, gold = (coloured(tmp_path / "scatter.png", rgb) for rgb in (BLUE, RED, GOLD))
    assert len(red) > 20
    blue = blue[blue[:, 0] < 0.82]  # below lies the legend
    left, right = blue[blue[:, 1] < 0.5], blue[blue[:, 1] > 0.85]
    assert len(left) > 20  # at a cost of 0.2, near the top
    assert len(right) > 20  # at the edge, near the bottom
    assert np.median(left[:, 0]) < np.median(right[:, 0])
    assert (gold[:, 1] > 0.85).sum() > 40


def test_several_tasks_have_a_panel_each(tmp_path):
    rows = [make_row(task="A"), make_row(task="B", algorithm="bc_safe"), make_row(task="C", algorithm="bc")]
    make_report(tmp_path, rows, [])
    shape = imread(tmp_path / "scatter.png").shape
    assert shape[1] > 3 * shape[0]
    for panel, rgb in enumerate((BLUE, ORANGE, RED)):
        columns = coloured(tmp_path / "scatter.png", rgb)[:, 1]
        assert len(columns) > 20
        assert (np.floor(columns * 3) == panel).mean() > 0.9


def test_curves_with_gaps(tmp_path):
    """A member without any value is left out, one with a gap is drawn; a stage without points has no curve."""
    text, _ = make_report(tmp_path, [make_row()], [make_curve(), make_curve(task="Empty", steps=[], normalized_reward=[[]])])
    assert text.index("![Training curves](curves.png)") < text.index("scatter.png")
    assert len(coloured(tmp_path / "curves.png", (0.12, 0.47, 0.71))) > 100
    make_report(
        tmp_path / "only", [make_row()], [make_curve(normalized_reward=[[None] * 3] * 2, normalized_cost=[[None] * 3] * 2)]
    )
    assert imread(tmp_path / "only" / "curves.png")[..., :3].std() > 0.01


def test_no_rows_at_all(tmp_path):
    _, table = make_report(tmp_path, [], [])
    assert len(table) == 2
    assert imread(tmp_path / "scatter.png")[..., :3].std() > 0.01


def test_references_are_noted_and_drawn_in_their_tasks_panel(tmp_path):
    """Fault: draw every task's reference in every panel."""
    reference = {"task": "B", "cost_limit": 2.5, "normalized_reward": 0.4321}
    text, _ = make_report(tmp_path, [make_row(task="A"), make_row(task="B")], [], [reference])
    assert "- B: the data's best episode within the limit 2.5 has normalised reward 0.432\n" in text
    green = coloured(tmp_path / "scatter.png", (0.25, 0.65, 0.25))
    assert len(green) > 100
    assert (green[:, 1] > 0.5).all()


def test_only_winners(tmp_path):
    make_report(tmp_path, [make_row(selection="search_winner")], [])
    assert len(coloured(tmp_path / "scatter.png", GOLD)) > 40


def test_a_report_is_rebuilt_from_the_results(tmp_path):
    run = RunDirectory(tmp_path / "run")
    rows, curves = [make_row(), make_row(algorithm="bc", normalized_cost=9.0)], [make_curve()]
    references = [{"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.7}]
    write_results(run, rows, 1.0, {"curves": curves, "references": references})
    text, _ = make_report(run.path, rows, curves, references)
    names = ("report.md", "curves.png", "scatter.png")
    before = {name: (run.path / name).read_bytes() for name in names}
    for name in names:
        (run.path / name).unlink()
    rebuild(run.path)
    assert {name: (run.path / name).read_bytes() for name in names} == before
    assert text.startswith("# run\n")
    assert json.loads(run.results.read_text())["rows"] == rows
    with pytest.raises(UserError, match=r"results\.json is missing"):
        rebuild(tmp_path)
