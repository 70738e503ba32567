"""Weights & Biases: online if the user is logged in or sets it, offline otherwise.

It never prompts, and its errors never stop a run.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from drcorl_ray.io.console import console
from drcorl_ray.io.storage import local_path
from drcorl_ray.runs.directory import RunDirectory

Mode = Literal["online", "offline", "disabled"]

# A member's run records no system statistics, no code and no console output.
_SLIM = {"console": "off", "save_code": False, "x_disable_stats": True, "x_disable_meta": True}


class Tracker:
    """The W&B runs of one launch, in a group named like it: one for the launch, and in a search one per member.

    If W&B fails, the tracker prints a message and switches itself off, so that the launch continues.
    """

    def __init__(self, mode: Mode | Literal["auto"], settings: Mapping[str, Any], run: RunDirectory) -> None:
        self._directory = run
        self._run: Any = None
        automatic: Mode = "online" if _logged_in() else "offline"
        self._mode: Mode = automatic if mode == "auto" else mode
        if self._mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = self._init(run.path.name, "launch", settings)
        except Exception as error:
            self.give_up(error)

    def _init(self, name: str, kind: str, config: Mapping[str, Any], **named: Any) -> Any:
        import wandb

        path = self._directory.path
        local = local_path(path)
        return wandb.init(
            project="drcorl_ray", group=path.name, job_type=kind, name=name, dir=local and str(local), mode=self._mode,
            config=dict(config), reinit="create_new", **named,
        )  # fmt: skip

    def give_up(self, error: Exception) -> None:
        """Switch the tracker off and print the reason."""
        self._run, self._mode = None, "disabled"
        console.print(f"[yellow]Weights & Biases is off: {' '.join(str(error).split())[:200]}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Log a line of the metrics log to the launch's run."""
        if self._run is None:
            return
        head = f"{line['task']}/{line['stage']}"
        flat: dict[str, Any] = {f"{head}/step": line["step"]}
        for name, values in line["metrics"].items():
            flat |= {f"{head}/{name}/{member}": value for member, value in enumerate(values)}
        try:
            self._run.log(flat)
        except Exception as error:
            self.give_up(error)

    def member(
        self,
        name: str,
        config: Mapping[str, Any],
        history: Iterable[tuple[int, Mapping[str, float | None]]],
        summary: Mapping[str, Any],
    ) -> None:
        """Log a member's complete run: its settings, its metrics by step, and its results."""
        if self._mode == "disabled":
            return
        try:
            import wandb

            # The same id for a run that is logged again after a kill; W&B allows at most 64 characters of a small set.
            digest = hashlib.sha256(f"{self._directory.path} {name}".encode()).hexdigest()[:16]
            identity = f"{re.sub(r'[^0-9A-Za-z-]', '-', name)[:40]}-{digest}"
            run = self._init(name, "member", config, id=identity, resume="allow", settings=wandb.Settings(**_SLIM))
            for step, metrics in history:
                run.log({key: value for key, value in metrics.items() if value is not None}, step=step)
            run.summary.update(dict(summary))
            run.finish()
        except Exception as error:
            self.give_up(error)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._run is not None:
                self._run.finish()
        except Exception as error:
            self.give_up(error)


def _logged_in() -> bool:
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
