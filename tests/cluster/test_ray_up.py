"""`ray up launch/clusters/local.yaml` over real SSH, a search, `ray down`: on machines that are namespaces of this one."""

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
    """Keys, sshd's settings, a root whose home is the lab's, and what the machines' owner has put into ~/.bashrc."""
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
    """The shipped file with what its head tells the user to change.

    The first two setup commands, which install from the network, give way to this checkout's environment.
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
def test_a_cluster_of_ones_own_machines_comes_up_searches_and_goes_down(tmp_path, request):
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
    seen = json.loads(done.stdout.splitlines()[-1])
    assert re.search(r"0\.002\d*/1\.0 learner", seen["status"])  # two packs at work
    assert re.search(r"'learner': 0\.001.*pending placement groups", seen["status"])  # what would make a cloud grow
    assert seen["rows"] >= 12
    assert {f"drcorl/runs/first/{name}" for name in ("results.json", "report.html", "packs", "studies")} <= set(seen["found"])
