"""Train DRCORL on one task: pretrain once, extract a population of policies, evaluate them, write the report.

python launch/train.py                                             # the built-in PointCircle
python launch/train.py tune_configs/velocity.yaml task.name=HopperVelocity data.dataset=FILE.hdf5
"""

import sys

from drcorl_ray.commands.cli import main


def work(config):
    from drcorl_ray.commands.train import train  # after the command line is checked: Ray takes seconds to import

    return train(config)


if __name__ == "__main__":
    sys.exit(main(__doc__, work))
