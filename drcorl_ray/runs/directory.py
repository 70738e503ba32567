"""A run's directory: who owns it, where each output lies, and its metrics log."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from drcorl_ray.config import Config
from drcorl_ray.config.loading import dump_config
from drcorl_ray.errors import UserError
from drcorl_ray.io.files import append_text, file_lock, write_bytes
from drcorl_ray.io.storage import local_path, reachable, storage_path
from drcorl_ray.runs.folders import OnlineFolder, PackFolder, TrainingFolder

_NOT_COMPARED = ("run.resume", "run.dir")  # the same run, however its directory is spelt


@dataclass(frozen=True)
class RunDirectory:
    """RUN/: config.yaml, metrics.jsonl, notes.txt, states/, policies/, curves/, online/, results.json, report.* and pictures.

    Algorithms trained beside it have baselines/TASK-ALGORITHM/. A search has in addition studies/, packs/STUDY-NUMBER/TASK/,
    pretraining/ (logs) and members/ (configurations).
    """

    path: Path

    @classmethod
    def prepare(cls, config: Config) -> RunDirectory:
        """Make the directory, or take up the unfinished run in it; UserError where that would lose or mix up work."""
        if config.run.resume and config.run.dir is None:
            raise UserError("run.resume=true needs the run.dir=RUN of the run to go on with")
        below = f"{config.run.storage}/" if local_path(config.run.storage_folder) is None else ""
        name = config.run.dir or f"{below}runs/{'-'.join(config.tasks)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(reachable(storage_path(name).absolute()))
        resolved = dump_config(config)
        try:
            if run.results.exists():
                raise UserError(f"{name}: this run is finished; choose another run.dir, or delete it first")
            if run.config.exists():
                if not config.run.resume:
                    raise UserError(
                        f"{name}: holds an unfinished run; add run.resume=true to go on, or choose another run.dir"
                    )
                _refuse_other_settings(run.config, resolved)
            elif run.path.is_dir() and any(run.path.iterdir()):
                raise UserError(f"{name}: is not empty and holds no run; choose another run.dir")
            write_bytes(run.config, resolved.encode())
        except OSError as error:  # a look may fail too: a name too long, a folder that may not be entered
            raise UserError(f"{name}: cannot be written ({error.strerror or error}); choose another run.dir") from error
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's exclusive lock; raise UserError if another process holds it."""
        lock = file_lock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path}: another process is at work on this run; wait for its end, or end it") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def notes(self) -> Path:
        """What went wrong on the way and what was done about it, a line each."""
        return self.path / "notes.txt"

    def note(self, text: str) -> None:
        """Tell the user, also from a worker, whose output nobody sees; where that fails, work goes on."""
        with suppress(OSError):
            append_text(self.notes, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def training(self, name: str) -> TrainingFolder:
        """The states of a stage of a training run; a pack of a search has a folder of its own."""
        return TrainingFolder(self.path / "states" / name)

    def pretraining_log(self, task: str) -> Path:
        """Of one task of a search, where several are pretrained at the same time."""
        return self.path / "pretraining" / f"{task}.jsonl"

    def logs(self) -> list[Path]:
        """Every metrics log so far: the run's own, each baseline's; of a search each pretraining's and each pack's task's."""
        patterns = ("pretraining/*.jsonl", "packs/*/*/**/metrics.jsonl", "baselines/*/metrics.jsonl")
        others = (sorted(self.path.glob(pattern)) for pattern in patterns)
        return [path for path in (self.metrics, *itertools.chain(*others)) if path.exists()]

    def baseline(self, task: str, algorithm: str) -> TrainingFolder:
        """The training of an algorithm beside the run."""
        return TrainingFolder(self.path / "baselines" / f"{task}-{algorithm}")

    def pack(self, study: str, number: int) -> PackFolder:
        return PackFolder(self.path / "packs" / f"{study}-{number:04d}")

    def packs(self) -> list[PackFolder]:
        """All packs of a search, of all its studies."""
        return [PackFolder(path) for path in sorted((self.path / "packs").glob("*"))]

    @property
    def pack_size(self) -> Path:
        """The measured number of members per pack (search.members_per_pack=auto)."""
        return self.path / "pack_size.json"

    def study(self, name: str) -> Path:
        return self.path / "studies" / f"{name}.journal"

    def member(self, task: str, number: int) -> Path:
        """The complete configuration of a member of a search, for any launcher."""
        return self.path / "members" / f"{task}-{number:04d}.yaml"

    @property
    def ray(self) -> Path:
        """Ray's own records; nothing is resumed from them."""
        return self.path / "ray"

    @property
    def policies(self) -> Path:
        return self.path / "policies"

    def online(self, task: str) -> OnlineFolder:
        """The online evaluations of a training run; a pack of a search keeps its own."""
        return OnlineFolder(self.path / "online" / task)

    def curve(self, task: str, step: int) -> Path:
        """The population of a training run after `step` extraction steps."""
        return self.path / "curves" / task / f"step-{step:08d}.safetensors"

    def pack_curve(self, training: TrainingFolder, step: int) -> Path:
        """The population of a pack of a search after `step` extraction steps: curves/STUDY-NUMBER/TASK/…"""
        return self.curve(str(training.path.relative_to(self.path / "packs")), step)

    def population(self, task: str) -> Path:
        """The population at the end of extraction."""
        return self.policies / f"{task}-population.safetensors"

    def online_best(self, task: str) -> Path:
        """Those of its members' policies that did best in online evaluations; absent without any."""
        return self.policies / f"{task}-online-best.safetensors"


def _refuse_other_settings(path: Path, resolved: str) -> None:
    try:
        before, now = (_flatten(yaml.safe_load(text)) for text in (path.read_text(encoding="utf-8"), resolved))
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: the unfinished run's settings are damaged; choose another run.dir") from error
    changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in _NOT_COMPARED]
    if changed:
        raise UserError(
            f"{path}: the run was started with other settings ({', '.join(sorted(changed))}); resume with the same"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
