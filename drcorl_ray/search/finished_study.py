"""A finished study, read back from its packs: every configuration's row, and its settings for any launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drcorl_ray.config import Config, MemberConfig, MemberSettings, SearchConfig, TaskConfig
from drcorl_ray.config.algorithms import get_algorithm
from drcorl_ray.config.loading import dump_config
from drcorl_ray.config.members import member_keys
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.curves import CurvePoint, PointAt, load_curve_point
from drcorl_ray.evaluation.scoring import RowInfo, member_info, score
from drcorl_ray.io.files import read_json, write_bytes
from drcorl_ray.io.storage import storage_path
from drcorl_ray.policy.loading import load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import TrainingFolder
from drcorl_ray.runs.schema import Row, RowDetails, Selection
from drcorl_ray.search.plan import Pack, read_packs
from drcorl_ray.search.study import SearchStudy
from drcorl_ray.tasks.registry import Task
from drcorl_ray.tasks.scores import EpisodeStats


@dataclass(frozen=True)
class SearchRecord:
    """A finished study: its tasks, its packs and, for each configuration, the (pack, place) it went through."""

    config: Config
    run: RunDirectory
    study: SearchStudy
    tasks: list[TaskData]
    packs: list[Pack]
    path: dict[int, list[tuple[Pack, int]]]

    @classmethod
    def read(cls, config: Config, run: RunDirectory, study: SearchStudy, tasks: Sequence[TaskData]) -> SearchRecord:
        packs = list(read_packs(run, study.name))
        path: dict[int, list[tuple[Pack, int]]] = {}
        for pack in packs:
            for place, member in enumerate(pack.members):
                path.setdefault(member.number, []).append((pack, place))
        return cls(config, run, study, list(tasks), packs, path)

    def folder(self, pack: Pack, task: Task) -> TrainingFolder:
        return self.run.pack(self.study.name, pack.number).task(task.name)

    def result(self, pack: Pack, task: Task) -> dict[str, Any]:
        return read_json(self.folder(pack, task).result)

    def member(self, number: int) -> MemberSettings:
        pack, place = self.path[number][0]
        return self.config.member_with(pack.members[place].params)

    def policy(self, number: int, task: Task) -> PopulationPolicy:
        """A configuration's last policy."""
        pack, place = self.path[number][-1]
        return load_population(self.folder(pack, task).population)[0].select([place])

    def point_at(self, number: int, task: Task) -> PointAt:
        """A configuration along its training."""

        def point(step: int) -> CurvePoint:
            pack, place = next((pack, place) for pack, place in self.path[number] if step <= pack.stop)
            return load_curve_point(self.run.pack_curve(self.folder(pack, task), step)).select([place])

        return point

    def row_info(self, number: int, task: Task, selection: Selection, details: RowDetails | None = None) -> RowInfo:
        """What a configuration's row says of it.

        A winner is charged with all the study's episodes, which selected it; a best point with those of its curve.
        """
        charged = list(self.path) if selection == "search_winner" else [number]
        curve = len(self.config.curve_steps()) * self.config.evaluation.curve_episodes if selection == "online_best" else 0
        return member_info(
            self.config.run.algorithm,
            self.config.evaluation,
            self.member(number),
            sum(self.episodes(other) for other in charged) + curve,
            self._taken(number, task)["appended_transitions"],
            selection,
            {**self._details(number, task), **(details or {})},
        )

    def episodes(self, number: int) -> int:
        """Online episodes that trained and judged a configuration, on all tasks of the study."""
        judged = self.config.search.episodes * len(self.path[number]) * len(self.tasks)
        return judged + sum(self._taken(number, data.task)["online_episodes"] for data in self.tasks)

    def _taken(self, number: int, task: Task) -> dict[str, int]:
        """What a configuration took from rollouts in its training."""
        pack, place = self.path[number][-1]
        _, meta = load_population(self.folder(pack, task).population)
        return {name: meta[name][place] for name in ("online_episodes", "appended_transitions")}

    def complete(self, number: int) -> bool:
        """Whether a configuration was trained to the end, and not stopped by a rung."""
        return self.path[number][-1][0].stop == self.config.training.total_steps

    def _details(self, number: int, task: Task) -> RowDetails:
        """The columns of a configuration's row that only a search has."""
        return {
            "study": self.study.name,
            "configuration": number,
            "state": "complete" if self.complete(number) else "stopped",
            "member_steps": self.path[number][-1][0].stop,
            "config_file": str(self.run.member(task.name, number).relative_to(self.run.path)),
        }


def configuration_rows(record: SearchRecord, data: TaskData) -> list[Row]:
    """A row for every configuration on a task, as the search judged it last; its settings are written beside."""
    rows: list[Row] = []
    for pack in record.packs:
        result = record.result(pack, data.task)
        last = [place for place, member in enumerate(pack.members) if record.path[member.number][-1][0] == pack]
        for place in last:
            number = pack.members[place].number
            settings = member_settings(record.config, data.task.name, record.member(number))
            write_bytes(record.run.member(data.task.name, number), dump_config(settings).encode())
        sound = [place for place in last if result["members"][place]["normalized_reward"] is not None]
        if not sound:
            continue
        judged = [result["members"][place] for place in sound]
        returns, costs, lengths = (np.array([member[name] for member in judged]) for name in ("returns", "costs", "lengths"))
        policies = load_population(record.folder(pack, data.task).population)[0].select(sound)
        numbers = [pack.members[place].number for place in sound]
        infos = [record.row_info(number, data.task, "last") for number in numbers]
        stats = EpisodeStats(returns, costs, lengths, np.array(result["seeds"]))
        rows += score(record.run, data, policies, infos, stats, [f"{number:04d}" for number in numbers], numbers)
    return rows


def member_settings(config: Config, task: str, member: MemberSettings) -> Config:
    """The settings with which launch/train.py trains a member of a search again, to the same parameters."""
    dataset = config.data.dataset_of(task)
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": None, "resume": False, "storage": str(config.run.storage_folder)}),
            "task": TaskConfig(name=task),
            "data": config.data.model_copy(update={"dataset": dataset and str(storage_path(dataset).absolute())}),
            **_as_only_member(config, member),
            "search": SearchConfig(),
            "scaling": config.scaling.model_copy(update={"workers": 1}),
        }
    )


def _as_only_member(config: Config, member: MemberSettings) -> dict[str, Any]:
    """The sections with which it is the one member: for a baseline its settings only, which its comparisons do not take."""
    if isinstance(member, MemberConfig):
        return {"member": member, "population": []}
    keys = member_keys(get_algorithm(config.run.algorithm))
    return {"population": [{key: getattr(member, key) for key in keys}]}
