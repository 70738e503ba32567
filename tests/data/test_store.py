import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drcorl_ray.config.filters import Filters
from drcorl_ray.data.dsrl import make_dataset, write_dataset
from drcorl_ray.data.schema import STORED, TRANSITION
from drcorl_ray.data.store import MANIFEST, convert, load_manifest, primitives, read_shard, read_store, store_for, verify
from drcorl_ray.errors import UserError
from tests.helpers.columns import SOURCE, make_columns, make_store


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 80), seed=st.integers(0, 2**32 - 1), rows_per_shard=st.integers(1, 90))
def test_every_row_comes_back(tmp_path_factory, rows, seed, rows_per_shard):
    folder = tmp_path_factory.mktemp("round") / "store"
    dataset = make_dataset(make_columns(rows, seed))
    manifest = convert(dataset, folder, task="made-up", source=SOURCE, rows_per_shard=rows_per_shard)
    assert load_manifest(folder) == verify(folder) == manifest
    assert len(manifest.shards) == -(-rows // rows_per_shard)
    columns = read_store(folder)
    assert columns.keys() == STORED.keys()
    for name, column in STORED.items():
        assert columns[name].dtype == column.dtype
    for name in TRANSITION:
        np.testing.assert_array_equal(columns[name], dataset.columns[name])
    np.testing.assert_array_equal(columns["rows"], np.arange(rows))


def test_rates_of_a_table_made_by_hand(tmp_path):
    """One terminated episode, one cut by a timeout, and one that the file does not end; rewards and costs differ."""
    columns = make_columns(7)
    columns["rewards"] = np.array([1, 2, 3, 4, 5, 6, 7], np.float32)
    columns["costs"] = np.array([0, 1, 0, 1, 1, 0, 2], np.float32)
    columns["terminals"] = np.array([0, 1, 0, 0, 0, 0, 0], bool)
    columns["timeouts"] = np.array([0, 0, 0, 0, 1, 0, 0], bool)
    convert(make_dataset(columns), tmp_path / "store", task="made-up", source=SOURCE)
    stored, g = read_store(tmp_path / "store"), 0.99
    for_ever = 1 / (1 - g)
    rewards = [
        (1 + g * 2) / for_ever,
        2 / for_ever,
        (3 + g * 4 + g**2 * 5) / (1 + g + g**2),
        (4 + g * 5) / (1 + g),
        5,
        (6 + g * 7) / (1 + g),
        7,
    ]
    costs = [g / for_ever, 1 / for_ever, (g + g**2) / (1 + g + g**2), 1, 1, g * 2 / (1 + g), 2]
    np.testing.assert_allclose(stored["reward_rates"], rewards, rtol=1e-6)
    np.testing.assert_allclose(stored["cost_rates"], costs, rtol=1e-6)
    assert stored["episode_returns"].tolist() == [3, 3, 12, 12, 12, 13, 13]
    assert stored["episode_costs"].tolist() == [1, 1, 2, 2, 2, 2, 2]


def test_the_manifest_describes_the_data(tmp_path):
    columns = make_columns(500)
    manifest = convert(make_dataset(columns), tmp_path / "store", task="made-up", source=SOURCE)
    observations = columns["observations"].astype(np.float64)
    np.testing.assert_allclose(manifest.observation_mean, observations.mean(0), rtol=1e-10)
    np.testing.assert_allclose(manifest.observation_std, observations.std(0) + 1e-3, rtol=1e-10)
    assert (manifest.rows, manifest.observation_size, manifest.action_size) == (500, 3, 2)
    assert sum(manifest.episode_lengths) == 500
    assert manifest.episodes == len(manifest.episode_returns) == len(manifest.episode_costs)
    assert (manifest.min_return, manifest.max_return) == (min(manifest.episode_returns), max(manifest.episode_returns))
    assert (manifest.min_cost, manifest.max_cost) == (min(manifest.episode_costs), max(manifest.episode_costs))
    assert manifest.mean_cost == pytest.approx(columns["costs"].mean())
    assert sum(manifest.episode_costs) == columns["costs"].sum()
    assert manifest.rate_discount == 0.99


def refusal(check, folder, path) -> None:
    with pytest.raises(UserError) as caught:
        check(folder)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_flipped_byte_anywhere_in_the_manifest_is_caught(tmp_path):
    make_store(tmp_path / "store", rows=5)
    path = tmp_path / "store" / MANIFEST
    whole = path.read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x20, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            refusal(load_manifest, tmp_path / "store", path)
    path.write_bytes(whole)
    load_manifest(tmp_path / "store")


def test_a_flipped_byte_anywhere_in_a_shard_is_caught(tmp_path):
    make_store(tmp_path / "store", rows=40, rows_per_shard=20)
    path = sorted((tmp_path / "store").glob("*.parquet"))[1]
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refusal(verify, tmp_path / "store", path)


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    make_store(tmp_path / "store", rows=40, rows_per_shard=20)
    path = sorted((tmp_path / "store").glob("*.parquet"))[1]
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else b"?" * len(whole))
    refusal(read_store, tmp_path / "store", path)
    if damage != "garbage":  # of the same size, so only reading the content reveals it
        refusal(load_manifest, tmp_path / "store", path)


