# ruff: noqa: NPY002  (numpy's global state is what is tested)

import importlib.util
import sys

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

needs_metadrive = pytest.mark.skipif(
    importlib.util.find_spec("metadrive") is None, reason="metadrive-simulator is not installed; uv sync --group metadrive"
)
LIDAR = slice(-240, None)
ALONG = ((-0.02, 0.3), (0.02, 1.0))  # actions that keep the car on the road for a while


@needs_metadrive
@pytest.mark.parametrize("name", ["easydense", "harddense"])
def test_an_episode_ignores_history(name):
    """Faults: an engine kept from the last episode; traffic seeded by the operating system."""
    fresh = rows(name, 3, 150, *ALONG)
    assert min(row[:259][LIDAR].min() for row in fresh) < 1  # the car meets traffic
    used = make_env(name)
    list(episode(used, 9, 40, *ALONG))
    np.random.random(3)  # the rest of the program draws too
    assert_same_rows(list(episode(used, 3, 150, *ALONG)), fresh)


@needs_metadrive
def test_the_seed_moves_the_traffic():
    """With equal actions the car starts at the same place of the same map, but the lidar sees other traffic."""
    env, starts, views = make_env("easydense"), [], set()
    for seed in range(5):
        starts.append(env.reset(seed=seed)[0][: LIDAR.start])
        views.add(tuple(np.concatenate([env.step(np.array([0.0, 0.8], np.float32))[0][LIDAR] for _ in range(40)])))
    assert len(views) >= 4
    assert len(np.unique(starts, axis=0)) == 1


@needs_metadrive
def test_an_episode_is_the_same_in_another_process():
    assert digest(rows("hardmean", 5, 100, *ALONG)) == digest_in_another_process("hardmean", 5, 100, *ALONG)


@needs_metadrive
def test_the_engine_belongs_to_the_last_reset():
    one, other = make_env("easysparse"), make_env("mediumsparse")
    first = list(episode(one, 1, 20))
    second = list(episode(other, 1, 20))
    with pytest.raises(RuntimeError, match="easysparse: reset first; another MetaDrive"):
        one.step(np.zeros(2, np.float32))
    one.close()  # must not close the other's engine
    other.step(np.zeros(2, np.float32))
    assert_same_rows(list(episode(one, 1, 20)), first)
    assert_same_rows(list(episode(other, 1, 20)), second)


@needs_metadrive
def test_numpy_is_left_alone():
    with numpys_global_state_left_alone():
        list(episode(make_env("easymean"), 5, count=5))
    assert not hasattr(np, "float")


@needs_metadrive
def test_costs_by_hand():
    """A crash, leaving the road, 0.01 per km/h above 10, 0.01 (0.1 − nearest lidar hit)²: from MetaDrive's own car."""
    env, kinds = make_env("easydense"), set()
    for seed, steering in ((0, 0.3), (1, 0.0), (2, 0.0), (3, 0.0)):
        env.reset(seed=seed)
        ended = False
        while not ended:
            observation, _, ended, cut, info = env.step(np.array([steering, 1.0], np.float32))
            car = env.unwrapped._env.vehicle
            accident = float(car.crash_vehicle or car.crash_object or info["out_of_road"])
            speeding, nearest = 0.01 * max(0.0, car.speed - 10), observation[LIDAR].min()
            assert info["cost"] == pytest.approx(accident + speeding + 0.01 * max(0.0, 0.1 - nearest) ** 2, abs=1e-6)
            assert ended == bool(accident or info["arrive_dest"])
            kinds |= {("accident", accident > 0), ("speeding", speeding > 0), ("near", nearest < 0.1)}
            assert not cut
    assert kinds == {(kind, seen) for kind in ("accident", "speeding", "near") for seen in (False, True)}


@needs_metadrive
def test_evaluation_is_the_bare_loop():
    """Two members × two seeds, one after another: a process has one engine."""
    policies, seeds = random_policy(259, 2, members=2, seed=1), [5, 6]
    policies.biases[-1][..., 1] += 2.0  # drive off, and soon into something
    stats = evaluate(policies, "easydense", seeds)
    env = make_env("easydense")
    for member, column in np.ndindex(stats.returns.shape):
        observation, total, cost, done, steps = env.reset(seed=seeds[column])[0], 0.0, 0.0, False, 0
        while not done:
            action = policies.select([member]).act(observation[None, None])[0, 0]
            observation, reward, terminated, truncated, info = env.step(action)
            total, cost, done, steps = total + reward, cost + info["cost"], terminated or truncated, steps + 1
        assert (stats.returns[member, column], stats.costs[member, column]) == (total, cost)
        assert stats.lengths[member, column] == steps


@needs_metadrive
def test_a_parked_car_is_cut_at_the_time_limit():
    env = make_env("easysparse")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(1000)]
    assert ends == [(False, False)] * 999 + [(False, True)]


def test_a_missing_package_is_named(monkeypatch):
    for name in ("panda3d.core", "metadrive.envs.safe_metadrive_env"):
        monkeypatch.setitem(sys.modules, name, None)
    for make in (make_env, make_simulator):
        with pytest.raises(UserError, match=r"easymean needs metadrive-simulator.*uv sync --group metadrive") as caught:
            make("easymean")
        assert "\n" not in str(caught.value)
