"""The overhead of a search: the wall time of many configurations with tiny budgets, by part.

python benchmarks/search.py HalfCheetahVelocity=FILE.hdf5 HopperVelocity=FILE.hdf5 [section.key=value …]

Prints the seconds of pretraining, packs, evaluation and overhead, and their shares of the wall time; writes RUN/results.json
like every search. Target: overhead ≤ 10 %.
"""

from __future__ import annotations

import sys

from drcorl_ray.distributed.cluster import prepare_environment

prepare_environment()

from drcorl_ray.commands.tune import search  # noqa: E402
from drcorl_ray.config.loading import load_config  # noqa: E402
from drcorl_ray.runs.results import read_results  # noqa: E402
from drcorl_ray.tasks.registry import get_task  # noqa: E402

TINY = [
    "pretrain.steps=1500", "pretrain.monte_carlo_steps=500", "pretrain.batch_size=128", "pretrain.noise_width=64",
    "pretrain.actor_hidden=[64,64]", "pretrain.critic_hidden=[64,64]", "extract.steps=300", "extract.critic_steps=100",
    "extract.batch_size=128", "evaluation.baselines=[]", "evaluation.curve_points=0", "search.configurations=64",
    "search.members_per_pack=16", "search.episodes=1", "search.winners=1", "search.fresh_episodes=5",
    "scaling.report_steps=200",
]  # fmt: skip


def main() -> None:
    files = dict(argument.split("=", 1) for argument in sys.argv[1:] if "." not in argument.split("=", 1)[0])
    settings = [argument for argument in sys.argv[1:] if "." in argument.split("=", 1)[0]]
    names = [get_task(name).name for name in files]
    dataset = "{" + ", ".join(f"{name}: {file}" for name, file in files.items()) + "}"
    run = search(load_config([*TINY, f"task.name=[{', '.join(names)}]", f"data.dataset={dataset}", *settings]))
    results = read_results(run.path)["run"]
    cost = results["search"]["cost"]
    print("| part | seconds | share |\n| --- | --- | --- |")
    for name in ("pretraining", "packs", "evaluation", "overhead", "wall"):
        seconds = cost[f"{name}_s"]
        print(f"| {name} | {seconds:.1f} | {seconds / cost['wall_s']:.1%} |")
    print(f"\n{cost['configurations']} configurations, {cost['packs']} packs, {cost['member_steps']} member-steps")


if __name__ == "__main__":
    main()
