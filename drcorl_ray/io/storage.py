"""Where runs, stores and artifacts lie: in folders of this machine, or in an object store by URI (s3://…, gs://…).

A path of an object store is a `upath.UPath` over fsspec, which answers as `pathlib.Path` does; credentials and endpoints are
the provider's own (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`). Files appear there complete or not at all, and cannot be
appended to or locked. How long one may stay away is its driver's business too (`cluster.prepare_environment`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from upath import UPath

from drcorl_ray.errors import UserError

_ANSWER_S = 30.0


def storage_path(name: str) -> Path:
    """The path that a setting names; UserError where the driver of its protocol is missing or refuses it."""
    protocol, separator, _ = name.partition("://")
    if not separator:
        return Path(name).expanduser()
    try:
        path = UPath(name, use_listings_cache=False)  # a kept listing would hide what other machines write
        path.fs  # noqa: B018 (its driver is imported here)
    except ImportError as error:
        raise UserError(f"{name}: {error}; for s3 and gs: uv sync --extra s3, --extra gcs") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {protocol}:// cannot be opened ({error})") from error
    return cast(Path, path)


def reachable(path: Path) -> Path:
    """The path itself; UserError where its object store does not answer or refuses us, so that no work is done in vain."""
    if is_remote(path) and (reason := _refusal(path)) is not None:
        raise UserError(f"{path}: cannot be reached ({reason}); check its address and your credentials")
    return path


def _refusal(path: Path) -> str | None:
    """Why an object store cannot be used, after a short while: later its driver is to be patient."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            path.exists()
            answers.append(None)
        except Exception as error:  # the drivers' own kinds, which are no OSErrors
            answers.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    return answers[0] if answers else f"no answer within {_ANSWER_S:.0f} s"


def is_full(error: OSError) -> bool:
    """Whether a disk is full, or the user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """A file under a path of this machine: itself, or a copy for the time of the context. OSError where it is missing."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(read_bytes(path))
        yield copy


_LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems


def named_file(listing: Path, name: Any) -> Path:
    """The file that a listing names; UserError unless it lies in the listing's own folder, or below."""
    printable = isinstance(name, str) and name.isprintable()  # no zero bytes, no lone surrogates
    parts = name.split("/") if printable else [""]
    if {"", ".", ".."} & set(parts) or "://" in name or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise UserError(f"{listing}: names {name!r}, which is no file beside it")
    return listing.parent / name


def ray_storage(folder: Path) -> dict[str, Any]:
    """Where Ray Train and Tune keep what they write: arguments of their RunConfig, so that they go the same way as we do."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # a policy that acts needs no pyarrow

    remote: Any = folder
    return {"storage_path": remote.path, "storage_filesystem": PyFileSystem(FSSpecHandler(remote.fs))}


def upload(file: Path, path: Path) -> None:
    """Copy a file of this machine into an object store."""
    remote: Any = path
    remote.fs.put_file(str(file), remote.path)


def read_bytes(path: Path) -> bytes:
    """The content of a file that another process may write anew meanwhile: all of one moment (UPath asks twice, and fails)."""
    if not is_remote(path):
        return path.read_bytes()
    remote: Any = path
    return remote.fs.cat_file(remote.path)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file; once it returned, the text is on disk or in the object store."""
    if is_remote(path):
        path.write_bytes((read_bytes(path) if path.exists() else b"") + text.encode())
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def file_lock(path: Path) -> FileLock:
    """A lock that goes with its process. Of a path in an object store it holds between this machine's processes alone."""
    if is_remote(path):
        return FileLock(Path(tempfile.gettempdir()) / f"drcorl-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
