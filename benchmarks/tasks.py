"""Print docs/tasks.md, the table of tasks, as Markdown; tasks whose package is missing are marked "not installed".

    uv run --group metadrive python benchmarks/tasks.py > docs/tasks.md

CPU time of this process on one core, random actions, no policy. Steps/s exclude resets, which have their own column. `side by
side` is the total steps/s of 32 episodes in the task's batch simulator, if it has one. Each measurement takes 2 s, all 3 min.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import platform
import time
from pathlib import Path

import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.tasks.envs import make_env, make_simulator
from drcorl_ray.tasks.registry import Task, all_tasks

PACKAGES = {
    "builtin": "built in",
    "velocity": "gymnasium",
    "bullet": "bullet-safety-gym (`sims`, Python 3.11)",
    "safety_gymnasium": "safety-gymnasium (`sims`)",
    "metadrive": "metadrive-simulator (`metadrive`)",
}
COLUMNS = {
    "task": "task",
    "package": "package (group)",
    "length": "steps per episode",
    "sizes": "S, A",
    "steps": "steps/s",
    "batch": "side by side, steps/s",
    "reset": "reset, ms",
    "returns": "reference returns",
    "costs": "reference costs",
    "file": "dataset file",
}
BATCH = 32


def measure_env(task: Task, seconds: float) -> dict[str, str]:
    """Measure the task's environment: S, A, steps/s and ms per reset."""
    env = make_env(task)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (1000, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=0)  # imports and other first-time work are not measured
    stepping, resetting, steps, episodes, ended = 0.0, 0.0, 0, 0, True
    while stepping < seconds:
        if ended:
            start = time.process_time()
            env.reset(seed=episodes)
            resetting, episodes = resetting + time.process_time() - start, episodes + 1
        start = time.process_time()
        for action in actions[:50]:
            _, _, terminated, truncated, _ = env.step(action)
            steps, ended = steps + 1, terminated or truncated
            if ended:
                break
        stepping += time.process_time() - start
        actions = np.roll(actions, -50, axis=0)
    sizes = f"{env.observation_space.shape[0]}, {env.action_space.shape[0]}"
    env.close()
    return {"sizes": sizes, "steps": f"{rounded(steps / stepping):,}", "reset": f"{1e3 * resetting / episodes:.1f}"}


def measure_batch(task: Task, seconds: float) -> str:
    simulator = make_simulator(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, BATCH, simulator.action_size)).astype(np.float32)
    stepping, steps = 0.0, 0
    while stepping < seconds:
        simulator.reset(range(steps, steps + BATCH))
        start = time.process_time()
        for action in actions:
            simulator.step(action)
        stepping, steps = stepping + time.process_time() - start, steps + len(actions) * BATCH
    simulator.close()
    return f"{rounded(steps / stepping):,}"


def rounded(rate: float) -> int:
    """Two digits: more would be noise."""
    return int(float(f"{rate:.1e}"))


def row(task: Task, seconds: float) -> dict[str, str]:
    known = {
        "task": task.name,
        "package": PACKAGES[task.suite],
        "length": str(task.episode_length),
        "returns": f"{task.return_min:.2f} … {task.return_max:.2f}",
        "costs": f"{task.cost_min:.4g} … {task.cost_max:.4g}",
        "file": f"`{task.dataset_file}`" if task.dataset_file else "generated",
    }
    try:
        measured = measure_env(task, seconds)
    except UserError:
        return known | {"steps": "not installed"}
    if task.suite in ("builtin", "velocity"):
        measured["batch"] = measure_batch(task, seconds)
    return known | measured


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="stepping time of each measurement")
    options = parser.parse_args()
    print("# Tasks\n")
    print(f"`uv run --group metadrive python benchmarks/tasks.py > docs/tasks.md`, one core ({processor()}), ", end="")
    print(f"Python {platform.python_version()}, {datetime.datetime.now(datetime.UTC).date()}.")
    print("CPU time with random actions and no policy; steps/s exclude resets. `side by side`: total steps/s of the batch")
    print(f"simulator with {BATCH} episodes. References: DSRL's extreme episode returns and costs. S, A: sizes of the")
    print("observation and of the action.\n")
    print(f"| {' | '.join(COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}")
    for task in all_tasks():
        cells = row(task, options.seconds)
        print(f"| {' | '.join(cells.get(column, '') for column in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    main()
