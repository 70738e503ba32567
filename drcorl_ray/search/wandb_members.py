"""Write every member of a search as its own Weights & Biases run, as soon as its outcome is known.

There is one run per member, not per pack, because Weights & Biases compares runs by their settings (tables, filters, parallel
coordinates). A thread writes them during the packs' training (0.25 s each), so that hundreds of members delay nothing.
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
    """Writes members whose outcomes are known while the context is open, and the remaining ones when it closes.

    An error turns the tracker off; it never ends the search.
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
        if kind is None:  # a resumed search writes the rest of an interrupted one
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
            for index, member in enumerate(pack.members):
                if (outcome := outcomes[str(member.number)]) != "goes on":
                    self._write_member(pack, index, folder, outcome)
            folder.tracked.touch()

    def _write_member(self, pack: Pack, index: int, folder: PackFolder, outcome: str) -> None:
        member = pack.members[index]
        settings = self._config.member_with(member.params).model_dump()
        for task, file in folder.results():
            scores = read_json(file)["members"][index]
            search_scores = {f"search/{name}": scores[name] for name in ("normalized_reward", "normalized_cost")}
            self._tracker.member(
                f"{task}-{member.number:04d}",
                settings | {"task": task, "configuration": member.number, "study": pack.study},
                self._history(pack, index, task),
                search_scores | {"outcome": outcome, "member_steps": pack.stop},
            )

    def _history(self, pack: Pack, index: int, task: str) -> Iterator[tuple[int, dict[str, float | None]]]:
        """Yield (step, metrics) of a member through all packs in which it was trained."""
        source = pack.members[index].source
        if source is not None:
            yield from self._history(read_pack(self._run.pack(pack.study, source[0])), source[1], task)
        for line in read_log(self._run.pack(pack.study, pack.number).task(task).metrics):
            yield line["step"], {name: values[index] for name, values in line["metrics"].items()}
