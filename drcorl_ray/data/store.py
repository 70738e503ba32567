"""The store: a dataset as a directory of Parquet shards and a manifest. The directory appears only when it is complete.

Vector columns are `fixed_size_binary` (raw little-endian float32). They have no repetition levels, so they read several times
faster than lists, and their buffer is the tensor. The manifest contains checksums of itself and of every shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from drcorl_ray.config.filters import Filters
from drcorl_ray.data.dsrl import Dataset, filter_dataset, read_dataset
from drcorl_ray.data.episodes import discounted_rates
from drcorl_ray.data.schema import RATE_DISCOUNT, SCHEMA_VERSION, STORED
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import file_sha256, local_file, read_json, write_bytes
from drcorl_ray.io.storage import storage_of, storage_path

MANIFEST = "manifest.json"
OBSERVATION_STD_FLOOR = 1e-3
_FIX = "delete the store's folder and run again"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Record):
    """The file and the filters that a store was made from."""

    file_name: str
    sha256: str
    filters: Filters = Filters()


class Shard(_Record):
    """One Parquet file of the store."""

    file_name: str = Field(pattern=r"^[\w-]+\.parquet$")
    rows: int
    size_bytes: int
    sha256: str


class Manifest(_Record):
    """A store's description: source, sizes, statistics, episodes and shards.

    observation_mean, observation_std: [S]; 1e-3 is added to the standard deviation. mean_cost: per step. min_*, max_*:
    smallest and largest episode return and episode cost. episode_*: one entry per episode, in row order; returns and costs
    are undiscounted sums. rate_discount: the discount of the *_rates columns.
    """

    schema_version: int = SCHEMA_VERSION
    task: str
    source: Source
    rows: int = Field(ge=1)
    observation_size: int = Field(ge=1)
    action_size: int = Field(ge=1)
    rate_discount: float
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    mean_cost: float
    min_return: float
    max_return: float
    min_cost: float
    max_cost: float
    episode_returns: tuple[float, ...]
    episode_costs: tuple[float, ...]
    episode_lengths: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def episodes(self) -> int:
        return len(self.episode_lengths)


def store_for(path: Path, root: Path, task: str, filters: Filters | None = None) -> Path:
    """Return the folder of a DSRL file's store below `root`; convert the file unless an intact store exists.

    The folder's name is a hash of the source's checksum, the schema version, the task and the filters.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such data file; set data.dataset or put the file there")
    with local_file(path) as file:
        source = Source(file_name=path.name, sha256=file_sha256(file), filters=filters or Filters())
        identity = json.dumps([SCHEMA_VERSION, task, source.sha256, source.filters.model_dump(mode="json")])
        folder = root / f"{task}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        try:
            verify(folder)
        except UserError:
            convert(filter_dataset(read_dataset(file), task, source.filters), folder, task=task, source=source)
    return folder


def convert(dataset: Dataset, folder: Path, *, task: str, source: Source, rows_per_shard: int = 131072) -> Manifest:
    """Write a dataset as a store; keep an existing intact store with the same content, replace any other.

    The store appears complete or not at all: without its manifest, which is stored last, there is no store.
    """
    with storage_of(folder).new_folder(folder, MANIFEST, lambda: _is_sound(folder, manifest)) as temporary:
        manifest = _write(dataset, temporary, task, source, rows_per_shard)
    return manifest


def _is_sound(folder: Path, manifest: Manifest) -> bool:
    """Whether an intact store with that manifest exists: another process may have been first with the same content."""
    try:
        return verify(folder) == manifest
    except UserError:
        return False


