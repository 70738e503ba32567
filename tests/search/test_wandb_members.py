"""Members as offline Weights & Biases runs, read back from the files that `wandb sync` would upload."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from wandb.proto import wandb_internal_pb2

from drcorl_ray.io.files import write_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import MetricsLog
from drcorl_ray.runs.tracking import Tracker
from drcorl_ray.search.plan import SearchPlan
from drcorl_ray.search.study import SearchStudy
from drcorl_ray.search.wandb_members import MemberRuns
from tests.helpers.tiny import tiny_config


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Yield the records of an offline run: LevelDB's log format, blocks of 32 KiB whose chunks have a header of 7 bytes."""
    content, position, parts = file.read_bytes(), 7, b""
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_runs(folder: Path) -> dict[str, dict]:
    """Return {name: {"group", "config", "history", "summary"}} for the members' offline runs below a folder."""
    runs = {}
    for file in folder.glob("wandb/offline-run-*/run-PointCircle-*.wandb"):
        member_run, name = {"history": [], "summary": {}, "config": {}}, ""
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                member_run["group"] = record.run.run_group
                member_run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                member_run["history"].append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
            elif kind == "summary":
                member_run["summary"] |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.summary.update}
        assert name not in runs, "written twice"
        runs[name] = member_run
    return runs


def tracked(config, run: RunDirectory) -> Tracker:
    return Tracker(config.run.wandb, config.model_dump(), run)


def train(config, run: RunDirectory, plan: SearchPlan, task: str) -> None:
    """Finish the oldest job as a trial does: write a log with a different number for each member, and the result."""
    pack, _ = plan.jobs()[0]
    folder = plan.folder(pack.number).task(task)
    log = MetricsLog(folder.metrics, task, "pack", pack.stop, pack.start)
    for step in range(pack.start + 10, pack.stop + 1, 10):
        log.write(step, {"policy/beta": np.array([1000.0 * member.number + step for member in pack.members])})
    folder.state.write_bytes(b"state")
    scores = [{"normalized_reward": float(m.number), "normalized_cost": 0.5} for m in pack.members]
    write_json(folder.result, {"members": scores})


def test_every_member_has_a_run_with_its_settings_history_and_outcome(tmp_path):
    """Survivors are followed through two packs. Fault: log another member's history, or only that of the last pack."""
    config = tiny_config(
        tmp_path, "run.wandb=offline", "search.configurations=4", "search.members_per_pack=2", "search.concurrent_packs=1"
    )
    run = RunDirectory.prepare(config)
    study = SearchStudy(run.study("PointCircle"), "PointCircle", config.search, [], 0)
    plan = SearchPlan(study, run, ["PointCircle"], [20, 40], 2)
    with tracked(config, run) as tracker, MemberRuns(config, run, tracker):
        while plan.jobs():
            train(config, run, plan, "PointCircle")
    with (
        Tracker(config.run.wandb, config.model_dump(), run) as tracker,
        MemberRuns(config, run, tracker),
    ):  # resumed: nothing is left to write
        pass
    runs = read_runs(run.path)
    assert sorted(runs) == [f"PointCircle-{number:04d}" for number in range(4)]
    assert {member_run["group"] for member_run in runs.values()} == {run.path.name}
    outcomes = {0: "stopped", 1: "complete", 2: "stopped", 3: "complete"}
    for number, outcome in outcomes.items():
        member_run = runs[f"PointCircle-{number:04d}"]
        steps = range(10, 41 if outcome == "complete" else 21, 10)
        assert [(h["_step"], h["policy/beta"]) for h in member_run["history"]] == [(s, 1000.0 * number + s) for s in steps]
        assert member_run["summary"]["outcome"] == outcome
        assert member_run["summary"]["search/normalized_reward"] == float(number)
        assert member_run["config"]["k"] == study.ask(number)["k"]
        assert member_run["config"]["configuration"] == number
    assert plan.folder(0).outcomes.exists()


def test_a_tracker_that_fails_is_turned_off_without_an_error(tmp_path, monkeypatch):
    import wandb

    def broken(**named):
        raise OSError("no\nspace")

    monkeypatch.setattr(wandb, "init", broken)
    config = tiny_config(tmp_path, "run.wandb=offline")
    with Tracker(config.run.wandb, config.model_dump(), RunDirectory.prepare(config)) as tracker:
        tracker.log({"task": "t", "stage": "s", "step": 1, "metrics": {}})
        tracker.member("m", {}, [], {})
