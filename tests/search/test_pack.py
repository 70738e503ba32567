"""Packs trained without Tune: a killed, damaged or too large pack writes the same results as an undisturbed one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray")
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import load_arrays, read_json
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.replay import Replay
from drcorl_ray.method.runner import Runner
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import TrainingFolder
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.search.pack import PackTrainer
from drcorl_ray.search.plan import SearchPlan
from drcorl_ray.search.setup import open_studies, stops
from drcorl_ray.training.pretrained import pretrained_path
from tests.helpers.tiny import pretrain_beforehand, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("session_cluster")]  # for online evaluations

SETTINGS = [
    "search.space={evaluation_mode: {choices: [offline, hybrid]}, beta_0: {low: 0.003, high: 0.1}}",
    "search.rungs=[0.5]",
    "search.configurations=6",
    "search.members_per_pack=6",
    "search.concurrent_packs=1",
    "member.cost_limit=200",
    "evaluation.online_interval=12",
    "evaluation.hybrid_transitions=600",
]


@dataclasses.dataclass(frozen=True)
class SmallMemory(PackTrainer):
    """A machine on which at most `largest` members can be trained at once, from the second step on."""

    largest: int = 1000

    def runner(self, learner: Learner, replay: Replay) -> Runner:
        runner = super().runner(learner, replay)
        advance = runner.advance

        def limited(start, stop, before=lambda step: None):
            if start and len(learner.average) > self.largest:
                raise torch.OutOfMemoryError(f"Tried to allocate memory for {len(learner.average)} members.")
            return advance(start, stop, before)

        runner.advance = limited
        return runner


class Search:
    """A search of six members with successive halving; its packs are trained in this process, one after another."""

    def __init__(self, folder: Path, largest: int = 1000) -> None:
        config = tiny_config(folder, *SETTINGS)
        pretrain_beforehand(config)
        data = TaskData.open(task_store("PointCircle", config.data, config.run))
        weights = pretrained_path(config.run.storage_folder, data, config.pretrain, 0)
        self.run = RunDirectory.prepare(config)
        stores = {"PointCircle": (data.task, data.store)}
        self.trainer = SmallMemory(config, self.run, stores, {"PointCircle": (weights,)}, largest)
        [(study, judges)] = open_studies(config, self.run, ["PointCircle"])
        self.plan = SearchPlan(study, self.run, judges, stops(config), 6)

    def step(self, report=lambda step: None) -> TrainingFolder:
        """Train the next pack and return its folder."""
        pack, task = self.plan.jobs()[0]
        self.trainer(pack.study, pack.number, task, report)
        return self.plan.folder(pack.number).task(task)

    def outcome(self) -> dict[str, object]:
        """Return everything that the packs wrote and that a search reads or reports."""
        outcome: dict[str, object] = {}
        for folder in sorted((self.run.path / "packs").glob("*/PointCircle")):
            name, result = folder.parent.name, read_json(folder / "result.json")
            outcome[name] = [result["members"], result["seeds"]]
            populations = [
                folder / "population.safetensors",
                *sorted(self.run.curve(f"{name}/PointCircle", 0).parent.glob("*.safetensors")),
            ]
            for file in populations:
                arrays, meta = load_arrays(file)
                outcome[f"{name} {file.name}"] = {key: array.tobytes() for key, array in arrays.items()}, meta
            outcome[f"{name} log"] = [(line["step"], line["metrics"]) for line in read_log(folder / "metrics.jsonl")]
        return outcome


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, session_cluster) -> dict[str, object]:
    search = Search(tmp_path_factory.mktemp("undisturbed"))
    search.step()
    search.step()
    assert search.plan.jobs() == []
    assert not search.run.notes.exists()
    return search.outcome()


@pytest.mark.parametrize("largest", [4, 1])
def test_a_pack_too_large_for_the_memory_is_trained_in_halves(tmp_path, undisturbed, largest):
    """If four members fit, six are trained as 3 + 3; if one fits, as 2 + 1 twice, each 2 as 1 + 1. Three survive."""
    search = Search(tmp_path, largest)
    first, second = search.step(), search.step()
    assert search.outcome() == undisturbed
    assert search.plan.jobs() == []
    notes = search.run.notes.read_text().splitlines()
    assert "PointCircle pack 0: 6 members are too large for the memory; training half of them at a time" in notes[0]
    assert len(notes) == {4: 1, 1: 5}[largest] + {4: 0, 1: 2}[largest]
    assert not list((search.run.path / "packs").rglob("state*"))
    assert (first.path / "first-half").is_dir()
    assert (second.path / "first-half").is_dir() == (largest == 1)


def test_one_member_too_large_for_the_memory_is_a_user_error(tmp_path):
    search = Search(tmp_path, largest=0)
    with pytest.raises(
        UserError, match=r"PointCircle pack 0: one member is too large for the memory; lower extract.batch_size"
    ):
        search.step()


@pytest.mark.parametrize("largest", [1000, 4])
def test_damaged_states_of_packs_do_not_change_the_result(tmp_path, undisturbed, largest):
    """Damage the newest state of a pack that is killed half-way, then that of a finished pack whose survivors continue."""
    search = Search(tmp_path, largest)

    class Killed(BaseException):
        pass

    first = search.plan.folder(0).task("PointCircle")
    part = first if largest == 1000 else first.halves()[1]

    def kill(step: int) -> None:
        if step == 40 and part.path.is_dir():
            raise Killed

    with pytest.raises(Killed):
        search.step(kill)
    part.state.write_bytes(b"half a state")
    search.step()
    first.state.write_bytes(b"half a state")
    search.step()
    assert search.outcome() == undisturbed
    notes = [line for line in search.run.notes.read_text().splitlines() if "members are too large" not in line]
    resumed = [note.rsplit("; ")[-1] for note in notes]
    assert resumed == ["resuming from step 20", "trained again", *(["resuming from step 40"] if largest == 1000 else [])]
