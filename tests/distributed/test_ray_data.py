"""Ray Data from a store to the device: rows arrive once and in order, windows refresh, and readers never block trainers."""

import threading
import time

import pytest
import torch

from drcorl_ray.data.store import load_manifest, read_store
from drcorl_ray.distributed.cluster import interrupts_restored
from drcorl_ray.errors import UserError
from drcorl_ray.method.replay import Replay
from tests.helpers.columns import make_store

stream = pytest.importorskip("drcorl_ray.distributed.ray_data")
ROWS, SHARD_ROWS = 1003, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "store"
    make_store(folder, ROWS, rows_per_shard=SHARD_ROWS)
    return folder


def plain(folder) -> Replay:
    replay = Replay(load_manifest(folder))
    replay.insert(read_store(folder))
    return replay


def rows_of(batches) -> list[int]:
    return [row for batch in batches for row in batch["rows"].tolist()]


def whole(dataset, batch_size=None):
    return dataset.iterator().iter_torch_batches(batch_size=batch_size, collate_fn=stream.StoredColumns(), device="cpu")


class Endless:
    """Replaces a worker's share: a few chunks per epoch, and a count of the chunks taken."""

    def __init__(self, columns, fail_after=None):
        self.columns, self.fail_after, self.taken = columns, fail_after, 0

    def batches(self, rows):
        for first in range(0, ROWS, rows):
            if self.taken == self.fail_after:
                raise OSError("the disk is gone")
            self.taken += 1
            yield {name: torch.tensor(values[first : first + rows]) for name, values in self.columns.items()}


def test_a_window_reads_epoch_after_epoch_and_only_a_few_chunks_ahead(folder):
    columns = read_store(folder)
    source, replay = Endless(columns), Replay(load_manifest(folder), capacity=350)
    with stream.Window(source, replay, chunk_rows=100, prefetch_chunks=2) as window:
        window.fill()
        assert replay.filled == 350
        for refreshes in range(5, 30):
            window.refresh()
            time.sleep(0.002)
            assert source.taken <= refreshes + 3
        sent = ([*range(ROWS)] * 4)[: replay.inserted_rows]
        assert len(sent) > 2 * ROWS
        newest = columns["rewards"][sent[-350:]]
        assert sorted(replay.rewards.tolist()) == sorted(newest.tolist())
        assert window.waited_s < 5
    assert not any(thread.name == "drcorl-window" for thread in threading.enumerate())


def test_a_window_raises_its_readers_error(folder):
    replay = Replay(load_manifest(folder), capacity=900)
    with (
        stream.Window(Endless(read_store(folder), fail_after=3), replay, chunk_rows=100) as window,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        window.fill()
    assert replay.filled == 300


def test_more_workers_than_shards_are_refused(folder):
    with pytest.raises(UserError, match="too few shards for 12 workers"):
        stream.Share(folder, 11, 12)


@pytest.mark.ray
def test_every_row_arrives_once_and_in_order(ray_cluster, folder):
    dataset = stream.stream_dataset(folder)
    assert rows_of(whole(dataset)) == [*range(ROWS)]
    assert rows_of(whole(dataset, batch_size=64)) == [*range(ROWS)]


@pytest.mark.ray
def test_a_filled_replay_equals_a_plain_read(ray_cluster, folder):
    replay, expected = Replay(load_manifest(folder)), plain(folder)
    stream.fill(replay, stream.stream_dataset(folder))
    assert replay.complete
    for name in ("observations", "actions", "next_observations", "rewards", "terminals", "cost_rates", "episode_costs"):
        assert torch.equal(getattr(replay, name), getattr(expected, name))


@pytest.mark.ray
def test_an_incomplete_stream_raises(ray_cluster, folder):
    with pytest.raises(RuntimeError, match=r"instead of 1003 different ones"):
        stream.fill(Replay(load_manifest(folder)), stream.stream_dataset(folder, load_manifest(folder).shards[::2]))


@pytest.mark.ray
@pytest.mark.parametrize("part_shards", [1, 3, 100])
def test_each_row_reaches_one_of_two_workers_once_per_epoch(ray_cluster, folder, monkeypatch, part_shards):
    size = load_manifest(folder).shards[0].size_bytes
    monkeypatch.setattr(stream, "PART_BYTES", part_shards * size)
    for _ in range(2):
        first, second = (rows_of(stream.Share(folder, worker, 2).batches(64)) for worker in range(2))
        assert len(first) + len(second) == ROWS
        assert sorted(first + second) == [*range(ROWS)]
        assert abs(len(first) - len(second)) <= SHARD_ROWS
        assert [first, second] == [sorted(first), sorted(second)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_window_that_waits_for_its_learner_uses_no_cpu(ray_cluster, tmp_path, monkeypatch):
    """With a store four times Ray's share of memory and a learner that takes nothing, no thread of this process may spin.

    Fault: one execution over the whole store, whose thread busy-waits on a whole core while the window exists.
    """
    make_store(tmp_path / "store", 40_000, rows_per_shard=1000)
    size = sum(shard.size_bytes for shard in load_manifest(tmp_path / "store").shards)
    monkeypatch.setattr(stream, "OBJECT_STORE_BYTES", size // 4)
    monkeypatch.setattr(stream, "PART_BYTES", size // 16)
    replay = Replay(load_manifest(tmp_path / "store"), capacity=2000)
    with stream.Window(stream.Share(tmp_path / "store"), replay, chunk_rows=500) as window:
        window.fill()
        time.sleep(2)
        busy = time.process_time()
        time.sleep(2)
        busy = time.process_time() - busy
    assert busy < 0.6


@pytest.mark.ray
def test_a_damaged_shard_stops_the_stream_and_is_named(ray_cluster, tmp_path):
    make_store(tmp_path / "store", rows=40, rows_per_shard=20)
    dataset = stream.stream_dataset(tmp_path / "store")
    path = sorted((tmp_path / "store").glob("*.parquet"))[1]
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(Exception, match="cannot be read as Parquet") as caught:
        rows_of(whole(dataset))
    assert path.name in str(caught.value)


def train_loop(config):
    import ray.train

    from drcorl_ray.distributed.ray_data import Share, Window

    replay = Replay(load_manifest(config["folder"]), capacity=300)
    context = ray.train.get_context()
    share = Share(config["folder"], context.get_world_rank(), context.get_world_size())
    with Window(share, replay, chunk_rows=64) as window:
        window.fill()
        seen = config["folder"].parent / f"rank{context.get_world_rank()}.txt"
        for _ in range(10):
            window.refresh()
    seen.write_text(str(int(replay._arrived.sum())))


@pytest.mark.ray
@pytest.mark.slow
def test_windows_are_read_although_the_trainer_books_every_cpu(ray_cluster, folder, tmp_path):
    """Two trainers on two CPUs leave none for readers. Fault: readers that book a CPU, which wait for ever."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name="windows", storage_path=str(tmp_path), failure_config=FailureConfig(controller_failure_limit=1)
        ),
    )
    with interrupts_restored():
        trainer.fit()
    arrived = [int((folder.parent / f"rank{rank}.txt").read_text()) for rank in range(2)]
    assert sum(arrived) == ROWS
