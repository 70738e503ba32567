"""Every member of a search as a run of its own in Weights & Biases, written as soon as its fate is known.

One run per member, and not per pack, because its tables, filters and parallel coordinates compare runs by their settings. A
thread writes them beside the packs' training (a quarter of a second each), so hundreds of members hold up nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from drcorl_ray.config import Config
from drcorl_ray.io.files import read_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.folders import PackFolder
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.tracking import Tracker
from drcorl_ray.search.plan import Pack, read_pack

_POLL_S = 2.0


class MemberRuns:
    """Follows the fates of a search's packs while the context is open; what is left at its end is written then.

    Like the tracker it never takes the search down with it.
    """

    def __init__(self, config: Config, run: RunDirectory, tracker: Tracker) -> None:
        self._config, self._run, self._tracker = config, run, tracker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="drcorl-member-runs", daemon=True)

    def __enter__(self) -> MemberRuns:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:  # of an interrupted search the resumed one writes the rest
            self._write()

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._write()

    def _write(self) -> None:
        try:
            self._write_finished()
        except Exception as error:
            self._tracker.give_up(error)

    def _write_finished(self) -> None:
        for folder in self._run.packs():
            if folder.tracked.exists() or not folder.outcomes.exists():
                continue
            pack, outcomes = read_pack(folder), read_json(folder.outcomes)
            for place, member in enumerate(pack.members):
                if (outcome := outcomes[str(member.number)]) != "goes on":
                    self._write_member(pack, place, folder, outcome)
            folder.tracked.touch()

    def _write_member(self, pack: Pack, place: int, folder: PackFolder, outcome: str) -> None:
        member = pack.members[place]
        settings = self._config.member_with(member.params).model_dump()
        for task, file in folder.results():
            judged = read_json(file)["members"][place]
            scores = {f"search/{name}": judged[name] for name in ("normalized_reward", "normalized_cost")}
            self._tracker.member(
                f"{task}-{member.number:04d}",
                settings | {"task": task, "configuration": member.number, "study": pack.study},
                self._history(pack, place, task),
                scores | {"outcome": outcome, "member_steps": pack.stop},
            )

    def _history(self, pack: Pack, place: int, task: str) -> Iterator[tuple[int, dict[str, float | None]]]:
        """(step, metrics) of a member along all packs it went through."""
        source = pack.members[place].source
        if source is not None:
            yield from self._history(read_pack(self._run.pack(pack.study, source[0])), source[1], task)
        for line in read_log(self._run.pack(pack.study, pack.number).task(task).metrics):
            yield line["step"], {name: values[place] for name, values in line["metrics"].items()}
