"""Lint, format and types, so that one command checks everything; and the rules of the house that no linter knows."""

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
