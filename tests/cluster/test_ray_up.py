"""`ray up launch/clusters/local.yaml` over real SSH, a search, `ray down`; the machines are namespaces of this one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1200)]

HERE = Path(__file__).resolve().parent
MISSING = [tool for tool in ("/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync", "unshare", "ip") if shutil.which(tool) is None]

SSHD = """
Port 22
HostKey {lab}/keys/host
AuthorizedKeysFile {lab}/keys/authorized_keys
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
MaxSessions 100
MaxStartups 100
"""


def make_lab(lab: Path) -> None:
    """Write keys, sshd's settings, a passwd with root's home in the lab, and the owner's ~/.bashrc."""
    for folder in ("keys", "home"):
        (lab / folder).mkdir(parents=True)
    for key in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / "keys" / key)], check=True)
    shutil.copy(lab / "keys" / "id.pub", lab / "keys" / "authorized_keys")
    (lab / "sshd_config").write_text(SSHD.format(lab=lab))
    users = Path("/etc/passwd").read_text().splitlines()
    (lab / "passwd").write_text(
        "\n".join(f"root:x:0:0:root:{lab}/home:/bin/bash" if u.startswith("root:") else u for u in users)
    )
    tools = f'export PATH="{ROOT}/.venv/bin:$PATH"\n'
    (lab / "bashrc").write_text(tools + "".join(f"export {name}={value}\n" for name, value in STORE.items()))


STORE = {
    "AWS_ENDPOINT_URL": "http://10.77.0.1:5000",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def changed_file(lab: Path) -> Path:
    """Return a copy of the shipped file with the changes that its first lines ask of the user.

    A link to this checkout's environment replaces the first two setup commands, which install from the network.
    """
    content = yaml.safe_load((ROOT / "launch" / "clusters" / "local.yaml").read_text())
    content["provider"] |= {"head_ip": "10.77.0.10", "worker_ips": ["10.77.0.11"]}
    content["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab / "keys" / "id")}
    content["setup_commands"][:2] = [f"ln -sfn {ROOT}/.venv ~/drcorl_ray/.venv"]
    path = lab / "local.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_a_cluster_of_own_machines_starts_runs_a_search_and_stops(tmp_path, request):
    lab = tmp_path / "lab"
    make_lab(lab)
    cluster = changed_file(lab)
    environment = os.environ | STORE | {
        "LAB": str(lab), "NODES": "head worker", "PYTHONPATH": str(ROOT), "RAY_UP_enable_autoscaler_v2": "0",
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "TERM": "dumb", "COLUMNS": "118",
    }  # fmt: skip
    command = ["unshare", "--mount", "--net", "--fork", "bash", str(HERE / "lab.sh"), sys.executable, str(HERE / "laptop.py")]
    done = subprocess.run(
        [*command, str(lab), str(cluster)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    if (transcript := request.config.getoption("--transcript")) is not None:
        Path(transcript).write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert re.search(r"0\.002\d*/1\.0 learner", outcome["status"])  # two packs run
    assert re.search(r"'learner': 0\.001.*pending placement groups", outcome["status"])  # in a cloud this would start nodes
    assert outcome["rows"] >= 12
    names = ("results.json", "report.html", "packs", "studies")
    assert {f"drcorl/runs/first/{name}" for name in names} <= set(outcome["files"])
