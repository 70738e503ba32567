"""The command line shared by the launch scripts: configuration, help, one-line errors, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from drcorl_ray.config import Config
from drcorl_ray.config.loading import load_config
from drcorl_ray.distributed.cluster import prepare_environment
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import is_full

_GO_ON = "add run.resume=true and the same run.dir to go on"


def main(description: str | None, work: Callable[[Config], object], default_file: Path | None = None) -> int:
    """Run a launch script: 0 when the work is done, 2 with one line on stderr for a user's error, 130 when interrupted."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print_help(description)
        return 0
    return guarded(lambda: work(load_config(arguments, default_file)))


def guarded(work: Callable[[], object]) -> int:
    """Call `work` and turn its end into an exit code."""
    prepare_environment()
    try:
        work()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; make room and {_GO_ON}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_GO_ON}", file=sys.stderr)
        return 130
    return 0


def print_help(description: str | None) -> None:
    """The script's purpose and every key with its default and meaning."""
    console = Console()
    console.print(f"{description}\n\nusage: {Path(sys.argv[0]).name} [CONFIG.yaml …] [section.key=value …]\n", markup=False)
    for key, default, meaning in _keys(Config()):
        console.print(f"  {key}={default}\n      {meaning}", markup=False, highlight=False)


def _keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(key, default, meaning) of a section's own keys, of those below it, and of the algorithms' sections."""
    for name, field in type(section).model_fields.items():
        default = getattr(section, name)
        if isinstance(default, BaseModel):
            yield from _keys(default, f"{prefix}{name}.")
        else:
            if name == "space":
                default = {key: entry.model_dump(exclude_defaults=True) for key, entry in default.items()}
            yield f"{prefix}{name}", default, field.description or ""
    for name, own in (section.model_extra or {}).items():
        yield from _keys(own, f"{prefix}{name}.")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files, and section.key=value settings, apart."""
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