def test_slices_and_chunks_are_read_as_they_are(tmp_path):
    make_store(tmp_path / "store", rows=40)
    table = read_shard(next((tmp_path / "store").glob("*.parquet")))
    columns = read_store(tmp_path / "store")
    pieces = pa.concat_tables([table.slice(5, 10), table.slice(20, 7)])
    wanted = [*range(5, 15), *range(20, 27)]
    for part, rows in ((table.slice(5, 10), wanted[:10]), (pieces, wanted), (table.slice(0, 0), [])):
        for name, (values, shape) in primitives(part).items():
            np.testing.assert_array_equal(values.to_numpy().reshape(shape), columns[name][rows])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', "[" * 100_000])
def test_a_strange_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    refusal(load_manifest, tmp_path, tmp_path / MANIFEST)
    refusal(load_manifest, tmp_path / "absent", tmp_path / "absent")


def test_a_store_is_made_once_for_each_content(tmp_path):
    write_dataset(tmp_path / "a.hdf5", make_columns(50))
    root = tmp_path / "stores"
    folder = store_for(tmp_path / "a.hdf5", root, "made-up")
    before = (folder / MANIFEST).stat().st_mtime_ns
    assert store_for(tmp_path / "a.hdf5", root, "made-up") == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == before
    assert load_manifest(folder).source.file_name == "a.hdf5"
    write_dataset(tmp_path / "b.hdf5", make_columns(50, seed=1))
    others = {
        store_for(tmp_path / "b.hdf5", root, "made-up"),
        store_for(tmp_path / "a.hdf5", root, "another"),
        store_for(tmp_path / "a.hdf5", root, "made-up", Filters(noise_scale=0.1)),
    }
    assert len({folder, *others}) == 4
    assert len(list(root.iterdir())) == 4


def test_a_damaged_store_is_made_again(tmp_path):
    write_dataset(tmp_path / "a.hdf5", make_columns(50))
    folder = store_for(tmp_path / "a.hdf5", tmp_path / "stores", "made-up")
    path = next(folder.glob("*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"?" + whole[101:])
    assert store_for(tmp_path / "a.hdf5", tmp_path / "stores", "made-up") == folder
    assert path.read_bytes() == whole
    assert list((tmp_path / "stores").iterdir()) == [folder]


def test_a_refused_file_leaves_no_store(tmp_path):
    (tmp_path / "bad.hdf5").write_bytes(b"bad")
    with pytest.raises(UserError):
        store_for(tmp_path / "bad.hdf5", tmp_path / "stores", "made-up")
    with pytest.raises(UserError):
        store_for(tmp_path / "absent.hdf5", tmp_path / "stores", "made-up")
    assert not (tmp_path / "stores").exists()


ENDLESS = """
import sys, time
from pathlib import Path
from drcorl_ray.data import store
from tests.helpers.columns import make_store
write, count = store.pq.write_table, 0
def slow(*args, **kwargs):
    write(*args, **kwargs)
    print("shard", flush=True)
    time.sleep(0.05)
store.pq.write_table = slow
make_store(Path(sys.argv[1]), rows=10_000, rows_per_shard=10)
"""


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path):
    folder = tmp_path / "store"
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline() == "shard\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not folder.exists()
    [leftover] = tmp_path.iterdir()
    assert leftover.name.startswith(".")
    assert len(list(leftover.iterdir())) >= 3
    assert MANIFEST not in {path.name for path in leftover.iterdir()}
    make_store(folder, rows=20)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_running_conversion_is_not_disturbed(tmp_path):
    folder = tmp_path / "store"
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        make_store(folder, rows=20)
        time.sleep(0.1)
        assert child.poll() is None
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        child.kill()
        child.wait()


def test_the_first_of_two_equal_conversions_stays(tmp_path):
    make_store(tmp_path / "store")
    before = (tmp_path / "store").stat().st_ino
    make_store(tmp_path / "store")
    assert (tmp_path / "store").stat().st_ino == before
    make_store(tmp_path / "store", seed=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]
    np.testing.assert_array_equal(read_store(tmp_path / "store")["rewards"], make_columns(50, seed=1)["rewards"])


def test_the_manifest_is_plain_json(tmp_path):
    manifest = make_store(tmp_path / "store")
    content = json.loads((tmp_path / "store" / MANIFEST).read_text())
    assert content["task"] == "made-up"
    assert content["episode_lengths"] == list(manifest.episode_lengths)
