"""Storage of runs, stores and pretrained weights: folders on this machine, or an object store by URI (s3://…, gs://…).

A path in an object store is a `upath.UPath` over fsspec, which behaves like a `pathlib.Path`. Credentials and endpoints are
the provider's (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`). The protocol `Storage` hides the differences: files in an object
store appear complete or not at all, and can be neither appended to nor locked. The store's driver determines how long the
store may be unreachable (`distributed.cluster`).

filelock and upath are imported when they are needed: a process that only loads a policy file imports neither.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from drcorl_ray.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock

_ANSWER_S = 30.0
_LONGEST_NAME = 255  # bytes of a file's name, on all usual file systems


class Storage(Protocol):
    """The operations that differ between a disk and an object store. Errors are OSError."""

    poll_s: float
    """Seconds between two checks of a file that another process writes."""

    def read(self, path: Path) -> bytes:
        """Read the whole file in one request, so that a concurrent rewrite cannot mix old and new content."""
        ...

    def write(self, path: Path, content: bytes) -> None:
        """Write a file so that it appears complete or not at all; missing folders are created."""
        ...

    def append(self, path: Path, text: str) -> None:
        """Add text to the end of a file; when the call returns, the text is stored durably."""
        ...

    def source(self, path: Path) -> Path | BinaryIO:
        """Return the file in a form that a library can read: its path, or its content as a file object."""
        ...

    def local_file(self, path: Path) -> AbstractContextManager[Path]:
        """Yield a path on this machine: the file itself, or a copy that exists only inside the context."""
        ...

    def new_folder(self, path: Path, last: str, keep: Callable[[], bool]) -> AbstractContextManager[Path]:
        """Yield an empty folder on this machine whose files appear under `path` when the context ends without an error.

        last: the file that marks the folder as complete; it is stored last. keep: called if `path` already exists; True keeps
        that folder, False replaces it.
        """
        ...

    def working_copy(self, path: Path) -> WorkingCopy:
        """Return a copy of the file that a library can modify in place on this machine; `save` stores the changes."""
        ...

    def lock(self, path: Path) -> FileLock:
        """Return a file lock, which the operating system releases when the process that holds it ends."""
        ...


class WorkingCopy(Protocol):
    """A file on this machine that a library modifies in place."""

    file: Path

    def save(self) -> None:
        """Store the file's current content at its path in the storage."""
        ...


def storage_of(path: Path) -> Storage:
    """Return the storage that holds a path."""
    return _DISK if isinstance(path, Path) else _OBJECT_STORE


def local_path(path: Path) -> Path | None:
    """Return the path itself if it is on this machine's disks, None if it is in an object store."""
    return path if isinstance(path, Path) else None


def storage_path(name: str) -> Path:
    """Return the path that a setting names; UserError if the driver of its protocol is missing or refuses it."""
    protocol, separator, _ = name.partition("://")
    if not separator:
        return Path(name).expanduser()
    from upath import UPath

    try:
        path = UPath(name, use_listings_cache=False)  # a cached listing would hide what other machines write
        path.fs  # noqa: B018 (this imports the driver)
    except ImportError as error:
        raise UserError(f"{name}: {error}; for s3 and gs: uv sync --extra s3, --extra gcs") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {protocol}:// cannot be opened ({error})") from error
    return cast(Path, path)


def reachable(path: Path) -> Path:
    """Return the path; UserError if its object store does not answer or refuses access, so that no work is wasted."""
    if local_path(path) is None and (reason := _refusal(path)) is not None:
        raise UserError(f"{path}: cannot be reached ({reason}); check its address and your credentials")
    return path


def _refusal(path: Path) -> str | None:
    """Return why an object store cannot be used, None if it can. The time limit is short: its driver retries for minutes."""
    answers: list[str | None] = []

    def check() -> None:
        try:
            path.exists()
            answers.append(None)
        except Exception as error:  # drivers raise their own exceptions, which are no OSErrors
            answers.append(str(error))

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return answers[0] if answers else f"no answer within {_ANSWER_S:.0f} s"


