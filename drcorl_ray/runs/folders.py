"""Folders inside a run's directory and the names of their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingFolder:
    """Files of the training of one population: a stage of a training run, a baseline, or a pack of a search on one task."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The metrics log, one line per report."""
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """The newest state, from which a training resumes."""
        return self.path / "state.safetensors"

    @property
    def previous_state(self) -> Path:
        """The state before the newest one, used if that is damaged."""
        return self.path / "state-before.safetensors"

    def states(self) -> Iterator[Path]:
        """Yield all states in the folder and below it."""
        yield from self.path.rglob("state*.safetensors")

    @property
    def population(self) -> Path:
        """The policies at the end of the training."""
        return self.path / "population.safetensors"

    @property
    def result(self) -> Path:
        """The scores of a pack's members on the search's episodes; the pack is finished if this file exists."""
        return self.path / "result.json"

    @property
    def online(self) -> OnlineFolder:
        return OnlineFolder(self.path / "online")

    def halves(self) -> tuple[TrainingFolder, TrainingFolder]:
        """Return the folders of the two halves in which a pack is trained if it is too large for the device."""
        return TrainingFolder(self.path / "first-half"), TrainingFolder(self.path / "second-half")


@dataclass(frozen=True)
class OnlineFolder:
    """Files of the online evaluations of one training: the charged episodes and the result of each evaluation."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The episodes charged to each member's budget, one line per charge."""
        return self.path / "episodes.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "episodes.lock"

    def evaluation(self, number: int) -> Path:
        return self.path / f"evaluation-{number:04d}.safetensors"


@dataclass(frozen=True)
class PackFolder:
    """Files of one pack of a search."""

    path: Path

    @property
    def content(self) -> Path:
        """The pack's members and its steps."""
        return self.path / "pack.json"

    @property
    def outcomes(self) -> Path:
        """The outcome of each configuration after the pack; Optuna has been told the scores if this file exists."""
        return self.path / "outcomes.json"

    @property
    def tracked(self) -> Path:
        """An empty file; if it exists, all members of the pack are in Weights & Biases."""
        return self.path / "tracked"

    def task(self, name: str) -> TrainingFolder:
        """Return the folder of the pack's training on one task."""
        return TrainingFolder(self.path / name)

    def results(self) -> list[tuple[str, Path]]:
        """Return (task, file of the scores) for every task on which the pack is finished."""
        return [(file.parent.name, file) for file in sorted(self.path.glob("*/result.json"))]
