"""The main tables of a report and its verdict: which rows are shown, their cells, the resources that a search used.

`results` is the content of results.json. A row with a `configuration` and selection `last` is the search score of a
configuration: the search judged it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from drcorl_ray.io.console import wide_console
from drcorl_ray.runs.schema import Results, Row, Search, SearchCost

_MOST_COLUMNS = 10  # of a table on the terminal
EDGE = 3.0  # figures draw a larger normalised cost at this value
COST_TITLE = "Resources used by the search"
LEGEND = (
    "Reward and cost are normalised (Eq. 26): the rewards 0 and 1 are the dataset's extreme returns, the cost 1 is the cost "
    "limit. Safe scores are marked. last: the policy at the end of training, without selection. online_best: the best policy "
    "along a training by its online evaluations (in a search: by the winner's learning curve), evaluated again on fresh "
    "episodes. search_winner: the configuration that the search selected by online episodes (search score), evaluated again "
    "on fresh episodes (fresh score)."
)


@dataclass(frozen=True)
class Column:
    """A column of any table. text: returns a row's cell; safe: whether it shows a safe score, None if it shows no score."""

    title: str
    text: Callable[[Any], str]
    safe: Callable[[Any], bool | None] = lambda row: None


def _score(title: str, prefix: str = "") -> list[Column]:
    def safe(row: Row) -> bool | None:
        return row[f"{prefix}normalized_cost"] <= 1 if f"{prefix}normalized_cost" in row else None

    def text(name: str, form: str) -> Callable[[Row], str]:
        return lambda row: format(row[prefix + name], form) if prefix + name in row else "–"

    return [
        Column(f"{title}reward", text("normalized_reward", ".3f"), safe),
        Column(f"{title}cost", text("normalized_cost", ".2f"), safe),
    ]


_HEAD = [Column("task", lambda row: row["task"]), Column("algorithm", lambda row: row["algorithm"])]
_LIMIT = Column("limit", lambda row: f"{row['cost_limit']:g}")
_TAIL = [
    Column("safe", lambda row: "yes" if row["normalized_cost"] <= 1 else "no"),
    Column("episode cost", lambda row: f"{row['cost_mean']:.1f} ± {row['cost_std']:.1f}"),
    Column("length", lambda row: f"{row['length_mean']:.0f}"),
    Column("episodes", lambda row: str(row["episodes"])),
]
_CONFIGURATION = Column("config", lambda row: str(row.get("configuration", "–")))
_SELECTION = Column("selection", lambda row: row["selection"])
_TRAINING = [_LIMIT, _SELECTION, *_score(""), *_TAIL]
_SEARCH = [_CONFIGURATION, _LIMIT, _SELECTION, *_score("search ", "search_"), *_score("fresh "), *_TAIL]
_JUDGED = [
    Column("study", lambda row: row.get("study", "")),
    _HEAD[0],
    _CONFIGURATION,
    Column("state", lambda row: row.get("state", "complete")),
    _LIMIT,
    *_score(""),
    *_TAIL,
    Column("steps", lambda row: str(row.get("member_steps", "–"))),
]


def is_baseline(row: Row) -> bool:
    """Whether the row belongs to a baseline. Results of early releases lack the field; their baselines are clones."""
    return row.get("baseline", row["algorithm"] in ("bc", "bc_safe"))


def search_of(results: Results) -> Search | None:
    """Return the description of the search; None for a training run."""
    return results["run"].get("search") or None


def is_search(results: Results) -> bool:
    return search_of(results) is not None


def is_judged(row: Row) -> bool:
    return row["selection"] == "last" and "configuration" in row


def is_winner(row: Row) -> bool:
    return row["selection"] == "search_winner"


def number(row: Row) -> int:
    """Return the number of a policy's configuration (search) or member (training run)."""
    return row.get("configuration", row["member"])


def task_names(results: Results) -> list[str]:
    """Return every task with a row or a study, sorted by name."""
    search = search_of(results)
    studies = search.get("studies", []) if search else []
    return sorted({row["task"] for row in results["rows"]} | {task for study in studies for task in study["tasks"]})


def top_rows(results: Results) -> list[Row]:
    """Return the rows of the first table: all rows of a training run; winners, online_best and baselines of a search."""
    rows = [row for row in results["rows"] if not (is_search(results) and is_judged(row))]
    return sorted(rows, key=_order)


def top_columns(results: Results) -> list[Column]:
    return [*_HEAD, *_modes(results["rows"]), *(_SEARCH if is_search(results) else _TRAINING)]


def _modes(rows: Sequence[Row]) -> list[Column]:
    """Return columns for the source of the cost estimates and its simulator use; none if every estimate was offline."""
    columns = []
    if any(row["evaluation_mode"] != "offline" for row in rows):
        columns += [_of_policies("mode", "evaluation_mode"), _of_policies("online episodes", "online_episodes")]
    if any(row.get("appended_transitions", 0) > 0 for row in rows):
        columns.append(_of_policies("appended", "appended_transitions"))
    return columns


def _of_policies(title: str, key: str) -> Column:
    return Column(title, lambda row: "–" if is_baseline(row) else f"{row.get(key, 0)}")


def judged_rows(results: Results) -> list[Row]:
    rows = [row for row in results["rows"] if is_search(results) and is_judged(row)]
    return sorted(rows, key=lambda row: (row["task"], number(row)))


def judged_columns(keys: Sequence[str]) -> list[Column]:
    """Return the columns of the judged rows. keys: the hyper-parameters to show, one column each."""
    return [*_JUDGED, *(Column(key, lambda row, key=key: setting(row["config"].get(key))) for key in keys)]


