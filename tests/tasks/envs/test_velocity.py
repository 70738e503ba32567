import dataclasses

import gymnasium
import mujoco
import numpy as np
import pytest

from drcorl_ray.tasks.envs import make_env, make_simulator, velocity
from drcorl_ray.tasks.registry import get_task

LIMITS = {"Ant": 2.6222, "HalfCheetah": 3.2096, "Hopper": 0.7402, "Swimmer": 0.2282, "Walker2d": 2.3415}
FRAME_SKIP = {"Ant": 5, "HalfCheetah": 5, "Hopper": 4, "Swimmer": 4, "Walker2d": 4}
ROBOTS = list(LIMITS)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def gymnasium_env(robot):
    return gymnasium.make(f"{robot}-v4", disable_env_checker=True)


def actions_of(robot, seed, count=1000):
    """Actions that swing the limbs, so that the robot sometimes exceeds the speed limit and sometimes falls."""
    rng = np.random.default_rng(seed)
    size = gymnasium_env(robot).action_space.shape[0]
    time, phases = np.arange(count)[:, None], rng.uniform(0, 6, size)
    return np.clip(np.sin(0.4 * time + phases) + 0.5 * rng.standard_normal((count, size)), -1, 1).astype(np.float32)


@pytest.mark.parametrize("robot", ROBOTS)
def test_an_episode_equals_gymnasiums_and_its_cost_a_second_computation(robot, monkeypatch):
    """Against gymnasium's own v4 and speeds from MuJoCo's positions, to the last bit, ≥ 3000 steps over several episodes.

    The limit is lowered so that clumsy moves cross it often. Planted faults that this catches: |x_velocity|, x alone for
    Ant, positions from the joints for Ant, a missing healthy reward, an unclipped velocity.
    """
    name, limit = f"{robot}Velocity", 0.5 if robot in ("Ant", "HalfCheetah", "Walker2d") else LIMITS[robot]
    monkeypatch.setitem(velocity.ROBOTS, name, dataclasses.replace(velocity.ROBOTS[name], speed_limit=limit))
    simulator, reference = make_simulator(name), gymnasium_env(robot).unwrapped
    torso = mujoco.mj_name2id(reference.model, mujoco.mjtObj.mjOBJ_BODY, "torso")
    step_s = reference.model.opt.timestep * FRAME_SKIP[robot]
    steps, paid, ends, seed = 0, 0, 0, 0
    while steps < 3000:
        seed += 1
        ours, (theirs, _) = simulator.reset([seed])[0], reference.reset(seed=seed)
        if robot == "Ant":
            np.testing.assert_allclose(ours[1:5], theirs[1:5] / np.sqrt((theirs[1:5] ** 2).sum()), rtol=1e-15)
            theirs[1:5] = ours[1:5]
        np.testing.assert_array_equal(ours, theirs)
        for velocities in (simulator._slots[0].data.qvel, reference.data.qvel) if seed == 2 else ():
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
def test_any_grouping_equals_gymnasiums(robot):
    """Observations, rewards and ends to the last bit in groups of 1, 9 and 4, each step taken by some of them only.

    An episode ends where its robot falls; the next group uses the same slots. Planted faults that this catches: a solver
    that starts from zero instead of its last acceleration, a slot that is not reset, an episode stepped though not active.
    """
    simulator, rng, steps, ends = make_simulator(f"{robot}Velocity"), np.random.default_rng(0), 0, 0
    references = [gymnasium_env(robot).unwrapped for _ in range(9)]
    while steps < 3000:
        for count in (1, 9, 4):
            seeds = rng.integers(2**31, size=count).tolist()
            simulator.reset(seeds)
            for reference, seed in zip(references, seeds, strict=False):
                reference.reset(seed=seed)
            unfinished = np.ones(count, bool)
            moves = np.stack([actions_of(robot, seed, 120) for seed in seeds], axis=1)
            for actions in moves:
                active = unfinished & (rng.random(count) < 0.7)
                observations, rewards, _, ended = simulator.step(actions, active)
                for row in np.flatnonzero(active):
                    observation, reward, terminated, _, _ = references[row].step(actions[row])
                    np.testing.assert_array_equal(observations[row], observation)
                    assert (rewards[row], ended[row]) == (reward, terminated)
                unfinished &= ~(active & ended)
                steps, ends = steps + active.sum(), ends + (active & ended).sum()
    assert (ends > 0) == (robot in ("Ant", "Hopper", "Walker2d"))


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_robot_thrown_at_the_floor_moves_as_gymnasiums(robot):
    """From any pose, with limbs beyond their limits and in the floor, several at once: all of the state, to the last bit.

    The simulator's model lists the colliding pairs itself. Planted faults that this catches: the smaller friction, no margin,
    MuJoCo's default impedance, a limb left out, Hopper's limbs passing through each other.
    """
    simulator, reference = make_simulator(f"{robot}Velocity"), gymnasium_env(robot).unwrapped
    simulator.reset([0])
    reference.reset(seed=0)
    ours, theirs, rng = simulator._slots[0].data, reference.data, np.random.default_rng(0)
    size, touching, most = reference.model.nu, set(), 0
    height = 2 if robot in ("Ant", "Swimmer") else 1
    for _ in range(150):
        positions, velocities = rng.normal(0, 1, reference.model.nq), rng.normal(0, 2, reference.model.nv)
        positions[height] = rng.uniform(0.0, 1.2) - (0.7 if robot == "HalfCheetah" else 0.0)
        for model, data in ((simulator._model, ours), (reference.model, theirs)):
            data.qpos[:], data.qvel[:] = positions, velocities
            mujoco.mj_forward(model, data)
        touching |= set(theirs.contact.geom.ravel().tolist())
        most = max(most, theirs.ncon)
        for action in rng.uniform(-1, 1, (20, size)).astype(np.float32):
            simulator.step(action[None])
            reference.step(action)
            for name in ("qpos", "qvel", "qacc_warmstart", "xpos"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    if robot != "Swimmer":
        assert touching == set(range(reference.model.ngeom))
        assert most >= 4


def test_environments_made_after_a_step_have_mujocos_timers():
    """benchmarks/rollouts.py relies on it: the bare loop must not gain from the timers that the simulator switches off."""
    simulator = make_simulator("HopperVelocity")
    simulator.reset([0])
    simulator.step(np.zeros((1, 3), np.float32))
    assert simulator._slots[0].data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration == 0
    env = make_env("HopperVelocity")
    env.reset(seed=0)
    env.step(np.zeros(3, np.float32))
    assert env.unwrapped.data.timer[mujoco.mjtTimer.mjTIMER_STEP].duration > 0


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_limit_itself(robot):
    """A step costs 1 above the limit; only forward speed counts, except for Ant."""
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
