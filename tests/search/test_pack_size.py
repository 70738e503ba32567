"""Choice of the pack size: from invented costs, and once from a real measurement."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("ray")
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.io.files import read_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.search.pack import PackTrainer
from drcorl_ray.search.pack_size import PackCost, cheapest, growing, pack_size
from drcorl_ray.training.pretrained import pretrained_path
from tests.helpers.tiny import pretrain_beforehand, tiny_config

pytestmark = pytest.mark.ray


def on_a_gpu(members: int) -> PackCost:
    """A step takes 1 ms up to 8 members, then 1 ms per 8 members; a member needs 1 GB."""
    return PackCost(members, 1e-3 * max(1.0, members / 8), 10**9 * members)


def on_a_cpu(members: int) -> PackCost:
    return PackCost(members, 0.04 * members)


@pytest.mark.parametrize(
    ("measure", "limit", "memory", "sizes", "chosen"),
    [
        (on_a_gpu, 1000, 80e9, [1, 2, 4, 8, 16], 8),
        (on_a_gpu, 5, 80e9, [1, 2, 4], 4),  # no larger than the search
        (on_a_gpu, 1000, 5e9, [1, 2, 4], 4),  # no larger than the device
        (on_a_cpu, 1000, 0.0, [1, 2], 1),
    ],
)
def test_packs_grow_while_the_time_per_member_falls(measure, limit, memory, sizes, chosen):
    """Fault: compare the seconds of packs instead of members; or choose the first size that is not faster."""
    costs = growing(measure, limit, memory)
    assert [cost.members for cost in costs] == sizes
    assert cheapest(costs).members == chosen


def test_a_pack_that_runs_out_of_memory_is_not_chosen():
    def measure(members: int) -> PackCost:
        if members > 2:
            raise torch.OutOfMemoryError("no room")
        return on_a_gpu(members)

    assert cheapest(growing(measure, 1000, 80e9)).members == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_measures_once_and_keeps_the_pack_size(tmp_path):
    config = tiny_config(tmp_path, "search.members_per_pack=auto", "search.rungs=[0.5]")
    pretrain_beforehand(config)
    data, run = TaskData.open(task_store("PointCircle", config.data, config.run)), RunDirectory.prepare(config)
    weights = pretrained_path(config.run.storage_folder, data, config.pretrain, 0)
    trainer = PackTrainer(config, run, {"PointCircle": (data.task, data.store)}, {"PointCircle": (weights,)})
    size = pack_size(trainer, 4)
    measurement = read_json(run.path / "pack_size.json")
    assert [cost["members"] for cost in measurement["measured"]] == [1, 2, 4][: len(measurement["measured"])]
    assert all(cost["seconds"] > 0 for cost in measurement["measured"])
    assert size == measurement["members_per_pack"] in (2, 4)  # a rung keeps one of two
    (run.path / "pack_size.json").write_text('{"members_per_pack": 3}')
    assert pack_size(trainer, 4) == 3
