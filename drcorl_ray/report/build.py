"""Puts a report together: the pictures, the Markdown text, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from drcorl_ray.report.figures import calibration_png, frontier
from drcorl_ray.report.figures import png as pictures
from drcorl_ray.report.optuna_views import StudyView, importances, judged, offline_curves, read_studies
from drcorl_ray.report.page import Page
from drcorl_ray.report.tables import adaptation, calibration, paper, seeds, speed
from drcorl_ray.report.tables.core import (
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
    """Write the pictures; the texts {file name: content} are returned."""
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
    """The page of a run, with all that lies beside its results."""
    studies = read_studies(run, results)
    shares = {study.name: importances(study) for study in studies}
    return Page(run.path.name, results, studies, shares, offline_curves(run, results), speed.inference_times(results))


def _pictures(
    folder: Path, results: Results, studies: Sequence[StudyView], shares: Shares, times: Sequence[speed.InferenceTime]
) -> list[tuple[str, Path]]:
    """(title, file) of every picture that this run has something for; an older one that it has nothing for is removed."""
    about = results["run"]
    curves = [curve for curve in about.get("curves", []) if curve["steps"]]
    several = [study for study in studies if any(trial.params for trial in study.finished())]
    names = ("curves", "scatter", "frontier", "importances", "parallel", "pareto", "calibration", "speed")
    path = {name: folder / f"{name}.png" for name in names}
    for file in path.values():
        file.unlink(missing_ok=True)
    drawn = []
    if curves:
        drawn.append(
            ("Learning curves", pictures.curves(path["curves"], curves, seeds.curves(results), paper.printed_scores(results)))
        )
    known = about.get("references", [])
    drawn.append(("Reward against cost", pictures.scatter(path["scatter"], task_names(results), results["rows"], known)))
    if times:
        drawn.append((speed.TITLE, pictures.speed(path["speed"], times)))
    if panels := frontier.panels(results):
        drawn.append((frontier.TITLE, pictures.frontier(path["frontier"], panels)))
    if (search := search_of(results)) and search.get("multi_objective"):
        fronts = {study.name: judged(results, study.name) for study in studies}
        drawn.append(("Pareto front", pictures.pareto(path["pareto"], fronts)))
    if shares:
        drawn.append(("Which hyper-parameters matter", pictures.importances(path["importances"], shares)))
    if several:
        drawn.append(("Parallel coordinates", pictures.parallel(path["parallel"], several)))
    measured = calibration.by_task(results)
    if measured:
        drawn.append((calibration.TITLE, calibration_png.calibration(path["calibration"], measured)))
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
    lines += [*(f"- {plain(line)}" for line in references(results)), "", LEGEND, "", "Everything, to look into: report.html"]
    if over_seeds := seeds.groups(results):
        lines += ["", f"## {seeds.TITLE}", "", *markdown_table(seeds.columns(over_seeds), over_seeds), "", seeds.NOTE]
    for table in (tables := paper.tables(results)):
        lines += ["", f"## {table.title}", "", *markdown_table(table.columns(), table.lines)]
    lines += ["", f"{paper.NOTE} In LaTeX: table1.tex"] if tables else []
    for title, path in drawn:
        lines += ["", f"## {title}", "", f"![{title}]({path.name})"]
        lines += ["", *markdown_table(speed.COLUMNS, times), "", speed.NOTE] if title == speed.TITLE else []
    if shares:
        lines += ["", f"## {adaptation.TITLE}", "", *markdown_table(adaptation.columns(shares), shares), "", adaptation.NOTE]
    lines += _calibration(results)
    search = search_of(results)
    if search and (cost := search.get("cost")):
        lines += ["", "## What the search cost", "", "| what | how much |", "| --- | --- |"]
        lines += [f"| {what} | {much} |" for what, much in cost_rows(cost)]
    return "\n".join(lines) + "\n"


def _calibration(results: Results) -> list[str]:
    """What goes below the calibration's picture."""
    measured = calibration.by_task(results)
    if not measured:
        return []
    lines, rows = [""], []
    for task, entries in measured.items():
        verdict = calibration.verdict(task, entries)
        lines.append(f"- {plain(task)}: **{verdict.word}**. {plain(verdict.reason)}")
        rows += calibration.table(task, entries)
    return [*lines, "", *markdown_table(calibration.COLUMNS, rows), "", calibration.NOTE]
