"""Paths in an object store, a real S3 server on this machine: any machine reads what another one wrote."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from drcorl_ray.config import SearchConfig
from drcorl_ray.config.loading import load_config
from drcorl_ray.data.source import task_store
from drcorl_ray.data.store import read_store, verify
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import (
    append_text,
    file_lock,
    file_sha256,
    load_arrays,
    local_file,
    read_bytes,
    read_json,
    save_arrays,
    write_json,
)
from drcorl_ray.io.storage import local_path, storage_path
from drcorl_ray.policy.loading import load_policy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog, read_log
from drcorl_ray.search.study import Score, SearchStudy, load_study
from drcorl_ray.training.episode_budget import EpisodeLedger
from tests.helpers.columns import make_store
from tests.helpers.paths import ROOT
from tests.helpers.tiny import tiny_arguments, tiny_config
from tests.policy.test_policy import make_population, observations

SPACE = SearchConfig.model_validate({"space": {"k": {"low": 0.0, "high": 4.0}}, "configurations": 9})


@pytest.mark.parametrize("name", ["runs/a", "~/a", "/tmp/a"])
def test_a_name_without_protocol_is_a_path_of_this_machine(name):
    assert storage_path(name) == Path(name).expanduser()
    assert local_path(storage_path(name)) is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [("nosuch://bucket/run", "nosuch://"), ("gs://bucket/run", "uv sync --extra")],
)
def test_a_protocol_without_driver_is_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        storage_path(name)
    assert "\n" not in str(caught.value)


def test_files_are_written_read_copied_and_appended_to(bucket):
    write_json(bucket / "a" / "b.json", {"x": 1})
    assert read_json(storage_path(f"{bucket}/a/b.json")) == {"x": 1}
    with local_file(bucket / "a" / "b.json") as copy:
        assert json.loads(copy.read_text()) == {"x": 1}
    assert not copy.exists()
    arrays = {"w": np.arange(6.0).reshape(2, 3), "n": np.array(3)}
    save_arrays(bucket / "c.safetensors", arrays, {"step": 4})
    loaded, meta = load_arrays(bucket / "c.safetensors")
    assert meta == {"step": 4}
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    for missing in (read_json, load_arrays):
        with pytest.raises(UserError, match="absent"):
            missing(bucket / "absent")


def test_a_log_and_a_ledger_continue_where_they_ended(bucket):
    for start in (0, 20):
        log = MetricsLog(bucket / "metrics.jsonl", "T", "extract", 40, start)
        for step in (10, 20, 30):
            log.write(start + step, {"m": np.array([1.0, np.nan])})
    assert [line["step"] for line in read_log(bucket / "metrics.jsonl")] == [10, 20, 30, 40, 50]
    for granted in (3, 2, 0):
        ledger = EpisodeLedger(bucket / "episodes.jsonl", 5, [0, 5])
        assert ledger.charge([0, 1], 3) == [granted, 0]


def test_the_log_of_a_resumed_stage_drops_the_lines_after_its_checkpoint(bucket):
    log = MetricsLog(bucket / "metrics.jsonl", "T", "extract", 40, 0)
    log.write(10, {})
    log.write(20, {})
    MetricsLog(bucket / "metrics.jsonl", "T", "extract", 40, 10)
    assert [line["step"] for line in read_log(bucket / "metrics.jsonl")] == [10]


def test_a_store_in_a_bucket_is_converted_read_and_repaired(bucket, tmp_path):
    columns = tmp_path / "local"
    make_store(columns, 50, rows_per_shard=20)
    make_store(bucket / "store", 50, rows_per_shard=20)
    assert verify(bucket / "store") == verify(columns)
    ours, theirs = read_store(bucket / "store"), read_store(columns)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    (bucket / "store" / "rows-000000000020.parquet").write_bytes(b"short")
    with pytest.raises(UserError, match=r"rows-000000000020\.parquet"):
        verify(bucket / "store")
    make_store(bucket / "store", 50, rows_per_shard=20)
    assert verify(bucket / "store") == verify(columns)


def test_a_killed_conversion_leaves_no_store(bucket, monkeypatch):
    sent = []

    def upload_two(file, path):
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(path)
        path.write_bytes(file.read_bytes())

    monkeypatch.setattr("drcorl_ray.io.storage._upload", upload_two)
    with pytest.raises(KeyboardInterrupt):
        make_store(bucket / "store", 50, rows_per_shard=20)
    assert all(path.exists() for path in sent)
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(bucket / "store")


def test_a_dataset_in_a_bucket_is_converted_like_a_local_one(bucket, tmp_path):
    local = tiny_config(tmp_path)
    file = tmp_path / "tiny.hdf5"
    (bucket / "tiny.hdf5").write_bytes(file.read_bytes())
    remote = load_config(tiny_arguments(tmp_path, f"data.dataset={bucket}/tiny.hdf5", f"run.storage={bucket}/shared"))
    stores = task_store("PointCircle", local.data, local.run), task_store("PointCircle", remote.data, remote.run)
    assert stores[0].name == stores[1].name
    assert [shard.sha256 for shard in verify(stores[0]).shards] == [shard.sha256 for shard in verify(stores[1]).shards]
    assert verify(stores[1]).source.sha256 == file_sha256(file)


def test_a_study_resumes_on_another_machine(bucket, tmp_path):
    """Fault: keep the journal on the machine that wrote it, or copy it before its last trial."""
    straight = SearchStudy(tmp_path / "s.journal", "s", SPACE, [], seed=3)
    path, suggested = bucket / "s.journal", []
    for number in range(6):
        study = SearchStudy(path, "s", SPACE, [], seed=3)  # a new machine each time
        suggested.append(study.ask(number))
        study.tell(number, Score(reward=suggested[-1]["k"], cost=0.5), 10, stopped=False)
        study.keep()
        assert straight.ask(number) == suggested[-1]
        straight.tell(number, Score(reward=suggested[-1]["k"], cost=0.5), 10, stopped=False)
    with local_file(path) as journal:
        trials = load_study(journal, "s").get_trials()
    assert [trial.params for trial in trials] == suggested
    assert [trial.values for trial in trials] == [[params["k"]] for params in suggested]


def test_a_policy_file_in_a_bucket_acts(bucket):
    population = make_population()
    population.save(bucket / "p.safetensors", 1, {"task": "T"})
    states = observations(3)
    assert np.array_equal(load_policy(f"{bucket}/p.safetensors").act(states), population.act(states[None])[1])


def test_a_run_in_a_bucket_is_resumed_or_refused_as_on_a_disk(bucket, tmp_path):
    arguments = [f"run.dir={bucket}/run"]
    run = RunDirectory.prepare(tiny_config(tmp_path, *arguments))
    with pytest.raises(UserError, match=r"run\.resume=true"):
        RunDirectory.prepare(tiny_config(tmp_path, *arguments))
    assert RunDirectory.prepare(tiny_config(tmp_path, *arguments, "run.resume=true")) == run
    with pytest.raises(UserError, match="other settings"):
        RunDirectory.prepare(tiny_config(tmp_path, *arguments, "run.resume=true", "extract.steps=61"))
    write_json(run.results, {})
    with pytest.raises(UserError, match="is finished"):
        RunDirectory.prepare(tiny_config(tmp_path, *arguments, "run.resume=true"))


def test_a_missing_bucket_is_named(bucket, tmp_path):
    with pytest.raises(UserError, match="s3://no-such-bucket/run: cannot be written"):
        RunDirectory.prepare(tiny_config(tmp_path, "run.dir=s3://no-such-bucket/run"))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("change", "server", "message"),
    [
        ("run.storage=s3://bucket/shared", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no answer within 30 s"),
        ("data.dataset=s3://bucket/file.hdf5", {}, "Unable to locate credentials"),
    ],
)
def test_a_store_that_does_not_answer_is_named_in_one_line(tmp_path, change, server, message):
    credentials = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"} if server else {"AWS_EC2_METADATA_DISABLED": "true"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "launch/train.py", *tiny_arguments(tmp_path, change)]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **server, **credentials, "HOME": str(tmp_path)}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: s3://bucket/")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_log_is_read_while_it_is_rewritten(bucket):
    """Fault: request the file's size first and its content second, which fails between rewrites and stopped progress bars."""
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            append_text(bucket / "notes.txt", "a line\n")

    append_text(bucket / "notes.txt", "a line\n")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        sizes = [len(read_bytes(bucket / "notes.txt")) for _ in range(50)]
    finally:
        done.set()
        writer.join()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


@pytest.mark.slow
def test_reads_wait_for_a_store_that_is_unreachable_for_a_while(bucket, s3):
    """Fault: keep the driver's default, which gives up after seven seconds."""
    (bucket / "file").write_bytes(b"content")
    s3.stop()
    back = threading.Timer(12.0, s3.start)
    back.start()
    assert (bucket / "file").read_bytes() == b"content"
    back.join()


def test_locks_exclude_processes_of_one_machine(bucket):
    with file_lock(bucket / "x.lock"):
        assert not _acquired(bucket / "x.lock")
        assert _acquired(bucket / "y.lock")
    assert _acquired(bucket / "x.lock")


def _acquired(path) -> bool:
    lock = file_lock(path)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return False
    lock.release()
    return True
