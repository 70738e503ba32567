from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drcorl_ray.method.replay as replay_module
from drcorl_ray.data.store import load_manifest, read_store
from drcorl_ray.errors import UserError
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.replay import Batch, Replay, subset
from tests.helpers.columns import make_store

ROWS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "store"
    make_store(folder, ROWS)
    return load_manifest(folder), read_store(folder)


def rows_of(columns, rows):
    return {name: values[rows] for name, values in columns.items()}


def filled(store, **settings) -> Replay:
    manifest, columns = store
    replay = Replay(manifest, **settings)
    replay.insert(columns)
    return replay


def draws(members=3, step=7) -> Draws:
    return Draws(torch.arange(members) + 100, step)


def test_columns_are_the_stores_and_observations_are_standardised(store):
    manifest, columns = store
    replay = filled(store, dtype=torch.float64)
    for name in ("actions", "rewards", "costs", "reward_rates", "cost_rates", "episode_returns", "episode_costs"):
        torch.testing.assert_close(getattr(replay, name), torch.tensor(columns[name], dtype=torch.float64), rtol=0, atol=0)
    assert replay.terminals.tolist() == columns["terminals"].astype(float).tolist()
    raw = columns["observations"].astype(np.float64)
    standardised = (raw - raw.mean(0)) / (raw.std(0) + 1e-3)
    np.testing.assert_allclose(replay.observations, standardised, rtol=1e-9, atol=1e-12)
    following = (columns["next_observations"] - np.array(manifest.observation_mean)) / manifest.observation_std
    np.testing.assert_allclose(replay.next_observations, following, rtol=1e-9, atol=1e-12)


@settings(max_examples=25)
@given(data=st.data())
def test_content_does_not_depend_on_the_order_of_blocks(store, data):
    manifest, columns = store
    order = np.array(data.draw(st.permutations(range(ROWS))))
    cuts = sorted(data.draw(st.sets(st.integers(1, ROWS - 1), max_size=6)))
    replay = Replay(manifest)
    for block in np.split(order, cuts):
        assert not replay.complete
        replay.insert(rows_of(columns, block))
    assert replay.complete
    for name in ("observations", "rewards", "episode_costs"):
        assert torch.equal(getattr(replay, name), getattr(filled(store), name))


def test_content_does_not_depend_on_how_many_rows_are_written_at_once(store, monkeypatch):
    """Fault: write the first few rows repeatedly."""
    manifest, columns = store
    whole = filled(store)
    monkeypatch.setattr(replay_module, "_ROWS_AT_ONCE", 7)
    for order in (np.arange(ROWS), np.arange(ROWS)[::-1].copy()):  # into the table, and through a block
        replay = Replay(manifest)
        replay.insert(rows_of(columns, order))
        assert torch.equal(replay._table, whole._table)


def test_a_block_without_rows_changes_nothing(store):
    replay = filled(store)
    before = replay._table.clone()
    replay.insert(rows_of(store[1], slice(0, 0)))
    assert replay.complete
    assert torch.equal(replay._table, before)


def test_missing_and_repeated_rows_are_not_complete(store):
    manifest, columns = store
    replay = Replay(manifest)
    replay.insert(rows_of(columns, np.arange(ROWS - 1)))
    with pytest.raises(RuntimeError, match="59 of 60"):
        replay.sample(draws(), 4)
    replay.insert(rows_of(columns, [3]))  # as many rows as needed, but one twice
    assert not replay.complete
    replay.insert(rows_of(columns, [ROWS - 1]))
    assert not replay.complete


def test_a_sample_is_the_rows_its_draws_name(store):
    _, columns = store
    replay, batch_rows = filled(store), 16
    batch = replay.sample(draws(), batch_rows)
    index = draws().integers(Stream.ROWS, batch_rows, ROWS)
    assert {field.name for field in fields(Batch)} <= columns.keys()
    for field in fields(Batch):
        value, column = getattr(batch, field.name), getattr(replay, field.name)
        assert value.shape == (3, batch_rows, *column.shape[1:])
        for member in range(3):
            assert torch.equal(value[member], column[index[member]])
    estimate = replay.sample(draws(), batch_rows, stream=Stream.ESTIMATE_ROWS)
    assert not torch.equal(estimate.rewards, batch.rewards)


def test_a_member_draws_the_same_rows_alone_and_in_a_pack(store):
    replay = filled(store)
    pack = replay.sample(draws(members=5), 8)
    alone = replay.sample(Draws(torch.tensor([102]), 7), 8)
    assert torch.equal(pack.observations[2], alone.observations[0])
    assert not torch.equal(pack.observations[1], alone.observations[0])


def test_members_draw_from_their_own_rows_only(store):
    replay = filled(store)
    masks = torch.zeros(3, ROWS, dtype=torch.bool)
    masks[0, [5]] = True
    masks[1, 10:30] = True
    masks[2] = replay.costs > 0
    own = subset(masks)
    assert own.counts.tolist() == [1, 20, int((replay.costs > 0).sum())]
    batch = replay.sample(draws(), 500, own)
    assert (batch.rewards[0] == replay.rewards[5]).all()
    assert set(batch.rewards[1].tolist()) == set(replay.rewards[10:30].tolist())
    assert (batch.costs[2] > 0).all()
    full = replay.sample(draws(), 16, subset(torch.ones(3, ROWS, dtype=torch.bool)))
    assert torch.equal(full.rewards, replay.sample(draws(), 16).rewards)


def test_a_member_without_rows_is_named():
    masks = torch.ones(3, 5, dtype=torch.bool)
    masks[1] = False
    with pytest.raises(UserError, match="member 1"):
        subset(masks)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), capacity=st.integers(1, ROWS - 1))
def test_a_window_holds_the_newest_rows(store, sizes, capacity):
    manifest, columns = store
    replay = Replay(manifest, capacity=capacity)
    sent: list[int] = []
    for size in sizes:
        rows = (np.arange(size) + len(sent)) % ROWS
        sent += rows.tolist()
        replay.insert(rows_of(columns, rows))
        newest = sorted(columns["rewards"][sent[-capacity:]].tolist())
        assert sorted(replay.rewards[: replay.filled].tolist()) == newest
    seen = set(replay.sample(draws(1), 2000).rewards.flatten().tolist())
    assert seen <= set(newest)
    if len(newest) < 20:
        assert seen == set(newest)


def test_capacity(store):
    manifest, columns = store
    assert Replay(manifest, capacity=ROWS).resident
    assert Replay(manifest, capacity=ROWS + 1).capacity == ROWS
    window = Replay(manifest, capacity=ROWS - 1)
    assert not window.resident
    window.insert(rows_of(columns, np.arange(10)))
    assert window.filled == 10
    with pytest.raises(UserError, match="capacity 0"):
        Replay(manifest, capacity=0)


def test_draws_are_even(store):
    batch = filled(store).sample(draws(1), 60_000)
    counts = torch.stack([(batch.rewards == value).sum() for value in filled(store).rewards])
    assert counts.sum() == 60_000
    assert 850 < counts.min() <= counts.max() < 1150
