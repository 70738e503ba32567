import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drcorl_ray.config.filters import Filters
from drcorl_ray.data.dsrl import filter_dataset, make_dataset, read_dataset, write_dataset
from drcorl_ray.data.schema import TRANSITION
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import file_sha256
from tests.helpers.columns import make_columns
from tests.helpers.paths import ROOT

REAL = ROOT.parent / "shared" / "data"


def write_raw(path: Path, columns: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for key, array in columns.items():
            file[key] = array


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_dataset(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(tmp_path_factory, rows, seed):
    path, columns = tmp_path_factory.mktemp("round") / "file.hdf5", make_columns(rows, seed)
    write_dataset(path, columns)
    dataset = read_dataset(path)
    columns["timeouts"][-1] |= not columns["terminals"][-1]
    for key, column in TRANSITION.items():
        assert dataset.columns[key].dtype == column.dtype
        np.testing.assert_array_equal(dataset.columns[key], columns[key])
    assert list(path.parent.iterdir()) == [path]


def test_episodes_of_a_table_made_by_hand():
    columns = make_columns(6)
    columns["rewards"] = np.array([1, 2, 3, 4, 5, 6], np.float32)
    columns["costs"] = np.array([0, 1, 0, 0, 2, 1], np.float32)
    columns["terminals"] = np.array([0, 1, 0, 0, 0, 0], bool)
    columns["timeouts"] = np.array([0, 0, 1, 0, 0, 0], bool)
    dataset = make_dataset(columns)
    assert dataset.episodes.starts.tolist() == [0, 2, 3]
    assert dataset.episodes.lengths.tolist() == [2, 1, 3]
    assert dataset.episodes.returns.tolist() == [3, 3, 15]
    assert dataset.episodes.costs.tolist() == [1, 0, 3]
    assert dataset.episodes.terminated.tolist() == [True, False, False]
    assert dataset.episodes.of_rows().tolist() == [0, 0, 1, 2, 2, 2]
    assert dataset.columns["timeouts"].tolist() == [False, False, True, False, False, True]


def test_other_number_types_and_single_columns_are_accepted(tmp_path):
    columns = make_columns(20)
    other = {
        **{key: columns[key].astype(np.float64) for key in columns},
        "rewards": columns["rewards"][:, None],
        "terminals": columns["terminals"].astype(np.uint8),
        "surplus": np.zeros(3),
    }
    write_raw(tmp_path / "a.hdf5", other)
    write_raw(tmp_path / "b.hdf5", columns)
    for key, values in read_dataset(tmp_path / "b.hdf5").columns.items():
        np.testing.assert_array_equal(read_dataset(tmp_path / "a.hdf5").columns[key], values)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("costs", None, ["key 'costs' is missing"]),
        ("rewards", np.zeros((20, 2)), ["'rewards'", "shape [20, 2]"]),
        ("observations", np.zeros(20), ["'observations'", "shape [20]"]),
        ("actions", np.zeros((20, 0)), ["'actions'", "shape [20, 0]"]),
        ("actions", np.zeros((19, 2)), ["'actions' has 19 rows", "has 20"]),
        ("next_observations", np.zeros((20, 4)), ["width 4", "3"]),
        ("rewards", np.array([b"x"] * 20), ["'rewards'", "numbers"]),
        ("rewards", np.float32(1), ["'rewards'"]),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, key, value, words):
    columns = make_columns(20)
    if value is None:
        del columns[key]
    else:
        columns[key] = value
    write_raw(tmp_path / "bad.hdf5", columns)
    message = refusal(tmp_path / "bad.hdf5")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("observations", np.nan),
        ("next_observations", np.inf),
        ("rewards", 1e300),  # not finite as float32
        ("costs", -0.5),
        ("actions", 1.001),
        ("actions", -1.001),
        ("actions", -np.inf),
    ],
)
def test_wrong_values_are_refused_with_their_first_row(tmp_path, key, value):
    columns = make_columns(20)
    columns[key] = columns[key].astype(np.float64)
    columns[key][[7, 11]] = value
    write_raw(tmp_path / "bad.hdf5", columns)
    assert re.search(rf"key '{key}', row 7\b", refusal(tmp_path / "bad.hdf5"))


def test_rounding_outside_the_action_bounds_is_clipped(tmp_path):
    columns = make_columns(20)
    columns["actions"][3, 1] = 1.00005
    write_raw(tmp_path / "file.hdf5", columns)
    assert read_dataset(tmp_path / "file.hdf5").columns["actions"].max() == 1.0