def _write(dataset: Dataset, folder: Path, task: str, source: Source, rows_per_shard: int) -> Manifest:
    table = _table(dataset)
    shards: list[Shard] = []
    for first in range(0, dataset.rows, rows_per_shard):
        path, part = folder / f"rows-{first:012d}.parquet", table.slice(first, rows_per_shard)
        # Dictionaries and compression do not shrink raw floats; plain pages are the fastest to read.
        pq.write_table(part, path, compression="none", use_dictionary=False, write_statistics=False)
        size = path.stat().st_size
        shards.append(Shard(file_name=path.name, rows=len(part), size_bytes=size, sha256=file_sha256(path)))
    manifest = _describe(dataset, task, source, shards)
    write_bytes(folder / MANIFEST, _encode(manifest))
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read a store's manifest; UserError unless its bytes are those that were written and every shard has its full size."""
    path = folder / MANIFEST
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: not a store of schema version {SCHEMA_VERSION}; {_FIX}")
    damaged = UserError(f"{path}: checksum mismatch, the manifest was altered or damaged; {_FIX}")
    content.pop("checksum", None)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise damaged from error
    if _encode(manifest) != path.read_bytes():
        raise damaged
    for shard in manifest.shards:
        shard_path = folder / shard.file_name
        if not shard_path.is_file() or shard_path.stat().st_size != shard.size_bytes:
            raise UserError(f"{shard_path}: the shard is missing or cut short; {_FIX}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read the manifest as `load_manifest` does, and check every shard's checksum; the UserError names the damaged file."""
    manifest = load_manifest(folder)
    for shard in manifest.shards:
        path = folder / shard.file_name
        if file_sha256(path) != shard.sha256:
            raise UserError(f"{path}: checksum mismatch, the shard was altered or damaged; {_FIX}")
    return manifest


def read_store(folder: Path, names: Sequence[str] = tuple(STORED), rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Read columns in row order with plain pyarrow, one shard at a time.

    rows: ascending row numbers to read; None reads all rows.
    """
    manifest = load_manifest(folder)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    first = 0
    for shard in manifest.shards:
        last = first + shard.rows
        index = slice(None) if rows is None else rows[(first <= rows) & (rows < last)] - first
        for name, (values, shape) in primitives(read_shard(folder / shard.file_name, names)).items():
            parts[name].append(values.to_numpy().reshape(shape)[index].astype(STORED[name].dtype, copy=False))
        first = last
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def read_shard(path: Path, names: Sequence[str] = tuple(STORED)) -> pa.Table:
    """Read one Parquet file of a store; UserError if it cannot be read."""
    try:
        return pq.read_table(storage_of(path).source(path), columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); {_FIX}") from error


def read_block(batch: Any) -> Any:
    """Read the shard whose path is the only item of a Ray Data batch."""
    [path] = batch["item"]
    return read_shard(storage_path(path))


def primitives(table: pa.Table) -> dict[str, tuple[pa.Array, tuple[int, ...]]]:
    """Return each column as a flat primitive array and its shape; numbers are not copied, flags become uint8."""
    result: dict[str, tuple[pa.Array, tuple[int, ...]]] = {}
    for name in table.column_names:
        column = table.column(name)
        array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        if pa.types.is_fixed_size_binary(array.type):
            width = array.type.byte_width // 4
            buffers, offset = [None, array.buffers()[1]], array.offset * width
            flat = pa.Array.from_buffers(pa.float32(), len(array) * width, buffers, offset=offset)
            result[name] = flat, (len(array), width)
        else:
            result[name] = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array, (len(array),)
    return result


def _table(dataset: Dataset) -> pa.Table:
    episodes, number = dataset.episodes, dataset.episodes.of_rows()
    derived = {
        "rows": np.arange(dataset.rows),
        "reward_rates": discounted_rates(dataset.columns["rewards"], episodes),
        "cost_rates": discounted_rates(dataset.columns["costs"], episodes),
        "episode_returns": episodes.returns[number],
        "episode_costs": episodes.costs[number],
    }
    values = {**dataset.columns, **derived}
    arrays = {
        name: _vectors(values[name]) if column.width else pa.array(values[name].astype(column.dtype))
        for name, column in STORED.items()
    }
    return pa.table(arrays)


def _vectors(array: np.ndarray) -> pa.Array:
    array = np.ascontiguousarray(array, dtype="<f4")
    return pa.Array.from_buffers(pa.binary(4 * array.shape[1]), len(array), [None, pa.py_buffer(array)])


def _describe(dataset: Dataset, task: str, source: Source, shards: list[Shard]) -> Manifest:
    observations, episodes = dataset.columns["observations"], dataset.episodes
    return Manifest(
        task=task,
        source=source,
        rows=dataset.rows,
        observation_size=observations.shape[1],
        action_size=dataset.columns["actions"].shape[1],
        rate_discount=RATE_DISCOUNT,
        observation_mean=tuple(observations.mean(axis=0, dtype=np.float64).tolist()),
        observation_std=tuple((observations.std(axis=0, dtype=np.float64) + OBSERVATION_STD_FLOOR).tolist()),
        mean_cost=float(dataset.columns["costs"].mean(dtype=np.float64)),
        min_return=float(episodes.returns.min()),
        max_return=float(episodes.returns.max()),
        min_cost=float(episodes.costs.min()),
        max_cost=float(episodes.costs.max()),
        episode_returns=tuple(episodes.returns.tolist()),
        episode_costs=tuple(episodes.costs.tolist()),
        episode_lengths=tuple(episodes.lengths.tolist()),
        shards=tuple(shards),
    )


def _encode(manifest: Manifest) -> bytes:
    """Encode a manifest as JSON; its first entry is the checksum of the others."""
    content = manifest.model_dump(mode="json")
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({"checksum": checksum, **content}) + "\n").encode()
