"""HDF5 files in DSRL's layout: reading, validation, DSRL's filters, and writing."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np

from drcorl_ray.config.filters import Filters
from drcorl_ray.data.episodes import Episodes
from drcorl_ray.data.schema import TRANSITION
from drcorl_ray.errors import UserError

ACTION_TOLERANCE = 1e-4
_MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Dataset:
    """Validated transitions in episode order; `columns` has one array for each name in `schema.TRANSITION`."""

    columns: dict[str, np.ndarray]
    episodes: Episodes

    @property
    def rows(self) -> int:
        return len(self.columns["rewards"])


def read_dataset(path: Path) -> Dataset:
    """Read and validate an HDF5 file in DSRL's layout.

    Floats become float32 and flags bool, whatever their stored type. If the file ends within an episode, its last row becomes
    a timeout. Raise UserError with the file, key and row for anything that is not a usable dataset.
    """
    columns = {key: _as_column(path, key, array) for key, array in _read_arrays(path).items()}
    _check_columns(path, columns)
    return make_dataset(columns)


def make_dataset(columns: Mapping[str, np.ndarray]) -> Dataset:
    """Make a dataset of validated columns: clip rounding errors of the actions, end the last episode and find the episodes."""
    columns = {key: np.ascontiguousarray(columns[key], dtype=column.dtype) for key, column in TRANSITION.items()}
    columns["actions"] = columns["actions"].clip(-1.0, 1.0)
    columns["timeouts"] = columns["timeouts"].copy()
    columns["timeouts"][-1] |= not columns["terminals"][-1]
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    starts = np.concatenate([[0], ends[:-1] + 1])
    episodes = Episodes(
        starts=starts,
        lengths=ends + 1 - starts,
        returns=np.add.reduceat(columns["rewards"].astype(np.float64), starts),
        costs=np.add.reduceat(columns["costs"].astype(np.float64), starts),
        terminated=columns["terminals"][ends],
    )
    return Dataset(columns, episodes)


def write_dataset(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write transition columns as a gzip-compressed HDF5 file in DSRL's layout; the file appears only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            for key, column in TRANSITION.items():
                file.create_dataset(key, data=np.asarray(columns[key], dtype=column.dtype), compression="gzip")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def filter_dataset(dataset: Dataset, task: str, filters: Filters) -> Dataset:
    """Apply `pre_process_data` of the `dsrl` package, seeded, with the task's entries in dsrl's tables.

    A task that is not in the tables uses the extremes of its own data and the function's default grid. Raise UserError if
    dsrl is not installed or the filters cannot be applied to these data.
    """
    if filters == Filters(seed=filters.seed):
        return dataset
    if filters.target_cost is None and (filters.outliers_percent is not None or filters.epsilon is not None):
        raise UserError("data filters: outliers_percent and epsilon need a target_cost; set it")
    os.environ.setdefault("DSRL_SUPPRESS_IMPORT_ERROR", "1")
    try:
        from dsrl import infos, offline_env  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"data filters need the dsrl package ({error}); run: uv sync --group sims") from error
    stand_in = SimpleNamespace(
        rng=np.random.Generator(np.random.PCG64(filters.seed)),
        target_cost=filters.target_cost,
        max_episode_cost=infos.MAX_EPISODE_COST.get(task, dataset.episodes.costs.max()),
        max_episode_reward=infos.MAX_EPISODE_REWARD.get(task, dataset.episodes.returns.max()),
    )
    settings = filters.model_dump(exclude={"seed", "target_cost"})
    pre_process: Any = offline_env.OfflineEnv.pre_process_data
    grid = _density_grid(infos.DENSITY_CFG, task, filters.density)
    with _contained(filters.seed):
        try:
            filtered = pre_process(stand_in, dict(dataset.columns), **settings, **grid)
        except (ValueError, AssertionError, KeyError, IndexError) as error:
            raise UserError(
                f"data.filters {filters} cannot be applied to this {task} dataset ({error}); change data.filters"
            ) from error
    return make_dataset(filtered)


def _density_grid(table: Mapping[str, Mapping[str, int]], task: str, density: float) -> dict[str, int]:
    """Return DSRL's grid for a task and a density; the table's keys look like OfflineCarCircle-v0_density0.5."""
    for key, grid in table.items():
        name, _, value = key.rpartition("_density")
        name = name.removeprefix("Offline").removeprefix("Metadrive-").rpartition("-v")[0]
        if name.removesuffix("Gymnasium") == task and float(value) == density:
            return dict(grid)
    return {}


@contextlib.contextmanager
def _contained(seed: int) -> Iterator[None]:
    """Contain dsrl's side effects: it prints, saves a figure in the working directory and uses the global `random`."""
    import matplotlib.pyplot as plt

    state = random.getstate()
    random.seed(seed)
    open_before = set(plt.get_fignums())
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()),
            np.errstate(all="ignore"),
        ):
            yield
    finally:
        random.setstate(state)
        for number in set(plt.get_fignums()) - open_before:
            plt.close(number)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: no such data file; set data.dataset or put the file there")
    try:
        with h5py.File(path, "r") as file:
            arrays: dict[str, np.ndarray] = {}
            for key in TRANSITION:
                link = file.get(key, getlink=True)
                item: Any = file.get(key) if isinstance(link, h5py.HardLink) else None
                if not isinstance(item, h5py.Dataset):
                    raise UserError(f"{path}: key '{key}' is missing; a DSRL file has {', '.join(TRANSITION)}")
                if item.is_virtual or item.external:
                    raise UserError(f"{path}: key '{key}' points to another file; a data file must contain its own numbers")
                if item.dtype.kind not in "fiub":
                    raise UserError(f"{path}: key '{key}' does not hold an array of numbers")
                if item.size * item.dtype.itemsize > _MEMORY_BYTES:
                    raise UserError(f"{path}: key '{key}' of shape {item.shape} is larger than this machine's memory")
                arrays[key] = item[()]
            return arrays
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable HDF5 file, or a truncated one ({reason}); download it again") from error


