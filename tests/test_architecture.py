"""The plan of the package: which room may import which, where Ray and other heavy libraries may appear, and no cycles.

The imports are read from the source of every module. Imports inside functions and those under TYPE_CHECKING are told apart:
the first must keep to the plan too, since they only delay an import; the second need not, since they never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from tests.helpers.paths import ROOT

PACKAGE = "drcorl_ray"
LONGEST_FILE = 350
Kind = Literal["module", "function", "type"]

_CORE = ("errors", "io", "tasks", "config")
ALLOWED: dict[str, tuple[str, ...]] = {  # room: the rooms that it may import besides itself
    "errors": (),
    "io": ("errors",),
    "tasks": ("errors", "io"),
    "config": ("errors", "io", "tasks"),
    "data": _CORE,
    "runs": _CORE,
    "policy": ("errors", "io", "runs"),
    "method": ("errors", "tasks", "data", "policy"),
    "evaluation": (*_CORE, "data", "runs", "policy", "method"),
    "training": (*_CORE, "data", "runs", "policy", "method", "evaluation"),
    "distributed": (*_CORE, "data", "runs", "policy", "method", "evaluation", "training"),
    "search": (*_CORE, "data", "runs", "policy", "method", "evaluation", "training", "distributed"),
    "report": (*_CORE, "runs"),
    "theory": ("errors", "io"),
    "commands": (
        *_CORE, "data", "runs", "policy", "method", "evaluation", "training", "distributed", "search", "report", "theory",
    ),
    "__main__": ("commands",),
    "__init__": ("errors", "io", "tasks", "config", "data", "runs", "policy", "evaluation", "commands"),
}  # fmt: skip

LIBRARIES: dict[str, tuple[str, ...]] = {  # library: the rooms that may import it
    "ray": ("distributed",),
    "optuna": ("search", "report"),
    "wandb": ("runs",),
    "torch": ("method", "evaluation", "training", "distributed", "search", "runs"),
    "pydantic": ("config", "data", "commands"),
    "gymnasium": ("tasks",),
    "h5py": ("data",),
    "yaml": ("config", "runs"),
    "rich": ("io", "runs", "evaluation", "report", "commands", "theory"),
}

MAY_DELAY = ("__init__", "__main__", "commands", "report", "policy", "distributed", "tasks", "method")


@dataclass(frozen=True)
class Import:
    """One import statement of a module: where, what, and whether it runs with the module, later, or never."""

    module: str
    target: str
    kind: Kind
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target} ({self.kind})"


def imports_of(module: str, source: str) -> list[Import]:
    """Every import of a module's source, with `from package import name` resolved to package.name."""

    def walk(node: ast.AST, kind: Kind) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, kind, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source_module = "." * child.level + (child.module or "")
                yield from (Import(module, f"{source_module}.{alias.name}", kind, child.lineno) for alias in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).rpartition(".")[2] in ("import_module", "__import__"):
                if child.args and isinstance(child.args[0], ast.Constant):
                    yield Import(module, str(child.args[0].value), kind, child.lineno)
                yield from walk(child, kind)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from walk(ast.Module(child.body, []), "type")
                yield from walk(ast.Module(child.orelse, []), kind)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, kind if kind == "type" else "function")
            else:
                yield from walk(child, kind)

    return list(walk(ast.parse(source), "module"))


def modules() -> dict[str, str]:
    """{dotted name below the package: source}."""
    folder = ROOT / PACKAGE
    return {
        ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): file.read_text(encoding="utf-8")
        for file in sorted(folder.rglob("*.py"))
    }


def room_of(name: str) -> str:
    return name.partition(".")[0]


def violations(sources: dict[str, str]) -> list[str]:
    """Imports of the sources that the tables above do not allow; imports for type checkers alone are not looked at."""
    found = []
    for module, source in sources.items():
        room = room_of(module)
        for each in imports_of(module, source):
            top, _, below = each.target.partition(".")
            if each.kind == "type":
                continue
            if each.target.startswith("."):
                found.append(f"{each}: imports are absolute, so that their room can be read")
            elif top == PACKAGE and room_of(below) not in (room, *ALLOWED[room]):
                found.append(f"{each}: {room} may import {', '.join(ALLOWED[room]) or 'nothing'}")
            elif top in LIBRARIES and room not in LIBRARIES[top]:
                found.append(f"{each}: only {', '.join(LIBRARIES[top])} may import {top}")
    return found


