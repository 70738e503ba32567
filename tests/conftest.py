"""Settings of every test: Ray's environment, one torch thread (OpenMP spins on two busy cores), one local cluster."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from drcorl_ray.distributed.cluster import prepare_environment
from drcorl_ray.io.storage import storage_path

prepare_environment()
torch.set_num_threads(1)
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FILE", help="write the table of tests/faults into this document")
    parser.addoption("--transcript", metavar="FILE", help="write what tests/cluster typed and saw to this file")


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[None]:
    import ray

    start_cluster()
    yield
    ray.shutdown()


def start_cluster() -> None:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=300 * 2**20)


@pytest.fixture
def ray_cluster(session_cluster: None) -> None:
    """A real local Ray whose two CPUs are free; it waits for those of the previous test, and restarts Ray if they are lost.

    Ray 2.60 occasionally loses the CPUs of a placement group that is removed while it is created.
    """
    import ray

    if not cpus_return(within_s=15):
        held = f"held: {held_by_actors()}, available: {ray.available_resources()}"
        warnings.warn(f"Ray lost the CPUs of the previous test ({held}); it was restarted", stacklevel=2)
        ray.shutdown()
        start_cluster()
        assert cpus_return(within_s=60), held


def cpus_return(within_s: float) -> bool:
    """Whether both CPUs become free in time. `available_resources` may be outdated; a task that books both refreshes it."""
    import ray

    deadline = time.monotonic() + within_s
    booking = ray.remote(num_cpus=2)(lambda: None).remote()
    if not ray.wait([booking], timeout=within_s)[0]:
        return False
    while ray.available_resources().get("CPU") != 2.0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def held_by_actors() -> list[str]:
    from ray._private.state import actors

    return [f"{actor['ActorClassName']} {actor['State']}" for actor in actors().values() if actor["State"] != "DEAD"]


class S3Server:
    """An S3 server on this machine; its content survives a stop and a start."""

    port = 0

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server that the environment of this process and of its children points to."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[Path]:
    """An empty folder in an object store."""
    folder: Any = storage_path(f"s3://{uuid.uuid4().hex}/folder")
    folder.fs.mkdir(folder.drive)
    yield folder
    folder.fs.rm(folder.drive, recursive=True)
