"""Tests of the texts and numbers of a report, in Markdown and on the terminal, against the rows they come from."""

from __future__ import annotations

import pytest

from drcorl_ray.report import print_table
from drcorl_ray.report.tables import core as tables
from tests.helpers.results import MadeSearch, make_results, make_row, markdown_table, report

HEADER = ["task", "algorithm", "limit", "selection", "reward", "cost", "safe", "episode cost", "length", "episodes"]


def test_the_table_has_the_numbers_and_safe_cells_are_bold(tmp_path):
    """Fault: use the raw cost or the displayed (rounded) cost instead of the normalised cost ≤ 1."""
    rows = [
        make_row(algorithm="bc", normalized_cost=1.004, normalized_reward=0.9),
        make_row(normalized_cost=1.0, cost_limit=10.0, length_mean=199.6),
        make_row(normalized_reward=-0.25, normalized_cost=12.345, cost_limit=2.5),
    ]
    text = report(tmp_path, make_results(rows))["report.md"]
    table = markdown_table(text)
    assert table[0] == HEADER
    assert table[2:] == [
        ["PointCircle", "drcorl", "2.5", "last", "-0.250", "12.35", "no", "5.0 ± 2.5", "200", "20"],
        ["PointCircle", "drcorl", "10", "last", "**0.812**", "**1.00**", "yes", "5.0 ± 2.5", "200", "20"],
        ["PointCircle", "bc", "10", "last", "0.900", "1.00", "no", "5.0 ± 2.5", "200", "20"],
    ]
    assert "![Reward against cost](scatter.png)" in text
    assert "curves.png" not in text


def test_rows_are_ordered_by_task_and_limit_with_baselines_last():
    rows = [
        make_row(task=task, cost_limit=limit, algorithm=algorithm)
        for algorithm in ("bc", "drcorl")
        for limit in (20.0, 5.0)
        for task in ("B", "A")
    ]
    ordered = [(row["task"], row["cost_limit"], row["algorithm"]) for row in tables.top_rows(make_results(rows))]
    assert ordered == [(task, limit, name) for task in "AB" for limit in (5.0, 20.0) for name in ("drcorl", "bc")]


def test_a_search_shows_winners_and_baselines_with_both_scores(tmp_path):
    """Fault: list all judged configurations, or show the fresh score in the column of the search score."""
    made = MadeSearch(tmp_path, ("TaskA", "TaskB"), 12)
    table = markdown_table(report(tmp_path, made.results)["report.md"])
    assert len(table) == 2 + 4
    head, winner, clone = table[0], table[2], table[3]
    [row] = [row for row in made.rows if row["selection"] == "search_winner" and row["task"] == "TaskA"]
    assert row["search_normalized_reward"] != row["normalized_reward"]
    shown = dict(zip(head, winner, strict=True))
    assert shown["config"] == str(row["configuration"])
    assert shown["search reward"] == f"**{row['search_normalized_reward']:.3f}**"
    assert shown["search cost"] == f"**{row['search_normalized_cost']:.2f}**"
    assert shown["fresh reward"] == f"**{row['normalized_reward']:.3f}**"
    assert shown["fresh cost"] == f"**{row['normalized_cost']:.2f}**"
    assert dict(zip(head, clone, strict=True)) | {
        "algorithm": "bc",
        "config": "–",
        "search reward": "–",
        "safe": "no",
    } == dict(zip(head, clone, strict=True))


def test_a_score_that_is_safe_only_in_the_search_is_marked_only_there():
    searched = {"search_normalized_cost": 0.5, "search_normalized_reward": 0.9}
    row = make_row(selection="search_winner", configuration=1, normalized_cost=1.5, **searched)
    marks = {column.title: column.safe(row) for column in tables.top_columns(make_results([row], search={"studies": []}))}
    assert marks["search reward"] is marks["search cost"] is True
    assert marks["fresh reward"] is marks["fresh cost"] is False
    assert marks["task"] is None


