"""Hyper-parameter search: packs of members as Ray Tune trials, all started from one pretraining per task and seed."""

from drcorl_ray.search.driver import search

__all__ = ["search"]
