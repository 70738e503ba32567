"""Every DSRL task by its name, the built-in PointCircle, and the one call that adds a user's own environment.

Names are DSRL's short ones (`HalfCheetahVelocity`, `PointGoal1`, `AntCircle`, `easysparse`) or its environment ids.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.dsrl_table import _DSRL, _PATTERNS, Suite


@dataclass(frozen=True)
class Task:
    """One environment and what DSRL knows of its data.

    dataset_file: DSRL's file name, None where DSRL has none. environment_id: DSRL's id; gymnasium's for a user's task.
    episode_length: steps. return_*, cost_*: extreme episode returns and costs of the reference data, None if unknown.
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
        """Whether episodes are cheap to simulate: a third of a second of one core at most, where others take up to 3 s.

        By suite, after the steps per second measured in docs/tasks.md.
        A user's environment counts as dear, since nothing is known of it.
        """
        return self.suite in ("builtin", "velocity", "bullet")

    @property
    def environments_per_process(self) -> int | None:
        """How many environments one process can hold; None where nothing but memory bounds it."""
        return 1 if self.suite == "metadrive" else None


def get_task(name: str) -> Task:
    """The task of that name or environment id; UserError naming the nearest valid one."""
    task = _find(name)
    if task is not None:
        return task
    near = difflib.get_close_matches(name, [*_TASKS, *(task.environment_id for task in _TASKS.values())], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(_TASKS)}"
    raise UserError(f"unknown task {name!r}; {hint}")


def all_tasks() -> list[Task]:
    """PointCircle, DSRL's 38 tasks, and those registered in this process."""
    return list(_TASKS.values())


def canonical_name(name: str) -> str:
    """A task's own name for its name or environment id; a name that is not known comes back as it is."""
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
    """Make a user's own gymnasium environment a task under `name`, and return it.

    The environment has a flat observation box, an action box (rescaled to [-1, 1] for policies) and the step's cost ≥ 0
    in `info["cost"]`. Write `environment_id` as "my_module:MyEnv-v0": gymnasium then imports `my_module` wherever the
    environment is made, in rollout actors too. UserError where the name or id is taken, or a value is not usable.
    """
    task = Task(name, "gymnasium", None, environment_id, episode_length, return_min, return_max, cost_min, cost_max)
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise UserError(f"register_task({name!r}): a name of letters, digits, '_', '-' and '.' expected; it names files")
    if not environment_id or episode_length < 1:
        raise UserError(f"register_task({name!r}): give a name, a gymnasium id and an episode length of at least 1 step")
    taken = next((other for other in _TASKS.values() if {name, environment_id} & {other.name, other.environment_id}), task)
    if taken != task:
        raise UserError(
            f"register_task({name!r}): {taken.name!r} ({taken.environment_id}) is already a task; choose another name"
        )
    _TASKS[name] = task
    return task


# return and cost extremes of envs.point_circle_data.generate_dataset(seed=0)
_POINT_CIRCLE = Task("PointCircle", "builtin", None, "PointCircle", 200, 11.9093, 196.2621, 0.0, 144.0)

_TASKS: dict[str, Task] = {_POINT_CIRCLE.name: _POINT_CIRCLE} | {
    name: Task(name, suite, _PATTERNS[suite][0].format(name, stem), _PATTERNS[suite][1].format(name), length, *extremes)
    for suite, rows in _DSRL.items()
    for name, (length, stem, *extremes) in rows.items()
}
