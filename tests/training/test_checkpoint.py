"""The last two states of a training: resuming after damage, after a kill between two files, and after a full disk."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drcorl_ray.training.checkpoint
from drcorl_ray.io.files import save_arrays
from drcorl_ray.runs.folders import TrainingFolder
from drcorl_ray.training.checkpoint import States, save_state


class Counter:
    """A stage whose state is one number: its step."""

    def __init__(self, value: int = -1) -> None:
        self.value = torch.tensor(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state) -> None:
        self.value.copy_(state["value"])


@pytest.fixture(params=["disk", "object store"])
def states(request, tmp_path) -> States:
    return States(TrainingFolder(tmp_path if request.param == "disk" else request.getfixturevalue("bucket") / "states"))


def load(states: States) -> tuple[int, int, list[str]]:
    counter = Counter()
    step, damages = states.load(counter)
    return step, int(counter.value), damages


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_the_last_two_states_are_kept(states):
    assert load(states) == (0, -1, [])
    for step in (10, 20, 30):
        states.save(Counter(step), step)
    assert load(states) == (30, 30, [])
    states.folder.state.unlink()  # as after a kill between the two files
    assert load(states) == (20, 20, [])


def test_a_damaged_state_is_skipped_and_named(states):
    for step in (10, 20):
        states.save(Counter(step), step)
    flip(states.folder.state)
    step, value, [damage] = load(states)
    assert (step, value) == (10, 10)
    assert str(states.folder.state) in damage
    assert "checksum mismatch" in damage
    flip(states.folder.previous_state)
    step, value, damages = load(states)
    assert (step, value, len(damages)) == (0, -1, 2)


@pytest.mark.parametrize("content", [{}, {"value": torch.zeros(3).numpy()}])
def test_the_state_of_another_training_is_refused(tmp_path, content):
    states = States(TrainingFolder(tmp_path))
    save_state(states.folder.previous_state, Counter(10), 10)
    save_arrays(states.folder.state, content, {"step": 20})
    step, value, [damage] = load(states)
    assert (step, value) == (10, 10)
    assert "the state of another training" in damage


def test_a_full_disk_keeps_the_previous_state(tmp_path, monkeypatch):
    states = States(TrainingFolder(tmp_path))
    states.save(Counter(10), 10)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(drcorl_ray.training.checkpoint, "save_arrays", full)
    with pytest.raises(OSError, match="No space left"):
        states.save(Counter(20), 20)
    assert load(states) == (10, 10, [])
