"""Joining a cluster, without waiting for a dead one."""

import os
import socket
import subprocess
import sys

import pytest

from drcorl_ray.distributed import cluster
from drcorl_ray.errors import UserError


@pytest.fixture
def listening():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def dead_address() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


def left_behind(monkeypatch, address: str | None) -> None:
    """Set the address that `ray start` left on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("drcorl_ray.distributed.ray_private.read_ray_address", lambda: address)


def test_a_dead_cluster_of_ray_start_is_ignored(monkeypatch):
    """Fault: let ray.init search, which waits a minute for the dead cluster and then gives up."""
    left_behind(monkeypatch, dead_address())
    assert cluster._answering_address() == "local"


def test_a_live_cluster_is_joined_and_without_one_a_local_ray_is_started(monkeypatch, listening):
    left_behind(monkeypatch, listening)
    assert cluster._answering_address() is None
    left_behind(monkeypatch, None)
    assert cluster._answering_address() == "local"


def test_a_dead_cluster_in_ray_address_is_a_user_error(monkeypatch, listening):
    dead = dead_address()
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={dead}: no Ray answers"):
        cluster._answering_address()
    for named in (listening, "ray://head:10001", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        assert cluster._answering_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster._answering_address() == "local"


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process: this one may already have a Ray instance."""
    variables = {**os.environ, "RAY_ADDRESS": "local", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_temporary_folder_too_deep_for_sockets_is_named(tmp_path):
    """Fault: let Ray raise its own traceback."""
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    done = in_a_process("from drcorl_ray.distributed.cluster import connect; connect()", RAY_TMPDIR=str(deep))
    assert done.stderr.splitlines()[-1] == (
        f"drcorl_ray.errors.UserError: {deep}: the name is too long for the sockets that Ray keeps there; set RAY_TMPDIR=/tmp"
    )


LISTENING = """
from drcorl_ray.distributed.cluster import connect, prepare_environment
prepare_environment()
import psutil
import ray
connect()
ray.get(ray.remote(lambda: 1).remote())
driver = psutil.Process()
for process in (driver, *driver.children(recursive=True)):
    for connection in process.net_connections("inet"):
        if connection.status == "LISTEN":
            print(connection.laddr.ip)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_only_on_loopback():
    """Fault: let Ray listen on all interfaces, its default."""
    addresses = in_a_process(LISTENING).stdout.split()
    assert len(addresses) >= 5
    assert set(addresses) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
