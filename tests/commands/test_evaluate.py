"""launch/evaluate.py: scores beside `rollout.evaluate`, DSRL's protocol by hand, JSON, videos, and mistakes in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drcorl_ray.commands.cli import guarded
from drcorl_ray.commands.evaluate import evaluate_files
from drcorl_ray.config.loading import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.dsrl_protocol import dsrl_groups, protocol_gaps
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.evaluation.video import FRAMES, SIDE, record_episode
from drcorl_ray.policy.loading import load_policy
from drcorl_ray.policy.mlp import MLPPolicy
from drcorl_ray.tasks import registry as tasks
from drcorl_ray.tasks.registry import get_task, register_task
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy, random_transformer

SEEDS = range(4_000_000, 4_000_003)
ABOUT = {
    "task": "PointCircle", "algorithm": "drcorl", "config": {"cost_limit": 20.0}, "seed": 0, "cost_limit": 20.0,
    "evaluation_mode": "offline", "selection": "last",
}  # fmt: skip


def save(path: Path, policy: MLPPolicy | None = None, *, seed: int = 0, meta=None, **about: object) -> Path:
    meta = {"return_range": [-100.0, 100.0]} if meta is None else meta
    policy = random_policy(8, 2, seed=seed) if policy is None else policy
    policy.save(path, 0, {"result": ABOUT | {"seed": seed} | about, **meta})
    return path


def run(tmp_path: Path, *arguments: object) -> list[dict]:
    """The rows of evaluation.json."""
    paths = [str(argument) for argument in arguments if "=" not in str(argument)]
    settings = [str(argument) for argument in arguments if "=" in str(argument)]
    episodes = [] if any("protocol" in setting for setting in settings) else [f"evaluation.episodes={len(SEEDS)}"]
    evaluate_files(paths, load_config([*settings, *episodes, f"evaluation.output={tmp_path / 'out'}"]))
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]


def test_policies_beside_each_other_score_as_alone(tmp_path):
    """Six networks, of which two fit into one population, and two more but for their context; another task between them.

    Fault: rows in the populations' order, statistics of the first policy for all, members in reverse.
    """
    shifted = random_policy(8, 2, seed=2)
    shifted = MLPPolicy(shifted.observation_mean + 0.5, shifted.observation_std, shifted.weights, shifted.biases)
    policies = {
        "a": random_policy(8, 2, seed=0), "hopper": random_policy(11, 3, seed=1), "shifted": shifted,
        "wide": random_policy(8, 2, hidden=40, seed=3), "b": random_policy(8, 2, seed=4),
        "cdt": random_transformer(8, 2, context=2, seed=5), "longer": random_transformer(8, 2, context=4, seed=6),
    }  # fmt: skip
    names = {name: "HopperVelocity" if name == "hopper" else "PointCircle" for name in policies}
    files = [save(tmp_path / f"{name}.safetensors", policy, task=names[name]) for name, policy in policies.items()]
    rows = run(tmp_path, *files)
    assert [row["name"] for row in rows] == list(policies)
    for row, (name, policy) in zip(rows, policies.items(), strict=True):
        alone = evaluate(policy, names[name], SEEDS)
        assert (row["returns"], row["costs"]) == (alone.returns[0].tolist(), alone.costs[0].tolist())
        assert (row["lengths"], row["seeds"]) == (alone.lengths[0].tolist(), list(SEEDS))
        assert (row["policy"], row["task"]) == (str(tmp_path / f"{name}.safetensors"), names[name])
        assert row["normalized_reward"] == pytest.approx((alone.returns.mean() + 100) / 200, rel=1e-12)
        assert row["normalized_cost"] == pytest.approx(alone.costs.mean() / 20.1, rel=1e-12)
        assert row["safe"] is (row["normalized_cost"] <= 1)
        assert (row["episodes"], row["reward_std"]) == (3, pytest.approx(alone.returns.std()))


def test_a_run_directory_is_its_policies_each_once(tmp_path, capsys):
    """Two runs whose files have one name: the table, the JSON and the videos tell them apart."""
    for number, name in enumerate(("one", "two")):
        save(tmp_path / name / "policies" / "P.safetensors", seed=number)
        row = {"policy": "policies/P.safetensors", "selection": "last"}
        (tmp_path / name / "results.json").write_text(json.dumps({"schema": 1, "run": {}, "rows": [row]}))
    rows = run(
        tmp_path,
        tmp_path / "one",
        tmp_path / "two",
        tmp_path / "two" / ".." / "one" / "policies" / "P.safetensors",
        "evaluation.video=true",
    )
    assert [row["name"] for row in rows] == ["one-P", "two-P"]
    assert rows[0]["returns"] != rows[1]["returns"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"evaluation.json", "one-P.gif", "two-P.gif"}
    out = capsys.readouterr()
    assert out.out.count("one-P") == out.out.count("two-P") == 1
    assert out.err == ""


def test_the_json_says_what_made_it(tmp_path):
    run(tmp_path, save(tmp_path / "a.safetensors"))
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["schema"], content["groups"], content["run"]["protocol"]) == (1, [], "own")
    assert content["run"].keys() >= {"commit", "versions", "machine", "wall_s", "argv"}


@pytest.mark.parametrize("meta", [{}, {"return_range": None}])
def test_without_the_datasets_returns_the_tasks_reference_is_used_and_named(tmp_path, capsys, meta):
    [row] = run(tmp_path, save(tmp_path / "old.safetensors", meta=meta))
    task = get_task("PointCircle")
    assert row["return_range"] == [task.return_min, task.return_max]
    assert (
        "old: no return range of the dataset in the file; reward normalised by the task's reference" in capsys.readouterr().out
    )


def test_a_task_without_reference_has_no_normalised_reward(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    register_task("Walk", "tests.helpers.small_envs:Walk-v0", 7)
    file = save(tmp_path / "walk.safetensors", random_policy(1, 1), task="Walk", meta={})
    [row] = run(tmp_path, file, "evaluation.video=true", "evaluation.protocol=dsrl")
    assert (row["normalized_reward"], row["return_range"]) == (None, None)
    out = capsys.readouterr().out
    assert "(Walk unknown)" in out
    assert "Walk: no video, its environment offers no pictures" in out
    assert not list((tmp_path / "out").glob("*.gif"))


def scored(limit: float, seed: int, reward: float | None, cost: float, **changes: object) -> dict:
    """A row whose two episodes cost `cost` and `cost + 2`."""
    row = ABOUT | {"cost_limit": limit, "config": {"cost_limit": limit}, "seed": seed, "policy": f"{limit:g}-{seed}"}
    return row | {"normalized_reward": reward, "returns": [reward, limit], "costs": [cost, cost + 2]} | changes


def test_the_protocol_by_hand():
    """Fault: the deviation over policies, or over limits too; the rows' own normalised costs; (limit + 0)."""
    rows = [
        scored(limit, seed, limit / 100 + seed / 10, limit * seed - 0.9) for limit, seed in product((10, 20, 40), range(3))
    ]
    [group] = dsrl_groups(rows[::-1])
    assert [part["cost_limit"] for part in group["limits"]] == [10, 20, 40]
    for part in group["limits"]:
        limit = part["cost_limit"]
        costs = np.array([(limit * seed + 0.1) / (limit + 0.1) for seed in range(3)])
        assert part["seeds"] == [0, 1, 2]
        assert part["policies"] == [f"{limit}-{seed}" for seed in range(3)]
        assert part["normalized_reward"] == pytest.approx(limit / 100 + 0.1)
        assert part["normalized_reward_std"] == pytest.approx(0.1 * np.sqrt(2 / 3))
        assert part["normalized_cost"] == pytest.approx(costs.mean())
        assert part["normalized_cost_std"] == pytest.approx(costs.std())
        assert part["safe"] is bool(costs.mean() <= 1)
    assert group["normalized_reward"] == pytest.approx((0.1 + 0.2 + 0.4) / 3 + 0.1)
    assert group["normalized_cost"] == pytest.approx(np.mean([part["normalized_cost"] for part in group["limits"]]))
    assert protocol_gaps([group]) == []


