"""launch/evaluate.py: what it scores, its protocol's table by hand, JSON, GIFs, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drcorl_ray.cli import guarded, split_arguments
from drcorl_ray.config_file import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation import evaluate_files, protocol_groups
from drcorl_ray.policy import Policy, load_policy
from drcorl_ray.rollout import evaluate
from drcorl_ray.tasks import get_task
from drcorl_ray.video import record_episode
from tests.policies import random_policy

ROOT = Path(__file__).parents[1]
ABOUT = {"task": "PointCircle", "algorithm": "drcorl", "evaluation_mode": "hybrid", "selection": "last"}


def save(folder: Path, name: str, *, limit: float, seed: int, **meta: object) -> Path:
    path = folder / f"{name}.safetensors"
    result = ABOUT | {"seed": seed, "cost_limit": limit}
    random_policy(8, 2, members=seed + 1).save(path, seed, {"result": result, "return_range": [0.0, 100.0], **meta})
    return path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    files, settings = split_arguments(arguments)
    evaluate_files(files, load_config(settings))
    return capsys.readouterr().out


def test_rows_are_the_plain_evaluation(tmp_path, capsys):
    """Episode by episode, with the dataset's own returns for the reward; a run's directory is all of its policies."""
    path = save(tmp_path, "one", limit=20.0, seed=1)
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, "run": {}, "rows": [{"policy": path.name}]}))
    for argument in (path, tmp_path):
        run([str(argument), "evaluation.episodes=3", f"evaluation.output={tmp_path / 'out'}"], capsys)
        [row] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
        stats = evaluate(load_policy(path).population, "PointCircle", range(4_000_000, 4_000_003))
        assert row["returns"] == stats.returns[0].tolist()
        assert row["costs"] == stats.costs[0].tolist()
        assert row["seeds"] == [4_000_000, 4_000_001, 4_000_002]
        assert row["normalized_reward"] == pytest.approx(stats.returns.mean() / 100.0)
        assert row["normalized_cost"] == pytest.approx(stats.costs.mean() / 20.1)


def test_a_policy_without_its_datasets_returns_says_so(tmp_path, capsys):
    path = save(tmp_path, "old", limit=20.0, seed=0, return_range=None)
    shown = run([str(path), "evaluation.episodes=2"], capsys)
    assert "1 policies do not know" in shown


def row(limit: float, seed: int, reward: float, cost: float, **changes: str) -> dict:
    return ABOUT | {"cost_limit": limit, "seed": seed, "normalized_reward": reward, "normalized_cost": cost} | changes


def test_the_protocol_by_hand(capsys, tmp_path, monkeypatch):
    """Three limits × three seeds of one algorithm, one cell of another: means, deviations, what is missing."""
    rows = [row(limit, seed, limit / 100 + seed / 10, seed * 0.5) for limit in (10.0, 20.0, 40.0) for seed in (0, 1, 2)]
    rows += [row(10.0, 0, 0.5, 3.0, algorithm="bc")]
    groups = protocol_groups(rows)
    assert [name[1] for name in groups] == ["bc", "drcorl"]
    assert {limit: len(cell) for limit, cell in groups["PointCircle", "drcorl", "hybrid", "last"].items()} == {
        10.0: 3, 20.0: 3, 40.0: 3,
    }  # fmt: skip
    made = iter(rows)
    monkeypatch.setattr("drcorl_ray.evaluation._roll_out", lambda *_: next(made) | FILLED)
    files = [str(save(tmp_path, f"p{number}", limit=10.0, seed=0)) for number in range(10)]
    shown = run([*files, "evaluation.protocol=dsrl"], capsys)
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    assert "PointCircle drcorl hybrid last 10 3 0.200 ± 0.082 0.50 ± 0.41 yes" in lines
    deviation = np.std([limit / 100 + seed / 10 for limit in (10, 20, 40) for seed in (0, 1, 2)])
    assert f"PointCircle drcorl hybrid last all 3 0.333 ± {deviation:.3f} 0.50 ± 0.41 yes" in lines
    assert "PointCircle bc hybrid last all 1 0.500 ± 0.000 3.00 ± 0.00 no" in lines
    gaps = " ".join(" ".join(lines).split())
    assert "PointCircle bc hybrid last is not the whole protocol: 1 of 3 cost limits, limit 10: 1 of 3 seeds" in gaps
    assert "drcorl hybrid last is not" not in gaps


FILLED = {
    "policy": "p", "reward_mean": 0.0, "reward_std": 0.0, "cost_mean": 0.0, "cost_std": 0.0, "length_mean": 0.0,
    "return_range": "dataset",
}  # fmt: skip


def test_a_gif_shows_the_evaluated_episode(tmp_path):
    policy, task = load_policy(save(tmp_path, "one", limit=20.0, seed=0)), get_task("PointCircle")
    total = record_episode(policy, task, 4_000_000, tmp_path / "one.gif")
    assert total == float(evaluate(policy.population, task, [4_000_000]).returns[0, 0])
    with Image.open(tmp_path / "one.gif") as image:
        frames = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    assert len(frames) == 100
    assert not np.array_equal(frames[0], frames[-1])
    assert (tmp_path / "one.gif").stat().st_size < 500_000


def test_mujoco_draws_where_it_can(tmp_path):
    policy, task = Policy(random_policy(11, 3), {}), get_task("HopperVelocity")
    try:
        total = record_episode(policy, task, 4_000_000, tmp_path / "hopper.gif")
    except UserError as error:
        assert "MuJoCo cannot draw here" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    assert total == float(evaluate(policy.population, task, [4_000_000]).returns[0, 0])
    with Image.open(tmp_path / "hopper.gif") as image:
        assert np.asarray(image.convert("RGB"))[:200].std() > 10


def test_what_cannot_be_drawn_is_said_in_a_line(tmp_path):
    policy = load_policy(save(tmp_path, "one", limit=20.0, seed=0))
    with pytest.raises(UserError, match="BallRun: its episodes cannot be drawn"):
        record_episode(policy, get_task("BallRun"), 0, tmp_path / "one.gif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no policy given"),
        (["absent.safetensors"], "absent.safetensors"),
        (["README.md"], "README.md"),
        (["POLICY", "evaluation.video=true"], "needs evaluation.output"),
        (["POLICY", "evaluation.protocol=other"], "evaluation.protocol"),
        (["tests"], "no finished run is there"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = str(save(tmp_path, "one", limit=20.0, seed=0))
    given = [path if argument == "POLICY" else argument for argument in arguments]
    files, settings = split_arguments(given)
    assert guarded(lambda: evaluate_files(files, load_config(settings))) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
