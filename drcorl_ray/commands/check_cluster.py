"""Check a cluster file of `ray up`, and that its machines have what a run with these settings books; no network is needed.

drcorl check-cluster cluster.yaml on_cluster.yaml
drcorl check-cluster launch/clusters/local.yaml run.storage=/mnt/shared/drcorl
"""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.config import Config
from drcorl_ray.distributed.cluster_file import check_cluster


def print_machines(file: str, config: Config) -> None:
    """Print a line for each type of machine of a cluster file; UserError where a run of `config` would be refused on it."""
    for line in check_cluster(Path(file), config.scaling, config.run.storage):
        print(line)
