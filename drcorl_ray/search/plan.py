"""The order of packs: configurations are asked and told in a fixed order, with successive halving between packs.

A study's packs are numbered as they are planned. While fewer than `concurrent_packs` packs are running, the next one is
planned; otherwise the scores of the oldest one are told to Optuna. So the suggestions never depend on which pack finished
first, and a killed search makes the same decisions again from the study and the results on disk.

A pack is scored at its rung, and only its best members survive. Survivors of several packs at the same step are joined into a
full pack and continue together, while new configurations replace the stopped ones.
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

_REMEDY = "restore it, or choose another run.dir"

Outcome = Literal["goes on", "stopped", "complete", "lost"]


@dataclass(frozen=True)
class Member:
    """One configuration in a pack; source: the (pack, index) it was trained in before, None for a new configuration."""

    number: int
    params: dict[str, Any]
    source: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pack:
    """Members that are trained side by side on each task, from extraction step `start` to `stop`, the step of rung `rung`."""

    study: str
    tasks: tuple[str, ...]
    number: int
    rung: int
    start: int
    stop: int
    members: tuple[Member, ...]

    def sources(self) -> dict[int, list[int]]:
        """Return {source pack: indices in it} in the members' order; empty for new configurations."""
        indices: dict[int, list[int]] = {}
        for source in (member.source for member in self.members if member.source is not None):
            indices.setdefault(source[0], []).append(source[1])
        return indices


def read_pack(folder: PackFolder) -> Pack:
    """Read the pack of a folder; UserError if its file is missing or does not describe a pack."""
    content = read_json(folder.content)
    try:
        members = [
            Member(m["number"], m["params"], m["source"] and (m["source"][0], m["source"][1])) for m in content["members"]
        ]
        return Pack(**content | {"tasks": tuple(content["tasks"]), "members": tuple(members)})
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(f"{folder.content}: not a pack's content ({error!r}); {_REMEDY}") from error


def read_packs(run: RunDirectory, study: str) -> Iterator[Pack]:
    """Read all packs that a study has planned, in order."""
    for number in itertools.count():
        folder = run.pack(study, number)
        if not folder.content.exists():
            return
        yield read_pack(folder)


class SearchPlan:
    """Plans the packs of one study: `size` members each, trained on all of `tasks`.

    stops: extraction steps of the rungs; the last one is the end of training.
    """

    def __init__(self, study: SearchStudy, run: RunDirectory, tasks: Sequence[str], stops: Sequence[int], size: int) -> None:
        self.study, self.tasks, self._size = study, tuple(tasks), size
        self._run, self._stops, self._settings = run, list(stops), study.settings
        self._survivors: list[deque[Member]] = [deque() for _ in stops]
        self._running: deque[Pack] = deque()
        self._num_asked = self._num_planned = 0

    def jobs(self) -> list[tuple[Pack, str]]:
        """Return the (pack, task) pairs to train now, the oldest pack first; an empty list if the search is finished."""
        self._advance()
        self.study.keep()
        return [
            (pack, task)
            for pack in self._running
            for task in self.tasks
            if not self.folder(pack.number).task(task).result.exists()
        ]

    def folder(self, number: int) -> PackFolder:
        return self._run.pack(self.study.name, number)

    def _advance(self) -> None:
        while True:
            if len(self._running) < self._settings.concurrent_packs and (pack := self._next_pack()) is not None:
                self._running.append(pack)
                self._record(pack)
            elif self._running and (scores := self._scores(self._running[0])) is not None:
                self._tell(self._running.popleft(), scores)
            else:
                return

    def _record(self, pack: Pack) -> None:
        """Write the pack's file; UserError if a resumed search plans other content than the file has."""
        folder = self.folder(pack.number)
        if not folder.content.exists():
            write_json(folder.content, asdict(pack))
        elif read_pack(folder) != pack:
            raise UserError(
                f"{folder.content}: the search was started with other tasks or by another release; "
                "make the same tasks available again, or choose another run.dir"
            )

    def _next_pack(self) -> Pack | None:
        size = self._size
        for rung in reversed(range(1, len(self._stops))):
            if len(self._survivors[rung]) >= size:
                return self._promoted(rung, size)
        if new := min(size, self.study.configurations - self._num_asked):
            numbers = range(self._num_asked, self._num_asked + new)
            self._num_asked += new
            return self._pack(0, [Member(number, self.study.ask(number)) for number in numbers])
        for rung in range(1, len(self._stops)):
            if self._survivors[rung] and not any(pack.rung < rung for pack in self._running):
                return self._promoted(rung, len(self._survivors[rung]))
        return None

    def _promoted(self, rung: int, size: int) -> Pack:
        return self._pack(rung, [self._survivors[rung].popleft() for _ in range(size)])

    def _pack(self, rung: int, members: Sequence[Member]) -> Pack:
        self._num_planned += 1
        start = self._stops[rung - 1] if rung else 0
        return Pack(self.study.name, self.tasks, self._num_planned - 1, rung, start, self._stops[rung], tuple(members))

    def _scores(self, pack: Pack) -> list[Score] | None:
        """Return each member's mean reward and largest cost over the tasks; None while a task has no result."""
        files = [self.folder(pack.number).task(task).result for task in self.tasks]
        if not all(file.exists() for file in files):
            return None
        return [_over_tasks(scores) for scores in zip(*(_read_scores(file) for file in files), strict=True)]

    def _tell(self, pack: Pack, scores: Sequence[Score]) -> None:
        last = pack.rung == len(self._stops) - 1
        finite = sorted((index for index, score in enumerate(scores) if score.finite), key=lambda index: scores[index].merit())
        kept = set(finite if last else finite[: -(-len(finite) // self._settings.reduction_factor)])
        outcomes: dict[int, Outcome] = {}
        for index, (member, score) in enumerate(zip(pack.members, scores, strict=True)):
            if index in kept and not last:
                self._survivors[pack.rung + 1].append(Member(member.number, member.params, (pack.number, index)))
                outcomes[member.number] = "goes on"
            else:
                self.study.tell(member.number, score, pack.stop, stopped=not last)
                outcomes[member.number] = "lost" if not score.finite else "complete" if last else "stopped"
        write_json(self.folder(pack.number).outcomes, outcomes)
        self._remove_states(pack)

    def _remove_states(self, finished: Pack) -> None:
        """Remove states that no survivor needs: those of the finished pack and of the packs that it continued."""
        waiting = (member for rung in self._survivors for member in rung)
        running = (member for pack in self._running for member in pack.members)
        needed = {member.source[0] for member in itertools.chain(waiting, running) if member.source is not None}
        for number in {finished.number, *finished.sources()} - needed:
            for task in self.tasks:
                for state in list(self.folder(number).task(task).states()):
                    state.unlink()


def _read_scores(file: Path) -> list[Score]:
    try:
        members = [(member["normalized_reward"], member["normalized_cost"]) for member in read_json(file)["members"]]
    except (TypeError, KeyError) as error:
        raise UserError(f"{file}: not a pack's result ({error!r}); delete it and resume to train the pack again") from error
    return [Score(reward, cost) for reward, cost in members]


def _over_tasks(scores: Sequence[Score]) -> Score:
    if not all(score.finite for score in scores):
        return Score(None, None)
    rewards, costs = ([getattr(score, name) for score in scores] for name in ("reward", "cost"))
    return Score(sum(rewards) / len(rewards), max(costs))
