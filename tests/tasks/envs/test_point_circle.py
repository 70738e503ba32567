import math

import gymnasium
import numpy as np
import pytest

from drcorl_ray.tasks.envs import make_env
from drcorl_ray.tasks.envs.point_circle import CORRIDOR, RADIUS, PointCircleSimulator
from drcorl_ray.tasks.envs.point_circle_data import Style, drive, generate_dataset
from drcorl_ray.tasks.registry import get_task


@pytest.fixture(scope="module")
def data():
    return generate_dataset()


def test_a_step_by_hand():
    """The dynamics, reward, cost and features again, in plain Python floats."""
    simulator = PointCircleSimulator()
    first = simulator.reset([7])[0]
    rng = np.random.default_rng(7)
    (x, y), (vx, vy) = rng.uniform(-1, 1, (2, 2)).tolist()
    vx, vy = 0.5 * vx, 0.5 * vy
    np.testing.assert_allclose(first[:4], (x, y, vx, vy), rtol=1e-6)
    cost_seen = set()
    for _ in range(60):
        (observation,), (reward,), (cost,), (ended,) = simulator.step(np.array([[0.9, -3.0]], np.float32))
        vx, vy = vx + 0.1 * (2 * float(np.float32(0.9)) - 0.2 * vx), vy + 0.1 * (2 * -1.0 - 0.2 * vy)
        x, y = x + 0.1 * vx, y + 0.1 * vy
        x, vx = (math.copysign(3, x), 0.0) if abs(x) > 3 else (x, vx)
        y, vy = (math.copysign(3, y), 0.0) if abs(y) > 3 else (y, vy)
        r = math.hypot(x, y)
        assert reward == pytest.approx(0.25 * (x * vy - y * vx) / (1 + abs(r - 2)), rel=1e-12)
        assert cost == float(abs(x) > 1.2)
        features = (x, y, vx, vy, r - 2, x / r, y / r, 1.2 - abs(x))
        np.testing.assert_allclose(observation, features, rtol=1e-6, atol=1e-6)
        assert not ended
        cost_seen.add(cost)
    assert cost_seen == {0.0, 1.0}
    assert abs(x) == abs(y) == 3


def test_an_episode_ignores_its_neighbours():
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 33, 2)).astype(np.float32)
    crowd = PointCircleSimulator()
    many = [crowd.reset(range(33))] + [crowd.step(step) for step in actions]
    for row in (0, 17, 32):
        env = make_env("PointCircle")
        np.testing.assert_array_equal(env.reset(seed=row)[0], many[0][row])
        for step in range(200):
            observation, reward, terminated, truncated, info = env.step(actions[step, row])
            observations, rewards, costs, _ = many[step + 1]
            np.testing.assert_array_equal(observation, observations[row])
            assert (reward, info["cost"]) == (rewards[row], costs[row])
            assert (terminated, truncated) == (False, step == 199)


@pytest.mark.filterwarnings("ignore:.*observation space:UserWarning")
def test_the_environment_is_a_gymnasium_environment():
    from gymnasium.utils.env_checker import check_env

    check_env(make_env("PointCircle").unwrapped, skip_render_check=True)
    assert make_env("PointCircle").action_space == gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def outcome(half_width, speed=2.7, count=20):
    style = Style(*(np.full(count, value) for value in (half_width, RADIUS, speed)))
    simulator = PointCircleSimulator()
    observations = simulator.reset(range(1000, 1000 + count))
    returns, costs = np.zeros(count), np.zeros(count)
    for _ in range(200):
        observations, reward, cost, _ = simulator.step(drive(observations, style).astype(np.float32))
        returns, costs = returns + reward, costs + cost
    return returns, costs


def test_safety_and_reward_pull_apart():
    reckless, reckless_cost = outcome(RADIUS)
    safe, safe_cost = outcome(0.93 * CORRIDOR)
    assert safe_cost.max() == 0
    assert reckless_cost.min() >= 60
    assert reckless.mean() > 1.25 * safe.mean()
    assert safe.min() > 60  # standing still earns 0
    assert outcome(0.93 * CORRIDOR, speed=0.6)[0].max() < 0.5 * safe.mean()  # circling slowly is easy, fast is not


def test_data_has_dsrls_layout(data):
    rows = 450 * 200
    widths = {"observations": (8,), "actions": (2,), "next_observations": (8,)}
    assert set(data) == {*widths, "rewards", "costs", "terminals", "timeouts"}
    for name, column in data.items():
        assert column.shape == (rows, *widths.get(name, ()))
        assert column.dtype == (bool if name in ("terminals", "timeouts") else np.float32)
        assert np.isfinite(column).all()
    assert np.abs(data["actions"]).max() <= 1
    assert set(np.unique(data["costs"])) == {0, 1}
    assert not data["terminals"].any()
    np.testing.assert_array_equal(np.flatnonzero(data["timeouts"]), np.arange(199, rows, 200))
    inside = ~data["timeouts"][:-1]
    np.testing.assert_array_equal(data["next_observations"][:-1][inside], data["observations"][1:][inside])


def test_data_is_what_the_environment_does(data):
    """Episode by episode: the recorded actions, replayed, give the recorded transitions."""
    rng = np.random.default_rng(0)
    for episode in rng.integers(450, size=3):
        simulator, part = PointCircleSimulator(), slice(episode * 200, episode * 200 + 200)
        simulator.reset([0])
        first = data["observations"][part][0].astype(np.float64)
        simulator._positions, simulator._velocities = first[None, :2], first[None, 2:4]
        for index, action in enumerate(data["actions"][part][:50]):
            observations, rewards, costs, _ = simulator.step(action[None])
            np.testing.assert_allclose(observations[0], data["next_observations"][part][index], atol=1e-4)
            assert rewards[0] == pytest.approx(data["rewards"][part][index], abs=1e-4)
            assert costs[0] == data["costs"][part][index] or abs(observations[0, 7]) < 1e-4


def test_data_invites_unsafe_cloning_and_allows_safe_learning(data):
    returns, costs = (data[name].astype(np.float64).reshape(-1, 200).sum(axis=1) for name in ("rewards", "costs"))
    safe = costs <= 10
    assert costs.min() == 0
    assert costs.max() > 100
    assert 40 <= costs.mean() <= 70
    assert 0.2 <= safe.mean() <= 0.5
    assert returns[safe].max() <= 0.8 * returns.max()
    assert (returns[safe] > 0.8 * returns[safe].max()).sum() >= 20  # competent and safe
    task = get_task("PointCircle")
    extremes = (task.return_min, task.return_max, task.cost_min, task.cost_max)
    np.testing.assert_allclose(extremes, (returns.min(), returns.max(), costs.min(), costs.max()), atol=1e-4)


def test_data_follow_the_seed(data):
    again, other = generate_dataset(0), generate_dataset(1)
    for name, column in data.items():
        np.testing.assert_array_equal(column, again[name])
    assert not np.array_equal(data["actions"], other["actions"])
    assert len(generate_dataset(3, episodes=5)["rewards"]) == 1000
