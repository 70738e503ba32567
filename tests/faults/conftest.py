"""The table of the fault matrix. A test's docstring is fault | what happens | what is lost; the test adds its result."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BEGIN, END = "<!-- table: pytest -m nightly tests/faults --reliability docs/reliability.md -->", "<!-- end of table -->"


@pytest.fixture(scope="session")
def rows(request) -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    path = request.config.getoption("--reliability")
    if path is not None:
        write_table(Path(path), lines)


@pytest.fixture
def reliability(rows) -> Callable[[pytest.Function, str], None]:
    began = time.monotonic()

    def add(test: pytest.Function, result: str) -> None:
        cells = [" ".join(cell.split()) for cell in (inspect.getdoc(test.function) or "").split("|")]
        rows.append(f"| {' | '.join([*cells, result, f'{time.monotonic() - began:.0f} s'])} |")

    return add


def write_table(path: Path, rows: list[str]) -> None:
    """Replace the text between the marks BEGIN and END."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    head = "| fault | what happens | what is lost | final result | took |\n| --- | --- | --- | --- | --- |"
    table = "\n".join([head, *rows])
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
