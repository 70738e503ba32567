"""The fault matrix: each test breaks one thing in a real search and compares its outcome with that of an undisturbed one.

`pytest -m nightly tests/faults --reliability docs/reliability.md` writes the table that users read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from drcorl_ray.policy.loading import load_population
from drcorl_ray.runs.metrics_log import read_log
from tests.faults.searches import ROOT, Search, children, wait_for, wait_until_gone
from tests.helpers.tiny import tiny_arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]

PACK = Path("packs", "PointCircle-0001", "PointCircle")  # the second of three


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Search:
    search = Search(tmp_path_factory.mktemp("undisturbed"))
    search.pretrain()
    search.finish(search.start())
    return search


@pytest.fixture
def search(tmp_path, undisturbed) -> Search:
    """The same search in its own folder, already pretrained."""
    return Search(tmp_path, pretrained=undisturbed.folder)


@pytest.fixture
def equal(undisturbed, search, reliability, request) -> Callable[[], None]:
    """Return a function to call at the end: it compares the outcomes and adds a line to the table."""

    def check() -> None:
        outcome, expected = search.outcome(), undisturbed.outcome()
        assert outcome.keys() == expected.keys()
        for name, value in expected.items():
            assert outcome[name] == value, name
        reliability(request.node, "equal, bit for bit")

    return check


def steps(search: Search) -> list[int]:
    return [line["step"] for line in read_log(search.run / PACK / "metrics.jsonl")]


def under_way(search: Search) -> bool:
    """Whether the second pack has saved a state of its policy steps."""
    return bool(steps(search)) and steps(search)[-1] >= 60


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a driver with SIGKILL, and wait until its Ray has ended."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    wait_until_gone(workers)


def test_killed_driver(search, equal):
    """kill -9 of the driver (`launch/tune.py`)
    | the search stops; `run.resume=true` continues it, also on another machine with the same storage
    | the steps since each running pack's last report"""
    driver = search.start()
    wait_for(lambda: under_way(search), driver)
    kill(driver)
    assert "interrupted" not in search.resume()
    equal()


def test_killed_trial(search, equal):
    """kill -9 of a trial (a running pack)
    | Ray Tune restarts it, up to `scaling.max_failures` times
    | the steps since its last report"""
    driver = search.start()
    wait_for(lambda: under_way(search), driver)
    [trial] = children(driver, "ImplicitFunc")
    trial.kill()
    search.finish(driver)
    equal()


def test_killed_train_worker(tmp_path, undisturbed, equal, search):
    """kill -9 of a Ray Train worker (during pretraining)
    | Ray Train restarts it, up to `scaling.max_failures` times
    | the steps since its last report"""
    for weights in search.folder.glob("shared/pretrained/*"):
        weights.unlink()
    driver = search.start()
    log = search.run / "pretraining" / "PointCircle.jsonl"
    wait_for(lambda: read_log(log), driver)
    [worker] = children(driver, "RayTrainWorker")
    worker.kill()
    search.finish(driver)
    equal()


def test_killed_rollout_actors(search, equal):
    """kill -9 of a rollout actor, every two seconds
    | the pool replaces it; the episode is run again and charged to its budget again
    | the running episodes"""
    driver = search.start()
    killed, over = [], threading.Event()

    def killer() -> None:
        while not over.wait(2.0):
            for actor in children(driver, "RolloutActor")[:1]:
                actor.kill()
                killed.append(actor.pid)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        search.finish(driver)
    finally:
        over.set()
        thread.join()
    assert len(killed) >= 3
    equal()


NODES = """
import sys, threading, time
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from drcorl_ray.distributed.cluster import prepare_environment
prepare_environment()
from drcorl_ray.config.loading import load_config
from drcorl_ray.commands.tune import search

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
ray.init(address=cluster.address, log_to_driver=False)
config = load_config(sys.argv[1:])
log = Path(config.run.dir) / "packs/PointCircle-0001/PointCircle/metrics.jsonl"

def kill():
    import psutil
    while not (log.exists() and log.read_text().count("\\n") >= 3):
        time.sleep(0.02)
    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("ImplicitFunc" in " ".join(child.cmdline()) for child in raylet.children()):
            raylet.kill()
            print("raylet killed", flush=True)
            return

threading.Thread(target=kill, daemon=True).start()
search(config)
"""


def test_killed_raylet(search, equal):
    """kill -9 of the raylet of a worker node (or the node itself)
    | its packs and actors restart on other nodes, or when a node joins
    | the steps since their last reports"""
    driver = search.start(script=NODES)
    assert "raylet killed" in search.finish(driver)
    equal()


