"""Rollout pools: one interface for a loop in this process and for Ray actors (`distributed.rollout_pool`).

Both run the same blocks of episodes with the same function, so results do not depend on the pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Self

from drcorl_ray.evaluation.rollout import MAX_ENVIRONMENTS, Block, Rollouts, blocks, check_evaluation, roll_out_in
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.envs import Simulator, make_simulator
from drcorl_ray.tasks.registry import Task, get_task
from drcorl_ray.tasks.scores import EpisodeStats

Charge = Callable[[Sequence[int], int], Sequence[int]]
"""Called with members and a number of episodes before these start; returns how many of them each member may run."""


class RolloutPool(ABC):
    """Rolls out populations; one rollout at a time, a second one waits. Close it, or use it in a `with`.

    The public methods check their arguments; subclasses say in `_roll_out` who runs the blocks.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End all work, also a rollout that was started and is not finished."""

    @abstractmethod
    def _roll_out(
        self, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int, charge: Charge | None
    ) -> Rollouts:
        """`roll_out` with checked arguments."""

    def roll_out(
        self,
        policies: PopulationPolicy,
        task: Task | str,
        seeds: Sequence[int],
        *,
        record: int = 0,
        charge: Charge | None = None,
    ) -> Rollouts:
        """Roll out one episode per member and seed; record the trajectories of each member's first `record` episodes.

        charge: called before episodes start, also when they start again because their process died; episodes that it does not
        grant do not run. UserError if the simulator cannot run or the policies have other spaces; ValueError if weights are
        not finite or there are no seeds.
        """
        task = get_task(task) if isinstance(task, str) else task
        check_evaluation(policies, seeds)
        return self._roll_out(policies, task, [int(seed) for seed in seeds], record, charge)

    def evaluate(self, policies: PopulationPolicy, task: Task | str, seeds: Sequence[int]) -> EpisodeStats:
        """`roll_out` without trajectories."""
        return self.roll_out(policies, task, seeds).stats

    def start(
        self,
        policies: PopulationPolicy,
        task: Task | str,
        seeds: Sequence[int],
        *,
        record: int = 0,
        charge: Charge | None = None,
    ) -> Future[Rollouts]:
        """`roll_out` beside the caller's own work where the pool has processes of its own; else at once."""
        return self._submit(lambda: self.roll_out(policies, task, seeds, record=record, charge=charge))

    def _submit(self, work: Callable[[], Rollouts]) -> Future[Rollouts]:
        """Do the work now; a pool with its own processes does it in the background."""
        done: Future[Rollouts] = Future()
        done.set_result(work())
        return done


def granted(block: Block, charge: Charge | None) -> list[Block]:
    """Return the block if all of its episodes are granted; else one block per member with the granted episodes."""
    if charge is None:
        return [block]
    first, episodes = block.episodes.start, block.episodes.stop - block.episodes.start
    members = range(block.members.start, block.members.stop)
    counts = charge(members, episodes)
    if all(count == episodes for count in counts):
        return [block]
    return [
        Block(slice(member, member + 1), slice(first, first + count))
        for member, count in zip(members, counts, strict=True)
        if count
    ]


class BlockRunner:
    """Runs blocks in this process. It keeps the last task's simulator open, and no state that could change a result."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._simulator: Simulator | None = None

    def run(self, policies: PopulationPolicy, block: Block, task: Task, seeds: Sequence[int], record: int) -> Rollouts:
        """Run one block of the rollout of `policies` over `seeds`; indices of the result start at 0."""
        block_policies = policies.select(range(policies.members)[block.members])
        recorded = max(0, record - block.episodes.start)
        return roll_out_in(self._simulator_of(task), block_policies, task, seeds[block.episodes], recorded)

    def _simulator_of(self, task: Task) -> Simulator:
        if self._simulator is None or task != self._task:
            self.close()
            self._simulator, self._task = make_simulator(task), task
        return self._simulator

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = self._task = None


class LocalRolloutPool(RolloutPool):
    """Rolls out in this process, block by block. progress: called with the number of episodes of each finished block."""

    def __init__(self, progress: Callable[[int], object] = lambda episodes: None, size: int = MAX_ENVIRONMENTS) -> None:
        self._runner, self._progress, self._size = BlockRunner(), progress, size

    def close(self) -> None:
        self._runner.close()

    def _roll_out(
        self, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int, charge: Charge | None
    ) -> Rollouts:
        whole = Rollouts.empty(policies.members, seeds)
        size = min(self._size, task.environments_per_process or self._size)
        for planned in blocks(policies.members, len(seeds), size):
            for block in granted(planned, charge):
                part = self._runner.run(policies, block, task, seeds, record)
                whole.store(block.members, block.episodes, part)
                self._progress(part.ran.size)
        return whole
