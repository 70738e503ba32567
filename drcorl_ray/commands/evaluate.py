"""Roll out policies in their task's simulator: tables of reward, cost and length on fresh episodes. No Ray is started.

drcorl evaluate runs/RUN/policies/PointCircle-winner-0007.safetensors evaluation.episodes=50
drcorl evaluate runs/RUN …                            a run directory stands for all its policies
drcorl evaluate runs/* evaluation.protocol=dsrl       also the means of DSRL's 3 limits x 3 seeds x 20 episodes
drcorl evaluate runs/RUN evaluation.output=FOLDER     also FOLDER/evaluation.json, every episode in it
drcorl evaluate runs/RUN evaluation.output=FOLDER evaluation.video=true     also a GIF of an episode per policy
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from drcorl_ray.config import Config
from drcorl_ray.config.sections import EvaluationConfig
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.dsrl_protocol import EPISODES, dsrl_groups, protocol_gaps, protocol_table
from drcorl_ray.evaluation.policy_files import Entry, load_entries, score_policies
from drcorl_ray.evaluation.seeds import EVALUATION_SEEDS
from drcorl_ray.io.console import progress_bars, wide_console
from drcorl_ray.io.files import write_bytes, write_json
from drcorl_ray.io.storage import storage_path
from drcorl_ray.runs.schema import EvaluatedRow


def evaluate(paths: str | Path | Sequence[str | Path], *, episodes: int = 20) -> list[EvaluatedRow]:
    """Roll out policies on fresh episodes, without Ray, and return a row for each.

    paths: policy files, and run directories, which stand for all their policies. episodes: per policy; every policy of a task
    gets the same ones. A row has what results.json says of the policy, and also name, safe, reward_mean, cost_mean,
    normalized_reward, normalized_cost, and per episode seeds, returns, costs and lengths. UserError where a path is not an
    intact policy of a known task.

    >>> import drcorl_ray
    >>> rows = drcorl_ray.evaluate("runs/circle", episodes=2)
    >>> rows[0]["task"], len(rows[0]["costs"])
    ('PointCircle', 2)
    """
    if episodes < 1:
        raise UserError(f"evaluate: episodes={episodes}; at least 1 expected")
    names = [paths] if isinstance(paths, str | Path) else paths
    return _roll_out(load_entries([str(name) for name in names]), episodes)


def _roll_out(entries: Sequence[Entry], episodes: int) -> list[EvaluatedRow]:
    with progress_bars() as bars:
        return score_policies(entries, range(EVALUATION_SEEDS, EVALUATION_SEEDS + episodes), bars)


def evaluate_files(paths: Sequence[str], config: Config) -> None:
    """Roll out policy files and all policies of run directories, and print a row for each.

    evaluation.protocol=dsrl also prints DSRL's means. evaluation.output=FOLDER writes FOLDER/evaluation.json (schema 1): `run`
    and `rows` as in results.json, each row also with name, safe, return_range and its episodes' seeds, returns, costs and
    lengths, and `groups` as returned by `dsrl_groups`. evaluation.video=true writes FOLDER/NAME.gif. UserError on anything
    that the user can fix.
    """
    began, settings = time.monotonic(), config.evaluation
    folder = _output_folder(settings)
    entries = load_entries(paths)
    rows = _roll_out(entries, settings.episodes)
    screen = wide_console()
    screen.print(_table(rows))
    groups = dsrl_groups(rows) if settings.protocol == "dsrl" else []
    if groups:
        screen.print(protocol_table(groups))
    for note in [*_notes(entries), *protocol_gaps(groups)]:
        screen.print(escape(note), highlight=False, soft_wrap=True)
    if folder is None:
        return
    from drcorl_ray.runs.provenance import describe_results  # imports torch, which takes seconds

    write_json(
        folder / "evaluation.json",
        describe_results(rows, time.monotonic() - began, {"protocol": settings.protocol}) | {"groups": groups},
    )
    if settings.video:
        with progress_bars() as bars:
            failures = _record(entries, rows, folder, bars)
        for failure in failures:
            screen.print(escape(failure), highlight=False, soft_wrap=True)


def _output_folder(settings: EvaluationConfig) -> Path | None:
    """Make the folder for JSON and videos and return it, or None; UserError if it cannot be made or settings contradict."""
    if settings.protocol == "dsrl" and settings.episodes != EPISODES:
        raise UserError(f"evaluation.protocol=dsrl has {EPISODES} episodes per policy; remove evaluation.episodes")
    if settings.output is None:
        if settings.video:
            raise UserError("evaluation.video=true needs a folder for its files: add evaluation.output=FOLDER")
        return None
    folder = storage_path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"evaluation.output: cannot make the folder {folder} ({error.strerror})") from error
    return folder


def _table(rows: Sequence[EvaluatedRow]) -> Table:
    table = Table(
        Column("policy", overflow="fold"),
        "task",
        "limit",
        "return",
        "episode\ncost",
        "normalised\nreward",
        "normalised\ncost",
        "safe",
        "length",
    )
    for row in rows:
        reward = row["normalized_reward"]
        table.add_row(
            escape(row["name"]), row["task"], f"{row['cost_limit']:g}", f"{row['reward_mean']:.1f} ± {row['reward_std']:.1f}",
            f"{row['cost_mean']:.1f} ± {row['cost_std']:.1f}", "–" if reward is None else f"{reward:.3f}",
            f"{row['normalized_cost']:.2f}", "yes" if row["safe"] else "no", f"{row['length_mean']:.0f}",
            style="green" if row["safe"] else "red",
        )  # fmt: skip
    return table


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Name the policies whose files do not hold the return range of their dataset."""
    old = [entry for entry in entries if not entry.knows_returns]
    if not old:
        return []
    ranges = {
        entry.task.name: "unknown" if entry.return_range is None else "{:g} to {:g}".format(*entry.return_range)
        for entry in old
    }
    used = ", ".join(f"{task} {extremes}" for task, extremes in ranges.items())
    who = old[0].name if len(old) == 1 else f"{len(old)} policies"
    return [f"{who}: no return range of the dataset in the file; reward normalised by the task's reference ({used})"]


def _record(entries: Sequence[Entry], rows: Sequence[EvaluatedRow], folder: Path, bars: Progress) -> list[str]:
    """Write the GIF of each policy's first episode; a line for each reason why there is none."""
    from drcorl_ray.evaluation.video import record_episode  # matplotlib takes a second to import

    failures: dict[str, None] = {}
    bar = bars.add_task("videos", total=len(entries), note="")
    for entry, row in zip(entries, rows, strict=True):
        try:
            total, content = record_episode(entry.policy, entry.task, row["seeds"][0], row["lengths"][0])
            if total != row["returns"][0]:
                raise UserError(
                    f"{entry.name}: no video, the episode did not come out again ({total} for {row['returns'][0]})"
                )
            write_bytes(folder / f"{entry.name}.gif", content)
        except UserError as error:
            failures[str(error)] = None
        bars.advance(bar)
    return list(failures)
