"""The terminal: one console for messages, and progress bars."""

from __future__ import annotations

from rich.console import Console, ConsoleDimensions
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_WIDTH = 118


def wide_console(*, stderr: bool = False) -> Console:
    """Return a console wide enough for progress bars and tables of results, even if it is a file or a narrow terminal."""
    wide = Console(stderr=stderr)
    wide.size = ConsoleDimensions(max(wide.width, _WIDTH), wide.height)
    return wide


console = wide_console(stderr=True)


def progress_bars() -> Progress:
    """Return progress bars for counted steps; nothing is drawn unless stderr is a terminal that can draw them."""
    drawn = console.is_terminal and not console.is_dumb_terminal
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    columns = (*columns, TextColumn("{task.fields[note]}"))
    return Progress(*columns, console=console, refresh_per_second=4, disable=not drawn)


def download_bars() -> Progress:
    """Return progress bars for downloads in bytes; nothing is drawn unless stderr is a terminal."""
    terminal = Console(stderr=True)  # not the shared console: rich allows one live display per console
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    return Progress(*columns, console=terminal, disable=not terminal.is_terminal)
