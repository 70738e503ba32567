"""Evaluation of policies in a task's simulator: a plain function, and the same function spread over Ray actors.

An episode is fixed by (task, policy, seed), to the last bit: neither how episodes are grouped nor who runs them matters.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drcorl_ray.envs import Simulator, make_simulator
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import EpisodeStats
from drcorl_ray.policy import PopulationPolicy
from drcorl_ray.tasks import Task, get_task

MAX_ENVIRONMENTS = 64  # episodes simulated at once in one process: bounds memory and pybullet's clients
_POLL_S = 1.0


def evaluate(policies: PopulationPolicy, task: Task | str, seeds: Sequence[int]) -> EpisodeStats:
    """One episode per member and seed, in this process; every member gets the same seeds.

    UserError where the simulator cannot run or the policies are for other spaces; ValueError for weights that are not
    finite, or no seeds.
    """
    task = get_task(task) if isinstance(task, str) else task
    simulator = make_simulator(task)
    try:
        return evaluate_in(simulator, policies, task, seeds)
    finally:
        simulator.close()


def evaluate_in(simulator: Simulator, policies: PopulationPolicy, task: Task, seeds: Sequence[int]) -> EpisodeStats:
    """`evaluate` in a simulator of that task, which stays open."""
    _check(policies, seeds)
    wanted = (simulator.observation_size, simulator.action_size)
    given = (policies.weights[0].shape[1], policies.weights[-1].shape[2])
    if given != wanted:
        raise UserError(
            f"{task.name} has {wanted[0]} observations and {wanted[1]} actions, the policy {given[0]} and {given[1]}; "
            "evaluate it on the task it was trained for"
        )
    stats = _empty_stats(policies.members, seeds)
    at_once = min(MAX_ENVIRONMENTS, task.environments_per_process or MAX_ENVIRONMENTS)
    for members, episodes in _blocks(policies.members, len(seeds), at_once):
        chosen = policies.select(range(policies.members)[members])
        _store(stats, members, episodes, _run_block(simulator, chosen, task, seeds[episodes]))
    return stats


def _run_block(simulator: Simulator, policies: PopulationPolicy, task: Task, seeds: Sequence[int]) -> EpisodeStats:
    """Members × seeds episodes in lockstep; policies and environments work for unfinished episodes only."""
    stats = _empty_stats(policies.members, seeds)
    shape = stats.returns.shape
    observations = simulator.reset([*seeds] * policies.members).reshape(*shape, -1)
    actions = np.zeros((*shape, simulator.action_size), np.float32)
    active = np.ones(shape, bool)
    members, population = np.arange(policies.members), policies
    for _ in range(task.episode_length):
        acting = np.ix_(members, np.flatnonzero(active.any(axis=0)))
        actions[acting] = population.act(observations[acting])
        flat, *outcome = simulator.step(actions.reshape(-1, simulator.action_size), active.ravel())
        observations = flat.reshape(observations.shape)
        rewards, costs, ended = (values.reshape(shape) for values in outcome)
        np.add(stats.returns, rewards, out=stats.returns, where=active)
        np.add(stats.costs, costs, out=stats.costs, where=active)
        np.add(stats.lengths, 1, out=stats.lengths, where=active)
        active &= ~ended
        unfinished = np.flatnonzero(active.any(axis=1))
        if len(unfinished) == 0:
            break
        if len(unfinished) < len(members):
            members, population = unfinished, policies.select(unfinished.tolist())
    return stats


def _check(policies: PopulationPolicy, seeds: Sequence[int]) -> None:
    if len(seeds) == 0:
        raise ValueError("at least one episode seed is needed")
    finite = policies.finite()
    if not finite.all():
        raise ValueError(f"the weights of members {np.flatnonzero(~finite).tolist()} are not finite")


def _empty_stats(members: int, seeds: Sequence[int]) -> EpisodeStats:
    shape = (members, len(seeds))
    return EpisodeStats(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64), np.asarray(seeds, np.int64))


def _store(stats: EpisodeStats, members: slice, episodes: slice, part: EpisodeStats) -> None:
    for name in ("returns", "costs", "lengths"):
        getattr(stats, name)[members, episodes] = getattr(part, name)


def _blocks(members: int, episodes: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of members × episodes that hold at most `size` episodes each: whole rows where a row fits."""
    wide = min(episodes, size)
    tall = max(1, size // wide)
    for member in range(0, members, tall):
        for episode in range(0, episodes, wide):
            yield slice(member, min(member + tall, members)), slice(episode, min(episode + wide, episodes))


class RolloutActor:
    """What a rollout process does. It keeps the last task's simulator, and nothing that could change a result."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._simulator: Simulator | None = None

    def ready(self) -> None:
        """Answers once the process is up."""

    def run(self, policies: PopulationPolicy, members: slice, task: Task, seeds: Sequence[int]) -> EpisodeStats:
        if self._simulator is None or task != self._task:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator, self._task = None, task
            self._simulator = make_simulator(task)
        return evaluate_in(self._simulator, policies.select(range(policies.members)[members]), task, seeds)


@dataclass
class _Job:
    members: slice
    episodes: slice
    failures: int = 0


@dataclass(frozen=True)
class _Call:
    """One call under way: a job on an actor or, where the job is None, a sign of life asked of it."""

    actor: Any
    job: _Job | None
    deadline: float


class RolloutPool:
    """`evaluate` over Ray actors; the same episodes as the plain function, whoever runs them and whoever dies on the way.

    A job whose actor dies, raises, or takes longer than `job_timeout_s` is run again by another actor, at most `retries`
    times. An actor that waits for a CPU holds up nothing while others work. Ray is started if it is not running.

    Ray 2.60: actors beyond the cluster's CPUs stay pending without a word, hence `cpus_per_actor` 0 by default; on a
    cluster that grows by demand (`ray up`) give a real number, and `start_timeout_s` the time a new node needs.
    """

    def __init__(
        self,
        actors: int,
        *,
        cpus_per_actor: float = 0.0,
        job_timeout_s: float = 900.0,
        start_timeout_s: float = 300.0,
        retries: int = 3,
    ) -> None:
        if actors < 1:
            raise UserError(f"evaluation.actors is {actors}; a rollout pool needs at least 1")
        import ray

        self._ray: Any = ray
        self._size, self._retries = actors, retries
        self._job_timeout_s, self._start_timeout_s = job_timeout_s, start_timeout_s
        self._new_actor: Any = ray.remote(RolloutActor).options(
            num_cpus=cpus_per_actor, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all actors; another `evaluate` would start new ones."""
        for actor in [*self._idle, *(call.actor for call in self._calls.values())]:
            self._ray.kill(actor)
        self._idle.clear()
        self._calls.clear()

    def evaluate(self, policies: PopulationPolicy, task: Task | str, seeds: Sequence[int]) -> EpisodeStats:
        """As the plain `evaluate`, with its errors; RuntimeError once a job has failed more than `retries` times."""
        task = get_task(task) if isinstance(task, str) else task
        _check(policies, seeds)
        try:
            return self._evaluate(policies, task, [int(seed) for seed in seeds])
        except BaseException:
            self.close()
            raise

    def _evaluate(self, policies: PopulationPolicy, task: Task, seeds: list[int]) -> EpisodeStats:
        stats = _empty_stats(policies.members, seeds)
        share = math.ceil(stats.returns.size / (4 * self._size))  # four rounds, so that a slow job delays little
        jobs = deque(_Job(*block) for block in _blocks(policies.members, len(seeds), min(share, MAX_ENVIRONMENTS)))
        shipped = self._ray.put(policies)
        missing, lost_actors = len(jobs), 0
        while self._idle:
            self._greet(self._idle.pop())
        while missing:
            while len(self._idle) + len(self._calls) < self._size:
                self._greet(self._new_actor.remote())
            while jobs and self._idle:
                job, actor = jobs.popleft(), self._idle.pop()
                call = actor.run.remote(shipped, job.members, task, seeds[job.episodes])
                self._calls[call] = _Call(actor, job, time.monotonic() + self._job_timeout_s)
            for job, outcome in self._ended():
                if isinstance(outcome, UserError):
                    raise UserError(str(getattr(outcome, "cause", outcome)))
                if isinstance(outcome, Exception):
                    lost_actors += job is None
                    failures = lost_actors - self._size if job is None else job.failures + 1
                    if failures > self._retries:
                        raise RuntimeError(
                            f"{task.name}: rollouts failed {failures} times; the last time: {outcome}"
                        ) from outcome
                    if job is not None:
                        jobs.append(_Job(job.members, job.episodes, failures))
                elif job is not None:
                    _store(stats, job.members, job.episodes, outcome)
                    missing -= 1
        return stats

    def _greet(self, actor: Any) -> None:
        self._calls[actor.ready.remote()] = _Call(actor, None, time.monotonic() + self._start_timeout_s)

    def _ended(self) -> Iterator[tuple[_Job | None, Any]]:
        """Jobs (None for a sign of life) whose call ended or is overdue, with the result or the exception.

        Afterwards the call's actor is idle or, after an exception, killed. An actor may be late to start as long as
        another one works; UserError where none does.
        """
        done, waiting = self._ray.wait(list(self._calls), timeout=_POLL_S)
        now = time.monotonic()
        overdue = [reference for reference in waiting if now > self._calls[reference].deadline]
        late_starts = [reference for reference in overdue if self._calls[reference].job is None]
        if late_starts and len(late_starts) == len(self._calls):
            raise UserError(f"no rollout actor started within {self._start_timeout_s:.0f} s; free some CPUs of the cluster")
        for reference in [*done, *(reference for reference in overdue if reference not in late_starts)]:
            call = self._calls.pop(reference)
            try:
                outcome = self._ray.get(reference, timeout=0)
                self._idle.append(call.actor)
            except self._ray.exceptions.RayError as error:
                outcome = error
                self._ray.kill(call.actor)
            yield call.job, outcome
