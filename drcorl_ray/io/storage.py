"""Where runs, stores and pretrained weights are kept: folders of this machine, or an object store by URI (s3://…, gs://…).

A path in an object store is a `upath.UPath` over fsspec, which behaves like a `pathlib.Path`; credentials and endpoints are
the provider's own (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`). What differs between the two is behind `Storage`: files in an
object store appear complete or not at all, and can be neither appended to nor locked. How long a store may be unreachable is
up to its driver (`distributed.cluster`).

filelock and upath are imported when they are needed: a process that only loads a policy file has neither.
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
    """Seconds between two looks at a file that another process writes."""

    def read(self, path: Path) -> bytes:
        """Read the whole file in one request, so that a concurrent rewrite cannot mix old and new content."""
        ...

    def write(self, path: Path, content: bytes) -> None:
        """Write a file so that it appears complete or not at all; folders are made."""
        ...

    def append(self, path: Path, text: str) -> None:
        """Add text to the end of a file; when the call returns, the text is stored durably."""
        ...

    def source(self, path: Path) -> Path | BinaryIO:
        """Return what a library can read the file from: its path, or its content as a file object."""
        ...

    def local_file(self, path: Path) -> AbstractContextManager[Path]:
        """Yield a path of this machine: the file itself, or a copy that lives as long as the context."""
        ...

    def new_folder(self, path: Path, last: str, keep: Callable[[], bool]) -> AbstractContextManager[Path]:
        """Yield an empty folder of this machine whose files appear under `path` when the context ends without an error.

        last: the file that makes the folder complete; it is stored last. keep: asked when `path` exists already; true keeps
        that folder, false replaces it.
        """
        ...

    def working_copy(self, path: Path) -> WorkingCopy:
        """Return a copy of the file that a library can change in place on this machine; `save` stores its changes."""
        ...

    def lock(self, path: Path) -> FileLock:
        """Return a lock that the operating system releases when its process ends."""
        ...


class WorkingCopy(Protocol):
    """A file of this machine that a library changes in place."""

    file: Path

    def save(self) -> None:
        """Store the file's present content where it belongs."""
        ...


def storage_of(path: Path) -> Storage:
    """Return the storage that a path lies in."""
    return _DISK if isinstance(path, Path) else _OBJECT_STORE


def local_path(path: Path) -> Path | None:
    """Return the path itself where it is on this machine's disks, None where it is in an object store."""
    return path if isinstance(path, Path) else None


def storage_path(name: str) -> Path:
    """The path that a setting names; UserError where the driver of its protocol is missing or refuses it."""
    protocol, separator, _ = name.partition("://")
    if not separator:
        return Path(name).expanduser()
    from upath import UPath

    try:
        path = UPath(name, use_listings_cache=False)  # a kept listing would hide what other machines write
        path.fs  # noqa: B018 (its driver is imported here)
    except ImportError as error:
        raise UserError(f"{name}: {error}; for s3 and gs: uv sync --extra s3, --extra gcs") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {protocol}:// cannot be opened ({error})") from error
    return cast(Path, path)


def reachable(path: Path) -> Path:
    """Return the path; UserError where its object store does not answer or refuses access, so that no work is wasted."""
    if local_path(path) is None and (reason := _refusal(path)) is not None:
        raise UserError(f"{path}: cannot be reached ({reason}); check its address and your credentials")
    return path


def _refusal(path: Path) -> str | None:
    """Why an object store cannot be used, asked with a short time limit: later its driver retries for minutes."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            path.exists()
            answers.append(None)
        except Exception as error:  # the drivers raise kinds of their own, which are no OSErrors
            answers.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return answers[0] if answers else f"no answer within {_ANSWER_S:.0f} s"


def is_full(error: OSError) -> bool:
    """Whether a disk, or the user's quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def named_file(listing: Path, name: Any) -> Path:
    """The file that a listing names; UserError unless it lies in the listing's own folder, or below."""
    printable = isinstance(name, str) and name.isprintable()  # no zero bytes, no lone surrogates
    parts = name.split("/") if printable else [""]
    if {"", ".", ".."} & set(parts) or "://" in name or max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise UserError(f"{listing}: names {name!r}, which is no file beside it")
    return listing.parent / name


class _Disk:
    """Folders of this machine, or ones that it mounts."""

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
        """A hidden sibling, renamed at the end; leftovers of killed processes of this machine are removed first."""
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
        """Nothing to do: the file was changed where it belongs."""


class _ObjectStore:
    """Paths of fsspec. A lock holds between the processes of this machine only."""

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
        """A temporary folder, uploaded at the end; an existing one is overwritten."""
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
    """A working copy in a temporary folder, which is removed with this object; `save` uploads it when it has grown."""

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
    """Delete hidden folders of this machine's processes that are gone (or were earlier ones with this process's id)."""
    prefix = f".{folder.name}.{socket.gethostname()}."
    for leftover in folder.parent.glob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).partition(".")[0]
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(leftover, ignore_errors=True)


def _rename(temporary: Path, folder: Path, keep: Callable[[], bool]) -> None:
    try:
        temporary.rename(folder)
    except OSError:  # it exists
        if keep():
            return
        replaced = _hidden(folder, "old")
        folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)


_DISK, _OBJECT_STORE = _Disk(), _ObjectStore()
