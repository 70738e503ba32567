"""A run's directory: its lock, its settings, and the path of every file in it."""

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

_NOT_COMPARED = ("run.resume", "run.dir")  # a resumed run may differ in these keys


@dataclass(frozen=True)
class RunDirectory:
    """RUN/: config.yaml, metrics.jsonl, notes.txt, states/, policies/, curves/, online/, results.json, report.* and images.

    Baselines are in baselines/TASK-ALGORITHM/. A search also has studies/, packs/STUDY-NUMBER/TASK/, pretraining/ (logs) and
    members/ (configurations).
    """

    path: Path

    @classmethod
    def prepare(cls, config: Config) -> RunDirectory:
        """Create the directory, or open the unfinished run in it; UserError if that would overwrite or mix up results."""
        if config.run.resume and config.run.dir is None:
            raise UserError("run.resume=true needs the run.dir=RUN of the run to resume")
        prefix = f"{config.run.storage}/" if local_path(config.run.storage_folder) is None else ""
        name = config.run.dir or f"{prefix}runs/{'-'.join(config.tasks)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = cls(reachable(storage_path(name).absolute()))
        resolved = dump_config(config)
        try:
            if run.results.exists():
                raise UserError(f"{name}: this run is finished; choose another run.dir, or delete it first")
            if run.config.exists():
                if not config.run.resume:
                    raise UserError(
                        f"{name}: contains an unfinished run; add run.resume=true to continue it, or choose another run.dir"
                    )
                _refuse_other_settings(run.config, resolved)
            elif run.path.is_dir() and any(run.path.iterdir()):
                raise UserError(f"{name}: is not empty and contains no run; choose another run.dir")
            write_bytes(run.config, resolved.encode())
        except OSError as error:  # exists() may fail too: a name that is too long, a folder without permission
            raise UserError(f"{name}: cannot be written ({error.strerror or error}); choose another run.dir") from error
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's exclusive lock; raise UserError if another process holds it."""
        lock = file_lock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path}: another process is working on this run; wait until it ends, or end it") from error
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
        """Problems during the run and how they were handled, one line each."""
        return self.path / "notes.txt"

    def note(self, text: str) -> None:
        """Append a line for the user to the notes, also from a worker, whose output is not shown; ignore OSError."""
        with suppress(OSError):
            append_text(self.notes, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def training(self, name: str) -> TrainingFolder:
        """Return the folder of a stage's states in a training run (a pack of a search has its own folder)."""
        return TrainingFolder(self.path / "states" / name)

    def pretraining_log(self, task: str) -> Path:
        """Return the pretraining log of one task of a search, which pretrains several tasks at the same time."""
        return self.path / "pretraining" / f"{task}.jsonl"

    def logs(self) -> list[Path]:
        """Return every existing metrics log: of the run, of baselines, and in a search of pretrainings and packs."""
        patterns = ("pretraining/*.jsonl", "packs/*/*/**/metrics.jsonl", "baselines/*/metrics.jsonl")
        others = (sorted(self.path.glob(pattern)) for pattern in patterns)
        return [path for path in (self.metrics, *itertools.chain(*others)) if path.exists()]

    def baseline(self, task: str, algorithm: str) -> TrainingFolder:
        """Return the folder of a baseline's training."""
        return TrainingFolder(self.path / "baselines" / f"{task}-{algorithm}")

    def pack(self, study: str, number: int) -> PackFolder:
        """Return the folder of a pack of a search."""
        return PackFolder(self.path / "packs" / f"{study}-{number:04d}")

    def packs(self) -> list[PackFolder]:
        """Return the folders of all packs, over all studies of a search."""
        return [PackFolder(path) for path in sorted((self.path / "packs").glob("*"))]

    @property
    def pack_size(self) -> Path:
        """The measured number of members per pack (search.members_per_pack=auto)."""
        return self.path / "pack_size.json"

    def study(self, name: str) -> Path:
        """Return Optuna's journal file of a study."""
        return self.path / "studies" / f"{name}.journal"

    def member(self, task: str, number: int) -> Path:
        """Return the file with the complete configuration of a member of a search, for any command."""
        return self.path / "members" / f"{task}-{number:04d}.yaml"

    @property
    def ray(self) -> Path:
        """The files of Ray itself; a resumed run does not read them."""
        return self.path / "ray"

    @property
    def policies(self) -> Path:
        return self.path / "policies"

    def online(self, task: str) -> OnlineFolder:
        """Return the folder of a training run's online evaluations (a pack of a search has its own)."""
        return OnlineFolder(self.path / "online" / task)

    def curve(self, task: str, step: int) -> Path:
        """Return the file of a training run's population after `step` extraction steps."""
        return self.path / "curves" / task / f"step-{step:08d}.safetensors"

    def pack_curve(self, training: TrainingFolder, step: int) -> Path:
        """Return the file of a pack's population after `step` extraction steps: curves/STUDY-NUMBER/TASK/…"""
        return self.curve(str(training.path.relative_to(self.path / "packs")), step)

    def population(self, task: str) -> Path:
        """Return the file of the population at the end of extraction."""
        return self.policies / f"{task}-population.safetensors"

    def online_best(self, task: str) -> Path:
        """Return the file of each member's best policy by online evaluations; it is absent without online evaluations."""
        return self.policies / f"{task}-online-best.safetensors"


def _refuse_other_settings(path: Path, resolved: str) -> None:
    try:
        saved, new = (_flatten(yaml.safe_load(text)) for text in (path.read_text(encoding="utf-8"), resolved))
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: the unfinished run's settings are damaged; choose another run.dir") from error
    changed = [key for key in saved.keys() | new.keys() if saved.get(key) != new.get(key) and key not in _NOT_COMPARED]
    if changed:
        raise UserError(
            f"{path}: the run was started with other settings ({', '.join(sorted(changed))}); resume it with the same settings"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
