"""Find a DSRL data file on this machine, or fetch it: resumable, from several mirrors, verified, complete or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import h5py
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from drcorl_ray.errors import UserError
from drcorl_ray.io.console import download_bars
from drcorl_ray.io.files import file_sha256

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TIMEOUT_S = (3.0, 30.0)  # to connect, between bytes
CHUNK_BYTES = 1 << 16
HUB_DATASET = "YYY-45/DSRL"
OLD_ADDRESS = "http://data.offline-saferl.org/download/"


def dsrl_mirrors(file_name: str) -> list[str]:
    """Addresses of one of DSRL's files, best first: the hub's copy, then DSRL's own server."""
    from huggingface_hub import hf_hub_url

    return [hf_hub_url(HUB_DATASET, file_name, repo_type="dataset"), OLD_ADDRESS + file_name]


def dataset_folder() -> Path:
    """DSRL's own choice: $DSRL_DATASET_DIR, or ~/.dsrl/datasets."""
    return Path(os.environ.get("DSRL_DATASET_DIR") or "~/.dsrl/datasets").expanduser()


def find_dataset(file_name: str, mirrors: Sequence[str], sha256: str | None = None, folder: Path | None = None) -> Path:
    """Path of a data file in `folder` (default: `dataset_folder()`), downloaded from `mirrors` in order when absent.

    A download goes on from what an earlier one left in FILE.part, and takes its name only when it is a whole HDF5 file
    with the given checksum, or else with the one that the mirror announces (the hub does). UserError where the name is not a
    plain file name, or no mirror serves the file.
    """
    if file_name in ("", ".", "..") or {PurePosixPath(file_name).name, PureWindowsPath(file_name).name} != {file_name}:
        raise UserError(f"data file name {file_name!r} must be a plain file name without folders; correct it")
    folder = folder or dataset_folder()
    path, part = folder / file_name, folder / f"{file_name}.part"
    if path.is_file():
        return path
    reasons: list[str] = []
    for url in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = _download(url, part, sha256)
            if reason is None:
                return part.replace(path)
        except requests.RequestException as error:
            reason = _one_line(error)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error}); set DSRL_DATASET_DIR to another folder") from error
        reasons.append(f"{url}: {reason}")
    why = "; ".join(reasons) or "no address of it is known"
    raise UserError(f"{file_name} cannot be downloaded ({why}); put the file into {folder}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _download(url: str, part: Path, sha256: str | None) -> str | None:
    """Complete `part` from one mirror; why its content cannot be used, if so. A part that proves bad is dropped."""
    retry = Retry(total=2, connect=0, read=0, status_forcelist=[429, 500, 502, 503, 504], backoff_factor=0.3)
    reason = None
    with requests.Session() as session, download_bars() as progress:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        task = progress.add_task(part.stem, total=None)
        for fresh in (not part.exists(), True):  # an old part may stem from another file: begin again once
            announced = _resume_while_it_moves(session, url, part, progress, task)
            reason = _flaw(part, sha256 or announced)
            if reason is None:
                break
            part.unlink()
            if fresh:
                break
    return reason


def _flaw(part: Path, sha256: str | None) -> str | None:
    if sha256 is not None and (found := file_sha256(part)) != sha256:
        return f"served a file of sha256 {found}, expected {sha256}"
    return None if h5py.is_hdf5(part) else "served something that is not an HDF5 file"


def _resume_while_it_moves(session: requests.Session, url: str, part: Path, progress: Progress, task: TaskID) -> str | None:
    """The announced checksum, if any. A broken transfer is taken up again as long as every try brings bytes."""
    while True:
        before = _size(part)
        try:
            return _transfer(session, url, part, progress, task)
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.Timeout):
            if _size(part) <= before:
                raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(session: requests.Session, url: str, part: Path, progress: Progress, task: TaskID) -> str | None:
    """One request for the bytes that `part` lacks; a server that knows no ranges sends all of them. The announced checksum."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()  # longer than the file: it belongs to something else
                return _transfer(session, url, part, progress, task)
            return _announced(response)
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        progress.update(task, completed=have, total=have + int(length) if length else None)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))
        return _announced(response)


def _announced(response: requests.Response) -> str | None:
    """The sha256 that the hub names on the way to a file."""
    tags = (answer.headers.get("X-Linked-ETag", "").strip('"') for answer in (*response.history, response))
    return next((tag for tag in tags if re.fullmatch("[0-9a-f]{64}", tag)), None)
