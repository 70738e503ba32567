"""A training's state on disk: the last two, so that a run goes on though the newest one was damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from drcorl_ray.errors import UserError
from drcorl_ray.io.files import load_arrays, save_arrays

STATES = "state*.safetensors"  # the files of a `States`


class Stateful(Protocol):
    """What is trained: a `Pretrainer` or a `Learner`."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class States:
    """The newest state of a training in a folder, and the one before it."""

    folder: Path

    @property
    def newest(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def before(self) -> Path:
        return self.folder / "state-before.safetensors"

    def save(self, stage: Stateful, step: int) -> None:
        """Write the state after `step` steps. Killed at any moment, or on a full disk, it leaves an intact one behind."""
        if self.newest.exists():
            self.newest.rename(self.before)
        save_state(self.newest, stage, step)

    def load(self, stage: Stateful) -> tuple[int, list[str]]:
        """Take over the newest intact state: its step, 0 where there is none; and what is wrong with those that are not."""
        damages: list[str] = []
        for path in (self.newest, self.before):
            if path.exists():
                try:
                    return load_state(path, stage), damages
                except UserError as error:
                    damages.append(str(error))
        return 0, damages


def save_state(path: Path, stage: Stateful, step: int) -> None:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in stage.state_dict().items()}
    save_arrays(path, arrays, {"step": step})


def load_state(path: Path, stage: Stateful) -> int:
    """Take over a saved state; the step to go on from. UserError where it is damaged or of another training."""
    arrays, meta = load_arrays(path)
    try:
        stage.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return int(meta["step"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: the state of another training ({' '.join(str(error).split())})") from error
