"""One place that starts or joins Ray, with the settings our code relies on."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import local_path

_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else every worker started under `uv run` builds its own environment
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report blocks until the controller's next poll (Ray 2.60)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy or growing cluster may take its time
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keep relative paths meaning what they mean in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we keep our own metrics log
    "RAY_AIR_NEW_OUTPUT": "0",
    "AWS_RETRY_MODE": "standard",  # an object store may stay away for six minutes (waits of up to 20 s between tries)
    "AWS_MAX_ATTEMPTS": "40",
}


def prepare_environment() -> None:
    """Set what Ray, its libraries and the object stores' drivers read. What the user has set stays.

    Importing `drcorl_ray.distributed` does it, so that it stands before our first `import ray`. For a Ray that the user
    imported before, `connect` makes up for the settings that were read then.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect() -> None:
    """Join the cluster at RAY_ADDRESS, or the one that `ray start` made this machine part of; else start Ray here.

    A Ray that is started here listens on this machine's loopback interface only. Nothing happens if Ray is connected already.
    UserError if RAY_ADDRESS names a cluster that does not answer; a dead cluster that `ray start` left behind is ignored.
    (`address="auto"` would also join any other program's private Ray on this machine.)
    """
    import ray

    from drcorl_ray.distributed import ray_private

    ray_private.reread_environment()
    if ray.is_initialized():
        return
    address = _answering_address()
    if address == "local":
        ray_private.listen_on_loopback_only()
    try:
        ray.init(
            address=address,
            include_dashboard=False,  # for a Ray started here; a joined cluster keeps its own
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _workers_environment()},
        )
    except OSError as error:
        if "AF_UNIX path length" not in str(error):
            raise
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        raise UserError(f"{folder}: the name is too long for the sockets that Ray keeps there; set RAY_TMPDIR=/tmp") from error


def _workers_environment() -> dict[str, str]:
    """The variables of Ray's workers, by which they can import what the driver can.

    Ray itself gives them the script's folder and the working directory, but no folder that a script has put on `sys.path`.
    """
    installed = (sys.prefix, sys.base_prefix)
    folders = [folder for folder in sys.path if folder and not any(map(Path(folder).is_relative_to, installed))]
    settings = {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}
    return settings | {"PYTHONPATH": os.pathsep.join([*folders, "${PYTHONPATH}"])}


def cpus_of_largest_machine() -> int:
    """The CPUs of the connected cluster's machine that has the most."""
    import ray

    return int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))


@contextmanager
def interrupts_restored() -> Iterator[None]:
    """Restore the Ctrl-C handler at the end: Ray Train and Tune 2.60 leave their own one behind.

    Ray Train's handler also keeps a reference to the controller, so its process would stay alive.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def ray_storage(folder: Path) -> dict[str, Any]:
    """Return the arguments of Ray Train's and Tune's RunConfig that keep their records in a folder of any storage."""
    if local_path(folder) is not None:
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    remote: Any = folder
    return {"storage_path": remote.path, "storage_filesystem": PyFileSystem(FSSpecHandler(remote.fs))}


def _answering_address() -> str | None:
    """Return the address for `ray.init`: "local" if there is no live cluster to join, None to let Ray find it."""
    from drcorl_ray.distributed.ray_private import address_of_ray_start

    named = os.environ.get("RAY_ADDRESS")
    if named == "local":
        return "local"
    if named and ("://" in named or named == "auto"):
        return None
    address = named or address_of_ray_start()
    if address and _answers(address):
        return None
    if named:
        raise UserError(f"RAY_ADDRESS={named}: no Ray answers there; start it, or unset RAY_ADDRESS to start one here")
    return "local"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True
