"""Settings of every test: what Ray reads at import, one torch thread (two busy cores make OpenMP spin), one local cluster."""

from __future__ import annotations

import time
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
def session_cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def ray_cluster(session_cluster: None) -> None:
    """A real local Ray whose two CPUs are free: those of the test before may still be on their way back.

    What `available_resources` says may be old until something changes: a task that books both CPUs waits, and changes it.
    """
    import ray

    ray.get(ray.remote(num_cpus=2)(lambda: None).remote(), timeout=60)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