def test_full_disk(tmp_path, undisturbed, reliability, request):
    """the disk of the run is full while a state is written
    | after `scaling.max_failures` attempts the search ends with a one-line error; free some space and resume
    | the steps since each running pack's last report"""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        search = Search(tmp_path, f"run.dir={disk / 'search'}", pretrained=undisturbed.folder)
        search.run = disk / "search"
        driver = search.start()
        wait_for(lambda: under_way(search), driver)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        output, _ = driver.communicate(timeout=400)
        assert driver.returncode == 2, output[-3000:]
        [error] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in error
        assert "run.resume=true" in error
        assert "Traceback" not in output
        filler.unlink()
        search.resume()
        assert search.outcome() == undisturbed.outcome()
        reliability(request.node, "equal, bit for bit")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_unreachable_object_store(tmp_path, undisturbed, bucket, s3, reliability, request):
    """the object store does not answer for a minute
    | all processes wait and continue when it answers again; after about six minutes workers restart, finally the search ends
    | nothing"""
    search = Search(tmp_path, pretrained=undisturbed.folder)
    remote = [f"run.dir={bucket}/run", f"run.storage={bucket}/shared"]
    bucket.fs.put(str(tmp_path / "shared"), f"{bucket.path}/shared", recursive=True)
    search.run = bucket / "run"
    driver = search.start(*remote)
    wait_for(lambda: under_way(search), driver)
    before = steps(search)
    s3.stop()
    time.sleep(60)
    s3.start()
    search.finish(driver)
    assert before[-1] < steps(search)[-1]
    assert search.outcome() == undisturbed.outcome()
    reliability(request.node, "equal, bit for bit")


def test_damaged_state(search, equal):
    """the newest state of a training is damaged (half a file, a flipped bit)
    | the state before it is used and a message says so; without one the training starts again
    | one more reporting interval"""
    driver = search.start()
    wait_for(lambda: under_way(search), driver)
    kill(driver)
    newest = search.run / PACK / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    output = " ".join(search.resume().split())
    assert "checksum mismatch" in output
    assert "resuming from step" in output
    equal()


LITTLE_MEMORY = """
import sys
import torch
from drcorl_ray.commands.cli import guarded
from tests.helpers.paths import ROOT

def work():
    import drcorl_ray.commands.tune as driver
    from drcorl_ray.config.loading import load_config
    from drcorl_ray.search.pack import PackTrainer

    class LittleMemory(PackTrainer):
        def runner(self, learner, replay):
            if len(learner.average) > 2:
                raise torch.OutOfMemoryError("planted: no room for more than two members")
            return super().runner(learner, replay)

    driver.PackTrainer = LittleMemory
    driver.search(load_config(sys.argv[1:]))

sys.exit(guarded(work))
"""


def test_too_little_memory(search, equal):
    """a pack is too large for the GPU's memory
    | it is trained in halves, one after the other, and a message says so
    | the steps since the pack began"""
    output = " ".join(search.finish(search.start(script=LITTLE_MEMORY)).split())
    assert output.count("4 members are too large for the memory; training half of them at a time") == 3
    equal()


def test_damaged_pretrained_weights(search, equal):
    """a file of pretrained weights is truncated to half
    | it is trained again
    | the pretraining of that file"""
    [weights] = search.folder.glob("shared/pretrained/*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    search.finish(search.start())
    assert weights.read_bytes() != content[: len(content) // 2]
    equal()


def trained(folder: Path, name: str, population: str) -> dict[str, bytes]:
    command = [sys.executable, str(ROOT / "launch" / "train.py")]
    arguments = tiny_arguments(folder, f"population={population}", f"run.dir={folder / name}")
    subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=400, cwd=folder)
    policies, meta = load_population(folder / name / "policies" / "PointCircle-population.safetensors")
    assert meta["finite"].count(False) == population.count("1e30")
    finite = policies.select([member for member, is_finite in enumerate(meta["finite"]) if is_finite])
    return {str(number): layer.tobytes() for number, layer in enumerate((*finite.weights, *finite.biases))}


def test_diverging_member(tmp_path, reliability, request):
    """one member of a population diverges (NaN)
    | it is named and left out (`FAIL` in the study); the others are not affected
    | that member"""
    beside = trained(tmp_path, "with", "[{k: 0.5}, {actor_learning_rate: 1e30}, {k: 1.5}]")
    assert beside == trained(tmp_path, "without", "[{k: 0.5}, {k: 1.5}]")
    reliability(request.node, "equal for the others, bit for bit")
