import numpy as np
import pytest

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation import rollout
from drcorl_ray.evaluation.rollout import evaluate, roll_out_in
from drcorl_ray.tasks.envs import make_env, make_simulator
from drcorl_ray.tasks.registry import Task, get_task
from tests.helpers.policies import random_policy

WALK = Task("Walk", "gymnasium", None, "tests.helpers.small_envs:Walk-v0", 7)
PICKY = Task("Picky", "gymnasium", None, "tests.helpers.small_envs:Picky-v0", 7)


def assert_same(one, other):
    for name in ("returns", "costs", "lengths", "seeds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def simple_loop(policies, member, task, seed):
    """Return (return, cost, length) of one episode, run with one environment, one state at a time."""
    env, policy = make_env(task), policies.select([member])
    observation, total, cost, length, done = env.reset(seed=seed)[0], 0.0, 0.0, 0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy.act(observation[None, None])[0, 0])
        total, cost, length = total + float(reward), cost + info["cost"], length + 1
        done = terminated or truncated
    return total, cost, length


@pytest.mark.parametrize(
    ("name", "sizes"), [("PointCircle", (8, 2)), ("HopperVelocity", (11, 3)), ("Walker2dVelocity", (17, 6))]
)
def test_evaluation_equals_a_simple_loop(name, sizes):
    """Members × seeds together have the results of each episode alone, although robots fall at different times."""
    policies, seeds = random_policy(*sizes, members=3), [11, 4, 7]
    stats = evaluate(policies, name, seeds)
    expected = np.array([[simple_loop(policies, member, name, seed) for seed in seeds] for member in range(3)])
    np.testing.assert_array_equal(np.stack([stats.returns, stats.costs, stats.lengths], axis=-1), expected)
    np.testing.assert_array_equal(stats.seeds, seeds)
    assert len(np.unique(stats.returns)) == 9


@pytest.mark.parametrize("limit", [1, 2, 5, 7])
def test_the_size_of_blocks_does_not_change_the_result(limit, monkeypatch):
    """One simulator runs block after block. Fault: a block index that is off by one, or stale state in the simulator."""
    policies, seeds = random_policy(11, 3, members=3), list(range(5))
    whole = evaluate(policies, "HopperVelocity", seeds)
    monkeypatch.setattr(rollout, "MAX_ENVIRONMENTS", limit)
    assert_same(evaluate(policies, "HopperVelocity", seeds), whole)


def test_blocks_cover_every_episode_once_and_are_not_too_large():
    for members, episodes, size in ((1, 1, 64), (3, 5, 7), (5, 3, 4), (2, 100, 64), (64, 10, 64)):
        covered = np.zeros((members, episodes), int)
        for block in rollout.blocks(members, episodes, size):
            assert 0 < covered[block].size <= size
            covered[block] += 1
        assert (covered == 1).all()


def test_finished_episodes_are_not_stepped():
    class Counting:
        observation_size = action_size = 1
        truncated = np.False_

        def reset(self, seeds):
            self.lengths = np.asarray(seeds)
            self.steps = np.zeros(len(seeds), int)
            return np.zeros((len(seeds), 1))

        def step(self, actions, active=None):
            self.steps += active
            return np.zeros((len(active), 1)), np.ones(len(active)), np.ones(len(active)), self.steps >= self.lengths

        def close(self): ...

    simulator = Counting()
    stats = rollout.evaluate_in(simulator, random_policy(1, 1, members=2), WALK, [1, 3, 20])
    np.testing.assert_array_equal(stats.lengths, [[1, 3, 7]] * 2)
    np.testing.assert_array_equal(stats.returns, stats.lengths)
    np.testing.assert_array_equal(simulator.steps, stats.lengths.ravel())


def test_wrong_spaces_no_seeds_and_non_finite_weights_are_errors():
    with pytest.raises(UserError, match="8 observations and 2 actions, the policy 11 and 3"):
        evaluate(random_policy(11, 3), "PointCircle", [0])
    with pytest.raises(ValueError, match="at least one episode seed"):
        evaluate(random_policy(8, 2), "PointCircle", [])
    good = random_policy(8, 2, members=3)
    good.weights[1][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"members \[2\] are not finite"):
        evaluate(good, "PointCircle", [0])


@pytest.mark.parametrize(("name", "sizes"), [("PointCircle", (8, 2)), ("HopperVelocity", (11, 3))])
def test_recorded_trajectories_equal_those_of_a_simple_loop(name, sizes, monkeypatch):
    """The first two episodes of every member are recorded; a fall is a terminal, a time limit is not."""
    monkeypatch.setattr(rollout, "MAX_ENVIRONMENTS", 4)
    policies, seeds, task = random_policy(*sizes, members=2), [5, 6, 7], get_task(name)
    recorded = roll_out_in(make_simulator(task), policies, task, seeds, record=2)
    assert sorted(recorded.trajectories) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert recorded.ran.all()
    for (member, episode), trajectory in recorded.trajectories.items():
        env, policy = make_env(task), policies.select([member])
        observation, done, rows = env.reset(seed=seeds[episode])[0], False, []
        while not done:
            action = policy.act(observation[None, None])[0, 0]
            after, reward, terminated, truncated, info = env.step(action)
            rows.append((observation.copy(), action, after.copy(), reward, info["cost"], terminated))
            observation, done = after, terminated or truncated
        names = ("observations", "actions", "next_observations", "rewards", "costs", "terminals")
        for column, values in zip(names, zip(*rows, strict=True), strict=True):
            np.testing.assert_array_equal(trajectory[column], np.array(values, np.float32), err_msg=column)


@pytest.mark.parametrize("length", [3, 7])
def test_an_episode_that_its_environment_truncates_has_no_terminal(length):
    """Truncation at the task's length and before it is no terminal. Fault: record the end of a time limit as a terminal."""
    task = Task("Cut", "gymnasium", None, f"tests.helpers.small_envs:Cut{length}-v0", 7)
    recorded = roll_out_in(make_simulator(task), random_policy(1, 1, members=1), task, [3], record=1)
    assert recorded.stats.lengths.tolist() == [[length]]
    assert recorded.trajectories[0, 0]["terminals"].tolist() == [0.0] * length
    fallen = Task("Fallen", "gymnasium", None, "tests.helpers.small_envs:Fall-v0", 7)
    recorded = roll_out_in(make_simulator(fallen), random_policy(1, 1, members=1), fallen, [3], record=1)
    assert recorded.trajectories[0, 0]["terminals"].tolist() == [0.0, 1.0]
