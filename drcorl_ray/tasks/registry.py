"""The task registry: every DSRL task, the built-in PointCircle, and tasks that a user registers.

A task is found by DSRL's short name (`HalfCheetahVelocity`, `PointGoal1`, `AntCircle`, `easysparse`) or its environment id.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.dsrl_table import DSRL_TASKS, NAME_PATTERNS, Suite


@dataclass(frozen=True)
class Task:
    """An environment and the reference values of its DSRL dataset.

    dataset_file: DSRL's file name, or None if DSRL has no data for the task. environment_id: DSRL's id, or the gymnasium id
    of a user's task. episode_length: in steps. return_*, cost_*: smallest and largest episode return and episode cost of the
    reference data, None if unknown.
    """

    name: str
    suite: Suite
    dataset_file: str | None
    environment_id: str
    episode_length: int
    return_min: float | None = None
    return_max: float | None = None
    cost_min: float | None = None
    cost_max: float | None = None

    @property
    def cheap(self) -> bool:
        """Whether an episode takes at most a third of a second on one core; episodes of the other tasks take up to 3 s.

        Decided by suite from the steps per second measured in docs/tasks.md. A user's environment counts as expensive,
        because its speed is unknown.
        """
        return self.suite in ("builtin", "velocity", "bullet")

    @property
    def environments_per_process(self) -> int | None:
        """The largest number of environments in one process, or None if only memory limits it."""
        return 1 if self.suite == "metadrive" else None


def get_task(name: str) -> Task:
    """Return the task with this name or environment id; the UserError for an unknown name suggests the nearest valid one."""
    task = _find(name)
    if task is not None:
        return task
    near = difflib.get_close_matches(name, [*_TASKS, *(task.environment_id for task in _TASKS.values())], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(_TASKS)}"
    raise UserError(f"unknown task {name!r}; {hint}")


def all_tasks() -> list[Task]:
    """Return PointCircle, DSRL's 38 tasks and the tasks registered in this process."""
    return list(_TASKS.values())


def canonical_name(name: str) -> str:
    """Return the task's name, given its name or environment id; return an unknown name unchanged."""
    task = _find(name)
    return name if task is None else task.name


def _find(name: str) -> Task | None:
    return _TASKS.get(name) or next((task for task in _TASKS.values() if task.environment_id == name), None)


def register_task(
    name: str,
    environment_id: str,
    episode_length: int,
    *,
    return_min: float | None = None,
    return_max: float | None = None,
    cost_min: float | None = None,
    cost_max: float | None = None,
) -> Task:
    """Register a user's gymnasium environment as a task called `name`, and return the task.

    The environment needs a flat observation box, a bounded action box (rescaled to [-1, 1] for policies) and each step's
    cost ≥ 0 in `info["cost"]`. Write `environment_id` as "my_module:MyEnv-v0": gymnasium then imports `my_module` in every
    process that makes the environment, rollout actors included. Raise UserError if the name or id is taken or a value is
    invalid.

    >>> import drcorl_ray
    >>> task = drcorl_ray.register_task("MyCar", "my_car:Car-v0", episode_length=200)
    >>> drcorl_ray.load_config(["task.name=MyCar", "data.dataset=logs.hdf5"]).tasks
    ['MyCar']
    """
    task = Task(name, "gymnasium", None, environment_id, episode_length, return_min, return_max, cost_min, cost_max)
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise UserError(f"register_task({name!r}): the name is used in file names; use letters, digits, '_', '-' and '.' only")
    if not environment_id or episode_length < 1:
        raise UserError(f"register_task({name!r}): give a name, a gymnasium id and an episode length of at least 1 step")
    taken = next((other for other in _TASKS.values() if {name, environment_id} & {other.name, other.environment_id}), task)
    if taken != task:
        raise UserError(
            f"register_task({name!r}): {taken.name!r} ({taken.environment_id}) is already a task; choose another name"
        )
    _TASKS[name] = task
    return task


# The last four numbers are the return and cost extremes of envs.point_circle_data.generate_dataset(seed=0).
_POINT_CIRCLE = Task("PointCircle", "builtin", None, "PointCircle", 200, 11.9093, 196.2621, 0.0, 144.0)

_TASKS: dict[str, Task] = {_POINT_CIRCLE.name: _POINT_CIRCLE} | {
    name: Task(name, suite, file_name.format(name, stem), environment_id.format(name), length, *extremes)
    for suite, (file_name, environment_id) in NAME_PATTERNS.items()
    for name, (length, stem, *extremes) in DSRL_TASKS[suite].items()
}
