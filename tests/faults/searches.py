"""One small search, started in its own process as a user starts it, and its outcome."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from drcorl_ray.config.loading import load_config
from drcorl_ray.io.files import load_arrays, local_file
from drcorl_ray.runs.results import read_results
from drcorl_ray.search.study import load_study
from tests.helpers.paths import ROOT
from tests.helpers.tiny import pretrain_beforehand, tiny_arguments

# Offline, online and hybrid members; two packs of four configurations; the best two of each form the third pack.
SETTINGS = [
    "search.space={evaluation_mode: {choices: [offline, online, hybrid]}, beta_0: {low: 0.003, high: 0.1}}",
    "search.configurations=8",
    "search.members_per_pack=4",
    "search.concurrent_packs=1",
    "search.rungs=[0.5]",
    "member.cost_limit=200",
    "extract.steps=240",
    "evaluation.online_interval=40",
    "evaluation.online_budget=1000",
    "evaluation.hybrid_transitions=600",
    "evaluation.baselines=[]",
    "evaluation.curve_points=0",
    "scaling.cpus_per_actor=0.1",
]
CPUS = "import ray; ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False); "


class Search:
    """launch/tune.py with SETTINGS; all of its files are below `folder`."""

    def __init__(self, folder: Path, *overrides: str, pretrained: Path | None = None) -> None:
        """pretrained: folder of a search whose stores and pretrained weights are copied."""
        self.arguments = [str(ROOT / "tune_configs" / "quickstart.yaml"), *tiny_arguments(folder, *SETTINGS, *overrides)]
        self.folder, self.run = folder, folder / "run"
        if pretrained is not None:
            shutil.copy(pretrained / "tiny.hdf5", folder / "tiny.hdf5")
            shutil.copytree(pretrained / "shared", folder / "shared")

    def pretrain(self) -> None:
        pretrain_beforehand(load_config(self.arguments))

    def start(self, *more: str, script: str | None = None) -> subprocess.Popen[str]:
        """Start the launch script, or Python code instead of it, with its own Ray."""
        command = [sys.executable, str(ROOT / "launch" / "tune.py")] if script is None else [sys.executable, "-c", script]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*command, *self.arguments, *more], cwd=self.folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def resume(self) -> str:
        return self.finish(self.start("run.resume=true"))

    def finish(self, process: subprocess.Popen[str]) -> str:
        """Wait until the process ends, and return its output."""
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]
        return output

    def outcome(self) -> dict[str, object]:
        """Return every configuration's parameters, state and scores, every pack's policies, and the rows of results.json."""
        with local_file(self.run / "studies" / "PointCircle.journal") as journal:
            trials = load_study(journal, "PointCircle").get_trials()
        outcome: dict[str, object] = {str(trial.number): (trial.params, trial.values, trial.state) for trial in trials}
        for path in sorted((self.run / "packs").glob("*/*/population.safetensors")):
            outcome[str(path.relative_to(self.run))] = {name: x.tobytes() for name, x in load_arrays(path)[0].items()}
        rows = read_results(self.run)["rows"]
        spent = ("online_episodes", "online_cost", "policy_file")  # an episode that is run again is charged again
        return outcome | {"rows": [{name: value for name, value in row.items() if name not in spent} for row in rows]}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


def children(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Return the Ray workers of a driver that run `name`."""
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::") and name in " ".join(child.cmdline()):
                workers.append(child)
        except psutil.Error:
            continue
    return workers


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait until the Ray processes of a killed driver have ended."""
    psutil.wait_procs(processes, timeout=30)
