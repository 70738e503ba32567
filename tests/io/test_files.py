"""Files of arrays and JSON: exact round trips, one-line refusals of every kind of damage, no partial file after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import load_arrays, read_json, save_arrays, write_bytes, write_json
from tests.helpers.paths import ROOT

ARRAYS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "exact": np.array([0.1, -0.0, 1e-300]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "counts": np.array([-(2**62), 2**62 + 1]),
    "flags": np.array([True, False, True]),
}
META = {"step": 7, "text": "β → ∞", "nested": {"list": [1, None, 0.1]}}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_arrays(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def same(loaded: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether names, types, shapes and bits are equal."""
    return loaded.keys() == expected.keys() and all(
        (loaded[name].dtype, loaded[name].shape, loaded[name].tobytes()) == (array.dtype, array.shape, array.tobytes())
        for name, array in expected.items()
    )


def test_saved_arrays_and_meta_are_loaded(tmp_path):
    save_arrays(tmp_path / "deep" / "a.safetensors", ARRAYS, META)
    arrays, meta = load_arrays(tmp_path / "deep" / "a.safetensors")
    assert same(arrays, ARRAYS)
    assert meta == META
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_views_are_saved_by_content(tmp_path):
    """Fault: save the array without making it contiguous."""
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "transposed": table.T,
        "strided": table[::2, ::3],
        "reversed": table[::-1],
        "broadcast": np.broadcast_to(table[0], (3, 6)),
    }
    save_arrays(tmp_path / "a.safetensors", views, {})
    assert same(load_arrays(tmp_path / "a.safetensors")[0], views)


@settings(max_examples=50)
@given(
    arrays=st.dictionaries(
        st.text("abc._ä", min_size=1, max_size=5),
        hnp.arrays(
            st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?"]).map(np.dtype),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        max_size=3,
    ),
    meta=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    ),
)
def test_any_arrays_round_trip(tmp_path_factory, arrays, meta):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_arrays(path, arrays, meta)
    loaded, loaded_meta = load_arrays(path)
    assert same(loaded, arrays)
    assert loaded_meta == meta


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_changed_byte_never_changes_a_value(tmp_path, flip):
    """At every position of header and data. Fault: leave the meta, the names or the data out of the digest."""
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS, META)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= flip
        path.write_bytes(changed)
        try:
            arrays, meta = load_arrays(path)
        except UserError as error:
            message, refused = str(error), refused + 1
        else:
            assert same(arrays, ARRAYS), position
            assert meta == META, position
            continue
        assert str(path) in message
        assert len(message.splitlines()) == 1
    assert refused > 0.95 * len(content)


def test_any_truncation_or_growth_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS, META)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content + b"\0")
    refusal(path)


def test_swapped_arrays_of_one_size_are_refused(tmp_path):
    """Fault: a digest over the data only."""
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"aa": np.zeros(4, np.float32), "bb": np.ones(4, np.float32)}, {})
    path.write_bytes(path.read_bytes().replace(b'"aa":', b'"cc":'))
    assert "checksum mismatch" in refusal(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    assert "No such file" in refusal(path)
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\xff" * 64, bytes(8), b"[1]"):
        path.write_bytes(content)
        refusal(path)
    save_file({"a": np.zeros(3)}, path)
    assert "not written by drcorl_ray" in refusal(path)
    refusal(tmp_path)


@pytest.mark.parametrize("meta", ["[1]", "3", "{", "", "null", "1" * 5000])
def test_a_header_that_is_no_mapping_is_refused_even_if_its_checksum_matches(tmp_path, meta):
    from drcorl_ray.io.files import _digest

    path, arrays = tmp_path / "a.safetensors", {"a": np.zeros(3)}
    save_file(arrays, path, metadata={"meta": meta, "sha256": _digest(arrays, meta)})
    refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_json_has_no_non_finite_numbers(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        save_arrays(tmp_path / "a.safetensors", ARRAYS, {"x": [float(value)]})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float(value)})
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, META)
    assert read_json(path) == META
    for content in (b"", b"{", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b"1" * 5000):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_json(path)
        assert len(str(caught.value).splitlines()) == 1
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    """Start a new interpreter, which shares nothing with this process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_kill_9_leaves_the_old_file_or_the_new_one(tmp_path):
    """The writer prints each version after it is complete. Fault: write directly to the final name."""
    path = tmp_path / "a.safetensors"
    writer = run_python(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from drcorl_ray.io.files import save_arrays
        for version in range(10**6):
            save_arrays(Path(sys.argv[1]), {"a": np.full(200_000, version)}, {"version": version})
            print(version, flush=True)
        """,
        path,
    )
    assert writer.stdout is not None
    for delay_s in (0.0, 0.003, 0.011):
        writer.stdout.readline()
        time.sleep(delay_s)
        os.kill(writer.pid, signal.SIGSTOP)  # read at any moment, then continue
        assert_whole(path)
        os.kill(writer.pid, signal.SIGCONT)
    time.sleep(0.007)
    os.kill(writer.pid, signal.SIGKILL)
    finished = [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    writer.stdout.close()
    assert assert_whole(path) in (finished[-1], finished[-1] + 1)


def assert_whole(path: Path) -> int:
    arrays, meta = load_arrays(path)
    assert (arrays["a"] == meta["version"]).all()
    return meta["version"]


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    from drcorl_ray.io.files import write_bytes
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        write_bytes(Path(sys.argv[1]), bytes(200_000))
    except OSError as error:
        print("refused", error.errno, flush=True)
"""


@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_keeps_the_old_file(tmp_path, how):
    """A limit on file sizes, and a full file system if one can be mounted. Fault: do not delete the temporary file."""
    mounted = how == "tmpfs" and os.geteuid() == 0
    if how == "tmpfs" and (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        path = tmp_path / "a.bin"
        write_bytes(path, b"old")
        child = run_python(FULL_DISK, path, how)
        out, _ = child.communicate(timeout=60)
        assert out.startswith("refused")
        assert child.returncode == 0
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
        write_bytes(path, b"new")
        assert path.read_bytes() == b"new"
    finally:
        if mounted:
            subprocess.run(["umount", tmp_path], check=True)


def test_a_failed_write_leaves_nothing(tmp_path):
    """A name taken by a folder: the rename fails after the temporary file was written."""
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
