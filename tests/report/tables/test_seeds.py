"""Tests of the table over seeds against values computed by hand."""

import numpy as np
import pytest

from drcorl_ray.report.tables import seeds
from tests.helpers.results import make_results, make_row, report


def run(seed: int, reward: float, cost: float, **changes):
    config = {"k": 2.0, "cost_limit": 10.0} | changes.pop("config", {}) | {"seed": seed}
    return make_row(seed=seed, normalized_reward=reward, normalized_cost=cost, config=config, **changes)


ROWS = [
    run(0, 0.8, 0.2, length_mean=990.0), run(1, 0.9, 1.6, length_mean=1000.0), run(2, 1.0, 0.9, length_mean=1000.0),
    run(0, 0.7, 0.1, config={"k": 0.0}), run(1, 0.7, 2.1, config={"k": 0.0}),
    run(0, 0.5, 3.0, algorithm="bc"), run(1, 0.5, 3.0, algorithm="bc"),
    run(0, 0.6, 0.5, selection="search_winner"),
    run(0, 0.6, 0.5, cost_limit=20.0), run(1, 0.6, 0.5, cost_limit=20.0),
    run(0, 0.6, 0.5, config={"k": 3.0}), run(1, 0.6, 0.5, config={"k": 3.0}, state="stopped"),
]  # fmt: skip
REFERENCES = [{"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.75}]


def table(results) -> list[list[str]]:
    groups = seeds.groups(results)
    columns = seeds.columns(groups)
    return [[column.title for column in columns], *([column.text(group) for column in columns] for group in groups)]


def test_runs_that_differ_only_in_the_seed_are_one_line():
    """A winner, and a run whose sibling was stopped, have no line. Fault: group over all k, limits or selections."""
    head, *lines = table(make_results(ROWS, references=REFERENCES))
    assert head == [
        "task",
        "limit",
        "algorithm",
        "k",
        "selection",
        "seeds",
        "reward",
        "cost",
        "worst cost",
        "length",
        "share of best",
    ]
    task = "PointCircle"
    assert sorted(lines) == sorted([
        [task, "10", "drcorl", "2", "last", "3", "0.900 ± 0.100", "0.90 ± 0.70", "1.60", "997", "1.20"],
        [task, "10", "drcorl", "0", "last", "2", "0.700 ± 0.000", "1.10 ± 1.41", "2.10", "200", "0.93"],
        [task, "10", "bc", "–", "last", "2", "0.500 ± 0.000", "3.00 ± 0.00", "3.00", "200", "0.67"],
        [task, "20", "drcorl", "2", "last", "2", "0.600 ± 0.000", "0.50 ± 0.00", "0.50", "200", "–"],
    ])  # fmt: skip
    assert [line[2] for line in lines[:3]] == ["drcorl", "drcorl", "bc"]


def test_a_group_is_safe_if_its_mean_cost_is_safe():
    safe = [group.safe() for group in seeds.groups(make_results(ROWS))]
    assert sorted(safe) == [False, False, True, True]


@pytest.mark.parametrize("rows", [[run(0, 0.8, 0.2)], [run(0, 0.8, 0.2), run(1, 0.8, 0.2, evaluation_mode="online")]])
def test_a_single_seed_has_no_such_table(rows, tmp_path, capsys):
    results = make_results(rows)
    assert seeds.groups(results) == []
    assert not any(seeds.TITLE in text for text in report(tmp_path, results).values())
    assert seeds.TITLE not in capsys.readouterr().out


def test_the_report_and_the_terminal_show_the_table(tmp_path, capsys):
    texts = report(tmp_path, make_results(ROWS, references=REFERENCES))
    assert "**0.900 ± 0.100**" in texts["report.md"]
    assert "**1.10" not in texts["report.md"]
    assert all(f">{text}<" in texts["report.html"] for text in (seeds.TITLE, "0.900 ± 0.100"))
    shown = capsys.readouterr().out
    assert seeds.TITLE in shown
    assert "0.900 ± 0.100" in shown


def test_lines_are_ordered_by_the_settings_that_differ():
    """The order of the rows does not matter. Fault: sort numbers as text (10 before 2)."""
    rows = [run(seed, 0.5, 0.5, config={"k": k}) for k in (10.0, 2.0, 0) for seed in (0, 1)]
    assert [line[3] for line in table(make_results(rows))[1:]] == ["0", "2", "10"]


def curve(task: str, numbers: list[int], *costs: list[float | None]):
    rewards = [[0.5] * len(cost) for cost in costs]
    return {"task": task, "steps": [10, 20], "numbers": numbers, "normalized_reward": rewards, "normalized_cost": list(costs)}


def test_the_curves_of_a_method_are_those_of_its_seeds():
    """A run without a curve is left out. Faults: one line per member; the curve of another member."""
    rows = [
        run(seed, 0.5, 0.5, member=2 * seed + index, config={"k": k}) for seed in (0, 1) for index, k in enumerate((0.0, 2.0))
    ]
    rows += [run(0, 0.5, 0.5, member=9, config={"k": 3.0}), run(0, 0.6, 0.5, member=0, selection="online_best")]
    of_training = [curve("PointCircle", [0, 1, 2, 3], [1.0, 2.0], [3.0, 4.0], [5.0, None], [7.0, 8.0])]
    one, two = seeds.curves(make_results(rows, curves=of_training))
    assert (one.label, two.label) == ("k = 0", "k = 2")
    np.testing.assert_array_equal(one.cost, [[1.0, 2.0], [5.0, np.nan]])
    np.testing.assert_array_equal(two.cost, [[3.0, 4.0], [7.0, 8.0]])
    of_a_search = [curve("PointCircle", [9], [6.0, 6.0])]
    [alone] = seeds.curves(make_results(rows, curves=of_a_search))
    assert (alone.label, alone.steps, alone.reward.tolist()) == ("PointCircle", [10, 20], [[0.5, 0.5]])
