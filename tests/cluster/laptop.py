"""The steps of a user on the laptop: check, ray up, status, search, status, results, ray down. Prints a transcript.

python laptop.py LAB CLUSTER.yaml: a local S3 server replaces the cloud's; both nodes reach it at 10.77.0.1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer

from drcorl_ray.data.dsrl import write_dataset
from drcorl_ray.io.storage import storage_path
from drcorl_ray.runs.results import read_results
from drcorl_ray.tasks.envs.point_circle_data import generate_dataset
from tests.helpers.tiny import TINY

lab, cluster = Path(sys.argv[1]), sys.argv[2]
SETTINGS = [
    *TINY, "run.storage=s3://bucket/drcorl", "run.dir=s3://bucket/drcorl/runs/first", "data.dataset=s3://bucket/tiny.hdf5",
    "scaling.use_gpu=false", "scaling.cpus_per_worker=0.6", "scaling.cpus_per_actor=0.2", "evaluation.actors=2",
    "evaluation.mode=online", "evaluation.online_interval=20", "member.cost_limit=200", "extract.steps=600",
    "search.configurations=12", "search.concurrent_packs=6",
]  # fmt: skip
LAUNCH = "cd ~/drcorl_ray && python launch/tune.py tune_configs/quickstart.yaml tune_configs/on_cluster.yaml"


def command(*words: str, shown: str | None = None) -> str:
    """Run a command, print it with its output, and return the output."""
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    output = done.stdout + done.stderr
    print(
        f"$ {shown or ' '.join(words)}\n{output.strip()}\n[{time.monotonic() - began:.0f} s, exit {done.returncode}]\n",
        flush=True,
    )
    assert done.returncode == 0
    return output


def on_head(text: str, shown: str | None = None) -> str:
    return command("ray", "exec", cluster, text, shown=shown and f"ray exec {cluster} '{shown}'")


def status() -> str:
    return subprocess.run(["ray", "exec", cluster, "ray status"], capture_output=True, text=True, check=False).stdout


def wait_for_the_worker() -> None:
    deadline = time.monotonic() + 300
    while "learner" not in status():
        assert time.monotonic() < deadline, "the worker has not joined"
        time.sleep(5)


def watch(search: threading.Thread) -> str:
    """Return `ray status` during the search, while some packs run and others wait."""
    while search.is_alive() and "pending placement groups" not in status():
        time.sleep(5)
    return on_head("ray status", "ray status")


ThreadedMotoServer(ip_address="10.77.0.1", port=5000, verbose=False).start()
bucket: Any = storage_path("s3://bucket")
bucket.fs.mkdir("bucket")
write_dataset(lab / "tiny.hdf5", generate_dataset(0, episodes=20))
(bucket / "tiny.hdf5").write_bytes((lab / "tiny.hdf5").read_bytes())

subprocess.run(["ray", "get-auth-token", "--generate"], check=True, capture_output=True)
command(sys.executable, "launch/check_cluster.py", cluster, "tune_configs/on_cluster.yaml", *SETTINGS,
        shown=f"python launch/check_cluster.py {cluster} tune_configs/on_cluster.yaml …")  # fmt: skip
command("ray", "up", "-y", "--no-config-cache", cluster)
wait_for_the_worker()
on_head("ray status", "ray status")
search = threading.Thread(target=lambda: on_head(f"{LAUNCH} {' '.join(map(repr, SETTINGS))}", f"{LAUNCH} …"))
search.start()
busy_status = watch(search)
search.join()
rows = read_results(bucket / "drcorl/runs/first")["rows"]
files = sorted(str(path.relative_to(bucket)) for path in bucket.glob("drcorl/runs/first/*") if not path.name.startswith("."))
command("ray", "down", "-y", cluster)
print(json.dumps({"status": busy_status, "rows": len(rows), "files": files}))