def is_full(error: OSError) -> bool:
    """Whether a disk, or the user's quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def named_file(listing: Path, name: Any) -> Path:
    """Return the file that a listing names; UserError unless it is in the listing's folder or below."""
    printable = isinstance(name, str) and name.isprintable()  # no zero bytes, no lone surrogates
    parts = name.split("/") if printable else [""]
    if {"", ".", ".."} & set(parts) or "://" in name or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise UserError(f"{listing}: names {name!r}, which is no file beside it")
    return listing.parent / name


class _Disk:
    """Folders on this machine's disks, or folders that it mounts."""

    poll_s = 0.5

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def append(self, path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def source(self, path: Path) -> Path:
        return path

    @contextmanager
    def local_file(self, path: Path) -> Iterator[Path]:
        yield path

    @contextmanager
    def new_folder(self, path: Path, last: str, keep: Callable[[], bool]) -> Iterator[Path]:
        """Yield a hidden sibling and rename it at the end; leftovers of this machine's killed processes are removed first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = _hidden(path, "new")
        temporary.mkdir()
        try:
            yield temporary
            _rename(temporary, path, keep)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def working_copy(self, path: Path) -> WorkingCopy:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _InPlace(path)

    def lock(self, path: Path) -> FileLock:
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


class _InPlace:
    """A working copy that is the file itself."""

    def __init__(self, path: Path) -> None:
        self.file = path

    def save(self) -> None:
        """Do nothing: the file itself was modified."""


class _ObjectStore:
    """Paths of fsspec. A lock excludes only processes of this machine."""

    poll_s = 5.0

    def read(self, path: Path) -> bytes:
        remote: Any = path  # UPath.read_bytes makes two requests, and fails when the file changes between them
        return remote.fs.cat_file(remote.path)

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def append(self, path: Path, text: str) -> None:
        path.write_bytes((self.read(path) if path.exists() else b"") + text.encode())

    def source(self, path: Path) -> BinaryIO:
        return io.BytesIO(self.read(path))

    @contextmanager
    def local_file(self, path: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(self.read(path))
            yield copy

    @contextmanager
    def new_folder(self, path: Path, last: str, keep: Callable[[], bool]) -> Iterator[Path]:
        """Yield a temporary folder and upload it at the end; an existing folder is overwritten."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == last):
                _upload(file, path / file.name)

    def working_copy(self, path: Path) -> WorkingCopy:
        return _Mirror(path)

    def lock(self, path: Path) -> FileLock:
        from filelock import FileLock

        return FileLock(Path(tempfile.gettempdir()) / f"drcorl-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.lock")


class _Mirror:
    """A working copy in a temporary folder that is removed with this object; `save` uploads it if its size has changed."""

    def __init__(self, path: Path) -> None:
        self._path, self._saved_bytes = path, 0
        self._folder = tempfile.TemporaryDirectory(prefix="drcorl-")
        self.file = Path(self._folder.name) / path.name
        if path.exists():
            self.file.write_bytes(path.read_bytes())

    def save(self) -> None:
        if (size := self.file.stat().st_size) != self._saved_bytes:
            _upload(self.file, self._path)
            self._saved_bytes = size


def _upload(file: Path, path: Path) -> None:
    remote: Any = path
    remote.fs.put_file(str(file), remote.path)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.{kind}")


def _remove_leftovers(folder: Path) -> None:
    """Delete hidden folders of this machine's ended processes, including earlier ones that had this process's id."""
    prefix = f".{folder.name}.{socket.gethostname()}."
    for leftover in folder.parent.glob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).partition(".")[0]
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(leftover, ignore_errors=True)


def _rename(temporary: Path, folder: Path, keep: Callable[[], bool]) -> None:
    try:
        temporary.rename(folder)
    except OSError:  # the folder exists
        if keep():
            return
        replaced = _hidden(folder, "old")
        folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)


_DISK, _OBJECT_STORE = _Disk(), _ObjectStore()
