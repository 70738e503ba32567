"""RUN/report.html: one self-contained page that opens from a file, without a server or a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from drcorl_ray.report import elements
from drcorl_ray.report.figures import calibration as calibration_figures
from drcorl_ray.report.figures import frontier
from drcorl_ray.report.figures import plotly as figures
from drcorl_ray.report.optuna_views import FEWEST_FINISHED, Series, StudyView, judged, policies
from drcorl_ray.report.tables import adaptation, calibration, paper, seeds, speed
from drcorl_ray.report.tables.core import (
    COST_TITLE,
    LEGEND,
    Column,
    cost_rows,
    duration,
    is_baseline,
    is_search,
    judged_columns,
    judged_rows,
    references,
    search_of,
    settings,
    task_names,
    top_columns,
    top_rows,
    varied_keys,
    verdict,
)
from drcorl_ray.runs.schema import Results, Row

# This policy makes the browser refuse to load anything.
_CONTENT_SECURITY_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Page:
    """The page of a run. Each part is HTML, empty if the run has nothing to show in it."""

    def __init__(
        self,
        name: str,
        results: Results,
        studies: Sequence[StudyView],
        shares: Mapping[str, Mapping[str, Mapping[str, float]]],
        offline: Mapping[str, Mapping[int, Series]],
        times: Sequence[speed.InferenceTime],
    ) -> None:
        """shares: {study: `importances`}; offline: from `optuna_views.offline_curves`; times: from `speed.inference_times`."""
        self._name, self._results, self._run = name, results, results["run"]
        self.studies, self.shares, self.offline, self.times = studies, shares, offline, times
        self._tasks, self._keys = task_names(results), varied_keys(results["rows"])

    def html(self) -> str:
        """Return the whole page."""
        parts = [
            self._headline(),
            self._winners(),
            self._over_seeds(),
            self._paper(),
            self._chooser(),
            self._scatter(),
            self._frontier(),
            self._pareto(),
            self._importances(),
            self._parallel(),
            self._curves(),
            self._adaptation(),
            self._calibration(),
            self._cost(),
            self._configurations(),
        ]
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">'
            f"<title>{escape(self._name)}</title><style>{elements.asset('page.css')}</style>"
        )
        scripts = [
            elements.script(pio.templates["plotly_white"], "theme"),
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{elements.asset('page.js')}</script>",
        ]
        body = "\n".join(part for part in [*parts, *scripts] if part)
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

    def _headline(self) -> str:
        run, machine = self._run, self._run.get("machine", {})
        hardware = f"{machine.get('cpus')} CPUs ({machine.get('processor')})"
        versions = run.get("versions", {})
        facts = {
            "command": " ".join(run.get("argv", [])),
            "commit": run.get("commit"),
            "machine": ", ".join([hardware, *machine.get("gpus", [])]) if machine else None,
            "wall time": duration(run["wall_s"]) if "wall_s" in run else None,
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
        if search := search_of(self._results):
            goal = "reward against cost (Pareto)" if search.get("multi_objective") else "reward, cost ≤ limit"
            facts["search"] = f"{search.get('objective')} objective: {goal}; sampler {search.get('sampler')}"
        sentence, by_task = verdict(self._results)
        listed = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value)
        return (
            f'<header><h1>{escape(self._name)}</h1><p class="verdict">{escape(sentence)}</p>'
            f'{elements.bullets(by_task)}<dl class="facts">{listed}</dl></header>'
        )

    def _winners(self) -> str:
        rows, columns = top_rows(self._results), top_columns(self._results)
        if self._keys:
            columns = [*columns, Column("hyper-parameters", lambda row: ", ".join(_varied_settings(row, self._keys)))]
        title = "Winners" if is_search(self._results) else "Policies"
        table = elements.table(columns, rows, "") if rows else elements.note("no policy was evaluated")
        return elements.section(title, table, f'<p class="legend">{LEGEND}</p>', elements.bullets(references(self._results)))

    def _over_seeds(self) -> str:
        groups = seeds.groups(self._results)
        if not groups:
            return ""
        table = elements.table(seeds.columns(groups), groups, "", lambda group: self._tagged([group.first["task"]]))
        return elements.section(seeds.TITLE, table, elements.note(seeds.NOTE))

    def _paper(self) -> str:
        tables = paper.tables(self._results)
        parts = [elements.section(table.title, elements.table(table.columns(), table.lines, "")) for table in tables]
        return "".join([*parts, elements.note(paper.NOTE), self._speed()]) if parts else ""

    def _speed(self) -> str:
        if not self.times:
            return ""
        return elements.section(speed.TITLE, elements.table(speed.COLUMNS, self.times, ""), elements.note(speed.NOTE))

    def _chooser(self) -> str:
        if len(self._tasks) < 2:
            return ""
        chosen = "" if len(self._tasks) <= elements.SHOWN_AT_ONCE else "0"
        options = [("", "all tasks"), *((str(index), task) for index, task in enumerate(self._tasks))]
        items = "".join(
            f'<option value="{value}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
            for value, text in options
        )
        return f'<nav><label>Show <select id="task">{items}</select></label></nav>'

    def _tagged(self, tasks: Iterable[str]) -> str:
        """Return the indices of the tasks, by which the page filters its parts."""
        return " ".join(str(self._tasks.index(task)) for task in tasks if task in self._tasks)

    def _plot(self, figure: go.Figure | dict[str, Any], tasks: Iterable[str], style: str = "") -> str:
        content = figure if isinstance(figure, dict) else figure.to_dict()
        content["layout"].pop("template", None)  # it is the same for all figures and is stored once in the page
        height = content["layout"]["height"]
        head = f'<div class="plot {style}" style="height:{height}px" data-tasks="{self._tagged(tasks)}">'
        return f"{head}{elements.script(content)}</div>"

    def _scatter(self) -> str:
        rows, best_episodes = self._results["rows"], self._run.get("references", [])
        plots = [
            self._plot(figures.scatter(task, [row for row in rows if row["task"] == task], best_episodes, self._keys), [task])
            for task in self._tasks
        ]
        return elements.section("Reward against cost", elements.grid(plots)) if plots else ""

    def _frontier(self) -> str:
        panels = frontier.panels(self._results)
        plots = [self._plot(figures.frontier(panel, self._keys), [panel.task], "wide") for panel in panels]
        return elements.section(frontier.TITLE, elements.note(frontier.NOTE), *plots) if plots else ""

    def _pareto(self) -> str:
        search = search_of(self._results)
        if not (search and search.get("multi_objective")):
            return ""
        plots = [
            self._plot(figures.pareto(study.name, judged(self._results, study.name), self._keys), study.tasks)
            for study in self.studies
        ]
        note = elements.note(
            "No other configuration has both at least the reward and at most the cost of one on the front (search scores)."
        )
        return elements.section("Pareto front", note, elements.grid(plots))

    def _importances(self) -> str:
        if not self.studies:
            return ""
        plots = []
        for study in self.studies:
            if self.shares.get(study.name):
                plots.append(self._plot(figures.importances(study.name, self.shares[study.name]), study.tasks))
            else:
                few = len(study.finished()) < FEWEST_FINISHED
                reason = f"too few finished configurations (fewer than {FEWEST_FINISHED})" if few else "all scores are equal"
                plots.append(self._missing(study, reason))
        finished = [len(study.finished()) for study in self.studies if study.optuna]
        note = (
            "How much each key distinguishes the best configurations from the others (PED-ANOVA; finished configurations only)"
        )
        hint = f". With few of them (here {min(finished)}) the shares are noisy." if finished and min(finished) < 30 else "."
        return elements.section("Which hyper-parameters matter", elements.note(note + hint), elements.grid(plots))

    def _parallel(self) -> str:
        if not self.studies:
            return ""
        plots = [
            self._plot(figures.parallel(study), study.tasks, "wide")
            if any(trial.params for trial in study.finished())
            else self._missing(study, "no finished configuration")
            for study in self.studies
        ]
        note = elements.note("One line per finished configuration; dotted: not safe; None: the configuration lacks this key.")
        return elements.section("Parallel coordinates", note, *plots)

    def _missing(self, study: StudyView, reason: str) -> str:
        why = reason if study.optuna else "its Optuna study is missing or damaged"
        return f'<p class="note" data-tasks="{self._tagged(study.tasks)}">{escape(study.name)}: {why}</p>'

    def _curves(self) -> str:
        parts, paper_scores = [], paper.paper_scores(self._results)
        for task in self._tasks:
            true = [curve for curve in self._run.get("curves", []) if curve["task"] == task and curve["steps"]]
            if true:
                parts.append(
                    self._plot(
                        figures.true_curves(f"{task}: true scores (rollouts)", true, paper_scores.get(task)), [task], "wide"
                    )
                )
            if task in self.offline:
                title, rows = f"{task}: offline metrics of the training", policies(self._results, task)
                plot = figures.offline_curves(title, self.offline[task], rows, self._keys)
                parts.append(self._plot(plot, [task], "wide"))
            elif is_search(self._results):
                note = f"{escape(task)}: the metrics logs of its packs are missing or damaged"
                parts.append(f'<p class="note" data-tasks="{self._tagged([task])}">{note}</p>')
        note = (
            "One line per member or configuration. Offline metrics: gold is the winner, blue safe, red not safe, grey stopped."
        )
        return elements.section("Learning curves", elements.note(note), *parts) if parts else ""

    def _adaptation(self) -> str:
        rows = adaptation.adaptation_shares(self._results, self.offline)
        if not rows:
            return ""
        table = elements.table(adaptation.columns(rows), rows, "", lambda entry: self._tagged([entry.row["task"]]))
        return elements.section(adaptation.TITLE, table, elements.note(adaptation.NOTE))

    def _calibration(self) -> str:
        by_task = calibration.by_task(self._results)
        if not by_task:
            return ""
        answers, plots, rows = [], [], []
        for task, entries in by_task.items():
            verdict = calibration.verdict(task, entries)
            answer = f"{escape(task)}: <b>{verdict.word}</b></td><td>{escape(verdict.reason)}"
            answers.append(f'<tr data-tasks="{self._tagged([task])}"><td class="answer {verdict.style}">{answer}</td></tr>')
            plots += [
                self._plot(draw(task, entries), [task]) for draw in (calibration_figures.scatter, calibration_figures.errors)
            ]
            rows += calibration.table(task, entries)
        return elements.section(
            calibration.TITLE,
            f'<table class="answers">{"".join(answers)}</table>',
            f'<div class="pairs">{"".join(plots)}</div>',
            elements.table(calibration.COLUMNS, rows, "", lambda row: self._tagged([row.task])),
            elements.note(calibration.NOTE),
        )

    def _cost(self) -> str:
        search = search_of(self._results)
        if not (search and search.get("cost")):
            return ""
        cost = search["cost"]
        cells = "".join(
            f"<tr><td>{escape(resource)}</td><td>{escape(amount)}</td></tr>" for resource, amount in cost_rows(cost)
        )
        return elements.section(COST_TITLE, self._plot(figures.wall_time(cost), self._tasks), f"<table>{cells}</table>")

    def _configurations(self) -> str:
        rows = judged_rows(self._results)
        if not rows:
            return ""
        table = elements.table(judged_columns(varied_keys(rows)), rows, "sortable", lambda row: self._tagged([row["task"]]))
        summary = f"<summary>{len(rows)} configurations by their search score; click a heading to sort</summary>"
        return elements.section("All configurations", f"<details>{summary}{table}</details>")


def _varied_settings(row: Row, keys: Sequence[str]) -> list[str]:
    return [] if is_baseline(row) else settings(row, keys)
