"""The whole check: Theorem 3.1's rates for several critic errors, Proposition 3.1 on random problems; table and figure."""

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
BUDGET_SHARE = 0.5  # of the way from the least cost any policy can have to the cost of the one that earns most


@dataclass(frozen=True)
class Rates:
    """Means over the problems: gap and violation [noises, T]; the slope of ln gap against ln T without noise."""

    iterations: tuple[int, ...]
    noises: tuple[float, ...]
    gap: np.ndarray
    violation: np.ndarray
    gap_slope: float


def rates(problems: int = 5, iterations: Sequence[int] = ITERATIONS, noises: Sequence[float] = NOISES) -> Rates:
    """Algorithm 3 on random problems whose budget binds."""
    gap, violation = (np.zeros((problems, len(noises), len(iterations))) for _ in range(2))
    for seed in range(problems):
        cmdp = random_cmdp(seed)
        budget = binding_budget(cmdp)
        for i, noise in enumerate(noises):
            for j, count in enumerate(iterations):
                found = safe_adaptation(cmdp, budget, count, noise=noise, seed=seed)
                gap[seed, i, j], violation[seed, i, j] = found.gap, found.violation
    means = gap.mean(0), violation.mean(0)
    exact = np.log(np.maximum(means[0][0], 1e-12))
    return Rates(tuple(iterations), tuple(noises), *means, float(np.polyfit(np.log(iterations), exact, 1)[0]))


def binding_budget(cmdp: CMDP) -> float:
    """Half-way between the least cost of any policy and the cost of the one that earns most."""
    least = -replace(cmdp, rewards=-cmdp.costs).optimum()[0]
    most = cmdp.value(cmdp.optimum()[1], cmdp.costs)
    return least + BUDGET_SHARE * (most - least)


@dataclass(frozen=True)
class Bounds:
    """Proposition 3.1 on random problems: how often each form held, and the most of the allowed rise that was used."""

    tried: int
    printed: int
    proved: int
    tightest: float


def bounds(problems: int = 500) -> Bounds:
    """Random problems, behaviours and policies near them, from hardly to far apart."""
    held, tightest = np.zeros(2, int), 0.0
    for seed in range(problems):
        cmdp, generator = random_cmdp(seed), np.random.default_rng(seed)
        behaviour = random_policy(generator, *cmdp.rewards.shape).clip(min=1e-3)
        behaviour /= behaviour.sum(1, keepdims=True)
        found = cost_bound(cmdp, near(generator, behaviour, 10.0 ** generator.uniform(-3, 0.3)), behaviour)
        held += (found.value <= found.printed + 1e-9, found.value <= found.proved + 1e-9)
        tightest = max(tightest, (found.value - found.behaviour) / (found.proved - found.behaviour))
    return Bounds(problems, int(held[0]), int(held[1]), tightest)


def table(found: Rates) -> list[str]:
    """Markdown: gap / violation by critic error and T."""
    lines = ["| ε_offline | " + " | ".join(f"T = {count}" for count in found.iterations) + " |"]
    lines.append("|" + " --- |" * (1 + len(found.iterations)))
    for i, noise in enumerate(found.noises):
        cells = (f"{gap:.3f} / {over:+.3f}" for gap, over in zip(found.gap[i], found.violation[i], strict=True))
        lines.append(f"| {noise:g} | " + " | ".join(cells) + " |")
    return lines


def draw(path: Path, found: Rates) -> None:
    """Gap and violation against T, with the 1/√T of Theorem 3.1; a violation below zero is drawn at the axis."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    counts = np.array(found.iterations, float)
    for axis, values, title in zip(panels, (found.gap, found.violation), ("optimality gap", "violation"), strict=True):
        for noise, line in zip(found.noises, values, strict=True):
            axis.loglog(counts, np.maximum(line, 1e-4), marker="o", label=f"ε_offline = {noise:g}")
        axis.loglog(counts, values[0][0] * np.sqrt(counts[0] / counts), "k--", linewidth=1, label="1/√T")
        axis.set(xlabel="iterations T", title=title, ylim=(1e-4, None))
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check(folder: Path) -> None:
    """launch/theory.py: print the tables, and write theory.png."""
    folder.mkdir(parents=True, exist_ok=True)
    found, held = rates(), bounds()
    draw(folder / "theory.png", found)
    print("Theorem 3.1, optimality gap / violation of the weighted policy:", *table(found), sep="\n")
    print(f"slope of the gap without critic error: {found.gap_slope:.2f} (the theorem's bound: -0.5)")
    print(
        f"Proposition 3.1 held as proved in {held.proved} of {held.tried}, as printed in {held.printed}; "
        f"at most {held.tightest:.1%} of the rise it allows was seen"
    )
    print(f"figure: {folder / 'theory.png'}")
