"""Report at the end how many files were tested."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_COUNTS = pytest.StashKey[dict[str, dict[str, int]]]()


@pytest.fixture
def record_fuzz(request) -> Callable[[str, dict[str, int]], None]:
    return request.config.stash.setdefault(_COUNTS, {}).__setitem__


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    counts = config.stash.get(_COUNTS, {})
    for name, numbers in counts.items():
        terminalreporter.write_line(f"fuzz: {name}: {numbers['refused']} refused, {numbers['loaded']} loaded")
    if counts:
        terminalreporter.write_line(f"fuzz: {sum(sum(numbers.values()) for numbers in counts.values())} files in all")
