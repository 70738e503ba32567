"""Which pack is trained next: a strict order of asking and telling, with successive halving between packs.

A study's packs are numbered as they are planned. While fewer than `concurrent_packs` are under way the next one is planned;
else the oldest one's scores are told. What is asked therefore never depends on which pack happened to finish first, and a
search that was killed takes the same decisions again from the study and from the results on disk.

A pack is judged at its rung, and only the best of it survive. Survivors of several packs, all at the same step, are joined
to a full one and go on together, while new configurations take the place of those that were stopped.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import read_json, write_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import PackFolder
from drcorl_ray.search.study import Score, SearchStudy

_MEND = "restore it, or choose another run.dir"

Outcome = Literal["goes on", "stopped", "complete", "lost"]


@dataclass(frozen=True)
class Member:
    """A configuration's place in a pack; source: the pack and the place it comes from, None for a new one."""

    number: int
    params: dict[str, Any]
    source: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pack:
    """Members that train side by side, on each task, from extraction step `start` to `stop`, where rung `rung` judges them."""

    study: str
    tasks: tuple[str, ...]
    number: int
    rung: int
    start: int
    stop: int
    members: tuple[Member, ...]

    def sources(self) -> dict[int, list[int]]:
        """{pack: places in it} that the members come from, in the members' order; empty for new ones."""
        chosen: dict[int, list[int]] = {}
        for source in (member.source for member in self.members if member.source is not None):
            chosen.setdefault(source[0], []).append(source[1])
        return chosen


def read_pack(folder: PackFolder) -> Pack:
    """The pack in a folder; UserError where its file is missing or is not a pack's content."""
    content = read_json(folder.content)
    try:
        members = [
            Member(m["number"], m["params"], m["source"] and (m["source"][0], m["source"][1])) for m in content["members"]
        ]
        return Pack(**content | {"tasks": tuple(content["tasks"]), "members": tuple(members)})
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(f"{folder.content}: not a pack's content ({error!r}); {_MEND}") from error


def read_packs(run: RunDirectory, study: str) -> Iterator[Pack]:
    """All packs of a study that were planned, in order."""
    for number in itertools.count():
        folder = run.pack(study, number)
        if not folder.content.exists():
            return
        yield read_pack(folder)


class SearchPlan:
    """The packs of one study, of `size` members, each trained on all of `tasks`.

    stops: extraction steps of the rungs, the last is the end.
    """

    def __init__(self, study: SearchStudy, run: RunDirectory, tasks: Sequence[str], stops: Sequence[int], size: int) -> None:
        self.study, self.tasks, self._size = study, tuple(tasks), size
        self._run, self._stops, self._settings = run, list(stops), study.settings
        self._survivors: list[deque[Member]] = [deque() for _ in stops]
        self._under_way: deque[Pack] = deque()
        self._asked = self._planned = 0

    def jobs(self) -> list[tuple[Pack, str]]:
        """What is to be trained now: (pack, task), the oldest pack first. None left: the search is finished."""
        self._advance()
        self.study.keep()
        return [
            (pack, task)
            for pack in self._under_way
            for task in self.tasks
            if not self.folder(pack.number).task(task).result.exists()
        ]

    def folder(self, number: int) -> PackFolder:
        return self._run.pack(self.study.name, number)

    def _advance(self) -> None:
        while True:
            if len(self._under_way) < self._settings.concurrent_packs and (pack := self._next_pack()) is not None:
                self._under_way.append(pack)
                self._record(pack)
            elif self._under_way and (scores := self._scores(self._under_way[0])) is not None:
                self._tell(self._under_way.popleft(), scores)
            else:
                return

    def _record(self, pack: Pack) -> None:
        """Write what a pack holds; UserError where a resumed search would have it hold something else."""
        folder = self.folder(pack.number)
        if not folder.content.exists():
            write_json(folder.content, asdict(pack))
        elif read_pack(folder) != pack:
            raise UserError(
                f"{folder.content}: the search was begun with other tasks or by another release; "
                "make the same tasks available again, or choose another run.dir"
            )

    def _next_pack(self) -> Pack | None:
        size = self._size
        for rung in reversed(range(1, len(self._stops))):
            if len(self._survivors[rung]) >= size:
                return self._promoted(rung, size)
        if new := min(size, self.study.configurations - self._asked):
            numbers = range(self._asked, self._asked + new)
            self._asked += new
            return self._pack(0, [Member(number, self.study.ask(number)) for number in numbers])
        for rung in range(1, len(self._stops)):
            if self._survivors[rung] and not any(pack.rung < rung for pack in self._under_way):
                return self._promoted(rung, len(self._survivors[rung]))
        return None

    def _promoted(self, rung: int, size: int) -> Pack:
        return self._pack(rung, [self._survivors[rung].popleft() for _ in range(size)])

    def _pack(self, rung: int, members: Sequence[Member]) -> Pack:
        self._planned += 1
        start = self._stops[rung - 1] if rung else 0
        return Pack(self.study.name, self.tasks, self._planned - 1, rung, start, self._stops[rung], tuple(members))

    def _scores(self, pack: Pack) -> list[Score] | None:
        """Each member's mean reward and worst cost over the tasks; None while one has no result."""
        files = [self.folder(pack.number).task(task).result for task in self.tasks]
        if not all(file.exists() for file in files):
            return None
        return [_over_tasks(scores) for scores in zip(*(_read_scores(file) for file in files), strict=True)]

    def _tell(self, pack: Pack, scores: Sequence[Score]) -> None:
        last = pack.rung == len(self._stops) - 1
        finite = sorted((place for place, score in enumerate(scores) if score.finite), key=lambda place: scores[place].merit())
        kept = set(finite if last else finite[: -(-len(finite) // self._settings.reduction_factor)])
        outcomes: dict[int, Outcome] = {}
        for place, (member, score) in enumerate(zip(pack.members, scores, strict=True)):
            if place in kept and not last:
                self._survivors[pack.rung + 1].append(Member(member.number, member.params, (pack.number, place)))
                outcomes[member.number] = "goes on"
            else:
                self.study.tell(member.number, score, pack.stop, stopped=not last)
                outcomes[member.number] = "lost" if not score.finite else "complete" if last else "stopped"
        write_json(self.folder(pack.number).outcomes, outcomes)
        self._clean(pack)

    def _clean(self, told: Pack) -> None:
        """Remove the states that no survivor needs any more: the told pack's own, and those of the packs it came from."""
        waiting = (member for rung in self._survivors for member in rung)
        under_way = (member for pack in self._under_way for member in pack.members)
        needed = {member.source[0] for member in itertools.chain(waiting, under_way) if member.source is not None}
        for number in {told.number, *told.sources()} - needed:
            for task in self.tasks:
                for state in list(self.folder(number).task(task).states()):
                    state.unlink()


def _read_scores(file: Path) -> list[Score]:
    try:
        members = [(member["normalized_reward"], member["normalized_cost"]) for member in read_json(file)["members"]]
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: not a pack's result ({error!r}); delete the file and resume: it is trained again") from error
    return [Score(reward, cost) for reward, cost in members]


def _over_tasks(scores: Sequence[Score]) -> Score:
    if not all(score.finite for score in scores):
        return Score(None, None)
    rewards, costs = ([getattr(score, name) for score in scores] for name in ("reward", "cost"))
    return Score(sum(rewards) / len(rewards), max(costs))
