"""The wheel, installed where there is no checkout: `drcorl` with its settings files, and a training from begin to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny import TINY

UV = shutil.which("uv")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="uv, which builds and installs, is not on the PATH")]


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=plain | {"RAY_ADDRESS": "local"}, text=True, check=False, capture_output=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(params=["installed beside this environment", pytest.param("with all it needs", marks=pytest.mark.nightly)])
def drcorl(request, wheel, tmp_path) -> Path:
    """The command, in an environment of its own; in the first one all packages but drcorl_ray are those of this one."""
    environment = tmp_path / "venv"
    run(UV, "venv", "--python", sys.executable, environment, cwd=tmp_path)
    python, beside = environment / "bin" / "python", request.param.startswith("installed")
    run(UV, "pip", "install", "--python", python, *(["--no-deps"] if beside else []), wheel, cwd=ROOT)
    if beside:
        [packages] = environment.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "drcorl"


def test_the_wheel_holds_the_settings_files_and_the_mark_of_types(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    assert {f"drcorl_ray/tune_configs/{file.name}" for file in (ROOT / "tune_configs").glob("*.yaml")} <= names
    assert {"drcorl_ray/py.typed", "drcorl_ray/report/page.css"} <= names
    assert not any(name.startswith(("tests/", "launch/", "tune_configs/")) for name in names)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_installed_command_works_in_an_empty_folder(drcorl, tmp_path):
    """Fault: leave tune_configs out of the wheel."""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(drcorl, "--version", cwd=empty).stdout == "drcorl_ray 0.1.0\n"
    assert "  tune  " in run(drcorl, "--help", cwd=empty).stdout
    assert "did you mean 'velocity.yaml'" in run(drcorl, "tune", "velocty.yaml", cwd=empty, code=2).stderr
    origin = run(drcorl.with_name("python"), "-c", "import drcorl_ray; print(drcorl_ray.__file__)", cwd=empty).stdout
    assert origin.startswith(str(drcorl.parents[1]))
    run(drcorl, "train", "tune_configs/quickstart.yaml", *TINY, "run.dir=run", "evaluation.baselines=[]", cwd=empty)
    results = json.loads((empty / "run" / "results.json").read_text())
    assert [row["task"] for row in results["rows"]] == ["PointCircle"]
    assert sorted(path.name for path in empty.iterdir()) == ["run", "runs"]
