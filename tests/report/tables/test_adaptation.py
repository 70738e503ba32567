"""Tests of the adaptation table against shares computed by hand from the metrics log."""

from drcorl_ray.report import optuna_views as study
from drcorl_ray.report.tables import adaptation, calibration
from drcorl_ray.runs.directory import RunDirectory
from tests.helpers.results import MadeSearch, Parsed, log_line, make_calibration, make_results, make_row, report


def log(run: RunDirectory, lines: dict[int, dict]) -> None:
    run.metrics.write_text("".join(log_line(line, step, total_steps=max(lines)) for step, line in lines.items()))


def metrics(estimate: list, safe: list, band: list, unsafe: list, conflict: list) -> dict:
    values = {"cost_estimate": estimate, "safe": safe, "band": band, "unsafe": unsafe, "conflict": conflict}
    return {f"adaptation/{name}": by_member for name, by_member in values.items()}


def test_each_policy_has_the_shares_of_all_its_own_steps(tmp_path):
    """Reports come after 50, 100 and 120 steps; baselines and online_best rows have no shares. Faults: use only the last
    report; weight all reports equally; read another member's column."""
    run = RunDirectory(tmp_path)
    early = metrics([90.0, 80.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.5, 1.0])
    late = metrics([12.04, 31.0], [0.6, 0.0], [0.4, 0.5], [0.0, 0.5], [0.5, 0.0])
    log(run, {50: early, 100: early, 120: late})
    rows = [
        make_row(member=0, seed=3), make_row(member=1, cost_limit=2.5, normalized_cost=2.0, selection="online_best"),
        make_row(member=1, cost_limit=2.5, normalized_cost=2.0), make_row(member=0, algorithm="bc"),
    ]  # fmt: skip
    results = make_results(rows)
    entries = adaptation.adaptation_shares(results, study.offline_curves(run, results))
    columns = adaptation.columns(entries)
    assert [[column.text(entry) for column in columns] for entry in entries] == [
        ["PointCircle", "0", "10", "3", "10 %", "7 %", "83 %", "50 %", "12.0", "5.0"],
        ["PointCircle", "1", "2.5", "0", "0 %", "8 %", "92 %", "83 %", "31.0", "5.0"],
    ]
    assert [columns[-1].safe(entry) for entry in entries] == [True, False]


def test_differing_settings_are_shown_and_a_lagrangian_has_no_regions(tmp_path):
    run = RunDirectory(tmp_path)
    log(run, {10: metrics([1.0, 2.0], [0.5, 1.0], [0.25, 0.0], [0.25, 0.0], [1.0, 1.0])})
    rules = ("gradient_manipulation", "lagrangian")
    rows = [make_row(member=i, config={"adaptation": rule, "seed": i, "k": 3.0}) for i, rule in enumerate(rules)]
    results = make_results(rows)
    entries = adaptation.adaptation_shares(results, study.offline_curves(run, results))
    columns = adaptation.columns(entries)
    assert [column.title for column in columns[3:6]] == ["seed", "adaptation", "reward steps"]
    assert [[column.text(entry) for column in columns[4:9]] for entry in entries] == [
        ["gradient_manipulation", "50 %", "25 %", "25 %", "100 %"],
        ["lagrangian", "–", "–", "–", "100 %"],
    ]


def test_a_log_without_shares_shows_a_dash(tmp_path):
    run = RunDirectory(tmp_path)
    log(run, {10: {"adaptation/cost_estimate": [12.0]}})
    results = make_results([make_row()])
    [entry] = adaptation.adaptation_shares(results, study.offline_curves(run, results))
    assert entry.share("adaptation/band") == "–"


def test_both_reports_show_the_winners_of_a_search(tmp_path):
    made = MadeSearch(tmp_path, configurations=8)
    texts = report(tmp_path, made.results)
    table = next(table for table in Parsed(texts["report.html"]).tables if table[0][-2:] == ["estimate", "true cost"])
    assert len(table) == 2
    assert f"## {adaptation.TITLE}" in texts["report.md"]


def test_the_calibration_stays_under_its_own_heading(tmp_path):
    """A run with both sections. Fault: append the calibration's verdicts and table at the end, below the adaptation's."""
    run = RunDirectory(tmp_path)
    log(run, {10: metrics([1.0, 2.0], [0.5, 1.0], [0.25, 0.0], [0.25, 0.0], [1.0, 1.0])})
    results = make_results([make_row(member=0), make_row(member=1)], calibration=[make_calibration()])
    sections = dict(part.split("\n", 1) for part in report(tmp_path, results)["report.md"].split("\n## ")[1:])
    assert calibration.NOTE in sections[calibration.TITLE]
    assert adaptation.NOTE in sections[adaptation.TITLE]
    assert calibration.NOTE not in sections[adaptation.TITLE]
