"""The launch scripts as a user meets them: help, and refusals as one line on stderr with exit code 2, before Ray starts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

import drcorl_ray
from drcorl_ray.commands import cli
from drcorl_ray.commands.common import resumable
from drcorl_ray.config import Config
from drcorl_ray.runs.directory import RunDirectory
from tests.helpers.columns import make_columns
from tests.helpers.paths import ROOT


def launch(*arguments: object, script: str = "train") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"launch/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def keys(model=Config, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        below = getattr(field.annotation, "model_fields", None)
        found += keys(field.annotation, f"{prefix}{name}.") if below else [f"{prefix}{name}"]
    return found


def assert_refused(code: int, out: str, err: str, *words: str) -> None:
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("script", "flag"), [("train", "--help"), ("tune", "-h")])
def test_help_lists_every_key_with_its_default(script, flag):
    done = launch("extract.steps=7", flag, script=script)
    assert done.returncode == 0
    assert done.stderr == ""
    listed = [line.strip().split("=")[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [key for key in listed if key in keys()] == keys()
    assert "extract.steps=600" in done.stdout
    assert {"baseline.cpq.ood_scale", "baseline.cdt.heads"} <= {*listed}
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract.step=3"], ["unknown key extract.step", "did you mean 'steps'?"]),
        (["no\nsuch.yaml"], ["no such.yaml: cannot be read"]),
        (["run.seed=2020-13-45"], ["not valid YAML"]),
    ],
)
def test_a_bad_command_line_is_one_line(arguments, words):
    done = launch(*arguments)
    assert_refused(done.returncode, done.stdout, done.stderr, *words)


def write(path: Path, columns: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in columns.items():
            file[name] = array


def hostile_files(folder: Path) -> dict[str, list[str]]:
    """DSRL files with one fault each, and the words that name it."""
    good = make_columns(60)
    write(folder / "truncated.hdf5", good)
    content = (folder / "truncated.hdf5").read_bytes()
    (folder / "truncated.hdf5").write_bytes(content[: len(content) // 2])
    write(folder / "wrong-key.hdf5", {("cost" if name == "costs" else name): array for name, array in good.items()})
    write(folder / "wrong-rank.hdf5", good | {"actions": good["actions"][:, :, None]})
    nan = good["rewards"].copy()
    nan[17] = np.nan
    write(folder / "nan.hdf5", good | {"rewards": nan})
    write(folder / "unequal.hdf5", good | {"costs": good["costs"][:-1]})
    (folder / "text.hdf5").write_text("404 not found\n")
    return {
        "truncated": ["truncated"],
        "wrong-key": ["'costs' is missing"],
        "wrong-rank": ["'actions' has shape [60, 2, 1]"],
        "nan": ["'rewards', row 17"],
        "unequal": ["'costs' has 59 rows"],
        "text": ["not a readable HDF5 file"],
        "absent": ["no such data file"],
    }


RUN_EACH = """
    import contextlib, io, json, runpy, sys

    sys.argv[0] = "launch/train.py"
    for line in sys.stdin:
        sys.argv[1:] = json.loads(line)
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path("launch/train.py", run_name="__main__")
            except SystemExit as end:
                code = end.code
        ray = sys.modules.get("ray")
        print(json.dumps([code, out.getvalue(), err.getvalue(), bool(ray and ray.is_initialized())]), flush=True)
"""


@pytest.mark.ray  # imports Ray, and sees that it is not started
def test_hostile_data_files_are_one_line_and_leave_no_store(tmp_path):
    """The script, once a file, in one process of its own: importing Ray takes seconds. Fault: convert before validating."""
    files = hostile_files(tmp_path)
    lines = ""
    for name in files:
        places = {"data.dataset": f"{name}.hdf5", "run.dir": f"runs/{name}", "run.storage": "shared"}
        lines += json.dumps([f"{key}={tmp_path / place}" for key, place in places.items()]) + "\n"
    command = [sys.executable, "-c", textwrap.dedent(RUN_EACH)]
    done = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True, timeout=240, check=True)
    assert done.stderr == ""
    for name, line in zip(files, done.stdout.splitlines(), strict=True):
        code, out, err, ray_started = json.loads(line)
        assert_refused(code, out, err, *files[name], f"{name}.hdf5")
        assert not ray_started
    left = [path for folder in ("shared", "runs") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {"config.yaml"}


COMMANDS = ["train", "tune", "evaluate", "report", "theory", "check-cluster"]
NO_HEAVY = """
    import sys

    class Refuse:
        def find_spec(self, name, *_):
            if name.split(".")[0] in ("torch", "ray"):
                raise AssertionError(f"{name} is imported")

    sys.meta_path.insert(0, Refuse())
    sys.argv[0] = "drcorl"
    from drcorl_ray.commands.cli import main
    raise SystemExit(main())
"""


def drcorl(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line where neither torch nor Ray can be imported."""
    command = [sys.executable, "-c", textwrap.dedent(NO_HEAVY), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_commands_without_torch_and_ray():
    done = drcorl("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == COMMANDS == [*cli.COMMANDS]
    launchers = {path.stem.replace("_", "-") for path in (ROOT / "launch").glob("*.py")}
    assert launchers == {*COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_and_its_launcher_have_the_same_help(command):
    script = command.replace("-", "_")
    by_name, by_launcher = drcorl(command, "--help"), launch("--help", script=script)
    assert (by_name.returncode, by_name.stderr) == (0, "")
    assert by_name.stdout.replace(f"drcorl {command}", f"python launch/{script}.py") == by_launcher.stdout
    assert f"python launch/{script}.py" in by_launcher.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command given"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "extract.step=3"], "did you mean 'steps'?"),
        (["tune", "velocty.yaml"], "did you mean 'velocity.yaml'"),
        (["evaluate", "evaluation.episodes=3"], "no policy given: drcorl evaluate POLICY"),
        (["report", "a", "b"], "one run directory expected, got 2 arguments: drcorl report RUN"),
        (["theory", "a", "b"], "one folder expected, got 2 arguments: drcorl theory [FOLDER]"),
        (["check-cluster"], "a cluster file expected: drcorl check-cluster CLUSTER.yaml"),
    ],
)
def test_mistakes_are_named_without_torch_and_ray(arguments, words):
    done = drcorl(*arguments)
    assert_refused(done.returncode, done.stdout, done.stderr, words)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "drcorl_ray", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"drcorl_ray {drcorl_ray.__version__}\n"


def test_an_interrupted_run_says_how_to_resume(tmp_path, capsys):
    """Fault: ask for a run.dir that a user who gave none has never seen."""
    run = RunDirectory(tmp_path / "runs" / "PointCircle-20261201")

    def interrupted() -> None:
        with resumable(run):
            raise KeyboardInterrupt

    assert cli.guarded(interrupted) == 130
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == f"interrupted; add run.resume=true run.dir={run.path} to resume"

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.json")

    assert cli.guarded(full) == 2
    assert capsys.readouterr().err == "error: a.json: No space left on device; make room and run the same command again\n"
