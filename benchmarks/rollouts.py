"""Environment steps per second, policy included: per core, compared with a plain gymnasium loop, and with rollout actors.

    python benchmarks/rollouts.py [--full] [--json FILE] [TASK …]

Per core: `evaluate` and the plain loop take turns with the same policy, in one thread, measured in CPU time of this process.
Both must play the same episodes, which is checked. Rounds are short (without --full, episodes end after 100 steps) and repeat
until a time limit, so that a disturbance affects both or only few rounds.
With actors: pools of one and of two actors take turns, measured in wall time; other load on the machine disturbs it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from drcorl_ray.distributed.cluster import connect, prepare_environment
from drcorl_ray.distributed.rollout_pool import RayRolloutPool
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate_in
from drcorl_ray.policy.mlp import MLPPolicy
from drcorl_ray.tasks.envs import make_env, make_simulator
from drcorl_ray.tasks.registry import Task, get_task
from drcorl_ray.tasks.scores import EpisodeStats

TARGETS = {"velocity": 1.3}
OTHER_TARGET = 0.8
SCALING_TARGET = 0.85
TASKS = [
    *("PointCircle", "HalfCheetahVelocity", "HopperVelocity", "Walker2dVelocity", "SwimmerVelocity", "AntVelocity"),
    *("AntCircle", "AntRun", "BallCircle", "BallRun", "CarCircle", "CarRun", "DroneCircle", "DroneRun"),
]
SCALING_EPISODES = {"HalfCheetahVelocity": 192, "AntVelocity": 32, "DroneRun": 48}


def random_policy(observations: int, actions: int, hidden: int = 256) -> MLPPolicy:
    rng = np.random.default_rng(0)
    sizes = [(observations, hidden), (hidden, hidden), (hidden, actions)]
    weights = tuple((rng.standard_normal((1, *size)) / np.sqrt(size[0])).astype(np.float32) for size in sizes)
    biases = tuple(np.zeros((1, size[1]), np.float32) for size in sizes)
    return MLPPolicy(np.zeros(observations, np.float32), np.ones(observations, np.float32), weights, biases)


def bare_loop(policy: MLPPolicy, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> EpisodeStats:
    """Run the usual loop: one environment, and one state at a time through the same network."""
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


def per_core(task: Task, episodes: int, length: int, seconds: float) -> dict[str, float]:
    """Return the medians of steps/s and of their ratio over rounds of `episodes` episodes, repeated for `seconds` seconds.

    length: limit of an episode's steps.
    """
    task = replace(task, episode_length=min(task.episode_length, length))
    simulator = make_simulator(task)
    policy = random_policy(simulator.observation_size, simulator.action_size)
    simulator.reset([0] * episodes)  # makes the environments, which is not measured
    rates, spent = [], 0.0
    while spent < seconds:
        env = make_env(task)  # a new one switches MuJoCo's timers on, which the simulator switches off
        seeds = range(len(rates) * episodes, (len(rates) + 1) * episodes)
        own_stats, own_rate = timed(lambda seeds=seeds: evaluate_in(simulator, policy, task, seeds))
        loop_stats, loop_rate = timed(lambda seeds=seeds, env=env: bare_loop(policy, env, seeds))
        env.close()
        assert np.array_equal(own_stats.lengths, loop_stats.lengths)
        np.testing.assert_allclose(own_stats.returns, loop_stats.returns, rtol=1e-6)
        rates.append((own_rate, loop_rate, own_rate / loop_rate))
        spent += int(own_stats.lengths.sum()) * (1 / own_rate + 1 / loop_rate)
    simulator.close()
    evaluate, loop, ratio = np.median(rates, axis=0)
    return {"evaluate": float(evaluate), "bare_loop": float(loop), "ratio": float(ratio)}


def over_actors(task: Task, episodes: int, rounds: int) -> dict[str, float]:
    """Return the medians of steps/s with one and with two actors; efficiency is rate₂ / (2 · rate₁)."""
    simulator = make_simulator(task)
    policy = random_policy(simulator.observation_size, simulator.action_size)
    simulator.close()
    rates: list[list[float]] = [[], []]
    with RayRolloutPool(1) as one, RayRolloutPool(2) as two:
        for _ in range(1 + rounds):  # the first round starts the actors and makes the environments
            for pool, pool_rates in zip((one, two), rates, strict=True):
                start = time.perf_counter()
                steps = int(pool.evaluate(policy, task, range(episodes)).lengths.sum())
                pool_rates.append(steps / (time.perf_counter() - start))
    first, second = (float(np.median(pool_rates[1:])) for pool_rates in rates)
    return {"one_actor": first, "two_actors": second, "efficiency": second / (2 * first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--full", action="store_true", help="more episodes and rounds (15 minutes)")
    parser.add_argument("--quick", action="store_true", help="the default (less than 3 minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    options = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "load_average": os.getloadavg()}
    report: dict[str, Any] = {"machine": machine, "per_core": {}, "over_actors": {}}
    shared = ", ".join(f"{load:.2f}" for load in machine["load_average"])
    print(f"{machine['cpus']} CPUs; load average at the start (1, 5, 15 min): {shared}\n")

    print(f"{'task':<22}{'evaluate, steps/s':>18}{'bare loop, steps/s':>20}{'ratio':>8}{'target':>8}")
    for task in map(get_task, options.tasks):
        try:
            row = per_core(task, *((32, 1000, 30.0) if options.full else (12, 100, 3.0)))
        except UserError as error:
            print(f"{task.name:<22}not run: {error}")
            continue
        report["per_core"][task.name] = row | {"target": TARGETS.get(task.suite, OTHER_TARGET)}
        print(
            "{:<22}{:>18,.0f}{:>20,.0f}{:>8.2f}{:>8.2f}".format(task.name, *report["per_core"][task.name].values()), flush=True
        )

    scaled = [name for name in SCALING_EPISODES if name in report["per_core"]]
    if scaled:
        prepare_environment()
        connect()
        print(f"\n{'task':<22}{'1 actor, steps/s':>18}{'2 actors, steps/s':>20}{'scaling':>8}{'target':>8}")
    for name in scaled:
        row = over_actors(get_task(name), SCALING_EPISODES[name], 7 if options.full else 2)
        report["over_actors"][name] = row | {"target": SCALING_TARGET}
        print("{:<22}{:>18,.0f}{:>20,.0f}{:>8.2f}{:>8.2f}".format(name, *report["over_actors"][name].values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
