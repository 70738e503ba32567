"""Tests of report.html with an HTML parser: its numbers are those of the rows, it loads nothing, it escapes every text."""

from __future__ import annotations

import html
import json
import re
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

from drcorl_ray.report.build import read_page
from drcorl_ray.report.optuna_views import StudyView
from drcorl_ray.report.page import Page
from drcorl_ray.report.tables.core import COST_TITLE
from drcorl_ray.runs.directory import RunDirectory
from tests.helpers.results import MadeSearch, Parsed, log_line, make_curve, make_results, make_row

NASTY = "</script><img src=x onerror=alert(1)>\"'&amp;<b>"


def html_of(folder: Path, results: dict[str, Any]) -> str:
    """Return the page without drawing the pictures; a warning is an error."""
    folder.mkdir(exist_ok=True, parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_page(RunDirectory(folder), results).html()


def page(folder: Path, results: dict[str, Any]) -> Parsed:
    return Parsed(html_of(folder, results))


def shown(parsed: Parsed, table: int) -> list[dict[str, str]]:
    head, *rows = parsed.tables[table]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_winners_table_has_both_scores_and_marks_each_by_its_own_cost(tmp_path):
    made = MadeSearch(tmp_path, configurations=12)
    [winner] = [row for row in made.rows if row["selection"] == "search_winner"]
    winner["normalized_cost"] = 1.25
    parsed = page(tmp_path, made.results)
    first, second = shown(parsed, 0)
    assert first["config"] == str(winner["configuration"])
    assert first["search reward"] == f"{winner['search_normalized_reward']:.3f}"
    assert first["search cost"] == f"{winner['search_normalized_cost']:.2f}"
    assert first["fresh reward"] == f"{winner['normalized_reward']:.3f}"
    assert (first["fresh cost"], first["safe"]) == ("1.25", "no")
    assert f"k = {winner['config']['k']:.4g}" in first["hyper-parameters"]
    assert (second["algorithm"], second["search reward"], second["fresh cost"]) == ("bc", "–", "7.50")
    marks = dict(zip(parsed.tables[0][0], parsed.classes[0][1], strict=True))
    assert [marks[f"{score} cost"] for score in ("search", "fresh")] == ["safe", "unsafe"]
    assert parsed.links[0] == winner["config_file"]
    assert "A safe winner was found on 0 of 1 task." in parsed.text


def test_all_configurations_are_in_the_last_table(tmp_path):
    made = MadeSearch(tmp_path, ("TaskA", "TaskB"), 12)
    judged = {(row["task"], row["configuration"]): row for row in made.rows if row["selection"] == "last" and "study" in row}
    lines = shown(page(tmp_path, made.results), -1)
    assert len(lines) == len(judged) == 24
    for line in lines:
        row = judged.pop((line["task"], int(line["config"])))
        assert line["reward"] == f"{row['normalized_reward']:.3f}"
        assert line["state"] == row["state"]
        assert line["k"] == f"{row['config']['k']:.4g}"
        assert line["beta_schedule"] == row["config"]["beta_schedule"]
    assert not judged


def test_the_page_shows_the_facts_of_the_run_and_its_resources(tmp_path):
    parsed = page(tmp_path, MadeSearch(tmp_path, configurations=8).results)
    for text in (
        "launch/tune.py tune_configs/velocity.yaml",
        "abc123",
        "2 CPUs (x86_64)",
        "per_task objective",
        "sampler tpe",
    ):
        assert text in parsed.text
    amounts = dict(row for table in parsed.tables for row in table if len(row) == 2)
    assert amounts["member-steps of extraction"] == "123,456"
    assert amounts["CPU seconds: packs"] == "98"
    assert amounts["online episodes"] == "777"
    parts = parsed.titled("")["data"]
    assert [trace["x"] for trace in parts] == [[30.0], [50.0], [15.0], [5.0]]


@pytest.mark.parametrize("kind", ["search", "training"])
def test_the_page_loads_nothing(tmp_path, kind):
    """It refers to no external script, style, picture or font, and its security policy forbids them."""
    made = MadeSearch(tmp_path, configurations=8) if kind == "search" else None
    text = html_of(tmp_path, made.results if made else make_results([make_row()], curves=[make_curve()]))
    parsed = Parsed(text)
    assert parsed.loads == []
    assert all(not re.match(r"[a-z]+:|/", link) for link in parsed.links)
    assert "default-src 'none'" in html.unescape(text[:2000])
    assert "showSendToCloud: false" in text
    assert "@import" not in text.split("</style>")[0]
    assert "url(" not in text.split("</style>")[0]


def test_every_text_is_escaped(tmp_path):
    """This includes the labels of figures, where plotly interprets HTML. Fault: omit one `escape`."""
    folder = tmp_path / "run <i>"
    row = make_row(
        task=NASTY, config={NASTY: NASTY}, selection="search_winner", configuration=1, study="S", config_file=f"m/{NASTY}",
    )  # fmt: skip
    judged = make_row(task=NASTY, config={NASTY: "other"}, configuration=2, study="S", state="complete")
    curves = [make_curve(task=NASTY, label=NASTY)]
    search = {"studies": [{"name": NASTY, "tasks": [NASTY], "journal": "none"}], "multi_objective": True, "objective": NASTY}
    results = make_results(
        [row, judged], search=search, curves=curves, argv=[NASTY], commit=NASTY, versions={NASTY: NASTY},
        references=[{"task": NASTY, "cost_limit": 1.0, "normalized_reward": 0.5}], machine={"gpus": [NASTY]},
    )  # fmt: skip
    text = html_of(folder, results)
    assert text.count("<script") == text.count("</script>")
    parsed = Parsed(text)
    assert "img" not in re.findall(r"<([a-z]+)[ >]", text.split("<script>/")[0].split("<style>")[0])
    assert parsed.tables[0][1][0] == NASTY
    assert NASTY in parsed.tables[0][1][-1]
    assert parsed.links[0] == f"m/{NASTY}"
    assert "run <i>" in parsed.text
    figures = json.dumps(parsed.figures)
    assert "&lt;/script&gt;" in figures
    assert "onerror" in figures
    assert "<img" not in figures


def test_a_categorical_choice_cannot_end_its_script_element(tmp_path):
    """Optuna draws the names and choices of the study. Fault: embed JSON with an unescaped <."""
    study = optuna.create_study()
    for value in (0.0, 1.0):
        trial = study.ask()
        trial.suggest_categorical("key", [NASTY, "other"])
        study.tell(trial, value)
    results = make_results([make_row()], search={"studies": []})
    parsed = Parsed(Page("run", results, [StudyView("S", ["PointCircle"], study)], {}, {}, []).html())
    assert len(parsed.figures) == 2
    assert "img" not in parsed.text


def test_the_scatter_shows_every_row_with_its_hover_text(tmp_path):
    rows = [
        make_row(configuration=0, study="A", config={"k": 1.5, "same": 1}, normalized_cost=0.25, normalized_reward=0.5),
        make_row(configuration=1, study="A", config={"k": 2.5, "same": 1}, normalized_cost=9.0, state="stopped"),
        make_row(algorithm="bc", normalized_cost=1.5),
        make_row(selection="search_winner", configuration=0, config={"k": 1.5, "same": 1}, normalized_cost=0.75,
                 search_normalized_reward=0.5, search_normalized_cost=0.25),
    ]  # fmt: skip
    references = [{"task": "PointCircle", "cost_limit": 10.0, "normalized_reward": 0.7}]
    results = make_results(rows, search={"studies": []}, references=references)
    figure = page(tmp_path, results).titled("PointCircle")
    traces = {trace.get("name"): trace for trace in figure["data"] if trace.get("visible", True)}
    assert (traces["configuration"]["x"], traces["configuration"]["y"]) == ([0.25], [0.5])
    assert "configuration 0" in traces["configuration"]["text"][0]
    assert "k = 1.5" in traces["configuration"]["text"][0]
    assert "same" not in traces["configuration"]["text"][0]
    assert traces["stopped early"]["x"] == [3.0]
    assert traces["stopped early"]["marker"]["symbol"] == ["triangle-right-open"]
    assert "cost 9.00" in traces["stopped early"]["text"][0]
    assert traces["winner, fresh score"]["x"] == [0.75]
    assert traces["bc"]["x"] == [1.5]
    lines = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "line"]
    assert {(line["x0"], line["y0"]) for line in lines} >= {(1, 0), (0, 0.7)}