def module_graph(sources: dict[str, str], kinds: tuple[Kind, ...]) -> dict[str, set[str]]:
    """{module: the modules it imports} by imports of the given kinds."""
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        for each in imports_of(module, source):
            if each.kind in kinds and each.target.startswith(f"{PACKAGE}."):
                target = each.target.removeprefix(f"{PACKAGE}.")
                known = next((name for name in (target, target.rpartition(".")[0]) if name in sources), None)
                if known is not None and known != module:
                    graph[module].add(known)
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, queue = set(), [start]
        while queue:
            for following in graph[queue.pop()] - seen:
                seen.add(following)
                queue.append(following)
        reach[start] = seen
    groups = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph if node in reach[node]}
    return [list(group) for group in sorted(groups)]


def test_every_import_keeps_to_the_plan():
    assert violations(modules()) == []


def test_the_plan_itself_has_a_direction():
    """The rooms can be ordered so that every allowed import points to an earlier one."""
    assert cycles({room: set(rooms) for room, rooms in ALLOWED.items()}) == []
    assert {room_of(module) for module in modules()} == ALLOWED.keys()


@pytest.mark.parametrize("kinds", [("module",), ("module", "function")], ids=["when loaded", "also inside functions"])
def test_no_modules_import_each_other_in_a_circle(kinds):
    assert cycles(module_graph(modules(), kinds)) == []


def test_imports_inside_functions_are_few_and_for_a_reason():
    """They delay a heavy library, a simulator or the whole program; each is of another module than those at the top."""
    delayed = [each for module, source in modules().items() for each in imports_of(module, source) if each.kind == "function"]
    inside = [each for each in delayed if each.target.startswith(PACKAGE) and room_of(each.module) not in MAY_DELAY]
    assert [str(each) for each in inside] == []


def test_type_imports_alone_may_cross_a_wall():
    """They never run. They are listed, so that a new one is a decision."""
    crossing = set()
    for module, source in modules().items():
        for each in imports_of(module, source):
            wanted = room_of(each.target.removeprefix(f"{PACKAGE}."))
            if (
                each.kind == "type"
                and each.target.startswith(PACKAGE)
                and wanted not in (room_of(module), *ALLOWED[room_of(module)])
            ):
                crossing.add((room_of(module), wanted))
    assert crossing == {("method", "config")}


@pytest.mark.parametrize(
    ("module", "line", "reason"),
    [
        ("method.learner", "import ray", "only distributed may import ray"),
        ("search.study", "def f():\n    import ray.tune", "only distributed may import ray"),
        ("method.critics", "from pydantic import BaseModel", "may import pydantic"),
        ("policy.mlp", "from torch import nn", "may import torch"),
        ("data.store", "from drcorl_ray.method import replay", "data may import errors, io, tasks, config"),
        ("training.build", "from drcorl_ray.distributed.cluster import connect", "training may import"),
        ("report.page", "from drcorl_ray.evaluation import speed", "report may import"),
        ("io.files", "from drcorl_ray import tasks", "io may import errors"),
        ("errors", "import drcorl_ray.io.files", "errors may import nothing"),
        ("data.store", "from ..method import replay", "imports are absolute"),
        ("data.store", "from . import dsrl", "imports are absolute"),
        ("data.store", "if not TYPE_CHECKING:\n    import ray", "may import ray"),
        ("data.store", "if TYPE_CHECKING:\n    pass\nelse:\n    import ray", "may import ray"),
        ("data.store", "import importlib\nimportlib.import_module('ray')", "may import ray"),
        ("data.store", "__import__('drcorl_ray.method.learner')", "data may import errors, io, tasks, config"),
    ],
)
def test_a_planted_import_is_found(module, line, reason):
    sources = modules()
    assert module in sources
    sources[module] += f"\n{line}\n"
    [found] = violations(sources)
    assert found.startswith(f"{module}:")
    assert reason in found


def test_a_planted_circle_is_found():
    sources = modules()
    sources["io.storage"] += "\nfrom drcorl_ray.io.files import read_json\n"
    assert cycles(module_graph(sources, ("module",))) == [["io.files", "io.storage"]]


def test_the_house_is_tidy():
    """Few modules outside of rooms, and files that fit in one head."""
    sources = modules()
    loose = {module for module in sources if "." not in module and not (ROOT / PACKAGE / module).is_dir()}
    assert loose == {"__init__", "__main__", "errors"}
    long = {module: lines for module, source in sources.items() if (lines := len(source.splitlines())) > LONGEST_FILE}
    assert long == {}
