"""The shipped cluster files, once filled in, pass Ray's schema; a file that a run cannot use is refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from drcorl_ray.config.loading import load_config
from drcorl_ray.distributed.cluster_file import check_cluster
from drcorl_ray.errors import UserError
from tests.helpers.paths import ROOT

FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "launch" / "clusters").glob("*.yaml"))]
ON_CLUSTER = str(ROOT / "tune_configs" / "on_cluster.yaml")
FILLED = "run.storage=s3://bucket/drcorl"

pytestmark = pytest.mark.ray  # the schema is imported from Ray


@pytest.fixture
def filled(tmp_path):
    """Return a function that copies a shipped file with its gaps filled in and (old, new) texts replaced."""

    def make(file: Path, *changes: tuple[str, str]) -> Path:
        text = file.read_text(encoding="utf-8").replace("CHANGE-ME", "10.0.0.1")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / file.name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_valid_once_it_is_filled_in(filled, file):
    config = load_config([ON_CLUSTER, FILLED])
    assert check_cluster(filled(file), config.scaling, config.run.storage)
    with pytest.raises(UserError, match=rf"{file.name}:\d+: fill in CHANGE-ME"):
        check_cluster(file, config.scaling, config.run.storage)
    with pytest.raises(UserError, match=r"run\.storage=s3://CHANGE-ME"):
        check_cluster(filled(file), load_config([ON_CLUSTER]).scaling, load_config([ON_CLUSTER]).run.storage)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_first_lines_of_a_shipped_file_name_every_gap(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert "What you must change" in lines[0]
    head = " ".join(line for line in lines[:12] if line.startswith("#"))
    gaps = {line.split(":")[0].strip() for line in lines if "CHANGE-ME" in line and not line.startswith("#")}
    assert all(gap in head for gap in gaps), (gaps, head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("idle_timeout_minutes: 10", "idle_timeout_minuets: 10"), "not a cluster file of this Ray.*idle_timeout_minuets"),
        (("head_node_type: head", "head_node_type: heat"), "not a cluster file of this Ray"),
        (("{CPU: 0}", "{CPU: 4}"), "head would train and roll out"),
        (("{CPU: 8, GPU: 1, learner: 1}", "{CPU: 8, learner: 1}"), "no type of machine has what a pack books"),
        (("{CPU: 16, rollout: 1}", "{CPU: 16}"), "no type of machine has what a rollout actor books"),
        (("cluster_name: drcorl", "cluster_name: [1"), "not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(filled, change, message):
    with pytest.raises(UserError, match=message) as caught:
        check_cluster(
            filled(ROOT / "cluster.yaml", change),
            load_config([ON_CLUSTER, FILLED]).scaling,
            load_config([ON_CLUSTER, FILLED]).run.storage,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "storage", "valid"),
    [
        ("cluster.yaml", "runs/shared", False),
        ("cluster.yaml", "/mnt/shared", False),
        ("launch/clusters/local.yaml", "runs/shared", False),
        ("launch/clusters/local.yaml", "/mnt/shared", True),
    ],
)
def test_storage_that_the_machines_do_not_share_is_refused(filled, file, storage, valid):
    config = load_config([ON_CLUSTER, f"run.storage={storage}"])
    if valid:
        assert check_cluster(filled(ROOT / file), config.scaling, config.run.storage)
        return
    with pytest.raises(UserError, match="is not shared by the machines"):
        check_cluster(filled(ROOT / file), config.scaling, config.run.storage)


def test_the_command_prints_the_machines_or_one_line(filled):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch/check_cluster.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    done = run(filled(ROOT / "cluster.yaml"), ON_CLUSTER, FILLED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "head: {'CPU': 0}", "learner: {'CPU': 8, 'GPU': 1, 'learner': 1}", "rollout: {'CPU': 16, 'rollout': 1}"
    ]  # fmt: skip
    refused = run("cluster.yaml", ON_CLUSTER, FILLED)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: cluster.yaml:")
    assert refused.stderr.count("\n") == 1


def test_every_machine_installs_with_uv_sync():
    for file in FILES:
        commands = yaml.safe_load(file.read_text(encoding="utf-8"))["setup_commands"]
        assert any("uv sync" in command for command in commands)
        assert not any("uv run" in command for command in commands)  # Ray's processes would build their own environments
