"""Run directories are never overwritten or mixed up; the metrics log survives restarts and half-written lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drcorl_ray.config.loading import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import write_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog, read_log
from drcorl_ray.runs.results import read_results


def prepare(path: Path, *overrides: str) -> RunDirectory:
    return RunDirectory.prepare(load_config([f"run.dir={path}", *overrides]))


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        prepare(path, *overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_holds_its_resolved_settings(tmp_path):
    run = prepare(tmp_path / "a" / "b", "member.k=3.5")
    assert run.path == tmp_path / "a" / "b"
    assert list(content(run.path)) == ["config.yaml"]
    assert load_config([str(run.config)]) == load_config([f"run.dir={run.path}", "member.k=3.5"])


def test_an_empty_folder_is_accepted(tmp_path):
    assert prepare(tmp_path).config.exists()


def test_a_run_without_run_dir_is_named_after_its_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.prepare(load_config(["task.name=HopperVelocity"]))
    assert run.path.parent == tmp_path / "runs"
    assert run.path.name.startswith("HopperVelocity-")


def test_a_finished_run_is_refused_even_with_resume(tmp_path):
    """Fault: check for results.json only without run.resume."""
    run = prepare(tmp_path / "run")
    write_json(run.results, {"rows": []})
    before = content(run.path)
    for overrides in ((), ("run.resume=true",), ("member.k=1",)):
        message = refusal(run.path, *overrides)
        assert str(run.path) in message
        assert "finished" in message
    assert content(run.path) == before


def test_an_unfinished_run_needs_resume(tmp_path):
    run = prepare(tmp_path / "run")
    (run.path / "work").write_bytes(b"hours of it")
    before = content(run.path)
    assert "run.resume=true" in refusal(run.path)
    assert content(run.path) == before
    resumed = prepare(run.path, "run.resume=true")
    assert resumed == run
    assert (run.path / "work").read_bytes() == b"hours of it"
    prepare(run.path, "run.resume=true")


def test_resuming_a_run_that_does_not_exist_starts_it(tmp_path):
    assert prepare(tmp_path / "run", "run.resume=true").config.exists()


def test_changed_settings_are_refused_and_named(tmp_path):
    """Fault: compare only the first level of the tree, or only the keys of one side."""
    run = prepare(tmp_path / "run", "member.k=1", "search.space={k: {low: 0.0, high: 1.0}}")
    before = content(run.path)
    space = "search.space={k: {low: 0.0, high: 2.0}, alpha: {choices: [0.0, 1.0]}}"
    message = refusal(run.path, "run.resume=true", "member.k=2", "extract.steps=9", space)
    named = message.partition("(")[2].partition(")")[0].split(", ")
    assert {"member.k", "extract.steps", "search.space.k.high"} <= set(named)
    assert all(name in {"member.k", "extract.steps"} or name.startswith("search.space.") for name in named)
    assert content(run.path) == before
    assert refusal(run.path, "run.resume=true", space).count("member.k") == 1


def test_removed_settings_are_named_too(tmp_path):
    run = prepare(tmp_path / "run", "search.space={k: {choices: [1]}, alpha: {choices: [2]}}")
    assert "search.space.alpha.choices" in refusal(run.path, "run.resume=true", "search.space={k: {choices: [1]}}")


@pytest.mark.parametrize("text", ["", "[", "3", "\0", "a: 2020-13-45", b"\xff\xfe\x81"])
def test_damaged_settings_are_refused(tmp_path, text):
    run = prepare(tmp_path / "run")
    run.config.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(run.config) in refusal(run.path, "run.resume=true")


def test_a_folder_of_other_files_is_refused_and_not_changed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of it")
    for overrides in ((), ("run.resume=true",)):
        assert "not empty" in refusal(tmp_path, *overrides)
    assert list(content(tmp_path)) == ["thesis.tex"]


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    """Fault: test the path outside the `try`."""
    (tmp_path / "file").write_text("a file")
    for name in ("file", "file/below", "x" * 300, "x" * 300 + "/below"):
        assert "cannot be written" in refusal(tmp_path / name)
    assert list(content(tmp_path)) == ["file"]


def test_a_folder_without_permission_is_refused(tmp_path):
    """Root can write anywhere, so for root the folder is in a read-only file system."""
    target = Path("/proc/drcorl") if os.geteuid() == 0 else tmp_path / "locked" / "run"
    if os.geteuid() != 0:
        target.parent.mkdir(mode=0o500)
    assert "cannot be written" in refusal(target)


def test_read_results_refuses_missing_damaged_and_other_files(tmp_path):
    with pytest.raises(UserError, match=r"results\.json is missing"):
        read_results(tmp_path)
    results = {"schema": 1, "run": {}, "rows": [1]}
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path) == results
    for strange in ({"rows": [1]}, results | {"schema": 2}, [1]):
        write_json(tmp_path / "results.json", strange)
        with pytest.raises(UserError, match="not results of schema 1"):
            read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        read_results(tmp_path)


def log(path: Path, stage: str = "extract", from_step: int = 0) -> MetricsLog:
    return MetricsLog(path, "PointCircle", stage, 100, from_step)


def values(path: Path, stage: str = "extract") -> list[tuple[int, float]]:
    return [(line["step"], line["metrics"]["x"][0]) for line in read_log(path) if line["stage"] == stage]


def test_a_line_has_task_stage_steps_and_metrics(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    log(path).write(20, {"b": np.array([1.5, np.nan, np.inf, -np.inf], np.float32), "a": np.array([1, 2])})
    expected = {
        "task": "PointCircle",
        "stage": "extract",
        "total_steps": 100,
        "step": 20,
        "metrics": {"a": [1.0, 2.0], "b": [1.5, None, None, None]},
    }
    [line] = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert 0.0 <= line.pop("seconds") < 60.0
    assert line == expected


def test_a_repeated_report_replaces_its_first_version(tmp_path):
    """After a restart from step 20 later lines are replaced; other stages and tasks are kept. Fault: only append."""
    path = tmp_path / "metrics.jsonl"
    first = log(path, "pretrain")
    first.write(50, {"x": np.array([7.0])})
    first = log(path)
    for step in (10, 20, 30, 40):
        first.write(step, {"x": np.array([step])})
    MetricsLog(path, "BallRun", "extract", 100, 0).write(40, {"x": np.array([9.0])})
    again = log(path, from_step=20)
    assert values(path)[:2] == [(10, 10.0), (20, 20.0)]
    for step in (30, 40, 50):
        again.write(step, {"x": np.array([-step])})
    first_task = [pair for pair in values(path) if pair != (40, 9.0)]
    assert first_task == [(10, 10.0), (20, 20.0), (30, -30.0), (40, -40.0), (50, -50.0)]
    assert (40, 9.0) in values(path)
    assert values(path, "pretrain") == [(50, 7.0)]


@pytest.mark.parametrize("from_step", [20, 10])
def test_a_half_written_line_is_ignored_and_does_not_spoil_the_next(tmp_path, from_step):
    """The writer is killed at every byte of a line. Fault: rewrite the log only when a whole line is dropped."""
    path, whole = tmp_path / "metrics.jsonl", tmp_path / "whole.jsonl"
    writer = log(whole)
    for step in (10, 20):
        writer.write(step, {"x": np.array([step])})
    complete = whole.read_bytes()
    writer.write(30, {"x": np.array([30])})
    for length in range(len(complete), len(whole.read_bytes())):
        path.write_bytes(whole.read_bytes()[:length])
        assert values(path) == [(10, 10.0), (20, 20.0)]
        again = log(path, from_step=from_step)
        for step in range(from_step + 10, 40, 10):
            again.write(step, {"x": np.array([-step])})
        kept = [(step, float(step)) for step in (10, 20) if step <= from_step]
        assert values(path) == kept + [(step, -float(step)) for step in range(from_step + 10, 40, 10)]


def test_a_missing_log_is_read_as_an_empty_one(tmp_path):
    assert read_log(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text('{"half": ')
    assert read_log(tmp_path / "metrics.jsonl") == []


def test_logs_of_packs_are_found(tmp_path):
    run = prepare(tmp_path)
    assert run.logs() == []
    for name in ("packs/b/t/metrics.jsonl", "metrics.jsonl", "packs/a/t/metrics.jsonl", "pretraining/t.jsonl"):
        log(tmp_path / name).write(1, {"x": np.array([1.0])})
    assert [str(path.relative_to(tmp_path)) for path in run.logs()] == [
        "metrics.jsonl",
        "pretraining/t.jsonl",
        "packs/a/t/metrics.jsonl",
        "packs/b/t/metrics.jsonl",
    ]


def test_two_processes_cannot_work_on_one_run(tmp_path):
    """A killed process releases the run. Fault: no lock."""
    run = RunDirectory(tmp_path)
    script = (
        f"from pathlib import Path\nfrom drcorl_ray.runs.directory import RunDirectory\nimport time\n"
        f"with RunDirectory(Path({str(tmp_path)!r})).locked():\n    print('locked', flush=True)\n    time.sleep(100)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another process is working on this run"), run.locked():
        pass
    other.kill()
    other.communicate()
    with run.locked():
        pass


@pytest.mark.parametrize("number", [-1, 2**63, 10**400, 1.5, True, None])
def test_steps_that_are_no_step_count_are_refused(tmp_path, number):
    """Fault: accept any integer; a division by a very large one overflows."""
    path = tmp_path / "metrics.jsonl"
    for name in ("step", "total_steps"):
        line = {"task": "A", "stage": "extract", "step": 1, "total_steps": 2, "seconds": 0.1, "metrics": {}}
        path.write_text(json.dumps(line) + "\n")
        assert read_log(path) == [line]
        path.write_text(json.dumps(line | {name: number}) + "\n")
        with pytest.raises(UserError, match="line 1 is damaged"):
            read_log(path)
