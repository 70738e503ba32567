"""HTML elements of the page. They escape every text that comes from a run, except `section`, whose parts are HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plotly.io.json import to_json_plotly

from drcorl_ray.report.tables.core import Column

SHOWN_AT_ONCE = 6  # with more tasks, the page opens with the first one only


def asset(name: str) -> str:
    """Return the text of a file beside this module (page.css, page.js)."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def script(content: Any, identity: str = "") -> str:
    """Embed a plotly object as JSON. Plotly escapes every <, so no text can end the element."""
    return f'<script type="application/json"{f" id={identity!r}" if identity else ""}>{to_json_plotly(content)}</script>'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def grid(parts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(parts)}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def bullets(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{"long" if len(lines) > SHOWN_AT_ONCE else ""}">{items}</ul>' if lines else ""


def table(columns: Sequence[Column], rows: Sequence[Any], style: str, tagged: Callable[[Any], str] | None = None) -> str:
    """Return a table with the CSS class `style`. tagged: returns the indices of a row's tasks, by which the page filters."""
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