@pytest.mark.parametrize(("cost", "headline", "words"), [(0.5, "on 2 of 2", "(safe)"), (1.5, "on 1 of 2", "(not safe)")])
def test_the_verdict_of_a_search_is_the_first_winners_fresh_score(cost, headline, words):
    """Fault: use the best fresh score of several winners, or the search score."""
    rows = [
        make_row(task="A", selection="search_winner", configuration=3, normalized_cost=cost, search_normalized_cost=0.1),
        make_row(task="A", selection="search_winner", configuration=4, normalized_cost=0.2, search_normalized_cost=0.2),
        make_row(task="A", configuration=5, normalized_cost=0.0),
        make_row(task="B", selection="search_winner", configuration=6, normalized_cost=0.9, search_normalized_cost=0.2),
        make_row(task="B", algorithm="bc", normalized_cost=0.0),
    ]
    sentence, (first, second) = tables.verdict(make_results(rows, search={"studies": []}))
    assert headline in sentence
    assert first == f"A: configuration 3, reward 0.812 at cost {cost:.2f} {words}"
    assert second.startswith("B: configuration 6")


def test_the_verdict_of_a_training_run_counts_members_but_no_baselines():
    rows = [
        make_row(member=0, normalized_cost=1.5, normalized_reward=0.9),
        make_row(member=1, normalized_cost=0.5, normalized_reward=0.6),
        make_row(member=2, normalized_cost=0.5, normalized_reward=0.7),
        make_row(algorithm="bc_safe", normalized_cost=0.0, normalized_reward=1.0),
    ]
    sentence, lines = tables.verdict(make_results(rows))
    assert sentence == "A safe policy was found on 1 of 1 task."
    assert lines == ["PointCircle: member 2, reward 0.700 at cost 0.50 (safe, 2 of 3 policies safe)"]
    assert "least" not in lines[0]
    _, [line] = tables.verdict(make_results([make_row(normalized_cost=4.0), make_row(member=1, normalized_cost=2.0)]))
    assert line == "PointCircle: member 1, reward 0.812 at cost 2.00 (not safe, 0 of 2 policies safe)"


def test_each_cost_limit_has_its_own_verdict():
    """Fault: report one winner over all limits, which is always that of the loosest limit."""
    rows = [
        make_row(selection="search_winner", configuration=3, cost_limit=10.0, normalized_cost=1.5),
        make_row(selection="search_winner", configuration=1, cost_limit=40.0, normalized_reward=0.9),
        make_row(selection="search_winner", configuration=2, cost_limit=40.0, normalized_reward=0.95),
        make_row(task="Solo", selection="search_winner", configuration=0),
    ]
    sentence, lines = tables.verdict(make_results(rows, search={"studies": []}))
    assert sentence == "A safe winner was found on 2 of 3 pairs of task and cost limit."
    assert lines == [
        "PointCircle, limit 10: configuration 3, reward 0.812 at cost 1.50 (not safe)",
        "PointCircle, limit 40: configuration 1, reward 0.900 at cost 0.50 (safe)",
        "Solo: configuration 0, reward 0.812 at cost 0.50 (safe)",
    ]


def test_a_task_without_a_finished_policy_is_named():
    search = {"studies": [{"name": "Lost", "tasks": ["Lost"], "journal": "j"}]}
    assert tables.verdict(make_results([], search=search)) == (
        "A safe winner was found on 0 of 1 task.", ["Lost: no policy finished"],
    )  # fmt: skip


def test_the_resource_table_has_a_row_per_known_quantity():
    cost = {"wall_s": 7325.0, "packs_device_s": 12345.6, "device": "GPU", "member_steps": 1_234_567, "stopped": 0}
    assert tables.cost_rows(cost) == [
        ("wall time", "2 h 2 min"),
        ("GPU seconds: packs", "12,346"),
        ("member-steps of extraction", "1,234,567"),
        ("configurations stopped early", "0"),
    ]


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (59.9, "59.9 s"), (90, "2 min"), (7199, "2 h 0 min")])
def test_a_duration_is_shown_in_a_readable_unit(seconds, text):
    assert tables.duration(seconds) == text


def test_varied_keys_are_those_that_differ():
    """Faults: include the settings of baselines; treat True and 1 as equal."""
    rows = [
        make_row(config={"k": 1.0, "beta": 0.1, "flag": True, "quantile": None}),
        make_row(config={"k": 1.0, "beta": 0.2, "flag": 1, "quantile": None}),
        make_row(algorithm="bc", config={"k": 7.0}),
    ]
    assert tables.varied_keys(rows) == ["beta", "flag"]
    assert tables.settings(rows[0], ["beta", "gone", "quantile"]) == ["beta = 0.1", "quantile = –"]


