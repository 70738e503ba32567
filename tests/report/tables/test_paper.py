"""Tests of Table 1 in the paper's layout, from rows made by hand."""

from __future__ import annotations

import re

import pytest
from matplotlib.image import imread

from drcorl_ray.report.figures.frontier import panels
from drcorl_ray.report.tables import paper
from tests.helpers.results import make_curve, make_results, make_row, markdown_table, report

HOPPER = {"task": "HopperVelocity"}


def row(algorithm: str, reward: float, cost: float, **changes):
    config = {"k": 2.0} | changes.pop("config", {}) | {"seed": changes.get("seed", 0)}
    scores = {"normalized_reward": reward, "normalized_cost": cost}
    return make_row(algorithm=algorithm, config=config, **(HOPPER | scores | changes))


ROWS = [
    row("drcorl", 0.8, 0.5), row("drcorl", 0.9, 1.1, seed=1), row("drcorl", 0.1, 9.0, selection="online_best"),
    row("cpq", 0.4, 0.1, baseline=True), row("bcq_lag", 0.7, 3.0, baseline=True), row("bc", 0.75, 12.0, baseline=True),
    row("bc", 0.75, 6.0, baseline=True, cost_limit=20.0), row("cpq", 0.5, 0.2, baseline=True, cost_limit=20.0),
]  # fmt: skip


def lines(table: paper.Table) -> list[list[str]]:
    columns = table.columns()
    return [[column.title for column in columns], *([column.text(line) for column in columns] for line in table.lines)]


def test_each_limit_has_a_table_with_the_papers_numbers_below():
    """Cells are means of the last policies over seeds; only limit 10 has a row "paper". Fault: use any selection."""
    ten, twenty = paper.tables(make_results(ROWS))
    assert (ten.limit, twenty.limit) == (10.0, 20.0)
    assert lines(ten) == [
        ["task", "BC", "BCQ-Lag", "CPQ", "DRCORL"],
        ["HopperVelocity", "0.75 (12.00)", "0.70 (3.00)", "0.40 (0.10)", "0.85 (0.80)"],
        ["paper", "0.76 (12.14)", "0.81 (14.92)", "0.57 (0.00)", "0.68 (0.79)"],
    ]
    assert lines(twenty) == [["task", "BC", "CPQ"], ["HopperVelocity", "0.75 (6.00)", "0.50 (0.20)"]]
    safe = [column.safe(ten.lines[0]) for column in ten.columns()]
    assert safe == [None, False, False, True, True]
    assert [column.safe(ten.lines[1]) for column in ten.columns()] == [None] * 5


def test_an_unregistered_algorithm_is_shown_by_its_name(tmp_path):
    """The results hold a user's own algorithm that this process lacks. Fault: KeyError for its name, marker or colour."""
    rows = [row("mine_&_all", 0.5, 0.2, baseline=True, cost_limit=limit) for limit in (10.0, 20.0)]
    results = make_results([*ROWS, *rows], data_episodes=[], curves=[make_curve(task="HopperVelocity")])
    ten, _ = paper.tables(results)
    assert ten.algorithms == ["bc", "bcq_lag", "cpq", "mine_&_all", "drcorl"]
    assert "& mine\\_\\&\\_all &" in paper.latex([ten])
    written = report(tmp_path, results)
    assert "mine_&amp;_all" in written["report.md"]
    assert [panel.algorithms for panel in panels(results)] == [["bc", "bcq_lag", "cpq", "mine_&_all"]]
    for name in ("scatter", "frontier"):
        assert imread(tmp_path / f"{name}.png").size > 0


def test_the_winner_represents_several_configurations():
    rows = [row("drcorl", 0.9, 0.2, config={"k": k}) for k in (0.0, 4.0)]
    rows += [row("cpq", 0.4, 0.1), row("drcorl", 0.6, 0.3, selection="search_winner")]
    [table] = paper.tables(make_results(rows))
    assert lines(table)[1][-1] == "0.60 (0.30)"
    [without] = paper.tables(make_results(rows[:-1]))
    assert lines(without)[1][-1] == "–"


@pytest.mark.parametrize(
    ("rows", "tables"),
    [
        ([make_row(), make_row(algorithm="bc"), make_row(algorithm="bc_safe")], 0),
        ([make_row(), make_row(algorithm="cdt")], 1),
        ([make_row(**HOPPER), make_row(algorithm="bc", **HOPPER)], 1),
        ([make_row(**HOPPER)], 0),
    ],
)
def test_runs_with_clones_only_on_other_tasks_have_no_such_table(rows, tables, tmp_path):
    assert len(paper.tables(make_results(rows))) == tables
    texts = report(tmp_path, make_results(rows))
    assert all((paper.TITLE in text) == bool(tables) for text in texts.values())
    assert (tmp_path / "table1.tex").exists() == bool(tables)


def test_the_reports_and_the_terminal_show_the_table(tmp_path, capsys):
    texts = report(tmp_path, make_results(ROWS))
    part = texts["report.md"].split("## Table 1, cost limit 10\n\n")[1]
    assert markdown_table(part)[2] == ["HopperVelocity", "0.75 (12.00)", "0.70 (3.00)", "**0.40 (0.10)**", "**0.85 (0.80)**"]
    assert ">0.85 (0.80)<" in texts["report.html"]
    assert "Table 1, cost limit 10:" in capsys.readouterr().out


def test_latex_is_a_tabular_with_coloured_cells(tmp_path):
    """Braces balance and every line has a cell per column, also with special characters in a name."""
    report(tmp_path, make_results([*ROWS, row("cpq", 0.2, 2.0, task="my_task")]))
    text = (tmp_path / "table1.tex").read_text()
    assert "\\textcolor{blue}{0.85 (0.80)}" in text
    assert "\\textcolor{gray}{0.70 (3.00)}" in text
    assert "\\textit{paper} & 0.76 (12.14) & 0.81 (14.92)" in text
    assert "my\\_task & -- & -- & \\textcolor{gray}{0.20 (2.00)} & -- \\\\" in text
    assert text.count("{") == text.count("}")
    for tabular in re.findall(r"\\begin\{tabular\}\{(l c*|lc*)\}(.*?)\\end\{tabular\}", text, re.S):
        width = len(tabular[0])
        counts = {line.count("&") for line in tabular[1].splitlines() if line.endswith("\\\\")}
        assert counts == {width - 1}


def test_curves_are_drawn_with_the_papers_scores(tmp_path):
    """Only the paper's tasks at its limit have them. Fault: draw them in every picture."""
    curves = [make_curve(task="HopperVelocity"), make_curve(task="Other")]
    rows = [make_row(**HOPPER), make_row(task="Other")]
    assert paper.paper_scores(make_results(rows)) == {"HopperVelocity": paper.Cell(0.68, 0.79)}
    assert paper.paper_scores(make_results([make_row(cost_limit=20.0, **HOPPER)])) == {}
    text = report(tmp_path, make_results(rows, curves=curves))["report.html"]
    assert text.count("paper, limit 10") == 2  # one per panel
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert width > 3 * height  # four panels in a row
