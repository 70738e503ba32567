"""All of Ray: the cluster, Ray Data, Ray Train, Ray Tune and the rollout actors. No other room imports Ray."""
