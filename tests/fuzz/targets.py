"""Every loader of files from a user or a download, each with an intact file.

It runs as a program (`python -m tests.fuzz.targets NAME SEED CASES FOLDER`) because a crash in a C library would end the
tests. It prints a line per case and at the end the numbers of refused and of loaded files.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drcorl_ray.config import Config, SearchConfig
from drcorl_ray.config.loading import dump_config, load_config
from drcorl_ray.data.dsrl import read_dataset, write_dataset
from drcorl_ray.data.store import load_manifest, read_store, verify
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.policy_files import load_entries
from drcorl_ray.io.files import load_arrays, save_arrays, write_json
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.runs.folders import PackFolder
from drcorl_ray.runs.metrics_log import MetricsLog, read_log
from drcorl_ray.search.plan import Member, Pack, read_pack
from drcorl_ray.search.study import SearchStudy, load_study
from drcorl_ray.training.episode_budget import EpisodeLedger
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.helpers.columns import make_columns, make_store
from tests.helpers.policies import random_policy, random_transformer

CASE_S, MEMORY_BYTES = 20, 8 * 2**30

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """make: writes intact files and returns the one to damage; load: loads it like a user's call; damage: damages bytes."""

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    damage: Damage


def _hdf5(folder: Path) -> Path:
    write_dataset(folder / "data.hdf5", make_columns(30))
    return folder / "data.hdf5"


def _store(folder: Path) -> Path:
    make_store(folder / "store", rows=40, rows_per_shard=20)
    return folder / "store" / "manifest.json"


def _shard(folder: Path) -> Path:
    return sorted(_store(folder).parent.glob("*.parquet"))[0]


def _load_shard(path: Path) -> Any:
    verify(path.parent)
    read_store(path.parent)


RESULT = {
    "task": "PointCircle", "algorithm": "drcorl", "config": {"k": 1.0}, "seed": 0, "cost_limit": 10.0,
    "evaluation_mode": "offline", "selection": "last",
}  # fmt: skip


def _policy(folder: Path) -> Path:
    about = {"result": RESULT, "return_range": [0.0, 50.0]}
    random_policy(6, 2, hidden=4).save(folder / "p.safetensors", 0, about)
    return folder / "p.safetensors"


def _policy_damage(content: bytes, chance: random.Random) -> bytes:
    """Damage the bytes; or the metadata and the arrays, with a correct checksum, as a hostile file has it."""
    if chance.random() < 0.3:
        return damaged_bytes(content, chance)
    path = Path("planted.safetensors")
    path.write_bytes(content)
    arrays, meta = load_arrays(path)
    damaged_meta = json.loads(
        damaged_json(json.dumps(meta).encode() + b"\n", random.Random(chance.random())).decode("utf-8", "replace")
    )
    name = chance.choice(sorted(arrays))
    kind = chance.randrange(5)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = arrays[name].astype(chance.choice(["float64", "int8", "float16", "bool"]))
    elif kind == 2:
        arrays[name] = arrays[name].reshape(-1)[: chance.randrange(arrays[name].size + 1)]
    save_arrays(path, arrays, damaged_meta if isinstance(damaged_meta, dict) else {"meta": damaged_meta})
    return path.read_bytes()


def _policy_damage_or_bytes(content: bytes, chance: random.Random) -> bytes:
    try:
        return _policy_damage(content, chance)
    except (ValueError, TypeError, RecursionError):  # such content cannot be written to a file
        return damaged_bytes(content, chance)


def _load_policy(path: Path) -> None:
    policy = load_policy(path)
    actions = policy.act(np.zeros(policy.population.observation_mean.shape, np.float32))
    assert actions.ndim == 1
    load_entries([str(path)])


def _population(folder: Path) -> Path:
    random_policy(6, 2, members=2, hidden=4).save_population(folder / "p.safetensors", {"finite": [True, True]})
    return folder / "p.safetensors"


def _transformer(folder: Path) -> Path:
    about = {"result": RESULT, "return_range": [0.0, 50.0]}
    random_transformer(3, 2).save(folder / "p.safetensors", 0, about)
    return folder / "p.safetensors"


def _load_transformer(path: Path) -> None:
    policy = load_policy(path)
    assert policy.episode().act(np.zeros(policy.population.observation_size, np.float32)).ndim == 1
    load_entries([str(path)])


