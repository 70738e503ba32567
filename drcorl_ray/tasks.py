"""Every DSRL task by its name, the built-in PointCircle, and the one call that adds a user's own environment.

Names are DSRL's short ones (`HalfCheetahVelocity`, `PointGoal1`, `AntCircle`, `easysparse`) or its environment ids.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from drcorl_ray.errors import UserError

Suite = Literal["velocity", "bullet", "safety_gymnasium", "metadrive", "builtin", "gymnasium"]


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


# Per suite: patterns of DSRL's file name and environment id; per task of dsrl.infos 0.1.0: episode length, end of the
# file name (highest cost-number of trajectories), return min, return max, cost min, cost max.
_PATTERNS: dict[Suite, tuple[str, str]] = {
    "velocity": ("Safety{}Gymnasium-v1-{}.hdf5", "Offline{}Gymnasium-v1"),
    "bullet": ("Safety{}-v0-{}.hdf5", "Offline{}-v0"),
    "safety_gymnasium": ("Safety{}Gymnasium-v0-{}.hdf5", "Offline{}Gymnasium-v0"),
    "metadrive": ("SafeMetaDrive-{}-v0-{}.hdf5", "OfflineMetadrive-{}-v0"),
}
_DSRL: dict[Suite, dict[str, tuple[int, str, float, float, float, float]]] = {
    "velocity": {
        "AntVelocity": (1000, "250-2249", 6.1519012451171875, 2976.276611328125, 0.0, 250.0),
        "HalfCheetahVelocity": (1000, "250-2495", 5.7509765625, 2806.93310546875, 0.0, 250.0),
        "HopperVelocity": (1000, "250-2240", 37.05154800415039, 1911.396728515625, 0.0, 250.0),
        "SwimmerVelocity": (1000, "200-1686", 0.07114458084106445, 238.95831298828125, 0.0, 200.0),
        "Walker2dVelocity": (1000, "300-2729", 18.668498992919922, 3418.223876953125, 0.0, 300.0),
    },
    "bullet": {
        "AntCircle": (500, "200-5728", 0.0177031010389328, 460.7091979980469, 0.0, 200.0),
        "AntRun": (200, "150-1816", 0.001767391717990563, 955.4818725585938, 0.0, 150.0),
        "BallCircle": (200, "80-886", 0.38312244415283203, 881.46337890625, 0.0, 80.0),
        "BallRun": (100, "80-940", 26.339754104614258, 1327.445556640625, 0.0, 80.0),
        "CarCircle": (300, "100-1450", 3.484419822692871, 534.3060913085938, 0.0, 100.0),
        "CarRun": (200, "40-651", 204.28726196289062, 574.6533203125, 0.0, 40.0),
        "DroneCircle": (300, "100-1923", 207.794189453125, 996.38916015625, 0.0, 100.0),
        "DroneRun": (200, "140-1990", 10.557029724121094, 682.8330078125, 0.0, 140.0),
    },
    "safety_gymnasium": {
        "CarButton1": (1000, "250-2656", 0.0028926206826067613, 44.420003345738984, 0.0, 250.0),
        "CarButton2": (1000, "300-3755", 0.001767391717990563, 41.99513815522894, 0.0, 300.0),
        "CarCircle1": (500, "250-1271", 8.037073135375977, 24.94155502319336, 0.0, 250.0),
        "CarCircle2": (500, "400-940", 5.113386154174805, 25.950098037719727, 0.0, 398.0),
        "CarGoal1": (1000, "120-1671", 0.012232819540852091, 39.907809198384705, 0.0, 120.0),
        "CarGoal2": (1000, "200-4105", 0.001032874531954775, 28.902897990056502, 0.0, 200.0),
        "CarPush1": (1000, "200-2871", 0.013700173533941762, 16.304467598905237, 0.0, 200.0),
        "CarPush2": (1000, "250-4407", 0.00029391133526335267, 15.141648491514314, 0.0, 250.0),
        "PointButton1": (1000, "200-2268", 0.008822109034937853, 41.19301568767707, 0.0, 200.0),
        "PointButton2": (1000, "250-3288", 0.014114166087574098, 42.8985953616709, 0.0, 250.0),
        "PointCircle1": (500, "200-1098", 20.067626953125, 61.72819519042969, 0.0, 200.0),
        "PointCircle2": (500, "300-895", 20.478347778320312, 54.02184295654297, 0.0, 299.0),
        "PointGoal1": (1000, "100-2022", 0.01196012764197707, 30.071114857340543, 0.0, 100.0),
        "PointGoal2": (1000, "200-3442", 0.002616959830266108, 27.717709787852737, 0.0, 200.0),
        "PointPush1": (1000, "150-2379", 0.0014001545292344209, 16.518654299293367, 0.0, 150.0),
        "PointPush2": (1000, "200-3242", 0.0012438183001730607, 14.691039145644403, 0.0, 200.0),
    },
    "metadrive": {
        "easysparse": (
            1000,
            "85-1000",
            20.094310760498047,
            425.8006286621094,
            0.00025356505648232996,
            82.42418670654297,
        ),
        "easymean": (1000, "85-1000", 22.142553329467773, 425.82440185546875, 0.0, 82.38601684570312),
        "easydense": (1000, "85-1000", 19.71139144897461, 425.81732177734375, 0.0, 80.36358642578125),
        "mediumsparse": (1000, "50-1000", 17.446578979492188, 269.80084228515625, 0.0, 46.46459197998047),
        "mediummean": (1000, "50-1000", 17.032529830932617, 269.8221435546875, 0.0, 46.46154022216797),
        "mediumdense": (1000, "50-1000", 15.102348327636719, 269.7813415527344, 0.0, 46.45858383178711),
        "hardsparse": (1000, "85-1000", 17.247974395751953, 486.80523681640625, 0.0, 85.010009765625),
        "hardmean": (1000, "85-1000", 19.387981414794922, 486.9967956542969, 0.00033149970113299787, 84.33995056152344),
        "harddense": (1000, "85-1000", 15.386894226074219, 486.63616943359375, 0.0, 84.76679229736328),
    },
}
# return and cost extremes of envs.point_circle_data.generate_dataset(seed=0)
_POINT_CIRCLE = Task("PointCircle", "builtin", None, "PointCircle", 200, 11.9093, 196.2621, 0.0, 144.0)

_TASKS: dict[str, Task] = {_POINT_CIRCLE.name: _POINT_CIRCLE} | {
    name: Task(name, suite, _PATTERNS[suite][0].format(name, stem), _PATTERNS[suite][1].format(name), length, *extremes)
    for suite, rows in _DSRL.items()
    for name, (length, stem, *extremes) in rows.items()
}
