# ruff: noqa: NPY002  (numpy's global state is what is tested)

import builtins

import numpy as np
import pytest

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.tasks.envs import make_env, make_simulator
from drcorl_ray.tasks.registry import get_task
from tests.helpers.episodes import assert_same_rows, episode, numpys_global_state_left_alone, rows
from tests.helpers.policies import random_policy

pytest.importorskip("pybullet", reason="bullet-safety-gym is installed on Python 3.11 only")

AGENTS = ("Ant", "Ball", "Car", "Drone")
NAMES = [agent + kind for agent in AGENTS for kind in ("Circle", "Run")]


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_ignores_neighbours_and_history(name):
    """Faults: motors not reset (Car and Drone then differ from the first observation on); resets not seeded (all differ)."""
    fresh = {seed: rows(name, seed) for seed in (3, 4)}
    assert not np.array_equal(fresh[3][0], fresh[4][0])

    used = make_env(name)
    list(episode(used, 9))
    list(episode(used, 8, count=7))
    assert_same_rows(list(episode(used, 3)), fresh[3])

    one, other = episode(used, 3), episode(make_env(name), 4)
    mixed = ([], [])
    for _ in range(61):
        np.random.random(3)  # the rest of the program draws too
        for rows_so_far, source in zip(mixed, (one, other), strict=True):
            rows_so_far += [row for row in [next(source, None)] if row is not None]
    assert_same_rows(mixed[0], fresh[3])
    assert_same_rows(mixed[1], fresh[4])


@pytest.mark.parametrize("name", NAMES)
def test_numpys_global_state_is_left_alone(name):
    with numpys_global_state_left_alone():
        env = make_env(name)
        list(episode(env, 5, count=5))


def test_cost_is_leaving_the_corridor():
    """BallCircle: cost 1 exactly where |x| > 6, from pybullet's own position."""
    env = make_env("BallCircle")
    env.reset(seed=0)
    inner, costs, outside = env.unwrapped, [], []
    for _ in range(150):
        info = env.step(np.array([1.0, 0.1], np.float32))[4]
        position, _ = inner.bc.getBasePositionAndOrientation(inner.agent.body_id)
        costs.append(info["cost"])
        outside.append(abs(position[0]) > 6)
    assert costs == outside
    assert 0 < sum(costs) < 150


@pytest.mark.parametrize(("name", "length"), [("BallRun", 100), ("CarRun", 200)])
def test_evaluation_is_the_bare_loop(name, length):
    task = get_task(name)
    env = make_env(task)
    policies = random_policy(env.observation_space.shape[0], env.action_space.shape[0], members=2)
    stats = evaluate(policies, task, [5, 6])
    for member in range(2):
        for column, seed in enumerate((5, 6)):
            observation, total, cost, done, steps = env.reset(seed=seed)[0], 0.0, 0.0, False, 0
            while not done:
                action = policies.select([member]).act(observation[None, None])[0, 0]
                observation, reward, terminated, truncated, info = env.step(action)
                total, cost, done, steps = total + reward, cost + info["cost"], terminated or truncated, steps + 1
            assert (stats.returns[member, column], stats.costs[member, column]) == (total, cost)
            assert stats.lengths[member, column] == steps == length


def test_a_missing_package_is_named(monkeypatch):
    original = builtins.__import__

    def without_bullet(name, *rest):
        if name.startswith("bullet_safety_gym"):
            raise ModuleNotFoundError("No module named 'bullet_safety_gym'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_bullet)
    for make in (make_env, make_simulator):
        with pytest.raises(UserError, match=r"AntCircle needs bullet-safety-gym.*uv sync --group sims") as caught:
            make("AntCircle")
        assert "\n" not in str(caught.value)
