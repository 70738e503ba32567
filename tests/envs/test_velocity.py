import dataclasses

import gymnasium
import mujoco
import numpy as np
import pytest

from drcorl_ray.envs import make_env, make_simulator, velocity
from drcorl_ray.tasks import get_task

LIMITS = {"Ant": 2.6222, "HalfCheetah": 3.2096, "Hopper": 0.7402, "Swimmer": 0.2282, "Walker2d": 2.3415}
FRAME_SKIP = {"Ant": 5, "HalfCheetah": 5, "Hopper": 4, "Swimmer": 4, "Walker2d": 4}
ROBOTS = list(LIMITS)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def gymnasium_env(robot):
    return gymnasium.make(f"{robot}-v4", disable_env_checker=True)


def actions_of(robot, seed, count=1000):
    """Swinging limbs: fast enough to cost something now and then, and to fall."""
    rng = np.random.default_rng(seed)
    size = gymnasium_env(robot).action_space.shape[0]
    time, phases = np.arange(count)[:, None], rng.uniform(0, 6, size)
    return np.clip(np.sin(0.4 * time + phases) + 0.5 * rng.standard_normal((count, size)), -1, 1).astype(np.float32)


@pytest.mark.parametrize("robot", ROBOTS)
def test_an_episode_equals_gymnasiums_and_its_cost_a_second_computation(robot, monkeypatch):
    """Against gymnasium's own v4 and speeds from MuJoCo's positions, to the last bit, ≥ 1000 steps over several episodes.

    The limit is lowered so that clumsy moves cross it often. Planted faults that this catches: |x_velocity|, x alone for
    Ant, positions from the joints for Ant, a missing healthy reward, an unclipped velocity.
    """
    name, limit = f"{robot}Velocity", 0.5 if robot in ("Ant", "HalfCheetah", "Walker2d") else LIMITS[robot]
    monkeypatch.setitem(velocity.ROBOTS, name, dataclasses.replace(velocity.ROBOTS[name], speed_limit=limit))
    simulator, reference = make_simulator(name), gymnasium_env(robot).unwrapped
    torso = mujoco.mj_name2id(reference.model, mujoco.mjtObj.mjOBJ_BODY, "torso")
    step_s = reference.model.opt.timestep * FRAME_SKIP[robot]
    steps, paid, ends, seed = 0, 0, 0, 0
    while steps < 1000:
        seed += 1
        ours, (theirs, _) = simulator.reset([seed])[0], reference.reset(seed=seed)
        if robot == "Ant":
            np.testing.assert_allclose(ours[1:5], theirs[1:5] / np.sqrt((theirs[1:5] ** 2).sum()), rtol=1e-15)
            theirs[1:5] = ours[1:5]
        np.testing.assert_array_equal(ours, theirs)
        for velocities in (simulator._slots[0].qvel, reference.data.qvel) if seed == 2 else ():
            velocities[-1] = 25.0  # a kick that Hopper's and Walker's observations clip
        for action in actions_of(robot, seed, 400):
            before = (reference.data.xpos[torso] if robot == "Ant" else reference.data.qpos).copy()
            theirs, their_reward, their_end, _, _ = reference.step(action)
            moved = (reference.data.xpos[torso] if robot == "Ant" else reference.data.qpos) - before
            speed = np.hypot(moved[0], moved[1]) / step_s if robot == "Ant" else moved[0] / step_s
            (observation,), (reward,), (cost,), (ended,) = simulator.step(action[None])
            np.testing.assert_array_equal(observation, theirs)
            assert (reward, cost, ended) == (their_reward, float(speed > limit), their_end)
            steps, paid, ends = steps + 1, paid + cost, ends + ended
            if ended:
                break
    assert 0 < paid < steps
    assert (ends > 0) == (robot in ("Ant", "Hopper", "Walker2d"))


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_limit_itself(robot):
    """Cost starts above the limit, for forward speed only except Ant's."""
    env = make_env(f"{robot}Velocity")
    env.reset(seed=0)
    costs = []
    for x, y in ((LIMITS[robot], 0.0), (np.nextafter(LIMITS[robot], 10), 0.0), (-9.0, 0.0), (0.0, 9.0)):
        env.unwrapped.step = lambda _, x=x, y=y: (np.zeros(1), 0.0, False, False, {"x_velocity": x, "y_velocity": y})
        costs.append(env.step(np.zeros(1))[4]["cost"])
    assert costs == ([0, 1, 1, 1] if robot == "Ant" else [0, 1, 0, 0])


@pytest.mark.parametrize("robot", ROBOTS)
def test_an_episode_ignores_neighbours_and_history(robot):
    task = get_task(f"{robot}Velocity")
    moves = np.stack([actions_of(robot, seed, 120) for seed in range(5)], axis=1)
    simulator, crowd = make_simulator(task), []
    for _ in range(2):  # the second time in used slots
        observations = [simulator.reset(range(5))]
        active, ends, rewards = np.ones(5, bool), np.full(5, 120), np.zeros(5)
        for step, actions in enumerate(moves):
            following, reward, _, ended = simulator.step(actions, active)
            observations.append(following)
            rewards += np.where(active, reward, 0)
            ends[active & ended] = step
            active &= ~ended
        crowd.append((np.stack(observations), rewards, ends))
    for first, again in zip(*crowd, strict=True):
        np.testing.assert_array_equal(first, again)

    alone, (states, rewards, ends) = make_env(task), crowd[0]
    for row in (0, 4):
        np.testing.assert_array_equal(alone.reset(seed=row)[0], states[0, row])
        total = 0.0
        for step in range(min(ends[row] + 1, 120)):
            observation, reward, terminated, _, _ = alone.step(moves[step, row])
            np.testing.assert_array_equal(observation, states[step + 1, row])
            total += reward
            assert terminated == (step == ends[row])
        assert total == rewards[row]


def test_episode_length_is_enforced():
    env = make_env("SwimmerVelocity")
    env.reset(seed=0)
    cuts = [env.step(np.zeros(2, np.float32))[3] for _ in range(1000)]
    assert cuts == [False] * 999 + [True]
