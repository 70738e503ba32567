"""Online evaluation during extraction (App. B.1): when policies are rolled out, and how the results reach the learner.

Evaluation number i takes effect before policy step i · `online_interval`. It begins `online_staleness` steps earlier, with the
policies of that step, while learning continues. The learner waits for it at the step where it takes effect, and only there,
so a run gives the same numbers however long the rollouts take.

An episode is charged to its member's budget on disk before it begins, and again if it is repeated because its process died,
so no kill and no resume can exceed the budget. A finished evaluation is on disk and is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from drcorl_ray.config import EvaluationConfig, Training
from drcorl_ray.data.episodes import Episodes, discounted_rates
from drcorl_ray.evaluation.pool import RolloutPool
from drcorl_ray.evaluation.rollout import Rollouts, Trajectory
from drcorl_ray.evaluation.seeds import ONLINE_SEEDS
from drcorl_ray.io.files import file_lock, load_arrays, save_arrays
from drcorl_ray.method.interfaces import OnlineLearner, Population
from drcorl_ray.method.online_data import OnlineResult
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.folders import OnlineFolder
from drcorl_ray.tasks.registry import Task
from drcorl_ray.training.episode_budget import EpisodeLedger
from drcorl_ray.training.loop import Hook, no_hook

_TRANSITIONS = "transitions"

Share = Callable[[Any], OnlineResult]


class Roller:
    """Runs the evaluations of a population one after another and stores their results in `folder`."""

    def __init__(
        self, settings: EvaluationConfig, policy_steps: int, learner: OnlineLearner, task: Task, folder: OnlineFolder,
        pool: RolloutPool,
    ) -> None:  # fmt: skip
        self._settings, self._task, self._folder, self._pool = settings, task, folder, pool
        self._online, self._hybrid = learner.online.online.cpu().numpy(), bool(learner.online.hybrid.any())
        affordable = self._settings.online_budget // self._settings.online_episodes
        evaluations = min(affordable, math.ceil(policy_steps / self._settings.online_interval))
        rows = evaluations * self._settings.hybrid_episodes * task.episode_length
        # spreads hybrid_transitions over the whole training
        self._append_every = max(1, math.ceil(rows / max(1, self._settings.hybrid_transitions)))
        self._ledger = EpisodeLedger(folder.ledger, self._settings.online_budget, learner.online.spent.tolist())
        self._future: Future[Rollouts] | None = None
        self._members: list[int] = []

    def begin(self, number: int, policies: PopulationPolicy) -> None:
        """Start the rollouts of the online members that are finite and have budget left."""
        self._future = None
        if self._folder.evaluation(number).exists():
            return
        has_budget = self._ledger.spent < self._settings.online_budget
        self._members = np.flatnonzero(self._online & has_budget & policies.finite()).tolist()
        if not self._members:
            return
        appends = self._hybrid and number % self._append_every == 0
        self._future = self._pool.start(
            policies.select(self._members),
            self._task,
            self._seeds(number),
            record=self._settings.hybrid_episodes if appends else 0,
            charge=lambda members, count: self._ledger.charge([self._members[member] for member in members], count),
        )

    def result(self, number: int) -> OnlineResult:
        """Wait for the evaluation that `begin` started and return its result; raises what `RolloutPool.roll_out` raises."""
        file = self._folder.evaluation(number)
        if not file.exists():
            seeds = self._seeds(number)
            rollouts = Rollouts.empty(len(self._members), seeds) if self._future is None else self._future.result()
            of_population = Rollouts.empty(len(self._online), seeds)
            for index, member in enumerate(self._members):
                of_population.store(slice(member, member + 1), slice(0, len(seeds)), rollouts.member(index))
            save_arrays(file, _arrays(of_population) | {"spent": self._ledger.spent}, {"evaluation": number})
        return _online_result(load_arrays(file)[0])

    def _seeds(self, number: int) -> range:
        first = ONLINE_SEEDS + number * self._settings.online_episodes
        return range(first, first + self._settings.online_episodes)


def _arrays(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """Return rollouts as named arrays; a member's recorded episodes are concatenated under transitions/MEMBER/COLUMN."""
    arrays = vars(rollouts.stats) | {"ran": rollouts.ran}
    for member in sorted({member for member, _ in rollouts.trajectories}):
        recorded = [rollouts.trajectories[key] for key in sorted(rollouts.trajectories) if key[0] == member]
        rows = [_transitions(trajectory) for trajectory in recorded]
        arrays |= {f"{_TRANSITIONS}/{member}/{name}": np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return arrays


def _transitions(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Return an episode's columns, and the discounted reward and cost rates that the dataset's rows also have."""
    rewards, costs, terminals = (trajectory[name] for name in ("rewards", "costs", "terminals"))
    totals = [0], [len(rewards)], [rewards.sum()], [costs.sum()], [terminals[-1] > 0]
    episode = Episodes(*map(np.array, totals))
    return trajectory | {f"{name}_rates": discounted_rates(trajectory[f"{name}s"], episode) for name in ("reward", "cost")}


def _online_result(arrays: Mapping[str, np.ndarray]) -> OnlineResult:
    ran, transitions = arrays["ran"], {}
    for name, array in arrays.items():
        if name.startswith(_TRANSITIONS):
            _, member, column = name.split("/")
            transitions.setdefault(int(member), {})[column] = array
    episodes = ran.sum(axis=1)
    costs, returns = (np.where(ran, arrays[x], 0.0).sum(axis=1) / np.maximum(episodes, 1) for x in ("costs", "returns"))
    return OnlineResult(costs, returns, episodes, arrays["spent"], transitions)


class OnlineEvaluation:
    """Begins and ends the evaluations of a learner at their steps; call `before` before each step up to `stop`.

    roller: None except in one of several data-parallel workers. share: sends that worker's result to all workers.
    """

    def __init__(
        self, settings: EvaluationConfig, schedule: Training, learner: OnlineLearner, stop: int, roller: Roller | None,
        share: Share,
    ) -> None:  # fmt: skip
        self._learner, self._stop, self._roller, self._share = learner, stop, roller, share
        self._first, self._total = schedule.warm_up, schedule.total_steps
        self._interval, self._staleness = settings.online_interval, settings.online_staleness
        self._under_way = False

    def before(self, step: int) -> None:
        """Give the learner the evaluation that takes effect at this step, and begin the next one when it is due."""
        online = self._learner.online
        number = max(0, -(-(step - self._first) // self._interval))  # of the next evaluation that takes effect
        if step == self._due(number):
            if not self._under_way:
                self._begin(number, online.pending if online.pending_step >= 0 else self._learner.average)
            self._learner.observe(self._share(self._roller.result(number) if self._roller else None))
            online.release()
            self._under_way = False
            number += 1
        due = self._due(number)
        if step == max(0, due - self._staleness) and due < self._total:
            online.hold(self._learner.average, step)
        if online.pending_step >= 0 and due < self._stop and not self._under_way:
            self._begin(number, online.pending)

    def _due(self, number: int) -> int:
        return self._first + number * self._interval

    def _begin(self, number: int, parameters: Tensor) -> None:
        self._under_way = True
        if self._roller:
            self._roller.begin(number, self._learner.policies(parameters))


@contextmanager
def online_evaluation(
    settings: EvaluationConfig,
    schedule: Training,
    population: Population,
    task: Task,
    folder: OnlineFolder,
    stop: int,
    new_pool: Callable[[], RolloutPool],
    *,
    leads: bool = True,
    share: Share = lambda result: result,
) -> Iterator[Hook]:
    """Yield the hook to call before each step up to `stop`; the rollout pool lives while the context is open.

    schedule: the training schedule. leads: whether this worker runs the rollouts. No pool is made if no member is online.
    """
    if (learner := population.as_online()) is None:
        yield no_hook
        return
    lock = file_lock(folder.lock) if leads else nullcontext()  # a killed worker's successor waits until it has ended
    with new_pool() as pool, lock:
        roller = Roller(settings, schedule.steps, learner, task, folder, pool) if leads else None
        yield OnlineEvaluation(settings, schedule, learner, stop, roller, share).before
