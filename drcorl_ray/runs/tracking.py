"""Weights & Biases: online when the user is logged in or asks, offline otherwise; never a prompt, never a crash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from drcorl_ray.config import Config
from drcorl_ray.io.console import console
from drcorl_ray.io.storage import local_path
from drcorl_ray.runs.directory import RunDirectory

Mode = Literal["online", "offline", "disabled"]

# What a run of one member needs no part of: system statistics, code, the console.
_SLIM = {"console": "off", "save_code": False, "x_disable_stats": True, "x_disable_meta": True}


class Tracker:
    """The runs of one launch, a group of that name: one of the launch itself, and in a search one per member.

    A tracker that fails is switched off and said so: it must not take the work down with it.
    """

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._directory = run
        self._run: Any = None
        automatic: Mode = "online" if _logged_in() else "offline"
        self._mode: Mode = automatic if config.run.wandb == "auto" else config.run.wandb
        if self._mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = self._init(run.path.name, "launch", config.model_dump())
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
        """Switch off, and say why."""
        self._run, self._mode = None, "disabled"
        console.print(f"[yellow]Weights & Biases is off: {' '.join(str(error).split())[:200]}")

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the metrics log, to the launch's run."""
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
        """A whole run at once: a member's settings, its metrics by step, and what became of it."""
        if self._mode == "disabled":
            return
        try:
            import wandb

            # Written again after a kill it is the same run; 64 characters of few kinds are allowed.
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