def test_groups_are_not_mixed():
    changes = [{}, {"algorithm": "x"}, {"evaluation_mode": "online"}, {"selection": "online_best"}, {"task": "HopperVelocity"}]
    groups = dsrl_groups([scored(10, 0, number / 10, 0.0, **change) for number, change in enumerate(changes)])
    assert sorted(group["normalized_reward"] for group in groups) == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_a_limit_blind_policy_meets_every_limit_of_its_task():
    """Its own limit means nothing, and the copies that a run writes of it count once. Fault: other tasks' limits."""
    blind = {"algorithm": "bc", "config": {"cost_limit": None}, "returns": [1.0, 1.0]}
    rows = [scored(limit, 0, 0.5, 1.0) for limit in (10, 20, 40)] + [scored(80, 0, 0.5, 1.0, task="HopperVelocity")]
    rows += [scored(limit, seed, 0.3 + seed, 19.0 + seed, **blind) for limit, seed in product((10, 15), range(3))]
    bc = next(group for group in dsrl_groups(rows) if group["algorithm"] == "bc")
    assert [part["cost_limit"] for part in bc["limits"]] == [10, 20, 40]
    assert [part["normalized_cost"] for part in bc["limits"]] == [pytest.approx(21 / (x + 0.1)) for x in (10, 20, 40)]
    assert [part["safe"] for part in bc["limits"]] == [False, False, True]
    assert bc["gaps"] == []
    [alone] = dsrl_groups([scored(10, 0, 0.3, 19.0, **blind)])
    assert [part["cost_limit"] for part in alone["limits"]] == [10]


