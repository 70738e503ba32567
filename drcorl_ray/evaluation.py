"""launch/evaluate.py: policy files rolled out on fresh episodes, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from drcorl_ray.config import Config
from drcorl_ray.errors import UserError
from drcorl_ray.metrics import normalized_cost
from drcorl_ray.policy import load_policy
from drcorl_ray.progress import wide_console
from drcorl_ray.rollout import evaluate

EVALUATION_SEEDS = 4_000_000


def evaluate_files(files: Sequence[str], config: Config) -> None:
    """Print a row per policy file: mean ± std of the episode return and cost, and the cost against its own limit (Eq. 26)."""
    if not files:
        raise UserError("no policy file given: python launch/evaluate.py POLICY.safetensors … [evaluation.episodes=N]")
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + config.evaluation.episodes)
    table = Table("policy", "task", "limit", "return", "episode cost", "normalised cost", "length")
    for file in files:
        policy = load_policy(file)
        result = policy.meta.get("result")
        if not isinstance(result, dict) or not {"task", "cost_limit"} <= result.keys():
            raise UserError(f"{file}: the policy does not say its task and cost limit; it was not written by a run")
        stats = evaluate(policy.population, result["task"], seeds)
        ratio = float(normalized_cost(stats.costs, result["cost_limit"]).mean())
        table.add_row(
            Path(file).stem, result["task"], f"{result['cost_limit']:g}", _spread(stats.returns), _spread(stats.costs),
            f"{ratio:.2f}", f"{stats.lengths.mean():.0f}", style="green" if ratio <= 1 else "red",
        )  # fmt: skip
    wide_console().print(table)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std():.1f}"
