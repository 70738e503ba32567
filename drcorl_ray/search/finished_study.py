"""Read a finished study from the files of its packs: the row of every configuration, and its settings as a YAML file."""

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
    """A finished study with its tasks and packs.

    path: {number of a configuration: the (pack, index in the pack) pairs through which it was trained, in order}.
    """

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
            for index, member in enumerate(pack.members):
                path.setdefault(member.number, []).append((pack, index))
        return cls(config, run, study, list(tasks), packs, path)

    def folder(self, pack: Pack, task: Task) -> TrainingFolder:
        return self.run.pack(self.study.name, pack.number).task(task.name)

    def result(self, pack: Pack, task: Task) -> dict[str, Any]:
        return read_json(self.folder(pack, task).result)

    def member(self, number: int) -> MemberSettings:
        pack, index = self.path[number][0]
        return self.config.member_with(pack.members[index].params)

    def policy(self, number: int, task: Task) -> PopulationPolicy:
        """Return the policy of a configuration at the end of its training, as a population of one."""
        pack, index = self.path[number][-1]
        return load_population(self.folder(pack, task).population)[0].select([index])

    def point_at(self, number: int, task: Task) -> PointAt:
        """Return a function from an extraction step to the configuration's policy and cost estimate at that step."""

        def point(step: int) -> CurvePoint:
            pack, index = next((pack, index) for pack, index in self.path[number] if step <= pack.stop)
            return load_curve_point(self.run.pack_curve(self.folder(pack, task), step)).select([index])

        return point

    def row_info(self, number: int, task: Task, selection: Selection, details: RowDetails | None = None) -> RowInfo:
        """Return the columns of a configuration's row that are not scores.

        The online episodes of a winner are those of the whole study, since all of them selected it. A policy that was selected
        by its curve (`online_best`) adds the episodes of that curve to its own.
        """
        charged = list(self.path) if selection == "search_winner" else [number]
        curve = len(self.config.curve_steps()) * self.config.evaluation.curve_episodes if selection == "online_best" else 0
        return member_info(
            self.config.run.algorithm,
            self.config.evaluation,
            self.member(number),
            sum(self.episodes(other) for other in charged) + curve,
            self._online_counts(number, task)["appended_transitions"],
            selection,
            {**self._details(number, task), **(details or {})},
        )

    def episodes(self, number: int) -> int:
        """Return the online episodes in which a configuration was trained and evaluated, over all tasks of the study."""
        evaluation = self.config.search.episodes * len(self.path[number]) * len(self.tasks)
        return evaluation + sum(self._online_counts(number, data.task)["online_episodes"] for data in self.tasks)

    def _online_counts(self, number: int, task: Task) -> dict[str, int]:
        """Return the numbers of episodes and of appended transitions that a configuration used in its training."""
        pack, index = self.path[number][-1]
        _, meta = load_population(self.folder(pack, task).population)
        return {name: meta[name][index] for name in ("online_episodes", "appended_transitions")}

    def complete(self, number: int) -> bool:
        """Whether a configuration was trained to the end instead of being stopped at a rung."""
        return self.path[number][-1][0].stop == self.config.training.total_steps

    def _details(self, number: int, task: Task) -> RowDetails:
        """Return the columns that only the rows of a search have."""
        return {
            "study": self.study.name,
            "configuration": number,
            "state": "complete" if self.complete(number) else "stopped",
            "member_steps": self.path[number][-1][0].stop,
            "config_file": str(self.run.member(task.name, number).relative_to(self.run.path)),
        }


def configuration_rows(record: SearchRecord, data: TaskData) -> list[Row]:
    """Return a row for every configuration on a task, from its last evaluation in the search; write its settings as YAML."""
    rows: list[Row] = []
    for pack in record.packs:
        result = record.result(pack, data.task)
        last = [index for index, member in enumerate(pack.members) if record.path[member.number][-1][0] == pack]
        for index in last:
            number = pack.members[index].number
            settings = member_settings(record.config, data.task.name, record.member(number))
            write_bytes(record.run.member(data.task.name, number), dump_config(settings).encode())
        finite = [index for index in last if result["members"][index]["normalized_reward"] is not None]
        if not finite:
            continue
        evaluated = [result["members"][index] for index in finite]
        returns, costs, lengths = (
            np.array([member[name] for member in evaluated]) for name in ("returns", "costs", "lengths")
        )
        policies = load_population(record.folder(pack, data.task).population)[0].select(finite)
        numbers = [pack.members[index].number for index in finite]
        infos = [record.row_info(number, data.task, "last") for number in numbers]
        stats = EpisodeStats(returns, costs, lengths, np.array(result["seeds"]))
        rows += score(record.run, data, policies, infos, stats, [f"{number:04d}" for number in numbers], numbers)
    return rows


def member_settings(config: Config, task: str, member: MemberSettings) -> Config:
    """Return the settings with which `drcorl train` trains a member of a search again, to the same parameters."""
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
    """Return sections that train this member alone; a baseline has no `member` section, only settings in `population`."""
    if isinstance(member, MemberConfig):
        return {"member": member, "population": []}
    keys = member_keys(get_algorithm(config.run.algorithm))
    return {"population": [{key: getattr(member, key) for key in keys}]}
