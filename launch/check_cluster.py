"""Check a cluster file of `ray up`, and that its machines have what a run with these settings books; no network is needed.

python launch/check_cluster.py cluster.yaml tune_configs/on_cluster.yaml
python launch/check_cluster.py launch/clusters/local.yaml run.storage=/mnt/shared/drcorl
"""

import sys
from pathlib import Path

from drcorl_ray.commands.cli import guarded
from drcorl_ray.errors import UserError


def work() -> None:
    from drcorl_ray.config.loading import load_config
    from drcorl_ray.distributed.cluster_file import check_cluster  # after the command line is checked: imports take seconds

    if len(sys.argv) < 2:
        raise UserError("a cluster file expected: python launch/check_cluster.py CLUSTER.yaml [CONFIG.yaml …] [key=value …]")
    config = load_config(sys.argv[2:])
    for line in check_cluster(Path(sys.argv[1]), config.scaling, config.run.storage):
        print(line)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    sys.exit(guarded(work))