MODES = ["mode", "online episodes", "appended"]


@pytest.mark.parametrize(
    ("changes", "titles", "cells"),
    [
        ({}, [], []),
        ({"evaluation_mode": "online", "online_episodes": 100}, MODES[:2], ["online", "100"]),
        ({"evaluation_mode": "hybrid", "online_episodes": 60, "appended_transitions": 4000}, MODES, ["hybrid", "60", "4000"]),
        ({"appended_transitions": 5}, MODES[2:], ["5"]),
        ({"online_episodes": 60}, [], []),
    ],
)
@pytest.mark.parametrize("search", [None, {"studies": []}])
def test_modes_and_simulator_use_are_shown_if_one_member_is_not_offline(changes, titles, cells, search):
    """All members then have these columns; baselines show a dash. Fault: decide by the first row only."""
    rows = [make_row(), make_row(algorithm="bc"), make_row(member=1) | changes]
    columns = tables.top_columns(make_results(rows, search=search))
    assert [column.title for column in columns if column.title in MODES] == titles
    offline, clone, changed = ([column.text(row) for column in columns if column.title in MODES] for row in rows)
    assert changed == cells
    assert clone == ["–"] * len(titles)
    assert offline == [{"mode": "offline"}.get(title, "0") for title in titles]
    assert [column.title for column in columns if column.title not in MODES] == [
        column.title for column in tables.top_columns(make_results([make_row()], search=search))
    ]


def test_a_wide_table_omits_its_least_important_columns_on_the_terminal(capsys):
    modes = ("offline", "online", "hybrid")
    rows = [make_row(task="HalfCheetahVelocity", evaluation_mode=mode, appended_transitions=123456) for mode in modes]
    print_table(make_results(rows))
    shown = capsys.readouterr().out
    assert all(f" {word} " in shown for word in ("HalfCheetahVelocity", *modes, "123456", "0.812", "5.0 ± 2.5"))


def test_the_terminal_shows_the_same_table(monkeypatch, capsys):
    """Square brackets are text, not colour markup."""
    monkeypatch.setenv("COLUMNS", "160")
    reference = {"task": "A[red]", "cost_limit": 2.5, "normalized_reward": 0.4321}
    print_table(make_results([make_row(task="A[red]")], references=[reference]))
    shown = capsys.readouterr().out
    for word in ("A[red]", "drcorl", "0.812", "0.50", "5.0 ± 2.5", "A[red], limit 2.5: the best safe episode of the data"):
        assert word in shown


def test_a_search_of_many_configurations_stays_short_on_the_terminal(tmp_path, capsys):
    made = MadeSearch(tmp_path, ("HalfCheetahVelocity",), 40)
    print_table(made.results)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 12
    assert max(map(len, shown.splitlines())) <= 118
    [winner] = [row for row in made.rows if row["selection"] == "search_winner"]
    [line] = [line for line in shown.splitlines() if f"{winner['search_normalized_reward']:.3f}" in line]
    assert f"{winner['normalized_reward']:.3f}" in line
    assert line.rstrip().endswith("│")
    assert "5.0 ± 2.5" in line
    assert "HalfCheetahVelocity" in line
    assert "algorithm" in shown


def test_markdown_escapes_names(tmp_path):
    text = report(tmp_path, make_results([make_row(task="a|<b>")]))["report.md"]
    assert markdown_table(text.replace("\\|", "¦"))[2][0] == "a¦&lt;b>"


def test_an_online_best_policy_has_its_own_name_and_row():
    """It is listed beside the last policy of its member."""
    rows = [
        make_row(evaluation_mode="hybrid", selection=selection, appended_transitions=5)
        for selection in ("last", "online_best")
    ]
    assert [tables.row_name(row) for row in rows] == ["member 0", "member 0 (online_best)"]
    rows[1]["normalized_reward"] = 0.9
    _, by_task = tables.verdict(make_results(rows))
    assert by_task == ["PointCircle: member 0 (online_best), reward 0.900 at cost 0.50 (safe, 2 of 2 policies safe)"]
