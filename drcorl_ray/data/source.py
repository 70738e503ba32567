"""The source of a task's transitions: the user's file, the built-in generator, or DSRL's download."""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.config import DataConfig, RunConfig
from drcorl_ray.data.download import dataset_folder, dsrl_mirrors, find_dataset
from drcorl_ray.data.dsrl import write_dataset
from drcorl_ray.data.store import store_for
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import local_path, reachable, storage_path
from drcorl_ray.tasks.envs.point_circle_data import generate_dataset
from drcorl_ray.tasks.registry import Task, get_task


def task_store(task_name: str, data: DataConfig, run: RunConfig) -> Path:
    """Return the Parquet store of a task's dataset under run.storage; make it if it does not exist."""
    task = get_task(task_name)
    root = reachable(run.storage_folder)
    file = _dataset_file(task, data.dataset_of(task.name), root, run.seed)
    return store_for(file, root / "stores", task.name, data.filters)


def _dataset_file(task: Task, named: str | None, root: Path, seed: int) -> Path:
    if named is not None:
        return reachable(storage_path(named).absolute())
    if task.name == "PointCircle":
        folder = dataset_folder() if local_path(root) is None else root / "datasets"
        path = folder / f"PointCircle-{seed}.hdf5"
        if not path.exists():
            write_dataset(path, generate_dataset(seed))
        return path
    if task.dataset_file is None:
        raise UserError(f"{task.name}: no dataset is known for this task; set data.dataset=FILE.hdf5")
    return find_dataset(task.dataset_file, dsrl_mirrors(task.dataset_file))
