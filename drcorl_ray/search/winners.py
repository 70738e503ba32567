"""What a search leaves behind: every configuration's row and YAML, and the winners, judged again on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.checkpoint import read_json, write_bytes
from drcorl_ray.config import Config, MemberConfig, SearchConfig, TaskConfig
from drcorl_ray.config_file import dump_config
from drcorl_ray.experiment import FRESH_SEEDS, PoliciesAt, Records, episode_seeds, member_candidate, roll_out_curves
from drcorl_ray.metrics import EpisodeStats
from drcorl_ray.policy import PopulationPolicy, load_population
from drcorl_ray.progress import console
from drcorl_ray.results import score
from drcorl_ray.rollout import RolloutPool
from drcorl_ray.run_directory import RunDirectory
from drcorl_ray.search.plan import POPULATION, RESULT, Pack, pack_folder, read_packs
from drcorl_ray.search.study import SearchStudy
from drcorl_ray.stages import TaskData
from drcorl_ray.tasks import Task


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

    def result(self, pack: Pack, task: Task) -> dict[str, Any]:
        return read_json(pack_folder(self.run.packs, self.study.name, pack.number) / task.name / RESULT)

    def member(self, number: int) -> MemberConfig:
        pack, place = self.path[number][0]
        return self.config.member_with(pack.members[place].params)

    def policy(self, number: int, task: Task) -> PopulationPolicy:
        """A configuration's last policy."""
        pack, place = self.path[number][-1]
        folder = pack_folder(self.run.packs, self.study.name, pack.number) / task.name
        return load_population(folder / POPULATION)[0].select([place])

    def policies_at(self, number: int, task: Task) -> PoliciesAt:
        """A configuration's policies along its training."""

        def policy(step: int) -> PopulationPolicy:
            pack, place = next((pack, place) for pack, place in self.path[number] if step <= pack.stop)
            name = f"{pack_folder(self.run.packs, self.study.name, pack.number).name}/{task.name}"
            return load_population(self.run.curve(name, step))[0].select([place])

        return policy

    def episodes(self, number: int) -> int:
        """Online episodes that judged a configuration on one task."""
        return self.config.search.episodes * len(self.path[number])

    def complete(self, number: int) -> bool:
        """Whether a configuration was trained to the end, and not stopped by a rung."""
        return self.path[number][-1][0].stop == self.config.extract.critic_steps + self.config.extract.steps

    def details(self, number: int, task: Task) -> dict[str, Any]:
        """The columns of a configuration's row that only a search has."""
        return {
            "study": self.study.name,
            "member": number,
            "configuration": number,
            "state": "complete" if self.complete(number) else "stopped",
            "member_steps": self.path[number][-1][0].stop,
            "config_file": str(self.run.member(task.name, number).relative_to(self.run.path)),
        }


def configuration_rows(record: SearchRecord, data: TaskData) -> Records:
    """A row for every configuration on a task, as the search judged it last; its settings are written beside."""
    rows: Records = []
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
        folder = pack_folder(record.run.packs, record.study.name, pack.number)
        policies = load_population(folder / data.task.name / POPULATION)[0].select(sound)
        numbers = [pack.members[place].number for place in sound]
        candidates = [
            member_candidate(
                record.config,
                record.member(number),
                online_episodes=record.episodes(number),
                details=record.details(number, data.task),
            )
            for number in numbers
        ]
        stats = EpisodeStats(returns, costs, lengths, np.array(result["seeds"]))
        rows += score(record.run, data, policies, candidates, stats, [f"{number:04d}" for number in numbers])
    return rows


def member_settings(config: Config, task: str, member: MemberConfig) -> Config:
    """The settings with which launch/train.py trains a member of a search again, to the same parameters."""
    dataset = config.dataset_of(task)
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": None, "resume": False, "storage": str(_absolute(config.run.storage))}),
            "task": TaskConfig(name=task),
            "data": config.data.model_copy(update={"dataset": dataset and str(_absolute(dataset))}),
            "member": member,
            "population": [],
            "search": SearchConfig(),
            "scaling": config.scaling.model_copy(update={"workers": 1}),
        }
    )


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def fresh_episodes(config: Config, task: Task) -> int:
    """Episodes of the final evaluation: as many as make the mean certain, where simulating them is cheap."""
    return config.search.fresh_episodes or (100 if task.cheap else 20)


def winner_rows(record: SearchRecord, pool: RolloutPool) -> tuple[list[int], Records]:
    """The best configurations, the crowned one first, and their rows from fresh episodes on every task.

    The crown goes to the first of the search's order that is safe on the fresh episodes too, and not to the best fresh
    score: that would be luck again. Without a safe one the order stays, and it is said.
    """
    best = record.study.ranking()[: record.config.search.winners]
    rows = {number: [_winner_row(record, data, number, pool) for data in record.tasks] for number in best}
    safe = {number: all(row["normalized_cost"] <= 1 for row in rows[number]) for number in best}
    crowned = sorted(best, key=lambda number: not safe[number])
    _announce(record, crowned, best, safe)
    return crowned, [row for number in crowned for row in rows[number]]


def _announce(record: SearchRecord, crowned: Sequence[int], best: Sequence[int], safe: Mapping[int, bool]) -> None:
    name = record.study.name
    if not best:
        console.print(f"[red]{name}: no configuration finished with a finite policy")
    elif not any(safe.values()):
        console.print(f"[red]{name}: none of the best {len(best)} configurations was safe on fresh episodes")
    elif crowned[0] != best[0]:
        console.print(f"[yellow]{name}: configuration {best[0]} was best in the search but not safe on fresh episodes")


def _winner_row(record: SearchRecord, data: TaskData, number: int, pool: RolloutPool) -> dict[str, Any]:
    pack, place = record.path[number][-1]
    judged = record.result(pack, data.task)["members"][place]
    candidate = member_candidate(
        record.config,
        record.member(number),
        selection="search_winner",
        online_episodes=sum(record.episodes(other) for other in record.path),
        details=record.details(number, data.task)
        | {f"search_{name}": judged[name] for name in ("normalized_reward", "normalized_cost")},
    )
    policies = record.policy(number, data.task)
    stats = pool.evaluate(policies, data.task, episode_seeds(FRESH_SEEDS, fresh_episodes(record.config, data.task)))
    return score(record.run, data, policies, [candidate], stats, [f"winner-{number:04d}"])[0]


def winner_curves(record: SearchRecord, data: TaskData, winners: Sequence[int], pool: RolloutPool) -> Records:
    """The winners' true reward and cost along their training."""
    return [
        roll_out_curves(record.config, data, [record.member(number).cost_limit], record.policies_at(number, data.task), pool)
        | {"label": f"{record.study.name} {number}"}
        for number in winners
    ]
