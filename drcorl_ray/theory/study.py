"""The numerical check: Theorem 3.1's rates at several critic errors, Proposition 3.1 on random problems, table and figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drcorl_ray.theory.bound import cost_bound, near
from drcorl_ray.theory.cmdp import CMDP, random_cmdp, random_policy
from drcorl_ray.theory.npg import safe_adaptation

ITERATIONS = (30, 100, 300, 1000, 3000, 10000)
NOISES = (0.0, 0.02, 0.1, 0.5)
BUDGET_SHARE = 0.5  # of the way from the lowest possible cost to the cost of the policy with the highest reward


@dataclass(frozen=True)
class Rates:
    """Means over the problems: gap and violation [noises, T], and the slope of ln gap against ln T without noise."""

    iterations: tuple[int, ...]
    noises: tuple[float, ...]
    gap: np.ndarray
    violation: np.ndarray
    gap_slope: float


def rates(problems: int = 5, iterations: Sequence[int] = ITERATIONS, noises: Sequence[float] = NOISES) -> Rates:
    """Run Algorithm 3 on random problems with a binding budget."""
    gap, violation = (np.zeros((problems, len(noises), len(iterations))) for _ in range(2))
    for seed in range(problems):
        cmdp = random_cmdp(seed)
        budget = binding_budget(cmdp)
        for i, noise in enumerate(noises):
            for j, count in enumerate(iterations):
                outcome = safe_adaptation(cmdp, budget, count, noise=noise, seed=seed)
                gap[seed, i, j], violation[seed, i, j] = outcome.gap, outcome.violation
    means = gap.mean(0), violation.mean(0)
    exact = np.log(np.maximum(means[0][0], 1e-12))
    return Rates(tuple(iterations), tuple(noises), *means, float(np.polyfit(np.log(iterations), exact, 1)[0]))


def binding_budget(cmdp: CMDP) -> float:
    """Return a budget half-way between the lowest possible cost and the cost of the policy with the highest reward."""
    least = -replace(cmdp, rewards=-cmdp.costs).optimum()[0]
    most = cmdp.value(cmdp.optimum()[1], cmdp.costs)
    return least + BUDGET_SHARE * (most - least)


@dataclass(frozen=True)
class Bounds:
    """Proposition 3.1 on random problems.

    tried: number of problems. printed, proved: in how many each form held. tightest: largest observed share of the rise in
    cost that the proved form allows.
    """

    tried: int
    printed: int
    proved: int
    tightest: float


def bounds(problems: int = 500) -> Bounds:
    """Check Proposition 3.1 on random problems, with policies at small to large distances from random behaviour policies."""
    held, tightest = np.zeros(2, int), 0.0
    for seed in range(problems):
        cmdp, generator = random_cmdp(seed), np.random.default_rng(seed)
        behaviour = random_policy(generator, *cmdp.rewards.shape).clip(min=1e-3)
        behaviour /= behaviour.sum(1, keepdims=True)
        bound = cost_bound(cmdp, near(generator, behaviour, 10.0 ** generator.uniform(-3, 0.3)), behaviour)
        held += (bound.value <= bound.printed + 1e-9, bound.value <= bound.proved + 1e-9)
        tightest = max(tightest, (bound.value - bound.behaviour) / (bound.proved - bound.behaviour))
    return Bounds(problems, int(held[0]), int(held[1]), tightest)


def table(result: Rates) -> list[str]:
    """Return the lines of a Markdown table: gap / violation by critic error and T."""
    lines = ["| ε_offline | " + " | ".join(f"T = {count}" for count in result.iterations) + " |"]
    lines.append("|" + " --- |" * (1 + len(result.iterations)))
    for i, noise in enumerate(result.noises):
        cells = (f"{gap:.3f} / {over:+.3f}" for gap, over in zip(result.gap[i], result.violation[i], strict=True))
        lines.append(f"| {noise:g} | " + " | ".join(cells) + " |")
    return lines


def draw(path: Path, result: Rates) -> None:
    """Plot gap and violation against T, with Theorem 3.1's 1/√T; negative violations are drawn at the axis."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    counts = np.array(result.iterations, float)
    for axis, values, title in zip(panels, (result.gap, result.violation), ("optimality gap", "violation"), strict=True):
        for noise, line in zip(result.noises, values, strict=True):
            axis.loglog(counts, np.maximum(line, 1e-4), marker="o", label=f"ε_offline = {noise:g}")
        axis.loglog(counts, values[0][0] * np.sqrt(counts[0] / counts), "k--", linewidth=1, label="1/√T")
        axis.set(xlabel="iterations T", title=title, ylim=(1e-4, None))
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check(folder: Path) -> None:
    """Print the tables and write theory.png; the body of `drcorl theory`."""
    folder.mkdir(parents=True, exist_ok=True)
    result, bound_check = rates(), bounds()
    draw(folder / "theory.png", result)
    print("Theorem 3.1, optimality gap / violation of the weighted policy:", *table(result), sep="\n")
    print(f"slope of the gap without critic error: {result.gap_slope:.2f} (the theorem's bound: -0.5)")
    print(
        f"Proposition 3.1 held as proved in {bound_check.proved} of {bound_check.tried}, as printed in {bound_check.printed}; "
        f"at most {bound_check.tightest:.1%} of the rise it allows was seen"
    )
    print(f"figure: {folder / 'theory.png'}")
