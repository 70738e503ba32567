"""Hand-made results and run directories: rows, real Optuna studies in their journals, metrics logs of packs."""

from __future__ import annotations

import json
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from drcorl_ray.io.files import write_json
from drcorl_ray.report import write_report
from drcorl_ray.runs.directory import RunDirectory

Rows = list[dict[str, Any]]


def make_row(**changes: Any) -> dict[str, Any]:
    """A row of results.json with the given fields changed."""
    return {
        "task": "PointCircle",
        "algorithm": "drcorl",
        "member": 0,
        "config": {},
        "seed": 0,
        "cost_limit": 10.0,
        "dataset_sha256": "0",
        "evaluation_mode": "offline",
        "selection": "last",
        "online_episodes": 0,
        "episodes": 20,
        "reward_mean": 100.0,
        "reward_std": 1.0,
        "cost_mean": 5.04,
        "cost_std": 2.5,
        "length_mean": 199.6,
        "normalized_reward": 0.8125,
        "normalized_cost": 0.5,
        "policy": "p",
    } | changes


def make_curve(**changes: Any) -> dict[str, Any]:
    """A learning curve of two members with gaps, with the given fields changed."""
    curve = {"task": "PointCircle", "steps": [10, 20, 30]}
    curve |= {"normalized_reward": [[0.1, None, 0.5], [None, None, None]], "normalized_cost": [[2.0, 1.0, 0.5]] * 2}
    return curve | changes


def make_calibration(**changes: Any) -> dict[str, Any]:
    """Two members with different limits and k. With the training k, three of five policies are estimated safe; one is not."""
    entry = {"task": "PointCircle", "steps": [10, 20, 30], "cost_limits": [10.0, 20.0], "members": ["0 offline", "1 hybrid"]}
    entry |= {"k": [0.0, 2.0], "member_k": [2.0, 1.0], "episodes": 10}
    entry["estimates"] = [[[12.0, 4.0, 4.0], [15.0, 8.0, 10.1]], [[18.0, 20.0, None], [22.0, 30.0, 3.0]]]
    entry["own_estimates"] = [[15.0, 8.0, 10.1], [20.0, 25.0, 3.0]]
    entry["true_cost"] = [[20.0, 10.1, 5.0], [30.0, 20.2, None]]
    entry["true_cost_se"] = [[2.0, 1.0, 0.5], [3.0, 2.0, None]]
    return entry | changes


def make_results(rows: Rows, **about: Any) -> dict[str, Any]:
    return {"schema": 1, "run": about, "rows": rows}


