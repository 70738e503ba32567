"""Evaluation of policies in a task's simulator: plain functions, which a `RolloutPool` calls in this process or in Ray actors.

(task, policy, seed) determine an episode bit for bit; how episodes are grouped and which process runs them does not matter.

P members, E episodes, S observation, A action, n steps of an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from drcorl_ray.errors import UserError
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.tasks.envs import Simulator, make_simulator
from drcorl_ray.tasks.registry import Task, get_task
from drcorl_ray.tasks.scores import EpisodeStats

MAX_ENVIRONMENTS = 64  # simulated at once in one process; bounds memory and the number of pybullet's clients

Trajectory = dict[str, np.ndarray]


class Block(NamedTuple):
    """Members × episodes (slices of a rollout's [P, E]) that are simulated side by side."""

    members: slice
    episodes: slice


@dataclass(frozen=True)
class Rollouts:
    """Episodes of P members.

    stats: returns, costs and lengths. ran: [P, E] bool, which episodes ran (all, unless a budget did not grant them).
    trajectories: {(member, episode): its transitions in order}, float32: observations, next_observations [n, S], actions
    [n, A], rewards, costs, terminals [n]. A terminal is 1 if the environment ended the episode before any time limit.
    """

    stats: EpisodeStats
    ran: np.ndarray
    trajectories: dict[tuple[int, int], Trajectory]

    @classmethod
    def empty(cls, members: int, seeds: Sequence[int]) -> Rollouts:
        shape = (members, len(seeds))
        stats = EpisodeStats(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64), np.asarray(seeds, np.int64))
        return cls(stats, np.zeros(shape, bool), {})

    def member(self, member: int) -> Rollouts:
        """Return the rollouts of one member, as those of a population of one."""
        row = slice(member, member + 1)
        stats = EpisodeStats(self.stats.returns[row], self.stats.costs[row], self.stats.lengths[row], self.stats.seeds)
        trajectories = {(0, episode): x for (owner, episode), x in self.trajectories.items() if owner == member}
        return Rollouts(stats, self.ran[row], trajectories)

    def store(self, members: slice, episodes: slice, part: Rollouts) -> None:
        """Copy the episodes of `part` to these members and episodes."""
        for name in ("returns", "costs", "lengths"):
            getattr(self.stats, name)[members, episodes] = getattr(part.stats, name)
        self.ran[members, episodes] = part.ran
        for (member, episode), trajectory in part.trajectories.items():
            self.trajectories[members.start + member, episodes.start + episode] = trajectory


def evaluate(policies: PopulationPolicy, task: Task | str, seeds: Sequence[int]) -> EpisodeStats:
    """Roll out one episode per member and seed in this process; every member gets the same seeds.

    UserError if the simulator cannot run or the policies have other spaces; ValueError if weights are not finite or there are
    no seeds.
    """
    task = get_task(task) if isinstance(task, str) else task
    simulator = make_simulator(task)
    try:
        return evaluate_in(simulator, policies, task, seeds)
    finally:
        simulator.close()


def evaluate_in(simulator: Simulator, policies: PopulationPolicy, task: Task, seeds: Sequence[int]) -> EpisodeStats:
    """Call `evaluate` in an open simulator of the task; it stays open."""
    return roll_out_in(simulator, policies, task, seeds).stats


def roll_out_in(
    simulator: Simulator, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int = 0
) -> Rollouts:
    """Call `evaluate_in`, and record the trajectories of each member's first `record` episodes."""
    check_evaluation(policies, seeds)
    expected = (simulator.observation_size, simulator.action_size)
    actual = (policies.observation_size, policies.action_size)
    if actual != expected:
        raise UserError(
            f"{task.name} has {expected[0]} observations and {expected[1]} actions, the policy {actual[0]} and {actual[1]}; "
            "evaluate it on the task it was trained for"
        )
    whole = Rollouts.empty(policies.members, seeds)
    at_once = min(MAX_ENVIRONMENTS, task.environments_per_process or MAX_ENVIRONMENTS)
    for members, episodes in blocks(policies.members, len(seeds), at_once):
        block_policies = policies.select(range(policies.members)[members])
        num_recorded = max(0, record - episodes.start)
        whole.store(members, episodes, _run_block(simulator, block_policies, task, seeds[episodes], num_recorded))
    return whole


def _run_block(simulator: Simulator, policies: PopulationPolicy, task: Task, seeds: Sequence[int], record: int) -> Rollouts:
    """Run members × seeds episodes in lockstep; policies and environments compute only unfinished episodes."""
    rollouts = Rollouts.empty(policies.members, seeds)
    stats, shape = rollouts.stats, rollouts.ran.shape
    observations = simulator.reset([*seeds] * policies.members).reshape(*shape, -1)
    actions = np.zeros((*shape, simulator.action_size), np.float32)
    active = np.ones(shape, bool)
    runner = policies.begin(len(seeds))
    recorder = _Recorder(min(record, len(seeds)), task.episode_length)
    for step in range(task.episode_length):
        runner.act(observations, active, actions)
        recorder.note(step, observations=observations, actions=actions)
        flat, *outcome = simulator.step(actions.reshape(-1, simulator.action_size), active.ravel())
        observations = flat.reshape(observations.shape)
        rewards, costs, ended = (values.reshape(shape) for values in outcome)
        terminals = ended & ~np.broadcast_to(simulator.truncated, active.size).reshape(shape)
        recorder.note(step, next_observations=observations, rewards=rewards, costs=costs, terminals=terminals)
        np.add(stats.returns, rewards, out=stats.returns, where=active)
        np.add(stats.costs, costs, out=stats.costs, where=active)
        np.add(stats.lengths, 1, out=stats.lengths, where=active)
        active &= ~ended
        if not active.any():
            break
        runner.note(rewards, costs)
    rollouts.ran[:] = True
    rollouts.trajectories.update(recorder.trajectories(stats.lengths))
    return rollouts


class _Recorder:
    """Records the first `episodes` of every member of a block, at most `length` steps of each."""

    def __init__(self, episodes: int, length: int) -> None:
        self._episodes, self._length = episodes, length
        self._columns: dict[str, np.ndarray] = {}

    def note(self, step: int, **values: np.ndarray) -> None:
        """Record arrays [members, seeds, …] of one step."""
        for name, value in values.items() if self._episodes else ():
            kept = value[:, : self._episodes]
            if step == 0:
                self._columns[name] = np.zeros((*kept.shape[:2], self._length, *kept.shape[2:]), np.float32)
            self._columns[name][:, :, step] = kept

    def trajectories(self, lengths: np.ndarray) -> dict[tuple[int, int], Trajectory]:
        return {
            (member, episode): {name: x[member, episode, : lengths[member, episode]] for name, x in self._columns.items()}
            for member in range(len(lengths))
            for episode in range(self._episodes)
        }


def check_evaluation(policies: PopulationPolicy, seeds: Sequence[int]) -> None:
    """Raise ValueError if weights are not finite or there are no seeds."""
    if len(seeds) == 0:
        raise ValueError("at least one episode seed is needed")
    finite = policies.finite()
    if not finite.all():
        raise ValueError(f"the weights of members {np.flatnonzero(~finite).tolist()} are not finite")


def blocks(members: int, episodes: int, size: int) -> Iterator[Block]:
    """Yield blocks of members × episodes with at most `size` episodes each; whole rows if a row fits."""
    wide = min(episodes, size)
    tall = max(1, size // wide)
    for member in range(0, members, tall):
        for episode in range(0, episodes, wide):
            yield Block(slice(member, min(member + tall, members)), slice(episode, min(episode + wide, episodes)))
