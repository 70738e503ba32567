"""Figure 2: what a policy scores against how long it takes for 1,000 actions, beside sampling from a diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from drcorl_ray.config.algorithms import shown_algorithm
from drcorl_ray.config.loading import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.speed import DENOISING_STEPS, STATES, diffusion_policy, seconds_per_thousand
from drcorl_ray.method.architectures import CONDITIONS
from drcorl_ray.method.networks import NoiseNetwork
from drcorl_ray.policy.loading import Policy, load_policy
from drcorl_ray.report.tables.core import Column, Results
from drcorl_ray.report.tables.paper import Cell, Table
from drcorl_ray.runs.directory import RunDirectory

TITLE = "Score against inference time"
NOTE = (
    "Seconds for 1,000 single-state actions of one policy of each algorithm, one thread, on the machine that wrote this "
    "report (our policies in numpy; diffusion: this run's noise network sampled in torch, timed and not scored)."
)
_SAMPLED = 50  # states for which a diffusion model is sampled


@dataclass(frozen=True)
class Timed:
    """A method's seconds for 1,000 actions, and its mean score over the tasks; none of what is only timed."""

    name: str
    seconds: float
    score: Cell | None


COLUMNS = [
    Column("method", lambda entry: entry.name),
    Column("seconds", lambda entry: f"{entry.seconds:.3f}"),
    Column("reward (cost)", lambda entry: str(entry.score or "–"), lambda entry: entry.score and entry.score.safe),
]


def timed(run: RunDirectory, results: Results, tables: list[Table]) -> list[Timed]:
    """Of the first table that has more than clones beside DRCORL, its algorithms and diffusion models; empty without one."""
    compared = [table for table in tables if any(map(_is_heavy, table.algorithms))]
    if not compared:
        return []
    table, found, sizes = compared[0], [], None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in table.algorithms:
            rows = [row for row in results["rows"] if (row["algorithm"], row["cost_limit"]) == (name, table.limit)]
            cells = [line.cells[name] for line in table.lines if line.measured and name in line.cells]
            try:
                policy = load_policy(run.path / rows[0]["policy"])
            except UserError:
                continue  # a report moved away from its policies
            sizes = policy.population.observation_size, policy.population.action_size
            found.append(Timed(shown_algorithm(name).title, _policy_seconds(policy), _mean(cells)))
        return found + _diffusion(run.config, *sizes) if sizes else found
    finally:
        torch.set_num_threads(threads)


def _is_heavy(name: str) -> bool:
    algorithm = shown_algorithm(name)
    return not (algorithm.light or algorithm.pretrained)


def _mean(cells: Sequence[Cell]) -> Cell | None:
    return Cell(*(float(np.mean([getattr(x, part) for x in cells])) for part in ("reward", "cost"))) if cells else None


def _policy_seconds(policy: Policy) -> float:
    size = policy.population.observation_size
    episode = policy.episode()
    return seconds_per_thousand(episode.act, _states(size, STATES // 4 if policy.population.memory else STATES))


def _diffusion(config: Path, observations: int, actions: int) -> list[Timed]:
    """Sampling from a noise network of the run's own size; nothing where its settings cannot be read."""
    try:
        own = load_config([str(config)]).pretrain
    except UserError:
        return []
    network = NoiseNetwork(observations, actions, CONDITIONS, own.noise_width, own.noise_blocks, own.noise_expansion)
    weights = network.layout.split(network.layout.initialise(torch.tensor([0]), 1))
    states = _states(observations, _SAMPLED)
    seconds = {n: seconds_per_thousand(diffusion_policy(network, weights, n), states, 1) for n in DENOISING_STEPS}
    return [Timed(f"diffusion, {n} steps", took, None) for n, took in seconds.items()]


def _states(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)
