"""The folders inside a run's directory, and every file name in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingFolder:
    """One population in training: a stage of a training run, a baseline beside it, or a pack of a search on one task."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The metrics log, one line per report."""
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """The newest state, to resume from."""
        return self.path / "state.safetensors"

    @property
    def previous_state(self) -> Path:
        """The state before it, in case the newest one is damaged."""
        return self.path / "state-before.safetensors"

    def states(self) -> Iterator[Path]:
        """All states in the folder and below it."""
        yield from self.path.rglob("state*.safetensors")

    @property
    def population(self) -> Path:
        """The policies at the end of the training."""
        return self.path / "population.safetensors"

    @property
    def result(self) -> Path:
        """The scores of a pack's members on the search's episodes; its presence says that the pack is finished."""
        return self.path / "result.json"

    @property
    def online(self) -> OnlineFolder:
        return OnlineFolder(self.path / "online")

    def halves(self) -> tuple[TrainingFolder, TrainingFolder]:
        """Where the two halves of a pack are trained when the whole is too large for the device."""
        return TrainingFolder(self.path / "first-half"), TrainingFolder(self.path / "second-half")


@dataclass(frozen=True)
class OnlineFolder:
    """The online evaluations of one training: the episodes charged, and the result of each evaluation."""

    path: Path

    @property
    def ledger(self) -> Path:
        return self.path / "episodes.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "episodes.lock"

    def evaluation(self, number: int) -> Path:
        return self.path / f"evaluation-{number:04d}.safetensors"


@dataclass(frozen=True)
class PackFolder:
    """One pack of a search."""

    path: Path

    @property
    def content(self) -> Path:
        """The pack's members and its steps."""
        return self.path / "pack.json"

    @property
    def outcomes(self) -> Path:
        """The outcome of each configuration after the pack; its presence says that the scores were told to Optuna."""
        return self.path / "outcomes.json"

    @property
    def tracked(self) -> Path:
        """An empty file: all members of the pack are in Weights & Biases."""
        return self.path / "tracked"

    def task(self, name: str) -> TrainingFolder:
        """The pack's training on one task."""
        return TrainingFolder(self.path / name)

    def results(self) -> list[tuple[str, Path]]:
        """(task, file of the scores) for every task on which the pack is finished."""
        return [(file.parent.name, file) for file in sorted(self.path.glob("*/result.json"))]
