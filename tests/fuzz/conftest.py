"""Says at the end how many files were tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_COUNTS = pytest.StashKey[dict[str, dict[str, int]]]()


@pytest.fixture
def record_fuzz(request) -> Callable[[str, dict[str, int]], None]:
    return request.config.stash.setdefault(_COUNTS, {}).__setitem__


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    counts = config.stash.get(_COUNTS, {})
    for name, found in counts.items():
        terminalreporter.write_line(f"fuzz: {name}: {found['refused']} refused, {found['loaded']} loaded")
    if counts:
        terminalreporter.write_line(f"fuzz: {sum(sum(found.values()) for found in counts.values())} files in all")
