"""Arrays and JSON on disk: safetensors files whose header carries JSON and a checksum, written atomically, verified on load.

No pickle on any path. A file is either complete under its final name or absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import storage_of

if TYPE_CHECKING:
    from filelock import FileLock


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears complete or not at all; missing folders are created."""
    storage_of(path).write(path, content)


def read_bytes(path: Path) -> bytes:
    """Read the whole file as it was at one moment, even while another process rewrites it."""
    return storage_of(path).read(path)


def local_file(path: Path) -> AbstractContextManager[Path]:
    """Yield a path on this machine, valid inside the context: the file itself, or a copy. OSError if it is missing."""
    return storage_of(path).local_file(path)


def file_lock(path: Path) -> FileLock:
    """A lock that is released when its process ends. In an object store it holds between this machine's processes only."""
    return storage_of(path).lock(path)


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file; when the call returns, the text is stored durably."""
    storage_of(path).append(path, text)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; non-finite numbers are refused, since JSON has none."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError names the file when it is missing or broken."""
    try:
        return json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, integers of 5000 digits
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def _digest(arrays: Mapping[str, np.ndarray], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write named arrays and JSON-able `meta` as one safetensors file with a checksum over both."""
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}  # keeps 0-d as 0-d
    text = json.dumps(meta, allow_nan=False, sort_keys=True)
    header = {"meta": text, "sha256": _digest(contiguous, text)}
    write_bytes(path, save(contiguous, metadata=header))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote; UserError if the file is missing, truncated, altered or of another kind."""
    try:
        with local_file(path) as local, safe_open(local, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a safetensors file ({error})") from error
    if "meta" not in header or "sha256" not in header:
        raise UserError(f"{path}: this safetensors file was not written by drcorl_ray (its header lacks 'meta')")
    if _digest(arrays, header["meta"]) != header["sha256"]:
        raise UserError(f"{path}: checksum mismatch, the file was altered or damaged; restore it or train again")
    try:
        return arrays, dict(json.loads(header["meta"]))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: its header's 'meta' is not a JSON mapping") from error


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, valid: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """Return the complete lines of a file with one JSON mapping per line; UserError names a line that is not `valid`."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(read_bytes(path).split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not valid(line):
            raise UserError(f"{path}: line {number} is damaged; restore the file, or delete that line")
        lines.append(line)
    return lines
