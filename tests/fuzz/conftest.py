"""Says at the end how many files were tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session")
def record_fuzz(request) -> Iterator[Callable[[str, dict[str, int]], None]]:
    counts: dict[str, dict[str, int]] = {}
    yield counts.__setitem__
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for name, found in counts.items():
        reporter.write_line(f"fuzz: {name}: {sum(found.values())} files, {found['refused']} refused, {found['loaded']} loaded")
    reporter.write_line(f"fuzz: {sum(sum(found.values()) for found in counts.values())} files in all")
