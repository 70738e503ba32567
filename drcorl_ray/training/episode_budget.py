"""The online episodes that each member has spent, recorded on disk before an episode starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.io.files import append_text, read_lines, write_bytes


class EpisodeLedger:
    """The episodes that each of P members has spent, in a file with one line per charge.

    A charge is on disk when `charge` returns.
    """

    def __init__(self, path: Path, budget: int, spent_before: Sequence[int]) -> None:
        """Open or create the ledger.

        spent_before: episodes that the members spent in the packs they come from, [P]; an existing ledger has its own record.
        """
        self._path, self._budget = path, budget
        members = len(spent_before)
        entries = read_lines(path, lambda line: _is_charge(line, members))
        entries = entries or [{"spent_before": [int(spent) for spent in spent_before]}]
        write_bytes(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())  # drops a half-written last line
        self.spent = np.zeros(members, np.int64)
        for entry in entries:
            if "members" in entry:
                np.add.at(self.spent, entry["members"], entry["episodes"])
            else:
                self.spent += entry["spent_before"]

    def charge(self, members: Sequence[int], episodes: int) -> list[int]:
        """Charge each member up to `episodes` episodes and return the number granted to each, limited by its budget."""
        chosen = list(members)
        granted = np.clip(self._budget - self.spent[chosen], 0, episodes)
        if granted.any():
            append_text(self._path, json.dumps({"members": chosen, "episodes": granted.tolist()}) + "\n")
            self.spent[chosen] += granted
        return granted.tolist()


def _is_charge(line: Mapping[str, Any], members: int) -> bool:
    """Whether a line is valid: what P members had spent before, or which members are charged with how many episodes."""
    if line.keys() == {"spent_before"}:
        spent = line["spent_before"]
        return isinstance(spent, list) and len(spent) == members and all(map(_is_count, spent))
    if line.keys() != {"members", "episodes"} or not all(isinstance(values, list) for values in line.values()):
        return False
    counts = [*line["members"], *line["episodes"]]
    return (
        len(counts) == 2 * len(line["members"]) and all(map(_is_count, counts)) and all(m < members for m in line["members"])
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31
