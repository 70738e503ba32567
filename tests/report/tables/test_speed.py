"""Tests of Figure 2 from the inference times of results.json."""

from __future__ import annotations

from matplotlib.image import imread

from drcorl_ray.report.tables import paper, speed
from tests.helpers.results import make_results, make_row, report


def row(algorithm: str, **changes):
    return make_row(algorithm=algorithm, **({"task": "HopperVelocity", "normalized_reward": 0.5} | changes))


def times(*algorithms: str, seconds: float = 0.25):
    measured = [{"name": name, "algorithm": name, "policy": "p", "seconds": seconds} for name in algorithms]
    return [*measured, {"name": "diffusion, 5 steps", "algorithm": None, "policy": None, "seconds": 2.0}]


def test_times_are_shown_with_the_scores_of_table_1(tmp_path):
    """They follow the order of the table; diffusion is last and has no score. A report measures nothing itself."""
    made = [row("drcorl"), row("drcorl", seed=1, normalized_reward=0.7), row("cpq", normalized_cost=4.0), row("bc")]
    results = make_results(made, inference_times=times("drcorl", "cpq"))
    assert speed.inference_times(results) == [
        speed.InferenceTime("CPQ", 0.25, paper.Cell(0.5, 4.0)),
        speed.InferenceTime("DRCORL", 0.25, paper.Cell(0.6, 0.5)),
        speed.InferenceTime("diffusion, 5 steps", 2.0, None),
    ]
    texts = report(tmp_path, results)
    assert "![Score against inference time](speed.png)" in texts["report.md"]
    assert "| DRCORL | 0.250 | **0.60 (0.50)** |" in texts["report.md"]
    assert "diffusion, 5 steps" in texts["report.html"]
    assert imread(tmp_path / "speed.png")[..., :3].std() > 0.01


def test_an_algorithm_without_a_score_is_shown_without_one():
    """None of its configurations was selected. Fault: take the mean of an empty list."""
    made = [row("cpq"), *(row("drcorl", config={"k": k}) for k in (0.0, 1.0))]
    entries = speed.inference_times(make_results(made, inference_times=times("drcorl", "cpq")))
    assert [(entry.name, entry.score is None) for entry in entries[:2]] == [("CPQ", False), ("DRCORL", True)]


def test_results_without_times_have_no_such_section(tmp_path):
    """This holds for results of early releases and runs without baselines to time; an older picture is removed."""
    (tmp_path / "speed.png").touch()
    for about in ({}, {"inference_times": []}):
        texts = report(tmp_path, make_results([row("drcorl"), row("cpq")], **about))
        assert not any(speed.TITLE in text for text in texts.values())
        assert "Table 1" in texts["report.md"]
        assert not (tmp_path / "speed.png").exists()
