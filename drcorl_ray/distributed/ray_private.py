"""Private APIs of Ray, in one place: what may break with another version of Ray (2.60)."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class _Trainer(TorchTrainer):
    """Without the callback that frees the workers' resources should the controller alone die.

    Where Ray's State API does not answer (no dashboard) it holds up the end of every job for 12 s (Ray 2.60), and our driver
    ends with its controller anyway, which frees them too.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
