"""Rollouts by Ray actors: the same episodes as in one process, whichever actor runs them and whichever dies."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import ray
import ray.exceptions

from drcorl_ray.config import ScalingConfig
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.pool import BlockRunner, Charge, RolloutPool, granted
from drcorl_ray.evaluation.rollout import MAX_ENVIRONMENTS, Block, Rollouts, blocks
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.registry import Task

_POLL_S = 1.0
_SIGN_OF_LIFE_S = 30.0  # to wait for an answer of an actor that has worked before
_SMALL_JOB = 8  # episodes; measured in docs/performance.md
_DEATHS = 20  # of the actors that ran one job; an exception in the job ends a rollout much earlier


class RolloutActor(BlockRunner):
    """A process that rolls out policies."""

    def ready(self) -> None:
        """Return as soon as the process has started."""


@dataclass(frozen=True)
class _Job:
    block: Block
    failures: int = 0
    deaths: int = 0


@dataclass(frozen=True)
class _Call:
    """A running call to an actor: a job, or a check that it is alive (job None). starting: the actor's first call."""

    actor: Any
    job: _Job | None
    deadline: float
    starting: bool = False


class RayRolloutPool(RolloutPool):
    """Rollouts by `actors` processes, which start when first needed.

    A job whose actor raises or takes longer than `job_timeout_s` is run again by another actor, at most `retries` times; a
    job whose actor dies, at most 20 times. An actor that waits for a CPU delays nothing while others work, and an actor that
    starts late, on a node that joined meanwhile, takes its share of the jobs. Ray is started if it is not running.

    Ray 2.60: actors beyond the cluster's CPUs stay pending without a message, hence the default `cpus_per_actor` of 0. On an
    autoscaling cluster (`ray up`) set a real number, and set `start_timeout_s` to the time that a new node needs.
    resources: the custom resources that an actor books on its node.
    """

    def __init__(
        self,
        actors: int,
        *,
        cpus_per_actor: float = 0.0,
        resources: Mapping[str, float] = MappingProxyType({}),
        job_timeout_s: float = 900.0,
        start_timeout_s: float = 300.0,
        retries: int = 3,
    ) -> None:
        if actors < 1:
            raise UserError(f"evaluation.actors is {actors}; a rollout pool needs at least 1")
        self._size, self._retries = actors, retries
        self._job_timeout_s, self._start_timeout_s = job_timeout_s, start_timeout_s
        self._booking = f"{cpus_per_actor:g} CPUs" + "".join(f" on a node with {name!r}" for name in resources)
        self._new_actor: Any = ray.remote(RolloutActor).options(
            num_cpus=cpus_per_actor,
            resources=dict(resources),
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._busy, self._closed = threading.Lock(), threading.Event()

    @classmethod
    def from_config(cls, actors: int, scaling: ScalingConfig) -> RayRolloutPool:
        """Return a pool whose actors book what `scaling` sets."""
        return cls(actors, cpus_per_actor=scaling.cpus_per_actor, resources=scaling.actor_resources)

    def close(self) -> None:
        """End all actors for good, and a rollout that is still running."""
        self._closed.set()
        with self._busy:
            self._end_actors()

    def _end_actors(self) -> None:
        for actor in [*self._idle, *(call.actor for call in self._calls.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._calls.clear()

    def _submit(self, work: Callable[[], Rollouts]) -> Future[Rollouts]:
        return self._thread.submit(work)

    def _roll_out(
        self, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int, charge: Charge | None
    ) -> Rollouts:
        """UserError if no actor starts; RuntimeError if a job failed too often."""
        with self._busy:
            try:
                return self._run_jobs(policies, task, seeds, record, charge)
            except BaseException:
                self._end_actors()
                raise

    def _run_jobs(
        self, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int, charge: Charge | None
    ) -> Rollouts:
        rollouts = Rollouts.empty(policies.members, seeds)
        size = self._job_size(rollouts.ran.size)
        waiting = deque(_Job(block) for block in blocks(policies.members, len(seeds), size))
        ready: deque[_Job] = deque()
        policies_ref = ray.put(policies)
        lost_starts = 0
        while self._idle:
            self._check_alive(self._idle.pop(), starting=False)
        while waiting or ready or any(call.job for call in self._calls.values()):
            if self._closed.is_set():
                raise RuntimeError("the rollout pool was closed")
            while len(self._idle) + len(self._calls) < self._size:
                self._check_alive(self._new_actor.remote(), starting=True)
            while self._idle and (waiting or ready):
                if not ready:
                    job = waiting.popleft()
                    ready.extend(replace(job, block=block) for block in granted(job.block, charge))
                    continue
                job, actor = ready.popleft(), self._idle.pop()
                call = actor.run.remote(policies_ref, job.block, task, seeds, record)
                self._calls[call] = _Call(actor, job, time.monotonic() + self._job_timeout_s)
            if not self._calls:
                continue
            for job, outcome in self._ended():
                if isinstance(outcome, UserError):
                    raise UserError(str(getattr(outcome, "cause", outcome)))
                if job is None:
                    lost_starts = lost_starts + 1 if isinstance(outcome, Exception) else lost_starts
                    if lost_starts > self._size + _DEATHS:
                        raise RuntimeError(f"{task.name}: {lost_starts} rollout actors were lost; the last: {outcome}")
                elif isinstance(outcome, Exception):
                    waiting.append(self._again(job, outcome, task))
                else:
                    rollouts.store(*job.block, outcome)
                    lost_starts = 0
        return rollouts

    def _job_size(self, episodes: int) -> int:
        """Return the episodes per job: four jobs per actor, so that a slow one delays little, but no small, slow jobs."""
        one_job_each, four_jobs_each = math.ceil(episodes / self._size), math.ceil(episodes / (4 * self._size))
        return min(max(four_jobs_each, min(_SMALL_JOB, one_job_each)), MAX_ENVIRONMENTS)

    def _again(self, job: _Job, error: Exception, task: Task) -> _Job:
        """Return a lost job with its failure counted, to run again; RuntimeError if it has failed too often."""
        if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
            job = replace(job, deaths=job.deaths + 1)
        else:
            job = replace(job, failures=job.failures + 1)
        if job.failures > self._retries or job.deaths > _DEATHS:
            failed = job.failures + job.deaths
            raise RuntimeError(f"{task.name}: rollouts failed {failed} times; the last time: {error}") from error
        return job

    def _check_alive(self, actor: Any, *, starting: bool) -> None:
        timeout_s = self._start_timeout_s if starting else min(_SIGN_OF_LIFE_S, self._job_timeout_s)
        self._calls[actor.ready.remote()] = _Call(actor, None, time.monotonic() + timeout_s, starting)

    def _ended(self) -> Iterator[tuple[_Job | None, Any]]:
        """Yield each call that ended or is overdue: its job (None for a liveness check), and its result or exception.

        The call's actor is then idle or, after an exception, killed. An actor may start late as long as another one works;
        UserError if none does.
        """
        done, waiting = ray.wait(list(self._calls), timeout=_POLL_S)
        now = time.monotonic()
        overdue = [reference for reference in waiting if now > self._calls[reference].deadline]
        late_starts = [reference for reference in overdue if self._calls[reference].starting]
        if late_starts and len(late_starts) == len(self._calls):
            raise UserError(
                f"no rollout actor started within {self._start_timeout_s:.0f} s; each needs {self._booking}: "
                "free that much, or change scaling.cpus_per_actor and scaling.actor_resource"
            )
        for reference in [*done, *(reference for reference in overdue if reference not in late_starts)]:
            call = self._calls.pop(reference)
            try:
                outcome = ray.get(reference, timeout=0)
                self._idle.append(call.actor)
            except ray.exceptions.RayError as error:
                outcome = error
                ray.kill(call.actor)
            yield call.job, outcome
