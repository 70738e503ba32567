"""`load_policy` needs what the README says and no more: numpy and safetensors."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from drcorl_ray.policy.loading import load_policy
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy

BARE = """
import sys
from importlib.abc import MetaPathFinder

class OnlyBare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {"drcorl_ray", "numpy", "safetensors", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"not installed here: {name}", name=name)

sys.meta_path.insert(0, OnlyBare())
"""
ACT = """
import drcorl_ray, numpy as np
policy = drcorl_ray.load_policy(sys.argv[1])
print(policy.act(np.ones(policy.population.observation_size)).tolist())
print(len(policy.episode().act(np.ones(policy.population.observation_size))))
"""


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.safetensors"
    random_policy(3, 2, members=1).save(path, 0, {"result": {"task": "T"}})
    return path


def act_in(code: str, path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_policy_acts_with_numpy_and_safetensors_alone(policy_file):
    """Fault: import filelock or upath at the top of io/storage.py."""
    done = act_in(BARE + ACT, policy_file)
    assert done.returncode == 0, done.stderr
    actions, size = done.stdout.splitlines()
    assert json.loads(actions) == pytest.approx(load_policy(policy_file).act(np.ones(3)).tolist())
    assert size == "2"


def test_the_bare_environment_refuses_anything_else(policy_file):
    """So that the test above can fail."""
    done = act_in(f"{BARE}\nimport yaml", policy_file)
    assert "not installed here: yaml" in done.stderr


@pytest.mark.nightly
def test_a_policy_acts_in_an_environment_of_its_own(policy_file, tmp_path):
    """A real virtual environment with the two packages."""
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, tmp_path / "bare"], check=True)
    subprocess.run(["uv", "pip", "install", "-q", "--python", python, "numpy", "safetensors"], check=True)
    done = subprocess.run(
        [python, "-c", f"import sys\n{ACT}", policy_file], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "2"
