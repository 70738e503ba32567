"""A search on several nodes of this machine: placement, a node that joins in the middle, a node that is killed.

Fault: packs that book only CPUs run on the rollout nodes, and wait there for the actors whose CPUs they hold.
"""

import json
import subprocess
import sys

import pytest
from optuna.trial import TrialState

from drcorl_ray.config.loading import load_config
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.results import read_results
from drcorl_ray.search.study import load_study
from tests.commands.test_tune import ROOT
from tests.helpers.tiny import pretrain_beforehand, tiny_arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(600)]

PREPARE = """
import json, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from drcorl_ray.distributed.cluster import prepare_environment
prepare_environment()
from pathlib import Path
from drcorl_ray.config.loading import load_config
from drcorl_ray.commands.tune import search
config = load_config(json.loads(sys.argv[1]))
packs = Path(config.run.dir) / "packs"

def wait_for_packs(*numbers):
    while not all(list(packs.glob(f"*-{number:04d}/*/state.safetensors")) for number in numbers):
        time.sleep(0.05)
"""

KILLED_NODE = (
    PREPARE
    + """
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)

def remove():
    wait_for_packs(0, 1)
    cluster.remove_node(node, allow_graceful=False)
    print("node removed", flush=True)

threading.Thread(target=remove, daemon=True).start()
search(config)
ray.shutdown()
cluster.shutdown()
"""
)

PLACED = (
    PREPARE
    + """
import psutil
from tests.helpers.paths import ROOT

small = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
nodes = {"head": cluster.head_node, "learner": cluster.add_node(num_cpus=1, resources={"learner": 1}, **small)}
nodes["rollout"] = cluster.add_node(num_cpus=1, resources={"rollout": 1}, **small)
ray.init(address=cluster.address, log_to_driver=False)
seen, finished = set(), threading.Event()

def watch():
    while not finished.wait(0.05):
        for name, node in list(nodes.items()):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for worker in raylet.children():
                try:
                    title = worker.name() if not worker.name().startswith("ray::") else worker.cmdline()[0]
                except psutil.Error:
                    continue
                if title.startswith("ray::") and "IDLE" not in title:
                    seen.add((title.removeprefix("ray::").split(".")[0].split("(")[0], name))

searching = threading.Thread(target=watch, daemon=True)
searching.start()

def grow():
    wait_for_packs(0)
    joined.set()

joined = threading.Event()
failures = []

def work():
    try:
        search(config)
    except BaseException as error:
        failures.append(repr(error))

main = threading.Thread(target=work)
threading.Thread(target=grow, daemon=True).start()
main.start()
while main.is_alive() and not joined.wait(0.1):
    pass
if main.is_alive():
    nodes["second learner"] = cluster.add_node(num_cpus=1, resources={"learner": 1}, **small)  # in the main thread
main.join()
finished.set()
searching.join()
print(json.dumps({"seen": sorted(seen), "failures": failures}))
ray.shutdown()
cluster.shutdown()
"""
)


def run_script(script: str, arguments: list[str]) -> str:
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kill_9_of_a_node_costs_only_time(tmp_path):
    """One of two nodes, each with one pack, is killed: its pack resumes on the other from its last report."""
    extra = ["search.configurations=4", "extract.steps=3000", "scaling.report_steps=200", "evaluation.curve_points=0"]
    arguments = tiny_arguments(tmp_path, *extra, "evaluation.baselines=[]", "scaling.cpus_per_worker=0.6")
    pretrain_beforehand(load_config(arguments))
    assert "node removed" in run_script(KILLED_NODE, arguments)
    study = load_study(tmp_path / "run" / "studies" / "PointCircle.journal", "PointCircle")
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 4
    for log in (tmp_path / "run").glob("packs/*/*/metrics.jsonl"):
        steps = [line["step"] for line in read_log(log)]
        assert steps == sorted(set(steps))


def test_each_process_runs_on_the_nodes_that_the_cluster_file_marks_for_it(tmp_path):
    """A head without CPUs, a learner node, a rollout node, and a second learner node that joins while the first trains."""
    placed = ["scaling.cpus_per_worker=1", "scaling.worker_resource=learner"]
    placed += ["scaling.cpus_per_actor=0.5", "scaling.actor_resource=rollout"]
    extra = ["search.configurations=8", "extract.steps=600", "scaling.report_steps=200", "evaluation.curve_points=0"]
    arguments = tiny_arguments(tmp_path, *placed, *extra)
    output = json.loads(run_script(PLACED, arguments).splitlines()[-1])
    assert output["failures"] == []
    where: dict[str, set[str]] = {}
    for process, node in output["seen"]:
        where.setdefault(process, set()).add(node)
    assert where["RolloutActor"] == {"rollout"}
    assert where["clone"] == {"rollout"}
    assert where["ImplicitFunc"] == {"learner", "second learner"}
    assert where["RayTrainWorker"] == {"learner"}
    assert where["MapBatches"] == {"learner"}
    assert {row["algorithm"] for row in read_results(tmp_path / "run")["rows"]} >= {"drcorl", "bc"}
