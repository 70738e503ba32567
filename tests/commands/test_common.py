"""The end of a run: its results hold the inference times that its report shows."""

from __future__ import annotations

import json
import time

from drcorl_ray.commands.common import finish
from drcorl_ray.config import Config
from drcorl_ray.report import rebuild
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.results import read_results
from tests.helpers.policies import random_policy
from tests.helpers.results import make_row


def test_a_run_is_timed_once_at_its_end(tmp_path, monkeypatch):
    """A report that is written again shows the same seconds, also without the policies. Fault: measure in the report."""
    monkeypatch.setattr("drcorl_ray.evaluation.speed.STATES", 40)
    monkeypatch.setattr("drcorl_ray.evaluation.speed._SAMPLED", 4)
    rows = [make_row(algorithm=name, policy=f"{name}.safetensors") for name in ("drcorl", "cpq")]
    for row in rows:
        random_policy(11, 3).save(tmp_path / row["policy"], 0, {})
    finish(Config(), RunDirectory(tmp_path), rows, time.monotonic(), {"curves": []})
    results = read_results(tmp_path)
    assert results["rows"] == rows
    assert list(results["run"]) == ["commit", "versions", "machine", "wall_s", "argv", "curves", "inference_times"]
    names = [entry["name"] for entry in results["run"]["inference_times"]]
    assert names == ["drcorl", "cpq", *(f"diffusion, {steps} steps" for steps in (5, 15, 50))]
    before = (tmp_path / "report.md").read_text()
    assert "## Score against inference time" in before
    for row in rows:
        (tmp_path / row["policy"]).unlink()
    rebuild(tmp_path)
    assert (tmp_path / "report.md").read_text() == before
    for entry in results["run"]["inference_times"]:
        entry["seconds"] = 7.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    rebuild(tmp_path)
    assert "| CPQ | 7.000 |" in (tmp_path / "report.md").read_text()
