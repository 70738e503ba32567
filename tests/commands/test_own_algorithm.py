"""A user's algorithm, registered from one file outside the package, in training, search, comparison, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from drcorl_ray.commands.train import train
from drcorl_ray.commands.tune import search
from drcorl_ray.config.algorithms import ALGORITHMS
from drcorl_ray.config.loading import load_config
from drcorl_ray.config.registration import register_algorithm
from drcorl_ray.policy.loading import load_policy
from drcorl_ray.runs.results import read_results
from tests.helpers.results import Parsed
from tests.helpers.tiny import pretrain_beforehand, tiny_config
from tests.helpers.toy_algorithm import TOY

QUICK = ("evaluation.curve_points=1", "evaluation.curve_episodes=1", "evaluation.episodes=2", "scaling.report_steps=40")


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    register_algorithm(TOY)
    yield
    del ALGORITHMS[TOY.name]


def shown(run) -> tuple[str, str, str]:
    """The texts of report.md and table1.tex, and the traces of the page's figures."""
    traces = str(Parsed((run.path / "report.html").read_text(encoding="utf-8")).figures)
    return (run.path / "report.md").read_text(encoding="utf-8"), (run.path / "table1.tex").read_text(encoding="utf-8"), traces


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_it_is_trained_beside_a_run_and_shown_everywhere(tmp_path):
    """Ray's workers learn of it from the configuration alone. Fault: no `__setstate__`; a table of names in the report."""
    config = tiny_config(
        tmp_path, *QUICK, "population=[{cost_limit: 10}, {cost_limit: 40}]", "evaluation.baselines=[bc, toy]",
        "baseline.toy.shrink=0.25",
    )  # fmt: skip
    pretrain_beforehand(config)
    run = train(config)
    rows = [row for row in read_results(run.path)["rows"] if row["algorithm"] == "toy"]
    assert [row["config"] for row in rows] == [
        {"seed": 0, "cost_limit": limit, "learning_rate": 1e-2, "toy.shrink": 0.25, "toy.width": 8} for limit in (10.0, 40.0)
    ]
    report, table, traces = shown(run)
    assert "Toy & Sons" in report.replace("&amp;", "&")
    assert "Toy \\& Sons" in table
    assert "#123456" in traces
    assert "'name': 'toy'" in traces
    for picture in ("scatter.png", "frontier.png", "curves.png"):
        assert (run.path / picture).exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_it_is_trained_as_the_runs_own_algorithm(tmp_path):
    """Each member by its own setting. Fault: a worker that validates the settings again and knows no `toy`."""
    config = tiny_config(
        tmp_path, *QUICK, "run.algorithm=toy", "evaluation.baselines=[bc]", "population=[{toy.shrink: 0}, {toy.shrink: 1}]",
        "baseline.steps=400",
    )  # fmt: skip
    run = train(config)
    rows = [row for row in read_results(run.path)["rows"] if row["algorithm"] == "toy"]
    assert [row["config"]["toy.shrink"] for row in rows] == [0.0, 1.0]
    states = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    still, moving = (np.abs(load_policy(run.path / row["policy"]).act(states)).mean() for row in rows)
    assert still < 0.5 * moving
    assert "Toy & Sons" in shown(run)[0].replace("&amp;", "&")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_its_own_settings_are_searched(tmp_path):
    config = tiny_config(
        tmp_path, *QUICK, "run.algorithm=toy", "search.configurations=2", "evaluation.baselines=[]",
        "search.space={toy.shrink: {low: 0.0, high: 1.0}}", "search.points=[{toy.shrink: 0.75}]",
    )  # fmt: skip
    run = search(config)
    rows = [row for row in read_results(run.path)["rows"] if row["selection"] == "last"]
    assert [(row["algorithm"], row["state"], row["config"]["toy.width"]) for row in rows] == [("toy", "complete", 8)] * 2
    assert rows[0]["config"]["toy.shrink"] == 0.75
    again = load_config([str(run.path / rows[0]["config_file"])])
    assert [member.model_dump() for member in again.members()] == [rows[0]["config"]]
    assert "toy.shrink = 0.75" in (run.path / "report.html").read_text(encoding="utf-8")
