"""A task's store, opened for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drcorl_ray.data.spec import DataSpec, EpisodeTotals
from drcorl_ray.data.store import Manifest, load_manifest, read_store
from drcorl_ray.errors import UserError
from drcorl_ray.tasks.registry import Task, get_task


@dataclass(frozen=True)
class TaskData:
    """A task's opened store: its manifest, statistics and episode totals, and the reward rate of each row [N]."""

    task: Task
    store: Path
    manifest: Manifest
    spec: DataSpec
    episodes: EpisodeTotals
    reward_rates: np.ndarray

    @classmethod
    def open(cls, store: Path, task: Task | None = None) -> TaskData:
        """Open a store.

        task: the store's task, for a process in which a user's task may not be registered; looked up by name if None. Raise
        UserError if the store is damaged or all episodes have the same return.
        """
        manifest = load_manifest(store)
        task = task or get_task(manifest.task)
        scalars = read_store(store, ("reward_rates", "costs"))
        rates = scalars["reward_rates"]
        if manifest.max_return <= manifest.min_return:
            raise UserError(
                f"{store}: every episode has the return {manifest.max_return}; rewards cannot be normalised (Eq. 26)"
            )
        spec = DataSpec(
            observation_size=manifest.observation_size,
            action_size=manifest.action_size,
            episode_length=task.episode_length,
            observation_mean=manifest.observation_mean,
            observation_std=manifest.observation_std,
            return_min=manifest.min_return,
            return_max=manifest.max_return,
            mean_cost=manifest.mean_cost,
            max_cost=float(scalars["costs"].max()),
            reward_rate_mean=float(rates.mean()),
            reward_rate_std=float(rates.std()) + 1e-6,
        )
        episodes = EpisodeTotals(
            np.array(manifest.episode_returns), np.array(manifest.episode_costs), np.array(manifest.episode_lengths)
        )
        return cls(task, store, manifest, spec, episodes, rates)
