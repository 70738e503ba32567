"""Baselines in whole runs: trained by Ray as without it, beside a run and through a kill, and found in its results."""

from __future__ import annotations

import numpy as np
import pytest

from drcorl_ray.commands.train import train
from drcorl_ray.config.algorithms import baselines
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed import comparison
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.runs.results import read_results
from drcorl_ray.training.build import Placement, build_baseline, build_runner
from drcorl_ray.training.checkpoint import States
from tests.helpers.tiny import Killed, tiny_config, whole_replay

BASELINES = [algorithm.name for algorithm in baselines()]
SMALL = (
    "baseline.steps=60", "baseline.batch_size=16", "baseline.hidden=[16,16]", "baseline.vae_hidden=16",
    "baseline.sampled_actions=3", "baseline.cdt.context=3", "baseline.cdt.embedding=16",
    "baseline.cdt.blocks=2", "baseline.cdt.heads=2",
)  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_one_algorithm_beside_all_others(tmp_path):
    """Ray Train's population is that of a plain loop; every algorithm has its row, its policy and its cell of Table 1."""
    others = [name for name in BASELINES if name != "cdt"]
    config = tiny_config(
        tmp_path, *SMALL, "run.algorithm=cdt", f"evaluation.baselines={others}", "member.cost_limit=40",
        "population=[{seed: 1}, {seed: 2, cost_limit: 15}]",
    )  # fmt: skip
    run = train(config)
    results = read_results(run.path)
    assert {row["algorithm"] for row in results["rows"]} == {*BASELINES}
    assert {entry["algorithm"] for entry in results["run"]["inference_times"]} == {*BASELINES, None}
    data = TaskData.open(task_store("PointCircle", config.data, config.run))
    learner = build_baseline(config, data, "cdt", config.members(), Placement())
    build_runner(learner, whole_replay(data), 16, Placement(), config.scaling).advance(0, 60)
    expected = learner.policies().arrays()
    for row in results["rows"]:
        policy = load_policy(run.path / row["policy"])
        assert np.isfinite(policy.episode().act(np.zeros(8, np.float32))).all()
        if row["algorithm"] == "cdt":
            for name, array in policy.population.arrays().items():
                np.testing.assert_array_equal(array[0], expected[name][row["member"]])
    text = (run.path / "report.md").read_text()
    assert "| CPQ | COptiDICE |" in text
    assert "(speed.png)" in text


@pytest.mark.parametrize("algorithm", ["bcq_lag", "coptidice", "cdt"])
def test_a_training_beside_a_run_goes_on_after_a_kill(algorithm, tmp_path, monkeypatch):
    """Fault: it begins anew, or its dual variables do."""
    config = tiny_config(tmp_path, *SMALL, f"evaluation.baselines=[{algorithm}]")
    data = TaskData.open(task_store("PointCircle", config.data, config.run))
    compared = comparison.plan(config, data, config.members())
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "killed")]
    comparison.train(config, data, runs[0], compared)

    def killed_at_40(states, learner, step):
        save(states, learner, step)
        if step == 40:
            raise Killed

    save, steps = States.save, []
    monkeypatch.setattr(States, "save", killed_at_40)
    with pytest.raises(Killed):
        comparison.train(config, data, runs[1], compared)
    monkeypatch.setattr(States, "save", lambda states, learner, step: (steps.append(step), save(states, learner, step)))
    comparison.train(config, data, runs[1], compared)
    assert steps == [60]
    one, other = (load_population(run.baseline("PointCircle", algorithm).population)[0].arrays() for run in runs)
    assert all(np.array_equal(array, other[name]) for name, array in one.items())