def test_broken_files_are_refused(tmp_path):
    assert "no such" in refusal(tmp_path / "absent.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    assert "not a readable HDF5" in refusal(tmp_path / "text.hdf5")
    write_dataset(tmp_path / "cut.hdf5", make_columns(500))
    whole = (tmp_path / "cut.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) * 2 // 3])
    assert "truncated" in refusal(tmp_path / "cut.hdf5")
    write_raw(tmp_path / "empty.hdf5", {key: values[:0] for key, values in make_columns(3).items()})
    assert "no rows" in refusal(tmp_path / "empty.hdf5")


def test_a_failed_write_leaves_nothing(tmp_path):
    columns = make_columns(20)
    del columns["costs"]
    with pytest.raises(KeyError):
        write_dataset(tmp_path / "file.hdf5", columns)
    assert not list(tmp_path.iterdir())


def test_density_filter_is_dsrls_own_and_repeatable(tmp_path, monkeypatch):
    pytest.importorskip("dsrl.infos")
    monkeypatch.chdir(tmp_path)
    dataset = make_dataset(make_columns(20_000))
    some = filter_dataset(dataset, "made-up", Filters(density=0.5, seed=3))
    again = filter_dataset(dataset, "made-up", Filters(density=0.5, seed=3))
    other = filter_dataset(dataset, "made-up", Filters(density=0.5, seed=4))
    assert 0 < some.rows < dataset.rows
    np.testing.assert_array_equal(some.columns["rewards"], again.columns["rewards"])
    assert some.rows != other.rows or not np.array_equal(some.columns["rewards"], other.columns["rewards"])
    assert set(some.episodes.returns) <= set(dataset.episodes.returns)  # whole episodes only
    assert not list(tmp_path.iterdir())  # dsrl saves a figure in the working directory


def test_outlier_filter_disguises_risky_episodes():
    pytest.importorskip("dsrl.infos")
    columns = make_columns(2000)
    columns["rewards"] = np.abs(columns["rewards"])
    columns["terminals"][:], columns["timeouts"][:] = False, np.arange(2000) % 20 == 19
    dataset = make_dataset(columns)
    changed = filter_dataset(dataset, "made-up", Filters(outliers_percent=0.05, target_cost=4))
    differs = changed.episodes.returns != dataset.episodes.returns
    assert differs.sum() == 5
    np.testing.assert_allclose(changed.episodes.returns[differs], 1.5 * dataset.episodes.returns[differs], rtol=1e-5)
    assert (changed.episodes.costs[differs] < 4).all()


def test_filters_that_cannot_work_are_refused():
    dataset = make_dataset(make_columns(200))
    assert filter_dataset(dataset, "made-up", Filters()) is dataset
    with pytest.raises(UserError, match="target_cost"):
        filter_dataset(dataset, "made-up", Filters(outliers_percent=0.1))
    pytest.importorskip("dsrl.infos")
    with pytest.raises(UserError, match="cannot be applied"):
        filter_dataset(make_dataset(make_columns(3)), "made-up", Filters(outliers_percent=0.9, target_cost=10))


def test_an_installation_without_dsrl_is_told_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "dsrl", None)
    with pytest.raises(UserError, match="uv sync"):
        filter_dataset(make_dataset(make_columns(20)), "made-up", Filters(density=0.5))


def test_import_needs_neither_torch_nor_ray():
    code = "import sys, drcorl_ray.data.store, drcorl_ray.data.download; print({'torch', 'ray', 'dsrl'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "rows", "episodes", "terminated", "lowest", "highest", "cost", "best"),
    [
        ("HalfCheetah", 300_000, 300, 0, 86.6, 3043.8, 480, {0: (2880, 39), 10: (2890, 43), 20: (2890, 60), 40: (2961, 90)}),
        ("Hopper", 299_300, 467, 247, 59.3, 1803.0, 493, {0: (1598, 35), 10: (1633, 50), 20: (1636, 71), 40: (1653, 137)}),
        ("Walker2d", 299_833, 402, 163, 48.1, 3436.8, 594, {0: (3068, 57), 10: (3142, 76), 20: (3158, 94), 40: (3194, 124)}),
    ],
)
def test_real_files_read_as_their_readme_says(name, rows, episodes, terminated, lowest, highest, cost, best):
    path = REAL / f"local-{name}Velocity.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    dataset = read_dataset(path)
    table = dataset.episodes
    assert file_sha256(path) in (REAL / "README.md").read_text()
    assert (dataset.rows, len(table.starts), table.terminated.sum()) == (rows, episodes, terminated)
    assert (round(table.returns.min(), 1), round(table.returns.max(), 1), table.costs.max()) == (lowest, highest, cost)
    for limit, (value, count) in best.items():
        safe = table.costs <= limit
        assert (round(table.returns[safe].max()), safe.sum()) == (value, count)
    inside = ~(dataset.columns["terminals"] | dataset.columns["timeouts"])[:-1]
    following = dataset.columns["observations"][1:][inside]
    np.testing.assert_array_equal(dataset.columns["next_observations"][:-1][inside], following)


def elsewhere(kind: str, file: h5py.File, path: Path) -> None:
    """Replace 'costs' by data that are not in the file itself."""
    if kind == "external link":
        file["costs"] = h5py.ExternalLink(str(path), "/costs")
    elif kind == "loop":
        file["costs"] = h5py.SoftLink("/costs")
    elif kind == "virtual":
        layout = h5py.VirtualLayout((50,), "f4")
        layout[:] = h5py.VirtualSource(str(path), "costs", (50,))
        file.create_virtual_dataset("costs", layout)
    elif kind == "raw bytes of another file":
        file.create_dataset("costs", (50,), "f4", external=[(str(path), 0, 200)])
    elif kind == "giant":
        file.create_dataset("costs", (2**44,), "f4", chunks=(2**20,), compression="gzip")
    elif kind == "text":
        file["costs"] = ["a"] * 50


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("external link", "'costs' is missing"),
        ("loop", "'costs' is missing"),
        ("virtual", "'costs' points to another file"),
        ("raw bytes of another file", "'costs' points to another file"),
        ("giant", "larger than this machine's memory"),
        ("text", "does not hold an array of numbers"),
    ],
)
def test_a_file_holds_its_own_numbers(tmp_path, kind, said):
    """Fault: read the files that a downloaded file points to, or as many numbers as it declares."""
    columns = make_columns(50)
    write_dataset(tmp_path / "other.hdf5", columns)
    path = tmp_path / "data.hdf5"
    write_raw(path, {key: array for key, array in columns.items() if key != "costs"})
    with h5py.File(path, "a") as file:
        elsewhere(kind, file, tmp_path / "other.hdf5")
    assert said in refusal(path)
