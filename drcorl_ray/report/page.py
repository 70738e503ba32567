"""RUN/report.html: one page with everything inside it, that opens from a file, without a server or a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from drcorl_ray.report.figures import calibration as calibration_figures
from drcorl_ray.report.figures import frontier
from drcorl_ray.report.figures import plotly as figures
from drcorl_ray.report.optuna_views import FEWEST_FINISHED, Series, Studied, judged, policies
from drcorl_ray.report.tables import adaptation, calibration, paper, seeds, speed
from drcorl_ray.report.tables.core import (
    LEGEND,
    Column,
    Results,
    Row,
    cost_rows,
    duration,
    is_baseline,
    is_search,
    judged_columns,
    judged_rows,
    references,
    settings,
    task_names,
    top_columns,
    top_rows,
    varied_keys,
    verdict,
)

_SHOWN_AT_ONCE = 6  # tasks; of more, the page opens with the first one
# The browser itself keeps the page from loading anything.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Page:
    """The parts of the page; each is HTML, empty where the run has nothing to show."""

    def __init__(
        self,
        name: str,
        results: Results,
        studies: Sequence[Studied],
        shares: Mapping[str, Mapping[str, Mapping[str, float]]],
        offline: Mapping[str, Mapping[int, Series]],
        timed: Sequence[speed.Timed],
    ) -> None:
        """shares: of each study, `study.importances`; offline: `study.offline_curves`; timed: `speed.timed`."""
        self._name, self._results, self._about = name, results, results["run"]
        self.studies, self.shares, self.offline, self.timed = studies, shares, offline, timed
        self._tasks, self._keys = task_names(results), varied_keys(results["rows"])

    def html(self) -> str:
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
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{escape(self._name)}</title><style>{_asset('page.css')}</style>"
        )
        scripts = [
            _script(pio.templates["plotly_white"], "theme"),
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{_asset('page.js')}</script>",
        ]
        body = "\n".join(part for part in [*parts, *scripts] if part)
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'

    def _headline(self) -> str:
        about, machine = self._about, self._about.get("machine", {})
        hardware = f"{machine.get('cpus')} CPUs ({machine.get('processor')})"
        versions = about.get("versions", {})
        facts = {
            "command": " ".join(about.get("argv", [])),
            "commit": about.get("commit"),
            "machine": ", ".join([hardware, *machine.get("gpus", [])]) if machine else None,
            "wall time": duration(about["wall_s"]) if "wall_s" in about else None,
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
        if is_search(self._results):
            search = about["search"]
            goal = "reward against cost (Pareto)" if search.get("multi_objective") else "reward, cost ≤ limit"
            facts["search"] = f"{search.get('objective')} objective: {goal}; sampler {search.get('sampler')}"
        sentence, by_task = verdict(self._results)
        listed = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value)
        return (
            f'<header><h1>{escape(self._name)}</h1><p class="verdict">{escape(sentence)}</p>'
            f'{_list(by_task)}<dl class="facts">{listed}</dl></header>'
        )

    def _winners(self) -> str:
        rows, columns = top_rows(self._results), top_columns(self._results)
        if self._keys:
            chosen = Column("hyper-parameters", lambda row: ", ".join(_chosen(row, self._keys)))
            columns = [*columns, chosen]
        title = "Winners" if is_search(self._results) else "Policies"
        table = _table(columns, rows, "") if rows else _note("no policy was evaluated")
        return _section(title, table, f'<p class="legend">{LEGEND}</p>', _list(references(self._results)))

    def _over_seeds(self) -> str:
        found = seeds.groups(self._results)
        if not found:
            return ""
        table = _table(seeds.columns(found), found, "", lambda group: self._tagged([group.first["task"]]))
        return _section(seeds.TITLE, table, _note(seeds.NOTE))

    def _paper(self) -> str:
        parts = [_section(table.title, _table(table.columns(), table.lines, "")) for table in paper.tables(self._results)]
        timed = _section(speed.TITLE, _table(speed.COLUMNS, self.timed, ""), _note(speed.NOTE)) if self.timed else ""
        return "".join([*parts, _note(paper.NOTE), timed]) if parts else ""

    def _chooser(self) -> str:
        if len(self._tasks) < 2:
            return ""
        chosen = "" if len(self._tasks) <= _SHOWN_AT_ONCE else "0"
        options = [("", "all tasks"), *((str(index), task) for index, task in enumerate(self._tasks))]
        items = "".join(
            f'<option value="{value}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
            for value, text in options
        )
        return f'<nav><label>Show <select id="task">{items}</select></label></nav>'

    def _tagged(self, tasks: Iterable[str]) -> str:
        return " ".join(str(self._tasks.index(task)) for task in tasks if task in self._tasks)

    def _plot(self, figure: go.Figure | dict[str, Any], tasks: Iterable[str], style: str = "") -> str:
        content = figure if isinstance(figure, dict) else figure.to_dict()
        content["layout"].pop("template", None)  # the same for all: once in the page
        height = content["layout"]["height"]
        return (
            f'<div class="plot {style}" style="height:{height}px" data-tasks="{self._tagged(tasks)}">{_script(content)}</div>'
        )

    def _scatter(self) -> str:
        rows, known = self._results["rows"], self._about.get("references", [])
        plots = [
            self._plot(figures.scatter(task, [row for row in rows if row["task"] == task], known, self._keys), [task])
            for task in self._tasks
        ]
        return _section("Reward against cost", _grid(plots)) if plots else ""

    def _frontier(self) -> str:
        panels = frontier.panels(self._results)
        plots = [self._plot(figures.frontier(panel, self._keys), [panel.task], "wide") for panel in panels]
        return _section(frontier.TITLE, _note(frontier.NOTE), *plots) if plots else ""

    def _pareto(self) -> str:
        if not (self._about.get("search") or {}).get("multi_objective"):
            return ""
        plots = [
            self._plot(figures.pareto(study.name, judged(self._results, study.name), self._keys), study.tasks)
            for study in self.studies
        ]
        note = _note("Of these configurations none has both more reward and less cost (search scores).")
        return _section("Pareto front", note, _grid(plots))

    def _importances(self) -> str:
        if not self.studies:
            return ""
        plots = []
        for study in self.studies:
            if self.shares.get(study.name):
                plots.append(self._plot(figures.importances(study.name, self.shares[study.name]), study.tasks))
            else:
                few = len(study.finished()) < FEWEST_FINISHED
                reason = f"too few finished configurations (fewer than {FEWEST_FINISHED})" if few else "no score differs"
                plots.append(self._missing(study, reason))
        finished = [len(study.finished()) for study in self.studies if study.optuna]
        note = "Share of each key in telling the best configurations from the others (PED-ANOVA, finished configurations only)"
        hint = f"; with few of them ({min(finished)} here) it is noisy." if finished and min(finished) < 30 else "."
        return _section("Which hyper-parameters matter", _note(note + hint), _grid(plots))

    def _parallel(self) -> str:
        if not self.studies:
            return ""
        plots = [
            self._plot(figures.parallel(study), study.tasks, "wide")
            if any(trial.params for trial in study.finished())
            else self._missing(study, "no finished configuration")
            for study in self.studies
        ]
        note = _note("A line a finished configuration; dotted: not safe; None: the key was not asked for.")
        return _section("Parallel coordinates", note, *plots)

    def _missing(self, study: Studied, reason: str) -> str:
        why = reason if study.optuna else "its Optuna study is not beside this report"
        return f'<p class="note" data-tasks="{self._tagged(study.tasks)}">{escape(study.name)}: {why}</p>'

    def _curves(self) -> str:
        parts, known = [], paper.printed_scores(self._results)
        for task in self._tasks:
            true = [curve for curve in self._about.get("curves", []) if curve["task"] == task and curve["steps"]]
            if true:
                parts.append(self._plot(figures.true_curves(f"{task}: rolled out", true, known.get(task)), [task], "wide"))
            if task in self.offline:
                title, rows = f"{task}: what training saw", policies(self._results, task)
                plot = figures.offline_curves(title, self.offline[task], rows, self._keys)
                parts.append(self._plot(plot, [task], "wide"))
            elif is_search(self._results):
                note = f"{escape(task)}: its packs' metrics logs are not beside this report"
                parts.append(f'<p class="note" data-tasks="{self._tagged([task])}">{note}</p>')
        note = "A line a member or configuration; gold: winner, blue: safe, red: not safe, grey: stopped early."
        return _section("Learning curves", _note(note), *parts) if parts else ""

    def _adaptation(self) -> str:
        rows = adaptation.adapted(self._results, self.offline)
        if not rows:
            return ""
        table = _table(adaptation.columns(rows), rows, "", lambda entry: self._tagged([entry.row["task"]]))
        return _section(adaptation.TITLE, table, _note(adaptation.NOTE))

    def _calibration(self) -> str:
        known = calibration.by_task(self._results)
        if not known:
            return ""
        answers, plots, rows = [], [], []
        for task, entries in known.items():
            verdict = calibration.verdict(task, entries)
            answer = f"{escape(task)}: <b>{verdict.word}</b></td><td>{escape(verdict.reason)}"
            answers.append(f'<tr data-tasks="{self._tagged([task])}"><td class="answer {verdict.style}">{answer}</td></tr>')
            plots += [
                self._plot(draw(task, entries), [task]) for draw in (calibration_figures.scatter, calibration_figures.errors)
            ]
            rows += calibration.table(task, entries)
        return _section(
            calibration.TITLE,
            f'<table class="answers">{"".join(answers)}</table>',
            f'<div class="pairs">{"".join(plots)}</div>',
            _table(calibration.COLUMNS, rows, "", lambda row: self._tagged([row.task])),
            _note(calibration.NOTE),
        )

    def _cost(self) -> str:
        cost = (self._about.get("search") or {}).get("cost")
        if not cost:
            return ""
        cells = "".join(f"<tr><td>{escape(what)}</td><td>{escape(much)}</td></tr>" for what, much in cost_rows(cost))
        return _section("What the search cost", self._plot(figures.wall_time(cost), self._tasks), f"<table>{cells}</table>")

    def _configurations(self) -> str:
        rows = judged_rows(self._results)
        if not rows:
            return ""
        table = _table(judged_columns(varied_keys(rows)), rows, "sortable", lambda row: self._tagged([row["task"]]))
        summary = f"<summary>{len(rows)} judged by the search's own episodes; click a heading to sort</summary>"
        return _section("All configurations", f"<details>{summary}{table}</details>")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _script(content: Any, identity: str = "") -> str:
    """A plotly object as JSON inside the page; plotly escapes every <, so that no text can end the element."""
    return f'<script type="application/json"{f" id={identity!r}" if identity else ""}>{to_json_plotly(content)}</script>'


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _grid(parts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(parts)}</div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{"long" if len(lines) > _SHOWN_AT_ONCE else ""}">{items}</ul>' if lines else ""


def _chosen(row: Row, keys: Sequence[str]) -> list[str]:
    return [] if is_baseline(row) else settings(row, keys)


def _table(columns: Sequence[Column], rows: Sequence[Any], style: str, tagged: Callable[[Any], str] | None = None) -> str:
    """tagged: the tasks of a row, for the chooser."""
    head = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    marks = [f' data-tasks="{tagged(row)}"' if tagged else "" for row in rows]
    lines = ["".join(_cell(column, row) for column in columns) for row in rows]
    body = "".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    return f'<div class="scroll"><table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: Column, row: Any) -> str:
    text, safe = escape(column.text(row)), column.safe(row)
    if column.title == "config" and row.get("config_file"):
        text = f'<a href="{escape(row["config_file"])}">{text}</a>'
    style = {True: "safe", False: "unsafe", None: "settings" if column.title == "hyper-parameters" else ""}[safe]
    return f"<td{f' class={style!r}' if style else ''}>{text}</td>"