def report(folder: Path, results: dict[str, Any]) -> dict[str, str]:
    """Write a report and return its texts by file name; a warning is an error."""
    folder.mkdir(exist_ok=True, parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(RunDirectory(folder), results)
    return {name: (folder / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")}


def markdown_table(text: str) -> list[list[str]]:
    """Return the cells of the first table."""
    first = next(part for part in text.split("\n\n") if part.startswith("|"))
    table = [line.strip("| ").split(" | ") for line in first.splitlines()]
    assert len({len(line) for line in table}) == 1
    return table


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Suggest continuous keys, a categorical key and a conditional one."""
    trial.suggest_float("k", 0.0, 4.0)
    trial.suggest_float("beta_0", 1e-3, 1e-1, log=True)
    if trial.suggest_categorical("beta_schedule", ["constant", "linear"]) != "constant":
        trial.suggest_float("beta_1", 0.0, 0.1)
    return trial.params


def planted_score(params: dict[str, Any]) -> tuple[float, float]:
    """Return (reward, cost), which depend only on k; the best safe k is 2."""
    return 1.0 - abs(params["k"] - 1.0) / 4, 2.0 - params["k"] / 2


class MadeSearch:
    """The run directory and results of a search, with one study per task or one for all tasks (`shared`)."""

    def __init__(
        self,
        folder: Path,
        tasks: tuple[str, ...] = ("TaskA",),
        configurations: int = 40,
        *,
        multi_objective: bool = False,
        shared: bool = False,
        steps: int = 10,
        score: Any = planted_score,
        seed: int = 0,
    ) -> None:
        self.path, self._multi, self._steps, self._score = folder, multi_objective, steps, score
        self._random = np.random.default_rng(seed)
        self.rows: Rows = []
        self.curves: list[dict[str, Any]] = []
        self.studies = [
            {"name": name, "tasks": list(study_tasks), "journal": f"studies/{name}.journal"}
            for name, study_tasks in ([("shared", tasks)] if shared else [(task, (task,)) for task in tasks])
        ]
        for entry in self.studies:
            self._search(entry, configurations)

    @property
    def results(self) -> dict[str, Any]:
        judged = [row for row in self.rows if row["selection"] == "last" and "configuration" in row]
        cost = {
            "wall_s": 100.0, "pretraining_s": 30.0, "packs_s": 50.0, "evaluation_s": 15.0, "overhead_s": 5.0, "slots": 2,
            "device": "CPU", "pretraining_device_s": 31.0, "packs_device_s": 98.0, "member_steps": 123_456,
            "online_episodes": 777, "packs": 9, "configurations": len(judged), "stopped": 3,
        }  # fmt: skip
        search = {
            "objective": "shared" if len(self.studies[0]["tasks"]) > 1 else "per_task",
            "sampler": "tpe", "multi_objective": self._multi, "studies": self.studies, "cost": cost,
        }  # fmt: skip
        references = [
            {"task": task, "cost_limit": 10.0, "normalized_reward": 0.7} for task in {row["task"] for row in self.rows}
        ]
        machine = {"cpus": 2, "processor": "x86_64", "gpus": []}
        return make_results(
            self.rows, search=search, curves=self.curves, references=references, wall_s=100.0, commit="abc123",
            machine=machine, argv=["launch/tune.py", "tune_configs/velocity.yaml"], versions={"python": "3.11"},
        )  # fmt: skip

    def _search(self, entry: dict[str, Any], configurations: int) -> None:
        path = self.path / entry["journal"]
        path.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=entry["name"],
            storage=JournalStorage(JournalFileBackend(str(path))),
            directions=["maximize", "minimize"] if self._multi else ["maximize"],
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        numbers = []
        for _ in range(configurations):
            trial = study.ask()
            numbers.append(trial.number)
            self._tell(study, trial, entry)
        self._winner(entry)
        for pack, start in enumerate(range(0, configurations, 16)):
            self._pack(entry, pack, numbers[start : start + 16])

    def _tell(self, study: optuna.Study, trial: optuna.Trial, entry: dict[str, Any]) -> None:
        params = suggest(trial)
        reward, cost = self._score(params)
        stopped = trial.number % 4 == 3
        config = {"beta_1": 0.0, "cost_limit": 10.0, "behaviour_reward_quantile": None} | params
        name = f"{entry['name']}-{trial.number:04d}"
        for task in entry["tasks"]:
            self.rows.append(
                make_row(
                    task=task, config=config, configuration=trial.number, study=entry["name"], member_steps=self._steps,
                    state="stopped" if stopped else "complete", normalized_reward=reward, normalized_cost=cost,
                    config_file=f"members/{name}.yaml",
                )
            )  # fmt: skip
        trial.set_user_attr("normalized_cost", cost)
        trial.set_constraint("normalized_cost - 1", cost - 1.0)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [reward, cost] if self._multi else reward)

    def _winner(self, entry: dict[str, Any]) -> None:
        for task in entry["tasks"]:
            judged = [row for row in self.rows if row["task"] == task and row["selection"] == "last" and "study" in row]
            safe = [row for row in judged if row["normalized_cost"] <= 1 and row["state"] == "complete"] or judged
            best = max(safe, key=lambda row: row["normalized_reward"])
            scores = {f"search_{name}": best[name] for name in ("normalized_reward", "normalized_cost")}
            fresh = {"normalized_reward": best["normalized_reward"] - 0.05, "normalized_cost": best["normalized_cost"] - 0.01}
            self.rows.append(best | scores | fresh | {"selection": "search_winner"})
            self.rows.append(make_row(task=task, algorithm="bc", normalized_reward=0.4, normalized_cost=7.5))
            steps = list(range(1, 6))
            self.curves.append(
                {
                    "task": task, "steps": steps, "label": f"configuration {best['configuration']}",
                    "normalized_reward": [[0.1 * step for step in steps]], "normalized_cost": [[2.0 / step for step in steps]],
                }
            )  # fmt: skip

    def _pack(self, entry: dict[str, Any], pack: int, numbers: list[int]) -> None:
        for task in entry["tasks"]:
            folder = self.path / "packs" / f"{entry['name']}-{pack:04d}" / task
            folder.mkdir(parents=True)
            write_json(folder / "result.json", {"members": [{"number": number, "params": {}} for number in numbers]})
            lines = []
            for step in range(1, self._steps + 1):
                noise = self._random.normal(size=len(numbers))
                metrics = {
                    "adaptation/cost_estimate": (20.0 / step + np.array(numbers) / 100 + 0.3 * noise).tolist(),
                    "critic/q_reward": [5.0 + 0.1 * step + 0.1 * x for x in noise],
                    "policy/beta": [0.01] * len(numbers),
                }
                lines.append(log_line(metrics, step * 100, self._steps * 100, task=task, stage=f"pack {pack}"))
            (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def log_line(
    metrics: dict[str, list], step: int, total_steps: int, task: str = "PointCircle", stage: str = "extraction"
) -> str:
    """Return one line of a metrics log."""
    head = {"task": task, "stage": stage, "step": step, "total_steps": total_steps, "seconds": 0.1}
    return json.dumps(head | {"metrics": metrics}) + "\n"


class Parsed(HTMLParser):
    """The content of a page: its tables as cell texts, figures, plain text, links, and the URLs that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.classes: list[list[list[str]]] = []  # CSS classes of the cells
        self.figures: list[dict[str, Any]] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag not in ("meta", "br", "input"):
            self._open.append(tag)
        self.loads += [value or "" for name, value in attrs if name == "src" or (name == "href" and tag != "a")]
        self.links += [value or "" for name, value in attrs if name == "href" and tag == "a"]
        if tag == "table":
            self.tables.append([])
            self.classes.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self.classes[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.classes[-1][-1].append(attributes.get("class") or "")
        self._script = attributes if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            content = json.loads(data) if self._script.get("type") == "application/json" else {}
            if isinstance(content.get("data"), list):
                self.figures.append(content)
        elif not {"style", "script"} & set(self._open):
            self.text += data
            if "td" in self._open or "th" in self._open:
                self.tables[-1][-1][-1] += data

    def titled(self, title: str) -> dict[str, Any]:
        """Return the only figure with that title."""
        [figure] = [figure for figure in self.figures if figure["layout"]["title"]["text"] == title]
        return figure
