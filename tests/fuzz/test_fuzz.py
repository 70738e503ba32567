"""Damaged and hostile files: each is loaded correctly or refused with one line that names the file.

CI tests CASES files of each kind; `pytest -m nightly tests/fuzz` tests NIGHTLY_CASES, with another seed every day.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")  # the loaders of a search's files import it
from tests.fuzz.targets import TARGETS
from tests.helpers.paths import ROOT

CASES, NIGHTLY_CASES = 60, 1500


def check(name: str, seed: int, cases: int, folder: Path, timeout: float) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.fuzz.targets", name, str(seed), str(cases), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"{name}, {last}: {done.stderr[-3000:]}"
    return json.loads(last)


@pytest.mark.ray  # the subprocesses import Ray
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_loaded_or_refused(tmp_path, name):
    (tmp_path / "files").mkdir()
    counts = check(name, 0, CASES, tmp_path / "files", 280)
    assert counts["refused"] > CASES // 4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files_are_loaded_or_refused(tmp_path, name, record_fuzz):
    (tmp_path / "files").mkdir()
    record_fuzz(name, check(name, datetime.date.today().toordinal() * 10_000, NIGHTLY_CASES, tmp_path / "files", 3500))
