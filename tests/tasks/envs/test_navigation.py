# ruff: noqa: NPY002  (numpy's global state is what is tested)

import importlib.util
import sys

import mujoco
import numpy as np
import pytest

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.tasks.envs import make_env, make_simulator
from tests.helpers.episodes import (
    assert_same_rows,
    digest,
    digest_in_another_process,
    episode,
    numpys_global_state_left_alone,
    rows,
)
from tests.helpers.policies import random_policy

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("safety_gymnasium") is None, reason="safety-gymnasium is not installed; uv sync --group sims"
)

FAMILIES = ["PointGoal1", "CarButton2", "PointPush2", "CarCircle1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_episode_ignores_neighbours_and_history(name):
    """Fault: a reset that does not pass on its seed."""
    fresh = {seed: rows(name, seed) for seed in (3, 4)}
    assert not np.array_equal(fresh[3][0], fresh[4][0])
    used = make_env(name)
    list(episode(used, 9, count=30))
    one, other, mixed = episode(used, 3), episode(make_env(name), 4), ([], [])
    for _ in range(61):
        np.random.random(3)  # the rest of the program draws too
        for rows_so_far, source in zip(mixed, (one, other), strict=True):
            rows_so_far.append(next(source))
    assert_same_rows(mixed[0], fresh[3])
    assert_same_rows(mixed[1], fresh[4])


def test_an_episode_is_the_same_in_another_process():
    assert digest(rows("CarButton1", 5, 40)) == digest_in_another_process("CarButton1", 5, 40)


def test_resets_without_a_seed_differ():
    env = make_env("PointCircle1")
    starts = [env.reset(seed=1)[0], env.reset()[0], env.reset()[0]]
    assert not np.array_equal(starts[1], starts[2])
    again = [env.reset(seed=1)[0], env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(again, starts)


def test_the_process_is_left_as_it_was():
    joint = mujoco.MjModel.jnt
    with numpys_global_state_left_alone():
        list(episode(make_env("CarPush1"), 5, count=5))
    assert mujoco.MjModel.jnt is joint


@pytest.mark.parametrize(("name", "both_axes"), [("PointCircle1", False), ("CarCircle2", True)])
def test_circles_cost_is_leaving_the_corridor(name, both_axes):
    """Cost 1 exactly where |x| > 1.125, or |y| on level 2, from MuJoCo's own position."""
    env = make_env(name)
    costs, outside = [], []
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(100):
            costs.append(env.step(np.full(2, 1.0 if name.startswith("Car") else 0.3, np.float32))[4]["cost"])
            x, y = np.abs(env.unwrapped._env.task.data.body("agent").xpos[:2])
            outside.append(x > 1.125 or (both_axes and y > 1.125))
    assert costs == outside
    assert 0 < sum(costs) < len(costs)


def test_goals_cost_is_being_on_a_hazard():
    """Cost 1 exactly where the agent's centre is within 0.2 m of a hazard's, from MuJoCo's own positions."""
    env = make_env("PointGoal1")
    costs, inside = [], []
    for seed in range(4):
        env.reset(seed=seed)
        data = env.unwrapped._env.task.data
        hazards = np.array([data.body(f"hazard{number}").xpos[:2] for number in range(8)])
        for action in np.random.default_rng(seed).uniform((0.0, -1.0), 1.0, (80, 2)).astype(np.float32):
            info = env.step(action)[4]
            costs.append(info["cost"])
            inside.append(np.linalg.norm(hazards - data.body("agent").xpos[:2], axis=1).min() <= 0.2)
    assert costs == inside
    assert 0 < sum(costs) < len(costs)


def test_evaluation_is_the_bare_loop_to_the_time_limit():
    policies = random_policy(28, 2, members=2)
    stats = evaluate(policies, "PointCircle1", [6])
    env = make_env("PointCircle1")
    for member in range(2):
        observation, total, cost, done, steps = env.reset(seed=6)[0], 0.0, 0.0, False, 0
        while not done:
            action = policies.select([member]).act(observation[None, None])[0, 0]
            observation, reward, terminated, truncated, info = env.step(action)
            total, cost, done, steps = total + reward, cost + info["cost"], terminated or truncated, steps + 1
        assert (stats.returns[member, 0], stats.costs[member, 0]) == (total, cost)
        assert stats.lengths[member, 0] == steps == 500


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safety_gymnasium.builder", None)
    for make in (make_env, make_simulator):
        with pytest.raises(UserError, match=r"PointGoal1 needs safety-gymnasium.*uv sync --group sims") as caught:
            make("PointGoal1")
        assert "\n" not in str(caught.value)
