"""The names of `drcorl_ray`: each is there, has an example that runs, and costs nothing before it is used."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import drcorl_ray
from drcorl_ray.config import algorithms
from drcorl_ray.config.loading import load_config
from drcorl_ray.tasks import registry
from tests.helpers.paths import ROOT
from tests.helpers.tiny import tiny_arguments

NAMES = [name for name in drcorl_ray.__all__ if name != "__version__"]
OF_A_RUN = ["train", "search", "evaluate", "report", "load_policy", "Policy"]  # in this order: the later need the first


class Checker(doctest.OutputChecker):
    """Compares where an example says what it prints: the tables of a run are in none."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def run_example(name: str) -> None:
    """The example in the docstring of a public name, which must have one."""
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(getattr(drcorl_ray, name)) or "", {}, name, None, 0)
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(Checker(), verbose=False).run(example, out=report.append)
    assert failed == 0, "".join(report)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_A_RUN])
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    monkeypatch.setattr("drcorl_ray.config.registration.ALGORITHMS", algorithms.ALGORITHMS)
    run_example(name)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_of_a_run_run(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.chdir(tmp_path)
    tree = load_config(tiny_arguments(tmp_path, "evaluation.baselines=[]")).model_dump(exclude_unset=True)
    del tree["run"]["dir"]
    Path("settings.yaml").write_text(yaml.safe_dump(tree))
    for name in OF_A_RUN:
        run_example(name)


def test_the_names_are_those_of_the_issue():
    assert sorted(NAMES) == sorted([
        "Algorithm", "Config", "Policy", "UserError", "evaluate", "load_config", "load_policy", "register_algorithm",
        "register_task", "report", "search", "train",
    ])  # fmt: skip
    assert {*NAMES} == {*drcorl_ray._MODULES}
    assert {*drcorl_ray.__all__} <= {*dir(drcorl_ray)}
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        drcorl_ray.trian  # noqa: B018
    assert (Path(drcorl_ray.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", ["search", "report"])
def test_a_package_of_the_same_name_does_not_replace_a_function(name):
    """Fault: leave the package to Python, which binds a package where it is imported."""
    code = f"import drcorl_ray, drcorl_ray.{name}; print(drcorl_ray.{name}.__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"drcorl_ray.{drcorl_ray._MODULES[name]}"
    assert inspect.ismodule(importlib.import_module(f"drcorl_ray.{name}"))


def test_importing_the_package_imports_nothing_else():
    heavy = ("dsrl", "bullet_safety_gym", "mujoco", "ray", "torch", "numpy", "pydantic")
    code = f"import sys, drcorl_ray; print(drcorl_ray.__version__, [name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{drcorl_ray.__version__} []"
