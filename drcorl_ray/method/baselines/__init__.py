"""The baselines as populations: behaviour cloning, BCQ-Lag, BEAR-Lag, CPQ, COptiDICE, CDT (docs/baselines.md).

`config/algorithms.py` lists them. The module of an algorithm is imported only when a population of it is built.
"""

from drcorl_ray.method.baselines.base import Baseline, Dataset, Losses, Settings

__all__ = ["Baseline", "Dataset", "Losses", "Settings"]
