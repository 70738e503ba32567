"""Assemble a report: the pictures, the Markdown text, the HTML page and the LaTeX table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from drcorl_ray.report.figures import calibration_png, frontier
from drcorl_ray.report.figures import png as pictures
from drcorl_ray.report.optuna_views import StudyView, importances, judged, offline_curves, read_studies
from drcorl_ray.report.page import Page
from drcorl_ray.report.tables import adaptation, calibration, paper, seeds, speed
from drcorl_ray.report.tables.core import (
    COST_TITLE,
    LEGEND,
    cost_rows,
    markdown_table,
    plain,
    references,
    search_of,
    task_names,
    top_columns,
    top_rows,
    verdict,
)
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.schema import Results

Shares = Mapping[str, Mapping[str, Mapping[str, float]]]


def write_files(run: RunDirectory, results: Results) -> dict[str, str]:
    """Write the pictures into the run directory and return the texts {file name: content}."""
    page = read_page(run, results)
    shares = {name: by_score for name, by_score in page.shares.items() if by_score}
    drawn = _pictures(run.path, results, page.studies, shares, page.times)
    texts = {
        "report.md": _markdown(run.path.name, results, drawn, page.times, adaptation.adaptation_shares(results, page.offline)),
        "report.html": page.html(),
    }
    tables = paper.tables(results)
    return texts | {"table1.tex": paper.latex(tables)} if tables else texts


def read_page(run: RunDirectory, results: Results) -> Page:
    """Collect the inputs of the page: the results, the studies and the metrics logs."""
    studies = read_studies(run, results)
    shares = {study.name: importances(study) for study in studies}
    return Page(run.path.name, results, studies, shares, offline_curves(run, results), speed.inference_times(results))


def _pictures(
    folder: Path, results: Results, studies: Sequence[StudyView], shares: Shares, times: Sequence[speed.InferenceTime]
) -> list[tuple[str, Path]]:
    """Draw the pictures that the run has data for, as (title, file); remove those of an older report first."""
    run = results["run"]
    curves = [curve for curve in run.get("curves", []) if curve["steps"]]
    with_params = [study for study in studies if any(trial.params for trial in study.finished())]
    names = ("curves", "scatter", "frontier", "importances", "parallel", "pareto", "calibration", "speed")
    path = {name: folder / f"{name}.png" for name in names}
    for file in path.values():
        file.unlink(missing_ok=True)
    drawn = []
    if curves:
        drawn.append(
            ("Learning curves", pictures.curves(path["curves"], curves, seeds.curves(results), paper.paper_scores(results)))
        )
    best_episodes = run.get("references", [])
    drawn.append(
        ("Reward against cost", pictures.scatter(path["scatter"], task_names(results), results["rows"], best_episodes))
    )
    if times:
        drawn.append((speed.TITLE, pictures.speed(path["speed"], times)))
    if panels := frontier.panels(results):
        drawn.append((frontier.TITLE, pictures.frontier(path["frontier"], panels)))
    if (search := search_of(results)) and search.get("multi_objective"):
        fronts = {study.name: judged(results, study.name) for study in studies}
        drawn.append(("Pareto front", pictures.pareto(path["pareto"], fronts)))
    if shares:
        drawn.append(("Which hyper-parameters matter", pictures.importances(path["importances"], shares)))
    if with_params:
        drawn.append(("Parallel coordinates", pictures.parallel(path["parallel"], with_params)))
    if entries := calibration.by_task(results):
        drawn.append((calibration.TITLE, calibration_png.calibration(path["calibration"], entries)))
    return drawn


def _markdown(
    name: str,
    results: Results,
    drawn: Sequence[tuple[str, Path]],
    times: Sequence[speed.InferenceTime],
    shares: Sequence[adaptation.AdaptationShares],
) -> str:
    sentence, by_task = verdict(results)
    lines = [f"# {plain(name)}", "", sentence, "", *(f"- {plain(line)}" for line in by_task), ""]
    lines += [*markdown_table(top_columns(results), top_rows(results)), ""]
    lines += [
        *(f"- {plain(line)}" for line in references(results)),
        "",
        LEGEND,
        "",
        "Interactive version with all details: report.html",
    ]
    if groups := seeds.groups(results):
        lines += ["", f"## {seeds.TITLE}", "", *markdown_table(seeds.columns(groups), groups), "", seeds.NOTE]
    for table in (tables := paper.tables(results)):
        lines += ["", f"## {table.title}", "", *markdown_table(table.columns(), table.lines)]
    lines += ["", f"{paper.NOTE} LaTeX version: table1.tex"] if tables else []
    for title, path in drawn:
        lines += ["", f"## {title}", "", f"![{title}]({path.name})"]
        lines += ["", *markdown_table(speed.COLUMNS, times), "", speed.NOTE] if title == speed.TITLE else []
        lines += _calibration(results) if title == calibration.TITLE else []
    if shares:
        lines += ["", f"## {adaptation.TITLE}", "", *markdown_table(adaptation.columns(shares), shares), "", adaptation.NOTE]
    search = search_of(results)
    if search and (cost := search.get("cost")):
        lines += ["", f"## {COST_TITLE}", "", "| resource | amount |", "| --- | --- |"]
        lines += [f"| {resource} | {amount} |" for resource, amount in cost_rows(cost)]
    return "\n".join(lines) + "\n"


def _calibration(results: Results) -> list[str]:
    """Return the verdicts and the table that follow the picture of the calibration."""
    by_task = calibration.by_task(results)
    if not by_task:
        return []
    lines, rows = [""], []
    for task, entries in by_task.items():
        verdict = calibration.verdict(task, entries)
        lines.append(f"- {plain(task)}: **{verdict.word}**. {plain(verdict.reason)}")
        rows += calibration.table(task, entries)
    return [*lines, "", *markdown_table(calibration.COLUMNS, rows), "", calibration.NOTE]
