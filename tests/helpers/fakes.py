"""A fake pack trainer: it answers packs at once from a planted objective, through the same files as the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from drcorl_ray.config import SearchConfig
from drcorl_ray.io.files import write_json
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.search.plan import Pack, SearchPlan
from drcorl_ray.search.study import Score, SearchStudy, told_score

Objective = Callable[[dict, str], Score]


def make_plan(folder: Path, settings: SearchConfig, tasks=("task",), stops=(100,), points=(), seed: int = 0) -> SearchPlan:
    study = SearchStudy(folder / "studies" / "s.journal", "s", settings, points, seed)
    assert settings.members_per_pack != "auto"
    return SearchPlan(study, RunDirectory(folder), tasks, stops, settings.members_per_pack)


def answer(plan: SearchPlan, pack: Pack, task: str, objective: Objective) -> None:
    """Write the files that a finished trial of a pack writes."""
    folder = plan.folder(pack.number).task(task)
    for source in pack.sources():
        assert plan.folder(source).task(task).state.exists(), "the states that the pack continues from must exist"
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.state.write_bytes(b"state")
    scores = [objective(member.params, task) for member in pack.members]
    members = [{"normalized_reward": score.reward, "normalized_cost": score.cost} for score in scores]
    write_json(folder.result, {"members": members})


def states(study: SearchStudy) -> list[TrialState]:
    return [trial.state for trial in study.optuna.get_trials()]


def told(study: SearchStudy, number: int) -> Score:
    return told_score(study.optuna.get_trials()[number])


def run(plan: SearchPlan, objective: Objective, trials: int | None = None, last_first: bool = False) -> list[tuple[Pack, str]]:
    """Answer `trials` jobs (None: all), the oldest first or, with last_first, the newest; return them in that order."""
    done = []
    while (jobs := plan.jobs()) and len(done) != trials:
        pack, task = jobs[-1 if last_first else 0]
        answer(plan, pack, task, objective)
        done.append((pack, task))
    return done