def test_a_run_without_its_studies_and_logs_still_has_a_page(tmp_path):
    """The run directory holds results.json only; notes say what is missing."""
    made = MadeSearch(tmp_path / "whole", configurations=12, multi_objective=True)
    parsed = page(tmp_path / "copy", made.results)
    assert parsed.text.count("its Optuna study is missing or damaged") == 2
    assert "the metrics logs of its packs are missing or damaged" in parsed.text
    assert parsed.titled("TaskA: true scores (rollouts)")["data"]
    assert len(shown(parsed, -1)) == 12
    assert any(trace.get("name") == "Pareto front" for figure in parsed.figures for trace in figure["data"])
    assert not (tmp_path / "copy" / "studies").exists()


def test_a_note_says_that_too_few_configurations_finished(tmp_path):
    parsed = page(tmp_path, MadeSearch(tmp_path, configurations=3).results)
    assert "TaskA: too few finished configurations (fewer than 4)" in parsed.text


@pytest.mark.parametrize("multi_objective", [False, True])
def test_conditional_and_stopped_configurations_are_in_the_parallel_coordinates(tmp_path, multi_objective):
    made = MadeSearch(tmp_path, configurations=16, multi_objective=multi_objective)
    figure = next(
        figure for figure in page(tmp_path, made.results).figures if "beta_1" in str(figure["layout"].get("xaxis", {}))
    )
    axes = figure["layout"]["xaxis"]["ticktext"]
    scores = ["reward", "cost"] if multi_objective else ["reward"]
    assert axes == [*scores, "beta_0", "beta_1", "beta_schedule", "k"]
    assert sum(trace["mode"] == "lines" and trace["x"] != [None] for trace in figure["data"]) == 12  # 4 of 16 were stopped
    assert "None" in [note["text"] for note in figure["layout"]["annotations"]]