def _run(folder: Path) -> Path:
    _policy(folder)
    (folder / "policies").mkdir()
    (folder / "p.safetensors").rename(folder / "policies" / "p.safetensors")
    write_json(folder / "results.json", {"schema": 1, "run": {}, "rows": [RESULT | {"policy": "policies/p.safetensors"}] * 2})
    return folder / "results.json"


def _load_run(path: Path) -> None:
    for entry in load_entries([str(path.parent)]):
        assert entry.file.is_relative_to(path.parent), entry.file
    load_policy(path.parent)


def _config(folder: Path) -> Path:
    (folder / "c.yaml").write_text(dump_config(Config()))
    return folder / "c.yaml"


def _load_config(path: Path) -> None:
    assert isinstance(load_config([str(path)]), Config)


def _log(folder: Path) -> Path:
    log = MetricsLog(folder / "metrics.jsonl", "task", "extract", 100, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": np.array([1.0, np.nan])})
    return folder / "metrics.jsonl"


def _load_log(path: Path) -> None:
    for line in read_log(path):
        line["task"], line["stage"], line["step"] / line["total_steps"] if line["total_steps"] else 0, list(line["metrics"])
    MetricsLog(path, "task", "extract", 100, 20)


def _ledger(folder: Path) -> Path:
    ledger = EpisodeLedger(folder / "episodes.jsonl", 100, [1, 2, 3])
    ledger.charge([0, 2], 5)
    ledger.charge([1], 2)
    return folder / "episodes.jsonl"


def _pack(folder: Path) -> Path:
    members = tuple(Member(number, {"k": 1.0}, (0, number)) for number in range(2))
    pack = Pack("s", ("task",), 1, 1, 40, 100, members)
    write_json(folder / "pack.json", asdict(pack))
    return folder / "pack.json"


def _journal(folder: Path) -> Path:
    study = SearchStudy(folder / "s.journal", "s", SearchConfig(configurations=3), [], 0)
    for number in range(2):
        study.ask(number)
    return folder / "s.journal"


def _load_journal(path: Path) -> None:
    len(load_study(path, "s").get_trials())


TARGETS = {
    "hdf5": Target(_hdf5, read_dataset, damaged_bytes),
    "manifest": Target(_store, lambda path: load_manifest(path.parent), damaged_json),
    "shard": Target(_shard, _load_shard, damaged_bytes),
    "policy": Target(_policy, _load_policy, _policy_damage_or_bytes),
    "population": Target(_population, lambda path: load_population(path)[0].act(np.zeros((2, 1, 6))), _policy_damage_or_bytes),
    "transformer": Target(_transformer, _load_transformer, _policy_damage_or_bytes),
    "run": Target(_run, _load_run, damaged_json),
    "config": Target(_config, _load_config, damaged_bytes),
    "log": Target(_log, _load_log, damaged_json),
    "ledger": Target(_ledger, lambda path: EpisodeLedger(path, 100, [1, 2, 3]), damaged_json),
    "pack": Target(_pack, lambda path: read_pack(PackFolder(path.parent)), damaged_json),
    "journal": Target(_journal, _load_journal, damaged_json),
}


def run(target: Target, seed: int, cases: int, folder: Path) -> dict[str, int]:
    """Check that every case is loaded or refused with one line that names the file, within the limits, and writes nothing."""
    counts = {"refused": 0, "loaded": 0}
    path = target.make(folder)
    intact = path.read_bytes()
    target.load(path)
    present = sorted(folder.rglob("*"))
    for case in range(seed, seed + cases):
        print("case", case, flush=True)
        content = target.damage(intact, random.Random(case))
        path.write_bytes(content)
        message = str(path)
        signal.alarm(CASE_S)
        try:
            target.load(path)
            counts["loaded"] += 1
        except UserError as error:
            counts["refused"] += 1
            message = str(error)
        signal.alarm(0)
        assert "\n" not in message, f"more than a line: {message}"
        assert str(path.parent) in message, f"names no file: {message}"
        new = [file for file in sorted(folder.rglob("*")) if file not in present and file.name != "s.journal.lock"]
        assert not new, new
    return counts


def main() -> None:
    name, seed, cases, folder = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps(run(TARGETS[name], int(seed), int(cases), Path(folder))))


if __name__ == "__main__":
    main()
