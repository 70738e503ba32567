"""Check a `ray up` cluster file before a machine is paid for: Ray's own schema, and the resources that a run books."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drcorl_ray.config import ScalingConfig
from drcorl_ray.config.loading import read_yaml
from drcorl_ray.distributed.ray_private import checked_cluster_file
from drcorl_ray.distributed.ray_tune import pack_resources
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import local_path, storage_path

UNFILLED = "CHANGE-ME"


def check_cluster(path: Path, scaling: ScalingConfig, storage_name: str) -> list[str]:
    """Return the resources of the cluster, one line per machine type. UserError if Ray or a run would refuse the file.

    storage_name: `run.storage`. The network is not used, so the names of machine types, images and regions are not checked.
    """
    cluster = _by_rays_schema(path)
    local = cluster["provider"]["type"] == "local"
    machines = {} if local else _machines(path, cluster)
    if machines:
        for purpose, wanted in _booked(scaling).items():
            if not any(all(has.get(name, 0) >= amount for name, amount in wanted.items()) for has in machines.values()):
                raise UserError(f"{path}: no type of machine has what {purpose} books ({wanted}); change it or scaling")
    storage = storage_path(storage_name)
    if local_path(storage) is not None and not (local and storage.is_absolute()):
        needed = "an absolute path that all of them mount, or s3://…" if local else "an object store: s3://… or gs://…"
        raise UserError(f"run.storage={storage_name} is not shared by the machines of {path}; it must be {needed}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if UNFILLED in line:
            raise UserError(f"{path}:{number}: fill in {UNFILLED} ({line.strip()})")
    if UNFILLED in storage_name:
        raise UserError(f"run.storage={storage_name}: fill in {UNFILLED}")
    return [f"{name}: {has}" for name, has in machines.items()] or [
        f"a head and {len(cluster['provider']['worker_ips'])} more"
    ]


def _by_rays_schema(path: Path) -> dict[str, Any]:
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    content = read_yaml(path)
    try:
        return checked_cluster_file(content)
    except Exception as error:  # Ray's checks raise many kinds on a malformed file
        reason = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise UserError(f"{path}: not a cluster file of this Ray ({reason or type(error).__name__})") from error


def _machines(path: Path, cluster: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the resources of each machine type; UserError if the head would run workers or actors."""
    types = {name: dict(node.get("resources") or {}) for name, node in cluster["available_node_types"].items()}
    head = cluster["head_node_type"]
    if types[head].get("CPU") != 0:
        raise UserError(f"{path}: {head} would train and roll out beside the driver; give it resources: {{CPU: 0}}")
    return types


def _booked(scaling: ScalingConfig) -> dict[str, dict[str, float]]:
    actor = {"CPU": scaling.cpus_per_actor} | scaling.actor_resources
    return {"a pack": pack_resources(scaling), "a rollout actor": actor}
