"""Pretrained weights on disk: files that all runs share, named by a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from drcorl_ray.config import MemberSettings, PretrainConfig
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.errors import UserError
from drcorl_ray.io.console import console
from drcorl_ray.io.files import file_lock, load_arrays, save_arrays
from drcorl_ray.method.pretrainer import Pretrainer

PRETRAINED_SCHEMA = 3


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights: the tensors of `Pretrainer.result` for the given seeds, in that order."""

    seeds: tuple[int, ...]
    tensors: Mapping[str, Tensor]


def pretrain_seeds(members: Sequence[MemberSettings]) -> list[int]:
    """Return the distinct seeds that must be pretrained for a population, ascending."""
    return sorted({_seed(member) for member in members})


def _seed(member: MemberSettings) -> int:
    assert member.seed is not None  # set by Config.member_with
    return member.seed


def pretrained_path(root: Path, data: TaskData, config: PretrainConfig, seed: int, precision: str = "fp32") -> Path:
    """Return the file of pretrained weights; its name is a hash of store, pretraining settings, seed, precision and schema."""
    shards = [shard.sha256 for shard in data.manifest.shards]
    reduced_precision = [] if precision == "fp32" else [precision]
    identity = json.dumps([PRETRAINED_SCHEMA, shards, config.model_dump(), seed, *reduced_precision], sort_keys=True)
    return root / "pretrained" / f"{data.task.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def save_pretrained(paths: Mapping[int, Path], pretrainer: Pretrainer) -> None:
    """Write the pretrained weights, one file per seed: {seed: path}."""
    seeds = pretrainer.seeds.tolist()
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in pretrainer.result().items()}
    for seed, path in paths.items():
        index = seeds.index(seed)
        rows = {name: array.reshape(len(seeds), -1, *array.shape[1:])[index] for name, array in arrays.items()}
        save_arrays(path, rows, {"artifact_schema": PRETRAINED_SCHEMA, "seed": seed})


def load_pretrained(paths: Sequence[Path]) -> Pretrained:
    """Read the pretrained weights of several seeds of one task; UserError if a file is missing or damaged."""
    parts = [load_arrays(path) for path in paths]
    names = parts[0][0].keys()
    tensors = {name: torch.from_numpy(np.concatenate([arrays[name] for arrays, _ in parts])) for name in names}
    return Pretrained(tuple(meta["seed"] for _, meta in parts), tensors)


def _missing(paths: Mapping[int, Path]) -> dict[int, Path]:
    """Return the files of pretrained weights that are missing or damaged, by seed."""
    missing = {}
    for seed, path in paths.items():
        try:
            load_pretrained([path])
        except UserError:
            missing[seed] = path
    return missing


@contextmanager
def _locked(path: Path, task: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    lock = file_lock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{task}: another run is pretraining it; waiting for its pretrained weights")
        lock.acquire(cancel_check=cancelled)
    try:
        yield
    finally:
        lock.release()
