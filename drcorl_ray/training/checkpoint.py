"""The state of a training on disk: the last two are kept, so that a run can resume even if the newest is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import load_arrays, save_arrays
from drcorl_ray.method.interfaces import Stage
from drcorl_ray.runs.folders import TrainingFolder


@dataclass(frozen=True)
class States:
    """The newest state of a training in its folder, and the one before it."""

    folder: TrainingFolder

    def save(self, stage: Stage, step: int) -> None:
        """Write the state after `step` steps. An intact state remains if this is killed at any moment, or the disk is full."""
        newest = self.folder.state
        if newest.exists():
            newest.rename(self.folder.previous_state)
        save_state(newest, stage, step)

    def load(self, stage: Stage) -> tuple[int, list[str]]:
        """Load the newest intact state. Return its step (0 without one) and a message for each damaged state."""
        damages: list[str] = []
        for path in (self.folder.state, self.folder.previous_state):
            if path.exists():
                try:
                    return load_state(path, stage), damages
                except UserError as error:
                    damages.append(str(error))
        return 0, damages


def save_state(path: Path, stage: Stage, step: int) -> None:
    """Write a stage's state after `step` steps."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in stage.state_dict().items()}
    save_arrays(path, arrays, {"step": step})


def load_state(path: Path, stage: Stage) -> int:
    """Load a saved state into the stage and return its step; UserError if it is damaged or of another training."""
    arrays, meta = load_arrays(path)
    try:
        stage.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return int(meta["step"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: the state of another training ({' '.join(str(error).split())})") from error
