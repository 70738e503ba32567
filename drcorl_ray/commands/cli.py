"""The command line: `drcorl COMMAND …`, and `python launch/COMMAND.py …`, which is the same for one command.

A command's module is imported after its arguments are checked: help and a mistyped key need neither torch nor Ray.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from drcorl_ray.config import Config
from drcorl_ray.config.base import nearest
from drcorl_ray.config.loading import QUICKSTART, load_config
from drcorl_ray.distributed import prepare_environment
from drcorl_ray.errors import UserError
from drcorl_ray.io.storage import is_full

_SETTINGS = "[CONFIG.yaml …] [section.key=value …]"


@dataclass(frozen=True)
class Command:
    """A command of `drcorl`.

    function: "module:name" below drcorl_ray.commands; the module's docstring is the command's help. usage: its arguments.
    read: makes the function's arguments from the command line's and, for errors, the usage. settings: help lists them all.
    """

    function: str
    usage: str
    read: Callable[[list[str], str], Sequence[Any]]
    settings: bool = False

    @property
    def help(self) -> str:
        """The docstring of the command's module, which is not imported for it."""
        source = Path(__file__).with_name(f"{self.function.split(':')[0]}.py").read_text(encoding="utf-8")
        return ast.get_docstring(ast.parse(source)) or ""

    def run(self, arguments: list[str], program: str) -> None:
        values = self.read(arguments, f"{program} {self.usage}")
        module, name = self.function.split(":")
        getattr(importlib.import_module(f"drcorl_ray.commands.{module}"), name)(*values)


def _policies(arguments: list[str], usage: str) -> tuple[list[str], Config]:
    policies = [argument for argument in arguments if "=" not in argument]
    if not policies:
        raise UserError(f"no policy given: {usage}")
    return policies, load_config([argument for argument in arguments if "=" in argument])


def _one_run(arguments: list[str], usage: str) -> list[str]:
    if len(arguments) != 1:
        raise UserError(f"one run directory expected, got {len(arguments)} arguments: {usage}")
    return arguments


def _at_most_one_folder(arguments: list[str], usage: str) -> list[str]:
    if len(arguments) > 1:
        raise UserError(f"one folder expected, got {len(arguments)} arguments: {usage}")
    return arguments


def _cluster(arguments: list[str], usage: str) -> tuple[str, Config]:
    if not arguments:
        raise UserError(f"a cluster file expected: {usage}")
    return arguments[0], load_config(arguments[1:])


COMMANDS = {
    "train": Command("train:train", _SETTINGS, lambda arguments, _: (load_config(arguments),), settings=True),
    "tune": Command("tune:search", _SETTINGS, lambda arguments, _: (load_config(arguments, QUICKSTART),), settings=True),
    "evaluate": Command("evaluate:evaluate_files", "POLICY.safetensors|RUN … [section.key=value …]", _policies),
    "report": Command("report:report", "RUN", _one_run),
    "theory": Command("theory:theory", "[FOLDER]", _at_most_one_folder),
    "check-cluster": Command("check_cluster:print_machines", f"CLUSTER.yaml {_SETTINGS}", _cluster),
}


def main(command: str | None = None) -> int:
    """Run a command, or else the one that the command line names first; return the exit code.

    0: the work is done. 2: a user's error, with one line on stderr. 130: interrupted.
    """
    arguments = sys.argv[1:]
    if command is None:
        return guarded(lambda: _run_named(arguments))
    return guarded(lambda: _run(command, arguments, f"python launch/{command.replace('-', '_')}.py"))


def _run_named(arguments: list[str]) -> None:
    match arguments:
        case []:
            raise UserError("no command given; drcorl --help lists them")
        case ["-h" | "--help", *_]:
            print(_overview())
        case ["--version", *_]:
            print(f"drcorl_ray {version('drcorl_ray')}")
        case [name, *rest] if name in COMMANDS:
            _run(name, rest, f"drcorl {name}")
        case [name, *_]:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")


def _run(name: str, arguments: list[str], program: str) -> None:
    """program: how the user calls the command, for its help and its messages."""
    if {"-h", "--help"} & {*arguments}:
        _print_help(COMMANDS[name], name, program)
    else:
        COMMANDS[name].run(arguments, program)


def guarded(work: Callable[[], object]) -> int:
    """Call `work` and turn its end into an exit code."""
    prepare_environment()  # evaluate and report, which start no Ray, may read from an object store too
    try:
        work()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; make room and {_resume(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted; {_resume(error)}", file=sys.stderr)
        return 130
    return 0


def _resume(error: BaseException) -> str:
    """How to go on after an error: what `commands.common.resumable` noted on it, if a run had begun."""
    return " ".join(getattr(error, "__notes__", ["run the same command again"]))


def _overview() -> str:
    """The help of `drcorl` itself."""
    commands = [f"  {name:<15}{command.help.splitlines()[0]}" for name, command in COMMANDS.items()]
    after = "`drcorl COMMAND --help` explains a command; `drcorl --version` prints the version."
    return "\n".join(["usage: drcorl COMMAND …", "", *commands, "", after])


def _print_help(command: Command, name: str, program: str) -> None:
    """The command's purpose and examples and, of one that takes all settings, every key with its default and meaning."""
    print(command.help.replace(f"drcorl {name}", program))
    if not command.settings:
        return
    print(f"\nusage: {program} {command.usage}\n")
    console = Console()
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