def _order(row: Row) -> tuple[Any, ...]:
    return row["task"], row["cost_limit"], not is_winner(row), is_baseline(row), row["algorithm"]


def varied_keys(rows: Iterable[Row]) -> list[str]:
    """Return the hyper-parameters whose value differs between these rows; baselines are ignored."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        if not is_baseline(row):
            for key, value in row["config"].items():
                seen.setdefault(key, set()).add(json.dumps(value))
    return [key for key, values in seen.items() if len(values) > 1]


def setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def settings(row: Row, keys: Iterable[str]) -> list[str]:
    return [f"{key} = {setting(row['config'][key])}" for key in keys if key in row["config"]]


def row_name(row: Row) -> str:
    if "configuration" in row:
        return f"configuration {row['configuration']}"
    best = " (online_best)" if row["selection"] == "online_best" else ""
    return row["algorithm"] if is_baseline(row) else f"member {row['member']}{best}"


def verdict(results: Results) -> tuple[str, list[str]]:
    """Say whether there is a safe policy by the fresh score: one sentence for the run, one for each task and cost limit."""
    tasks, verdicts = task_names(results), []
    for task in tasks:
        rows = [row for row in results["rows"] if row["task"] == task and not is_baseline(row)]
        if is_search(results):
            rows = [row for row in rows if is_winner(row)]
        limits = sorted({row["cost_limit"] for row in rows})
        if len(limits) < 2:
            verdicts.append(_verdict(task, rows, results))
        for limit in limits if len(limits) > 1 else []:
            verdicts.append(_verdict(f"{task}, limit {limit:g}", [row for row in rows if row["cost_limit"] == limit], results))
    num_safe, what = sum(ok for ok, _ in verdicts), "winner" if is_search(results) else "policy"
    unit = f"task{'s' if len(verdicts) != 1 else ''}" if len(verdicts) == len(tasks) else "pairs of task and cost limit"
    headline = f"A safe {what} was found on {num_safe} of {len(verdicts)} {unit}."
    return headline, [sentence for _, sentence in verdicts]


def _verdict(name: str, rows: Sequence[Row], results: Results) -> tuple[bool, str]:
    if is_search(results):
        rows = rows[:1]  # the selected row comes first; choosing by fresh score would bias the estimate
    if not rows:
        return False, f"{name}: no policy finished"
    safe = [row for row in rows if row["normalized_cost"] <= 1]
    best = max(safe, key=lambda row: row["normalized_reward"]) if safe else min(rows, key=lambda row: row["normalized_cost"])
    score = f"{row_name(best)}, reward {best['normalized_reward']:.3f} at cost {best['normalized_cost']:.2f}"
    several = f", {len(safe)} of {len(rows)} policies safe" if len(rows) > 1 else ""
    return bool(safe), f"{name}: {score} ({'safe' if safe else 'not safe'}{several})"


def references(results: Results) -> list[str]:
    return [
        f"{reference['task']}, limit {reference['cost_limit']:g}: the best safe episode of the data "
        f"has normalised reward {reference['normalized_reward']:.3f}"
        for reference in results["run"].get("references", [])
    ]


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


WALL_PARTS = {"pretraining_s": "pretraining", "packs_s": "packs", "evaluation_s": "evaluation", "overhead_s": "overhead"}


def cost_rows(cost: SearchCost) -> list[tuple[str, str]]:
    """Return the resources that a search used as (resource, amount); a quantity that the results lack has no row."""
    device = cost.get("device", "device")
    entries: list[tuple[str, str, Callable[[Any], str]]] = [
        ("wall_s", "wall time", duration),
        *((key, f"wall time: {label}", duration) for key, label in WALL_PARTS.items()),
        ("pretraining_device_s", f"{device} seconds: pretraining", "{:,.0f}".format),
        ("packs_device_s", f"{device} seconds: packs", "{:,.0f}".format),
        ("slots", "concurrent packs", str),
        ("member_steps", "member-steps of extraction", "{:,}".format),
        ("online_episodes", "online episodes", "{:,}".format),
        ("packs", "packs", "{:,}".format),
        ("configurations", "configurations judged", "{:,}".format),
        ("stopped", "configurations stopped early", "{:,}".format),
    ]
    return [(label, form(cost[key])) for key, label, form in entries if cost.get(key) is not None]


def print_table(results: Results) -> None:
    """Print the first table on the terminal; a wide one without its least important columns."""
    columns = top_columns(results)
    if len(columns) > _MOST_COLUMNS:
        columns = [column for column in columns if column.title not in ("length", "episodes", "safe")]
    table = terminal_table(columns, top_rows(results), lambda row: row["normalized_cost"] <= 1)
    wide_console().print(table, *map(escape, references(results)), sep="\n", highlight=False)


def terminal_table(columns: Sequence[Column], rows: Iterable[Any], safe: Callable[[Any], bool]) -> Table:
    """Return a table for the terminal: safe rows are green, the others red."""
    table = Table(*(column.title.replace(" ", "\n") for column in columns))
    for row in rows:
        table.add_row(*(escape(column.text(row)) for column in columns), style="green" if safe(row) else "red")
    return table


def markdown_table(columns: Sequence[Column], rows: Iterable[Any]) -> list[str]:
    """Return the lines of a Markdown table; safe scores are bold."""
    lines = ["| " + " | ".join(column.title for column in columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (f"**{column.text(row)}**" if column.safe(row) else plain(column.text(row)) for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plain(text: str) -> str:
    """Escape a text for Markdown."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
