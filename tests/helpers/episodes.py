"""Episodes with actions drawn from their seed, for comparisons bit by bit."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from drcorl_ray.tasks.envs import make_env


def episode(env, seed: int, count: int = 60, low=-1.0, high=1.0) -> Iterator[np.ndarray]:
    """Yield the first observation, then rows (observation, reward, cost, terminated); a generator, so episodes interleave.

    Each of the `count` actions is uniform between `low` and `high`: one number each, or one per component.
    """
    yield env.reset(seed=seed)[0]
    for action in np.random.default_rng(seed).uniform(low, high, (count, *env.action_space.shape)).astype(np.float32):
        observation, reward, terminated, _, info = env.step(action)
        yield np.append(observation, (reward, info["cost"], terminated)).astype(np.float64)
        if terminated:
            return


def rows(name: str, seed: int, count: int = 60, low=-1.0, high=1.0) -> list[np.ndarray]:
    """Return a whole episode from a new environment."""
    env = make_env(name)
    try:
        return list(episode(env, seed, count, low, high))
    finally:
        env.close()


def assert_same_rows(one, other) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@contextmanager
def numpys_global_state_left_alone() -> Iterator[None]:
    """Fail if numpy's global random state has changed when the context ends."""
    np.random.seed(123)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    yield
    after = np.random.get_state()  # noqa: NPY002
    assert before[2] == after[2]
    np.testing.assert_array_equal(before[1], after[1])


def digest(rows) -> str:
    return hashlib.sha256(np.concatenate(rows).astype(np.float64).tobytes()).hexdigest()


def digest_in_another_process(name: str, seed: int, count: int, low=-1.0, high=1.0) -> str:
    """Return the episode's digest from a new interpreter, which must exit cleanly although the environment stays open."""
    code = (
        "from drcorl_ray.tasks.envs import make_env; from tests.helpers.episodes import *; "
        f"print(digest(list(episode(make_env({name!r}), {seed}, {count}, {low}, {high}))))"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
