"""Lint, format and types, so that one command checks everything; and the rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["basedpyright"]],
    ids=["lint", "format", "types"],
)
def test_the_tree_is_clean(command):
    tool = Path(sys.executable).with_name(command[0])
    result = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("part", ["method", "io", "tasks", "config", "policy", "evaluation", "training"])
def test_the_core_imports_no_ray(part):
    path = ROOT / "drcorl_ray" / part
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        assert not re.search(r"^\s*(import|from) ray\b", file.read_text(), re.MULTILINE), file


def test_nothing_loads_pickles():
    pattern = re.compile(r"pickle\.load|allow_pickle=True|yaml\.load\(|weights_only=False|\beval\(|\bexec\(")
    for file in (ROOT / "drcorl_ray").rglob("*.py"):
        assert not pattern.search(file.read_text()), file


def test_the_package_imports_with_the_core_dependencies_alone():
    """No simulator, no dsrl, no Ray and no torch is imported by `import drcorl_ray`."""
    heavy = ("dsrl", "bullet_safety_gym", "mujoco", "ray", "torch")
    code = f"import sys, drcorl_ray; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_report_is_drawn_without_torch_and_ray():
    """Fault: measure, or load a policy, while a report is written."""
    heavy = ("torch", "ray", "drcorl_ray.method")
    code = f"import sys, drcorl_ray.report.build; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def private_optuna_names(source: str) -> set[str]:
    """Attributes with a leading underscore of anything but self, private modules, and private methods that are overridden."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
            names |= {part for part in [*str(node.module).split("."), *(name.name for name in node.names)] if part[0] == "_"}
        elif isinstance(node, ast.ClassDef) and any("optuna" in ast.unparse(base) for base in node.bases):
            names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef) and re.match(r"_[a-z]", part.name)}
    return names


def test_private_names_of_optuna_are_in_one_file():
    """Fault: `frozen._trial_id` in search/study.py."""
    own = ROOT / "drcorl_ray" / "search" / "optuna_private.py"
    assert private_optuna_names(own.read_text()) == {"_trial_id", "_cached_frozen_trial", "_find_sample_id"}
    for file in (ROOT / "drcorl_ray").rglob("*.py"):
        source = file.read_text()
        if file != own and re.search(r"^\s*(import|from) optuna\b", source, re.MULTILINE):
            assert private_optuna_names(source) == set(), file
    for name in private_optuna_names(own.read_text()):
        others = [file for file in (ROOT / "drcorl_ray").rglob("*.py") if file != own and name in file.read_text()]
        assert others == [], name


def test_private_modules_of_ray_are_named_in_one_file():
    own = ROOT / "drcorl_ray" / "distributed" / "ray_private.py"
    pattern = re.compile(r"\bray(\.\w+)*\._(private|internal)\b|\bfrom ray(\.\w+)* import _(private|internal)\b")
    assert pattern.search(own.read_text())
    for file in (ROOT / "drcorl_ray").rglob("*.py"):
        assert file == own or not pattern.search(file.read_text()), file