def test_what_lacks_of_the_protocol_is_said_exactly():
    rows = [scored(limit, seed, 0.1 * seed, 0.0) for limit, seed in product((10, 20), range(3)) if (limit, seed) != (20, 1)]
    rows += [scored(10, 2, 0.8, 0.0), scored(10, 2, 0.8, 0.0)]  # another policy, twice
    [group] = dsrl_groups(rows)
    assert protocol_gaps([group]) == [
        "PointCircle drcorl offline last: 2 cost limits (10, 20), not 3; limit 20: 2 seeds (0, 2), no 1, not 3; "
        "limit 10 seed 2: the mean of 2 policies"
    ]
    assert group["limits"][0]["normalized_reward"] == pytest.approx((0.0 + 0.1 + (0.2 + 0.8) / 2) / 3)
    assert dsrl_groups([scored(10, 0, None, 0.0)])[0]["normalized_reward"] is None


def test_the_protocol_has_its_table_and_its_groups(tmp_path, capsys):
    file = save(tmp_path / "a.safetensors")
    [row] = run(tmp_path, file, "evaluation.protocol=dsrl")
    assert len(row["seeds"]) == 20
    [group] = json.loads((tmp_path / "out" / "evaluation.json").read_text())["groups"]
    assert group["normalized_cost"] == row["normalized_cost"]
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    score = [f"{row['normalized_reward']:.3f}", f"{row['normalized_cost']:.2f}", "yes" if row["safe"] else "no"]
    assert ["PointCircle", "drcorl", "offline", "last", "20", "1", *score] in lines
    assert ["all", *score] in lines


def frames(content: bytes) -> list[np.ndarray]:
    pictures = []
    with Image.open(io.BytesIO(content)) as image:
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            pictures.append(np.asarray(image.convert("RGB")))
    return pictures


def test_a_video_is_the_evaluated_episode(tmp_path):
    """Fault: the next seed, or a picture that stays as it was."""
    policy = load_policy(save(tmp_path / "a.safetensors"))
    total, content = record_episode(policy, get_task("PointCircle"), SEEDS[0], 200)
    assert total == evaluate(policy.population, "PointCircle", SEEDS[:1]).returns[0, 0]
    pictures = frames(content)
    assert 50 < len(pictures) <= FRAMES
    assert pictures[0].shape == (SIDE, SIDE, 3)
    assert all(not np.array_equal(one, other) for one, other in pairwise(pictures))
    assert len(content) < 1_000_000


