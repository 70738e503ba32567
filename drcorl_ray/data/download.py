"""Find a DSRL dataset file on this machine, or download it.

Downloads try several mirrors, can be resumed, and are verified. A file exists under its name only if it is complete.
"""

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

TIMEOUT_S = (3.0, 30.0)  # to connect; between received bytes
CHUNK_BYTES = 1 << 16
HUB_DATASET = "YYY-45/DSRL"
OLD_ADDRESS = "http://data.offline-saferl.org/download/"


def dsrl_mirrors(file_name: str) -> list[str]:
    """Return the addresses of a DSRL file, best first: the copy on the Hugging Face hub, then DSRL's own server."""
    from huggingface_hub import hf_hub_url

    return [hf_hub_url(HUB_DATASET, file_name, repo_type="dataset"), OLD_ADDRESS + file_name]


def dataset_folder() -> Path:
    """Return the folder that DSRL itself uses: $DSRL_DATASET_DIR, or ~/.dsrl/datasets."""
    return Path(os.environ.get("DSRL_DATASET_DIR") or "~/.dsrl/datasets").expanduser()


def find_dataset(file_name: str, mirrors: Sequence[str], sha256: str | None = None, folder: Path | None = None) -> Path:
    """Return the path of a dataset file in `folder` (default: `dataset_folder()`); download it if it is missing.

    The mirrors are tried in order. A download resumes from FILE.part. It is renamed to FILE only if it is an HDF5 file with
    checksum `sha256` or, if none is given, the checksum that the mirror announces (the hub announces one). Raise UserError if
    the name is not a plain file name, the folder cannot be written, or no mirror serves the file.
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
    why = "; ".join(reasons) or "no download address is known"
    raise UserError(f"{file_name} cannot be downloaded ({why}); put the file into {folder}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _download(url: str, part: Path, sha256: str | None) -> str | None:
    """Complete `part` from one mirror and return None, or delete it and return why its content is unusable."""
    retry = Retry(total=2, connect=0, read=0, status_forcelist=[429, 500, 502, 503, 504], backoff_factor=0.3)
    reason = None
    with requests.Session() as session, download_bars() as progress:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        task = progress.add_task(part.stem, total=None)
        for fresh in (not part.exists(), True):  # an old part may belong to another file: start over once
            announced = _transfer_with_retries(session, url, part, progress, task)
            reason = _flaw(part, sha256 or announced)
            if reason is None:
                break
            part.unlink()
            if fresh:
                break
    return reason


def _flaw(part: Path, sha256: str | None) -> str | None:
    if sha256 is not None and (actual := file_sha256(part)) != sha256:
        return f"served a file of sha256 {actual}, expected {sha256}"
    return None if h5py.is_hdf5(part) else "served something that is not an HDF5 file"


def _transfer_with_retries(session: requests.Session, url: str, part: Path, progress: Progress, task: TaskID) -> str | None:
    """Transfer the file and return the announced checksum, if any; resume a broken transfer while every attempt adds bytes."""
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
    """Request the bytes that `part` lacks and return the announced checksum, if any.

    A server without range support sends the whole file again.
    """
    start = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") != f"bytes */{start}":
                part.unlink()  # longer than the file, so it belongs to another file
                return _transfer(session, url, part, progress, task)
            return _announced(response)
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        progress.update(task, completed=start, total=start + int(length) if length else None)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))
        return _announced(response)


def _announced(response: requests.Response) -> str | None:
    """Return the sha256 that the hub announces in a header of the response or of its redirects."""
    tags = (answer.headers.get("X-Linked-ETag", "").strip('"') for answer in (*response.history, response))
    return next((tag for tag in tags if re.fullmatch("[0-9a-f]{64}", tag)), None)