def _as_column(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """Return a finite array in the schema's rank and dtype; [N, 1] columns are flattened as in DSRL's loader."""
    column = TRANSITION[key]
    rank = 2 if column.width else 1
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise UserError(f"{path}: key '{key}' does not hold an array of numbers")
    if rank == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != rank or (rank == 2 and array.shape[1] == 0):
        expected = "[rows, width]" if rank == 2 else "[rows]"
        raise UserError(f"{path}: key '{key}' has shape {list(array.shape)}, expected {expected}")
    with np.errstate(over="ignore"):
        values = array.astype(column.dtype if column.dtype.kind == "f" else array.dtype)
    finite = np.isfinite(values)
    if not finite.all():
        row = np.argwhere(~finite)[0][0]
        raise UserError(f"{path}: key '{key}', row {row} is not a finite float32 number; remove or fix that row")
    return values.astype(column.dtype)


def _check_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Check that the arrays agree in length and width, and the ranges of actions and costs."""
    rows = len(columns["observations"])
    for key, values in columns.items():
        if len(values) != rows:
            raise UserError(f"{path}: key '{key}' has {len(values)} rows, 'observations' has {rows}; they must agree")
    if rows == 0:
        raise UserError(f"{path}: the file has no rows")
    widths = columns["observations"].shape[1], columns["next_observations"].shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"{path}: key 'next_observations' has width {widths[1]}, 'observations' has {widths[0]}")
    outside = np.abs(columns["actions"]).max(axis=1) > 1.0 + ACTION_TOLERANCE
    if outside.any():
        row = np.flatnonzero(outside)[0]
        raise UserError(f"{path}: key 'actions', row {row} is outside [-1, 1]; rescale the actions")
    if (columns["costs"] < 0).any():
        row = np.flatnonzero(columns["costs"] < 0)[0]
        raise UserError(f"{path}: key 'costs', row {row} is negative; costs must be ≥ 0")
