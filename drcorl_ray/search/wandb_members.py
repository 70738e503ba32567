"""Every member of a search as a run of its own in Weights & Biases, written as soon as its fate is known.

One run per member, and not per pack, because its tables, filters and parallel coordinates compare runs by their settings. A
thread writes them beside the packs' training (a quarter of a second each), so hundreds of members hold up nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from drcorl_ray.config import Config
from drcorl_ray.io.files import read_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.tracking import Tracker
from drcorl_ray.search.plan import FATES, RESULT, Pack, pack_folder, read_pack

_POLL_S = 2.0
_TRACKED = "tracked"  # marks a pack whose members are all written


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
            self._write_fates()
        except Exception as error:
            self._tracker.give_up(error)

    def _write_fates(self) -> None:
        for fates in sorted(self._run.packs.glob(f"*/{FATES}")):
            folder = fates.parent
            if (folder / _TRACKED).exists():
                continue
            pack, fate_of = read_pack(folder), read_json(fates)
            for place, member in enumerate(pack.members):
                if (fate := fate_of[str(member.number)]) != "goes on":
                    self._write_member(pack, place, folder, fate)
            (folder / _TRACKED).touch()

    def _write_member(self, pack: Pack, place: int, folder: Path, fate: str) -> None:
        member = pack.members[place]
        settings = self._config.member_with(member.params).model_dump()
        for file in sorted(folder.glob(f"*/{RESULT}")):
            task, judged = file.parent.name, read_json(file)["members"][place]
            scores = {f"search/{name}": judged[name] for name in ("normalized_reward", "normalized_cost")}
            self._tracker.member(
                f"{task}-{member.number:04d}",
                settings | {"task": task, "configuration": member.number, "study": pack.study},
                self._history(pack, place, task),
                scores | {"fate": fate, "member_steps": pack.stop},
            )

    def _history(self, pack: Pack, place: int, task: str) -> Iterator[tuple[int, dict[str, float | None]]]:
        """(step, metrics) of a member along all packs it went through."""
        source = pack.members[place].source
        if source is not None:
            yield from self._history(read_pack(pack_folder(self._run.packs, pack.study, source[0])), source[1], task)
        for line in read_log(pack_folder(self._run.packs, pack.study, pack.number) / task / "metrics.jsonl"):
            yield line["step"], {name: values[place] for name, values in line["metrics"].items()}
