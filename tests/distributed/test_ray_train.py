"""Training through Ray equals training without it, also with killed workers, several workers and rolling windows."""

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.distributed
import torch.multiprocessing

import drcorl_ray.distributed.ray_data
from drcorl_ray.commands.train import _name_idle_cpus, train
from drcorl_ray.config.loading import load_config
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.pretraining import _room, pretrain, pretrain_tasks
from drcorl_ray.distributed.ray_data import Feed
from drcorl_ray.distributed.ray_train import _all_reduce, extract
from drcorl_ray.errors import UserError
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.metrics_log import read_log
from drcorl_ray.runs.results import read_results
from drcorl_ray.training.build import Placement
from drcorl_ray.training.pretrained import load_pretrained, pretrain_seeds
from tests.helpers.columns import make_store
from tests.helpers.learners import extract as extract_steps
from tests.helpers.learners import make_learner, make_spec, make_table, small_config
from tests.helpers.learners import pretrain as pretrain_steps
from tests.helpers.tiny import plain_policies, tiny_config

POPULATION = "population=[{seed: 1, k: 0.5}, {seed: 2, beta_0: 0.3, cost_limit: 30}, {seed: 1, adaptation: crpo}]"


def run_stages(config) -> tuple[TaskData, RunDirectory, PopulationPolicy]:
    run, data = RunDirectory.prepare(config), TaskData.open(task_store(config.tasks[0], config.data, config.run))
    weights = pretrain(config, data, run, pretrain_seeds(config.members()))
    return data, run, load_population(extract(config, data, run, config.members(), weights))[0]


def assert_equal_policies(one: PopulationPolicy, other: PopulationPolicy, tolerance: float = 0.0):
    for a, b in zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def ray_processes(name: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process in children if process.is_running() and process.name().startswith(f"ray::{name}")]