def test_an_episode_that_does_not_come_out_again_is_no_video(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("drcorl_ray.evaluation.video.record_episode", lambda *_: (0.0, b""))
    run(tmp_path, save(tmp_path / "a.safetensors"), "evaluation.video=true")
    assert "a: no video, the episode did not come out again" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.gif"))


def test_without_a_way_to_draw_table_and_json_are_made(tmp_path):
    """In a process of its own, since OpenGL stays as it was first loaded."""
    file = save(tmp_path / "hopper.safetensors", random_policy(11, 3), task="HopperVelocity")
    settings = [f"evaluation.output={tmp_path / 'out'}", "evaluation.video=true", "evaluation.episodes=1"]
    done = subprocess.run(
        [sys.executable, "launch/evaluate.py", file, *settings],
        cwd=ROOT, env={**os.environ, "MUJOCO_EGL_DEVICE_ID": "99", "MUJOCO_GL": "", "DISPLAY": ""}, text=True, check=False,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("HopperVelocity: no video, MuJoCo cannot draw with MUJOCO_GL=egl") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]


def offscreen() -> bool:
    code = "import mujoco.egl; mujoco.egl.GLContext(8, 8).free()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not offscreen(), reason="MuJoCo finds no EGL device to draw with; install libegl1")
def test_a_robot_stays_in_its_video(tmp_path, monkeypatch):
    """A cheetah that is driven on: fault, a camera that stays where it is shows the same floor at the end."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    policy = load_policy(save(tmp_path / "a.safetensors", random_policy(17, 6, seed=3), task="HalfCheetahVelocity"))
    total, content = record_episode(policy, get_task("HalfCheetahVelocity"), SEEDS[0], 5000)  # 20 pictures
    assert total == evaluate(policy.population, "HalfCheetahVelocity", SEEDS[:1]).returns[0, 0]
    pictures = frames(content)
    assert len(pictures) == 21
    assert len(content) < 1_000_000
    for picture in pictures:  # the robot's orange, in the middle
        red, green, blue = picture[:, SIDE // 4 : -SIDE // 4].astype(int).transpose(2, 0, 1)
        assert ((red > green + 25) & (green > blue + 10)).sum() > 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no policy given"),
        (["absent.safetensors"], "absent.safetensors: cannot be read"),
        (["text.safetensors"], "text.safetensors: cannot be read as a safetensors file"),
        (["."], "results.json is missing"),
        (["broken"], "a row lists no policy (KeyError('policy'))"),
        (["unknown.safetensors"], "unknown.safetensors: unknown task 'Nowhere'"),
        (["hopper.safetensors"], "PointCircle has 8 observations and 2 actions, the policy 11 and 3"),
        (["bare.safetensors"], "bare.safetensors: the policy does not say its task and cost limit"),
        (["nan.safetensors"], "nan.safetensors: the policy's weights are not all finite"),
        (["good.safetensors", "evaluation.protocol=other"], "evaluation.protocol"),
        (["good.safetensors", "evaluation.protocol=dsrl", "evaluation.episodes=5"], "has 20 episodes per policy"),
        (["good.safetensors", "evaluation.video=true"], "add evaluation.output=FOLDER"),
        (["good.safetensors", "evaluation.output=text.safetensors"], "cannot make the folder text.safetensors"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    save(Path("good.safetensors"))
    save(Path("unknown.safetensors"), task="Nowhere")
    save(Path("hopper.safetensors"), random_policy(11, 3))
    random_policy(8, 2).save(Path("bare.safetensors"), 0, {})
    infinite = random_policy(8, 2)
    infinite.biases[0][:] = np.nan
    save(Path("nan.safetensors"), infinite)
    Path("text.safetensors").write_text("no policy\n")
    Path("broken").mkdir()
    Path("broken/results.json").write_text(json.dumps({"schema": 1, "run": {}, "rows": [{}]}))
    paths, settings = [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
    code = guarded(lambda: evaluate_files(paths, load_config(settings)))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert words in err


def test_the_script_refuses_as_its_function_does():
    command = [sys.executable, "launch/evaluate.py", "absent.safetensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: absent.safetensors")
    assert len(done.stderr.splitlines()) == 1


def test_bullet_opens_no_window(tmp_path):
    """Fault: its render(), which ends the process where there is no display."""
    pytest.importorskip("bullet_safety_gym")
    with pytest.raises(UserError, match="BallRun: no video"):
        record_episode(load_policy(save(tmp_path / "a.safetensors")), get_task("BallRun"), 0, 100)


def test_drawing_that_fails_is_a_users_error(tmp_path, monkeypatch):
    """Whatever it raises."""
    policy = load_policy(save(tmp_path / "a.safetensors"))

    def broken(*_):
        raise ZeroDivisionError("no\nluck")

    monkeypatch.setattr("drcorl_ray.evaluation.video._camera", lambda *_: broken)
    with pytest.raises(UserError, match=r"PointCircle: no video, its simulator cannot draw here .ZeroDivisionError: no luck"):
        record_episode(policy, get_task("PointCircle"), 0, 200)