def test_the_front_of_the_page_equals_brute_force(tmp_path):
    """Only finished configurations count. Fault: put a stopped one on the front."""
    made = MadeSearch(tmp_path, configurations=24, multi_objective=True)
    rows = [row for row in made.rows if row["selection"] == "last" and row.get("state") == "complete"]
    points = [(row["normalized_cost"], row["normalized_reward"]) for row in rows]
    best = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points))
    traces = [trace for figure in page(tmp_path, made.results).figures for trace in figure["data"]]
    [front] = [trace for trace in traces if trace.get("name") == "Pareto front"]
    assert list(zip(front["x"], front["y"], strict=True)) == best
    assert 1 < len(best) < len(points)


def test_the_page_of_a_training_run_names_the_member_of_each_curve(tmp_path):
    """It shows every row and true curves with gaps, and has no section of a search."""
    rows = [make_row(member=0, config={"k": 1.0}), make_row(member=1, config={"k": 2.0}, normalized_cost=3.0)]
    metrics = {"adaptation/cost_estimate": [3.0, None], "critic/q_reward": [1.0, 2.0]}
    (tmp_path / "metrics.jsonl").write_text(log_line(metrics, step=5, total_steps=5))
    parsed = page(tmp_path, make_results(rows, curves=[make_curve()]))
    assert [line["cost"] for line in shown(parsed, 0)] == ["0.50", "3.00"]
    true = parsed.titled("PointCircle: true scores (rollouts)")["data"]
    assert true[0]["y"] == [0.1, None, 0.5]
    assert "member 0" in true[0]["hovertemplate"]
    offline = parsed.titled("PointCircle: offline metrics of the training")["data"]
    texts = {trace["hovertemplate"].split("<br>")[0]: trace["y"] for trace in offline if trace["yaxis"] == "y"}
    assert texts == {"member 0": [3.0], "member 1": [None]}
    for absent in ("Pareto", "importance", COST_TITLE, "All configurations"):
        assert absent not in parsed.text


def test_the_chooser_lists_the_tasks_and_every_part_is_tagged_with_its_own(tmp_path):
    made = MadeSearch(tmp_path, ("A", "B"), 5, shared=True)
    text = html_of(tmp_path, made.results)
    assert '<option value="" selected>all tasks</option><option value="0">A</option><option value="1">B</option>' in text
    tags = re.findall(r'class="plot [^>]*data-tasks="([^"]*)"', text)
    assert tags == ["0", "1", "0", "1", "0 1", "0 1", "0", "0", "1", "1", "0 1"]
    many = make_results([make_row(task=f"T{index}") for index in range(7)])
    assert '<option value="0" selected>T0</option>' in html_of(tmp_path / "many", many)


def test_a_page_of_many_configurations_is_small_enough(tmp_path):
    """A configuration with 40 reports takes at most 4 kB, so 38 tasks × 64 configurations stay below 15 MB."""
    made = MadeSearch(tmp_path, ("TaskA", "TaskB"), 60, steps=40)
    base = len(html_of(tmp_path / "base", make_results([make_row()])))
    assert base < 5_500_000
    text = html_of(tmp_path, made.results)
    assert (len(text) - base) / 120 < 4000
    assert not [figure for figure in Parsed(text).figures if "template" in figure["layout"]]  # 7 kB each
