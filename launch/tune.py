"""Search DRCORL's hyper-parameters with Ray Tune and Optuna: pretrain once per task, then packs of members side by side.

python launch/tune.py                                              # the quickstart, on the built-in task
python launch/tune.py tune_configs/velocity.yaml task.name=HopperVelocity data.dataset=FILE.hdf5
"""

import sys
from pathlib import Path

from drcorl_ray.commands.cli import main

QUICKSTART = Path(__file__).resolve().parent.parent / "tune_configs" / "quickstart.yaml"


def work(config):
    from drcorl_ray.commands.tune import search  # after the command line is checked: Ray takes seconds to import

    return search(config)


if __name__ == "__main__":
    sys.exit(main(__doc__, work, QUICKSTART))
