"""Check a `ray up` cluster file, and that its machines have the resources that a run with these settings books.

No network is needed.

drcorl check-cluster cluster.yaml on_cluster.yaml
drcorl check-cluster launch/clusters/local.yaml run.storage=/mnt/shared/drcorl
"""

from __future__ import annotations

from pathlib import Path

from drcorl_ray.config import Config
from drcorl_ray.distributed.cluster_file import check_cluster


def print_machines(file: str, config: Config) -> None:
    """Print a line for each type of machine of a cluster file; UserError if a run of `config` could not start there."""
    for line in check_cluster(Path(file), config.scaling, config.run.storage):
        print(line)
