"""Environment steps per second per core, policy included: `evaluate` beside a bare gymnasium loop with the same policy.

    python benchmarks/rollouts.py [--full] [TASK …]

One thread, CPU time of this process, the two measured in turns; episodes and numbers of both are the same, which is checked.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.envs import make_env, make_simulator
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import EpisodeStats
from drcorl_ray.policy import PopulationPolicy
from drcorl_ray.rollout import evaluate_in
from drcorl_ray.tasks import Task, get_task

TARGETS = {"velocity": 1.3, "bullet": 0.8, "builtin": 0.8}
TASKS = [
    *("PointCircle", "HalfCheetahVelocity", "HopperVelocity", "Walker2dVelocity", "SwimmerVelocity", "AntVelocity"),
    *("AntCircle", "AntRun", "BallCircle", "BallRun", "CarCircle", "CarRun", "DroneCircle", "DroneRun"),
]


def random_policy(observations: int, actions: int, hidden: int = 256) -> PopulationPolicy:
    rng = np.random.default_rng(0)
    sizes = [(observations, hidden), (hidden, hidden), (hidden, actions)]
    weights = tuple((rng.standard_normal((1, *size)) / np.sqrt(size[0])).astype(np.float32) for size in sizes)
    biases = tuple(np.zeros((1, size[1]), np.float32) for size in sizes)
    return PopulationPolicy(np.zeros(observations, np.float32), np.ones(observations, np.float32), weights, biases)


def bare_loop(policy: PopulationPolicy, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> EpisodeStats:
    """What everybody writes: one environment, one state at a time through the same network."""
    layers = [(weight[0], bias[0]) for weight, bias in zip(policy.weights, policy.biases, strict=True)]
    rows = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, cost, length, done = 0.0, 0.0, 0, False
        while not done:
            hidden = (np.asarray(observation, np.float32) - policy.observation_mean) / policy.observation_std
            for weight, bias in layers[:-1]:
                hidden = np.maximum(hidden @ weight + bias, 0.0)
            observation, reward, terminated, truncated, info = env.step(np.tanh(hidden @ layers[-1][0] + layers[-1][1]))
            total, cost, length, done = total + float(reward), cost + info["cost"], length + 1, terminated or truncated
        rows.append((total, cost, length))
    returns, costs, lengths = (np.array([column]) for column in zip(*rows, strict=True))
    return EpisodeStats(returns, costs, lengths, np.array(seeds))


def timed(function: Callable[[], EpisodeStats]) -> tuple[EpisodeStats, float]:
    start = time.process_time()
    stats = function()
    return stats, int(stats.lengths.sum()) / (time.process_time() - start)


def measure(task: Task, episodes: int, rounds: int) -> tuple[float, float]:
    """Medians of steps/s: (evaluate, bare loop)."""
    simulator, env = make_simulator(task), make_env(task)
    policy = random_policy(simulator.observation_size, simulator.action_size)
    simulator.reset([0] * episodes)  # building environments is not stepping them
    ours, bare = [], []
    for number in range(rounds):
        seeds = [number * episodes + index for index in range(episodes)]
        mine, ours_rate = timed(lambda seeds=seeds: evaluate_in(simulator, policy, task, seeds))
        theirs, bare_rate = timed(lambda seeds=seeds: bare_loop(policy, env, seeds))
        assert np.array_equal(mine.lengths, theirs.lengths)
        np.testing.assert_allclose(mine.returns, theirs.returns, rtol=1e-6)
        ours.append(ours_rate)
        bare.append(bare_rate)
    simulator.close()
    env.close()
    return float(np.median(ours)), float(np.median(bare))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--full", action="store_true", help="more episodes and rounds (minutes)")
    parser.add_argument("--quick", action="store_true", help="the default, below a minute")
    options = parser.parse_args()
    episodes, rounds = (32, 5) if options.full else (12, 1)
    print(f"{'task':<22}{'evaluate, steps/s':>18}{'bare loop, steps/s':>20}{'ratio':>8}{'target':>8}")
    for task in map(get_task, options.tasks):
        try:
            ours, bare = measure(task, episodes, rounds)
        except UserError as error:
            print(f"{task.name:<22}not run: {error}")
            continue
        print(
            f"{task.name:<22}{ours:>18,.0f}{bare:>20,.0f}{ours / bare:>8.2f}{TARGETS.get(task.suite, 0.8):>8.2f}", flush=True
        )


if __name__ == "__main__":
    main()
