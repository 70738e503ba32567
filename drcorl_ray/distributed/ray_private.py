"""All uses of Ray's private APIs: each may break with a version of Ray other than 2.60."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray._private import ray_constants
from ray._private.utils import read_ray_address
from ray.data import DataContext
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class StageTrainer(TorchTrainer):
    """A TorchTrainer without the callback that releases the workers' resources if only the controller dies.

    Without a dashboard this callback delays the end of every job by 12 s. It is not needed: the driver exits with the
    controller, which also releases the placement group.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def reread_environment() -> None:
    """Apply the settings of the environment that Ray read when it was imported, perhaps before they were made."""
    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV") == "0":
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    if os.environ.get("RAY_DATA_DISABLE_PROGRESS_BARS") == "1":
        DataContext.get_current().enable_progress_bars = False


def listen_on_loopback_only() -> None:
    """Make a Ray instance that this process starts listen only on this machine's loopback interface.

    By default Ray listens on all interfaces, except on platforms where it supports no clusters.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False


def address_of_ray_start() -> str | None:
    """Return the address of the cluster that `ray start` joined on this machine, if any; it may be dead."""
    return read_ray_address()


def checked_cluster_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a `ray up` file and check it against Ray's schema; raises what Ray's checks raise."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(dict(content))
    validate_config(prepared)
    return prepared
