"""A finished study, read back from its packs: every configuration's row, and its settings for any launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.config import Config, MemberConfig, SearchConfig, TaskConfig
from drcorl_ray.config.loading import dump_config
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.evaluation.curves import CurvePoint, PointAt, curve_steps, load_curve_point
from drcorl_ray.evaluation.scoring import RowInfo, member_info, score
from drcorl_ray.io.files import read_json, write_bytes
from drcorl_ray.io.storage import storage_path
from drcorl_ray.policy.loading import load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.schema import Row, RowDetails, Selection
from drcorl_ray.search.plan import POPULATION, RESULT, Pack, pack_folder, read_packs
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
        packs = list(read_packs(run.packs, study.name))
        path: dict[int, list[tuple[Pack, int]]] = {}
        for pack in packs:
            for place, member in enumerate(pack.members):
                path.setdefault(member.number, []).append((pack, place))
        return cls(config, run, study, list(tasks), packs, path)

    def folder(self, pack: Pack, task: Task) -> Path:
        return pack_folder(self.run.packs, self.study.name, pack.number) / task.name

    def result(self, pack: Pack, task: Task) -> dict[str, Any]:
        return read_json(self.folder(pack, task) / RESULT)

    def member(self, number: int) -> MemberConfig:
        pack, place = self.path[number][0]
        return self.config.member_with(pack.members[place].params)

    def policy(self, number: int, task: Task) -> PopulationPolicy:
        """A configuration's last policy."""
        pack, place = self.path[number][-1]
        return load_population(self.folder(pack, task) / POPULATION)[0].select([place])

    def point_at(self, number: int, task: Task) -> PointAt:
        """A configuration along its training."""

        def point(step: int) -> CurvePoint:
            pack, place = next((pack, place) for pack, place in self.path[number] if step <= pack.stop)
            name = str(self.folder(pack, task).relative_to(self.run.packs))
            return load_curve_point(self.run.curve(name, step)).select([place])

        return point

    def row_info(self, number: int, task: Task, selection: Selection, details: RowDetails | None = None) -> RowInfo:
        """What a configuration's row says of it.

        A winner is charged with all the study's episodes, which selected it; a best point with those of its curve.
        """
        charged = list(self.path) if selection == "search_winner" else [number]
        curve = len(curve_steps(self.config)) * self.config.evaluation.curve_episodes if selection == "online_best" else 0
        return member_info(
            self.config,
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
        _, meta = load_population(self.folder(pack, task) / POPULATION)
        return {name: meta[name][place] for name in ("online_episodes", "appended_transitions")}

    def complete(self, number: int) -> bool:
        """Whether a configuration was trained to the end, and not stopped by a rung."""
        return self.path[number][-1][0].stop == self.config.extract.critic_steps + self.config.extract.steps

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
        policies = load_population(record.folder(pack, data.task) / POPULATION)[0].select(sound)
        numbers = [pack.members[place].number for place in sound]
        infos = [record.row_info(number, data.task, "last") for number in numbers]
        stats = EpisodeStats(returns, costs, lengths, np.array(result["seeds"]))
        rows += score(record.run, data, policies, infos, stats, [f"{number:04d}" for number in numbers], numbers)
    return rows


def member_settings(config: Config, task: str, member: MemberConfig) -> Config:
    """The settings with which launch/train.py trains a member of a search again, to the same parameters."""
    dataset = config.dataset_of(task)
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": None, "resume": False, "storage": str(config.run.storage_folder)}),
            "task": TaskConfig(name=task),
            "data": config.data.model_copy(update={"dataset": dataset and str(storage_path(dataset).absolute())}),
            "member": member,
            "population": [],
            "search": SearchConfig(),
            "scaling": config.scaling.model_copy(update={"workers": 1}),
        }
    )
