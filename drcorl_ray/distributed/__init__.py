"""All of Ray: the cluster, Ray Data, Ray Train, Ray Tune and the rollout actors. No other room imports Ray.

Importing this package prepares the environment, parts of which Ray reads when it is imported itself.
"""

from drcorl_ray.distributed.cluster import prepare_environment

__all__ = ["prepare_environment"]

prepare_environment()