def kill_a_worker_at(log, stage: str, step: int, killed: list[int]) -> None:
    """Wait until a stage has reported `step`, then kill -9 its workers."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if any(line["stage"] == stage and line["step"] >= step for line in read_log(log)):
            for worker in ray_processes("RayTrain"):
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(worker.pid)
            return
        time.sleep(0.02)


def assert_ray_train_left_nothing_behind() -> None:
    """Fault: keep Ray Train's SIGINT handler, whose reference keeps the controller's process alive."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    deadline = time.monotonic() + 30
    while ray_processes("TrainCont"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_train_equals_a_plain_loop_bitwise_also_after_kill_9(tmp_path):
    config = tiny_config(tmp_path, POPULATION, "extract.steps=1000", "scaling.report_steps=50")
    killed: list[int] = []
    log = tmp_path / "run" / "metrics.jsonl"
    killer = threading.Thread(target=kill_a_worker_at, args=(log, "extract", 150, killed))
    killer.start()
    data, run, policies = run_stages(config)
    killer.join()
    assert killed
    assert_ray_train_left_nothing_behind()
    assert_equal_policies(policies, plain_policies(config, data))
    steps = [line["step"] for line in read_log(run.metrics) if line["stage"] == "extract"]
    assert steps == [*range(50, 1050, 50), 1020]  # each report once, in order


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_pretrained_weights_are_made_once_and_again_only_if_damaged_or_for_another_seed(tmp_path):
    """Two runs need the same file at once: one trains, the other waits. Fault: no lock, or no second check after it."""
    runs = [tmp_path / name for name in ("a", "b", "c")]
    configs = [tiny_config(tmp_path, f"run.dir={run}") for run in runs]
    data = TaskData.open(task_store("PointCircle", configs[0].data, configs[0].run))
    directories = [RunDirectory.prepare(config) for config in configs]

    def weights(run: int, *seeds: int) -> list:
        return pretrain(configs[run], data, directories[run], seeds)

    with ThreadPoolExecutor(2) as threads:
        [first], [second] = threads.map(lambda run: weights(run, 0), (0, 1))
    assert first == second
    assert len(list(tmp_path.glob("[ab]/ray/pretrain-*"))) == 1
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    assert weights(2, 0, 1)[0] == first  # one job makes the damaged one and a new one
    again, made = load_pretrained([first]), len(list(runs[2].glob("ray/pretrain-*")))
    first.write_bytes(content)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in load_pretrained([first]).tensors.items())
    assert made == 1
    assert weights(2, 1, 0)[1] == first
    assert len(list(runs[2].glob("ray/pretrain-*"))) == 1  # nothing was missing


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("ray_cluster")
def test_tasks_are_pretrained_at_the_same_time(tmp_path):
    """Two Ray Train jobs run at once in one driver, each with its own log, and give the same weights for the same data."""
    config = tiny_config(tmp_path, "scaling.cpus_per_worker=0.5")
    data, run = TaskData.open(task_store("PointCircle", config.data, config.run)), RunDirectory.prepare(config)
    other = dataclasses.replace(data, task=dataclasses.replace(data.task, name="Other"))
    assert _room(config.scaling) == 2
    [[first], [second]] = pretrain_tasks(config, [data, other], run, [0])
    assert first != second
    one, two = load_pretrained([first]), load_pretrained([second])
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())
    for task in ("PointCircle", "Other"):
        lines = read_log(run.pretraining_log(task))
        assert [(line["task"], line["step"]) for line in lines] == [(task, step) for step in range(20, 181, 20)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_train_the_policies_of_one_worker(tmp_path):
    config = tiny_config(tmp_path, "scaling.workers=2")
    data, _, policies = run_stages(config)
    assert_equal_policies(policies, plain_policies(config, data), tolerance=1e-4)  # float32 sums in another order


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_from_end_to_end_with_a_rolling_window(tmp_path):
    config = tiny_config(
        tmp_path, "data.window_rows=500", "data.refresh_steps=5", "population=[{}, {actor_learning_rate: 1.0e+38}]"
    )
    run = train(config)
    results = read_results(run.path)
    algorithms = [row["algorithm"] for row in results["rows"]]
    assert algorithms == ["drcorl", "bc", "bc_safe"]  # member 1 diverged and is left out; the other is unaffected
    row = results["rows"][0]
    assert (row["selection"], row["episodes"], row["online_episodes"]) == ("last", 3, 0)
    actions = load_policy(run.path / row["policy"]).act(np.zeros((4, 8)))
    assert actions.shape == (4, 2)
    assert (run.path / "curves.png").stat().st_size > 1000
    assert len(results["run"]["curves"][0]["steps"]) == len(config.curve_steps()) == 3
    with pytest.raises(UserError, match="finished"):
        train(config)


def test_train_refuses_a_list_of_tasks(tmp_path):
    with pytest.raises(UserError, match=r"task\.name lists 2 tasks"):
        train(tiny_config(tmp_path, "task.name=[PointCircle, HopperVelocity]"))
    assert not (tmp_path / "run").exists()


def gloo_worker(rank: int, rendezvous: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    learner, table = float64_learner(first_row=8 * rank)
    extract_steps(learner, table, 0, 10, 8, _all_reduce)
    torch.save(learner.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def float64_learner(**placement):
    config, spec, table = small_config(), make_spec(3, 2), make_table(200, 3, 2)
    pretrained = pretrain_steps(config, spec, table, [0]).result()
    members = [{"seed": 1}, {"seed": 2, "cost_limit": 0.0, "alpha": 0.1}, {"seed": 3, "policy_class": "gaussian"}]
    return make_learner(config, spec, members, pretrained, **placement), table


@pytest.mark.ray  # its processes import drcorl_ray.distributed.ray_train, and with it Ray
@pytest.mark.slow
def test_two_gloo_workers_with_half_the_batch_each_equal_one_in_float64(tmp_path):
    torch.multiprocessing.spawn(gloo_worker, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    whole, table = float64_learner()
    extract_steps(whole, table, 0, 10)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(halves[0][name], halves[1][name]), name
        torch.testing.assert_close(halves[0][name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def test_a_resumed_feed_has_refreshed_its_window_equally_often(monkeypatch, tmp_path):
    """Fault: a window that is one refresh ahead or behind if the resume falls on a refresh step."""

    class CountedWindow:
        def __init__(self, *_, **__):
            self.refreshes = 0

        def fill(self):
            pass

        def refresh(self):
            self.refreshes += 1

    monkeypatch.setattr(drcorl_ray.distributed.ray_data, "Window", CountedWindow)
    monkeypatch.setattr(drcorl_ray.distributed.ray_data, "Share", lambda *_: None)
    data = SimpleNamespace(manifest=make_store(tmp_path / "store", 40), store=tmp_path / "store")

    def refreshes_before(step: int, resumed_at: int) -> int:
        feed = Feed(load_config(["data.window_rows=20", "data.refresh_steps=5"]).data, data, Placement())
        feed.seek(resumed_at)
        for later_step in range(resumed_at, step + 1):
            feed.move(later_step)
        return feed._window.refreshes

    for step, expected in ((0, 0), (4, 0), (5, 1), (9, 1), (10, 2), (23, 4)):
        assert {refreshes_before(step, resumed_at) for resumed_at in range(step + 1)} == {expected}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "training on 1 of 2 CPUs; scaling.cpus_per_worker=2 uses more\n"),
        (
            ["scaling.cpus_per_worker=0.5", "scaling.workers=2"],
            "training on 1 of 2 CPUs; scaling.cpus_per_worker=1 uses more\n",
        ),
        (["scaling.cpus_per_worker=2"], ""),
        (["scaling.workers=2"], ""),
        (["scaling.use_gpu=true"], ""),
    ],
)
def test_idle_cpus_are_named(ray_cluster, capsys, settings, message):
    _name_idle_cpus(load_config(settings))
    assert capsys.readouterr().err == message
