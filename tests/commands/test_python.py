"""A training and a search from a Python script with an environment of its own: everything works as from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drcorl_ray.distributed.cluster import _ENVIRONMENT
from tests.helpers.paths import ROOT
from tests.helpers.tiny import tiny_arguments

MODULE = """
from drcorl_ray.tasks.envs.point_circle import PointCircleEnv

class Car(PointCircleEnv):
    pass
"""
SCRIPT = """
import ray  # before drcorl_ray: some settings are read at Ray's import
import sys
from pathlib import Path
import drcorl_ray

sys.path.append(str(Path(__file__).parent / "envs"))
drcorl_ray.register_task("MyCar", "my_car:Car-v0", 200, return_min=0, return_max=200)
trained = drcorl_ray.train([*sys.argv[1:], "run.dir=trained"])
searched = drcorl_ray.search([*sys.argv[1:], "run.dir=searched"])
rows = drcorl_ray.evaluate([trained.path, searched.path], episodes=1)
print(len(rows), "policies of", {row["task"] for row in rows})
"""


def python() -> list[str]:
    """`uv run python`, under which Ray builds an environment per worker unless told not to; plain Python without uv."""
    uv = shutil.which("uv")
    return [uv, "run", "--no-project", "--python", sys.executable, "python"] if uv else [sys.executable]


def users_environment() -> dict[str, str]:
    """The variables of this process without those that it set for Ray itself."""
    plain = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
    return plain | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_script_with_its_own_environment_trains_and_searches(tmp_path):
    """Fault: leave the environment to the command line. Workers then have no `my_car`, and Tune prints its box."""
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (folder / "envs").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "my_car.py").write_text("from car_env import Car\nimport gymnasium\ngymnasium.register('Car-v0', Car)\n")
    (folder / "envs" / "car_env.py").write_text(MODULE)
    settings = tiny_arguments(tmp_path, "task.name=MyCar", "evaluation.baselines=[]", "search.configurations=2")
    done = subprocess.run(
        [*python(), str(folder / "script.py"), *settings],
        cwd=elsewhere, env=users_environment(), text=True, timeout=800, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.endswith("policies of {'MyCar'}"), done.stdout
    for noise in ("Number of trials", "TensorBoard", "Tune Status", "uv run"):
        assert noise not in done.stdout + done.stderr
    for name in ("trained", "searched"):
        assert f"run: {elsewhere / name}" in done.stderr
        rows = json.loads(Path(elsewhere / name / "results.json").read_text())["rows"]
        assert {row["task"] for row in rows} == {"MyCar"}
