"""One place that starts or joins Ray, with the settings our code relies on."""

from __future__ import annotations

import logging
import os

_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else every worker started under `uv run` builds its own environment
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # ray.train.report blocks until the controller's next poll (Ray 2.60)
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keep relative paths meaning what they mean in the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # we keep our own metrics log
    "RAY_AIR_NEW_OUTPUT": "0",
}


def prepare_environment() -> None:
    """Set what Ray reads at import; call before the first `import ray`. What the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or the one that `ray start` made this machine part of; else start Ray here.

    Does nothing when connected. (`address="auto"` would also join any other program's private Ray on this machine.)
    """
    import ray

    if not ray.is_initialized():
        ray.init(
            include_dashboard=False,  # of a Ray started here; a joined cluster keeps its own
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(_ENVIRONMENT)},
        )
