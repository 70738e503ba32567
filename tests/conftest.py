"""Settings of every test: what Ray reads at import, one torch thread (two busy cores make OpenMP spin), one local cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from drcorl_ray.cluster import prepare_environment

prepare_environment()
torch.set_num_threads(1)
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real local Ray with two CPUs for all tests marked `ray`."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    yield
    ray.shutdown()
