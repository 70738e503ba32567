"""Types for the content of results.json (schema 1), and the function that computes the scores of a row.

A run's results are one row per evaluated policy (`Row`) and a description of the run (`RunDescription`). `drcorl evaluate`
writes rows of the same kind (`EvaluatedRow`) to evaluation.json. Costs and returns are undiscounted sums over an episode.
Shapes: K points along a training, P policies of one curve or calibration, E episodes.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from drcorl_ray.tasks.scores import normalized_cost, normalized_reward

Selection = Literal["last", "online_best", "search_winner"]
"""How a policy was selected.

last: the policy at the end of training. online_best: the best one along its training by online evaluations (in a search: by
its curve). search_winner: among the best configurations of a search, evaluated again on fresh episodes.
"""


class RowDetails(TypedDict, total=False):
    """Columns that only some rows have."""

    baseline: bool
    """True if the row is a baseline's (early releases do not write it)."""

    # An online or hybrid member.
    online_staleness: int
    """Policy steps by which its cost estimates may lag behind."""
    online_budget: int
    """Online episodes that its training may spend."""
    appended_transitions: int
    """Transitions that it learned from in addition to the dataset."""
    appended_budget: int
    """Largest number of transitions that it may append."""

    # A configuration of a search.
    study: str
    """Name of its Optuna study."""
    configuration: int
    """Number of its Optuna trial."""
    state: Literal["complete", "stopped"]
    """stopped: a rung ended its training early."""
    member_steps: int
    """Extraction steps spent on it."""
    config_file: str
    """Its complete settings as YAML; a path relative to the run."""
    search_normalized_reward: float
    """A winner's normalised reward on the search's episodes, by which it was selected."""
    search_normalized_cost: float
    """A winner's normalised cost on the search's episodes."""


class _Identity(RowDetails):
    """Columns that identify a policy and its training."""

    task: str
    algorithm: str
    member: int
    """Index in the population of a training run; number of the configuration in a search."""
    config: dict[str, Any]
    """Hyper-parameters of the member."""
    seed: int
    """Seed of its training."""
    cost_limit: float
    """Limit of the undiscounted episode cost."""
    dataset_sha256: str
    """Checksum of the dataset file that it was trained on."""
    evaluation_mode: str
    """Source of the cost estimates in training: offline, online or hybrid."""
    selection: Selection
    online_episodes: int
    """Episodes that its training and its selection spent in the environment."""
    policy: str
    """Policy file; in results.json a path relative to the run."""


class _EpisodeScores(TypedDict):
    """Means and standard deviations (n) over the episodes of one evaluation."""

    episodes: int
    """Number of episodes of this evaluation."""
    reward_mean: float
    """Mean return."""
    reward_std: float
    cost_mean: float
    """Mean episode cost."""
    cost_std: float
    length_mean: float
    """Mean number of steps."""
    normalized_cost: float
    """Mean episode cost over (cost limit + 0.1), Eq. 26; safe means ≤ 1."""


class Scores(_EpisodeScores):
    """Result of `row_scores`."""

    normalized_reward: float | None
    """Mean return between the extreme episode returns of the dataset, 0 to 1 (Eq. 26); None if they are not known."""


class Row(_Identity, _EpisodeScores):
    """One evaluated policy of a run."""

    normalized_reward: float
    """Mean return between the extreme episode returns of the dataset, 0 to 1 (Eq. 26)."""


class EvaluatedRow(_Identity, Scores):
    """One policy that `drcorl evaluate` rolled out; the columns of its run's row, with the new scores."""

    name: str
    """Short name, different for each policy of the evaluation."""
    safe: bool
    """Whether normalized_cost ≤ 1."""
    return_range: tuple[float, float] | None
    """Extreme episode returns of the dataset; None if they are not known."""
    seeds: list[int]
    """Seed of each episode, [E]; the three below are [E] too."""
    returns: list[float]
    costs: list[float]
    lengths: list[int]


class Curve(TypedDict):
    """True scores of P policies along their training."""

    task: str
    steps: list[int]
    """Extraction steps, [K]."""
    normalized_reward: list[list[float | None]]
    """[P][K]; None if the policy was not finite."""
    normalized_cost: list[list[float | None]]
    """[P][K]"""
    numbers: NotRequired[list[int]]
    """Members, or configurations of a search, [P] (early releases do not write them)."""
    label: NotRequired[str]
    """Study and number of a search's winner."""


class Calibration(TypedDict):
    """Offline estimates of the episode cost of P policies along their training, beside the true cost."""

    task: str
    steps: list[int]
    """Extraction steps, [K]."""
    members: list[str]
    """Names of the policies, [P]."""
    modes: NotRequired[list[str]]
    """Their evaluation modes, [P] (early releases do not write them)."""
    cost_limits: list[float]
    """[P]"""
    member_k: list[float]
    """Standard deviations k that each member's own estimate adds to the mean, [P]."""
    k: list[float]
    """Other values of k that are compared."""
    estimates: list[list[list[float | None]]]
    """Mean + k standard deviations of the cost critics, [P][k][K]; None if the policy was not finite."""
    own_estimates: list[list[float | None]]
    """The same with each member's own k, [P][K]."""
    true_cost: list[list[float | None]]
    """Mean episode cost of rollouts, [P][K]."""
    true_cost_se: list[list[float | None]]
    """Its standard error, [P][K]."""
    episodes: int
    """Episodes behind each true cost."""
    label: NotRequired[str]
    """Study and number of a search's winner."""


class Reference(TypedDict):
    """Best episode of a task's data within a cost limit."""

    task: str
    cost_limit: float
    normalized_reward: float


class DataEpisodes(TypedDict):
    """Episodes of a task's data, at most 1,000."""

    task: str
    normalized_reward: list[float]
    """[E]"""
    cost: list[float]
    """Undiscounted, [E]."""


class InferenceSeconds(TypedDict):
    """Measured speed of one policy, or of sampling from a diffusion model."""

    name: str
    """The algorithm, or the diffusion model with its number of steps."""
    algorithm: str | None
    """The algorithm of the policy's row; None for a diffusion model."""
    policy: str | None
    """Policy file, a path relative to the run; None for a diffusion model."""
    seconds: float
    """Seconds for 1,000 actions, one state at a time, on one thread of the machine that finished the run."""


class SearchCost(TypedDict, total=False):
    """Resources that a search used. Times are seconds."""

    wall_s: float
    """Wall time of this session; its parts are the four below."""
    pretraining_s: float
    packs_s: float
    """Wall time in which at least one pack was trained or evaluated."""
    evaluation_s: float
    overhead_s: float
    """Wall time in which nothing was pretrained, trained or evaluated."""
    slots: int
    """Largest number of packs that ran at the same time."""
    device: str
    """CPU or GPU."""
    pretraining_device_s: float
    """CPU or GPU seconds booked for pretraining."""
    packs_device_s: float
    """CPU or GPU seconds booked for packs, each since its last start."""
    member_steps: int
    """Extraction steps, summed over members."""
    online_episodes: int
    packs: int
    configurations: int
    stopped: int
    """Configurations that a rung stopped."""


class StudyEntry(TypedDict):
    """One Optuna study of a search."""

    name: str
    tasks: list[str]
    """Tasks on which its configurations are evaluated."""
    journal: str
    """Optuna's journal file, a path relative to the run."""


class Search(TypedDict):
    """Settings of a search, its studies and the resources that it used."""

    objective: str
    """`shared`: one study for all tasks; `per_task`: one study a task."""
    sampler: str
    multi_objective: bool
    studies: list[StudyEntry]
    cost: SearchCost


class Machine(TypedDict):
    """Machine that finished the run."""

    cpus: int | None
    processor: str
    gpus: list[str]


class RunDescription(TypedDict):
    """The entry `run` of results.json."""

    commit: str | None
    versions: dict[str, str]
    machine: Machine
    wall_s: float
    argv: list[str]
    curves: NotRequired[list[Curve]]
    calibration: NotRequired[list[Calibration]]
    references: NotRequired[list[Reference]]
    data_episodes: NotRequired[list[DataEpisodes]]
    """One entry a task."""
    search: NotRequired[Search]
    """Absent in a training run."""
    inference_times: NotRequired[list[InferenceSeconds]]
    """Empty without a baseline other than a clone; absent in results of early releases."""
    protocol: NotRequired[str]
    """The setting evaluation.protocol; only in evaluation.json."""


class Results(TypedDict):
    """The content of results.json."""

    schema: int
    run: RunDescription
    rows: list[Row]


def row_scores(
    returns: np.ndarray,
    costs: np.ndarray,
    lengths: np.ndarray,
    cost_limit: float,
    return_range: tuple[float, float] | None,
) -> Scores:
    """Return the scores of one policy from its episodes: returns, costs, lengths [E].

    return_range: extreme episode returns of the dataset; None if they are not known.
    """
    return {
        "episodes": len(returns),
        "reward_mean": float(returns.mean()),
        "reward_std": float(returns.std()),
        "cost_mean": float(costs.mean()),
        "cost_std": float(costs.std()),
        "length_mean": float(lengths.mean()),
        "normalized_reward": float(normalized_reward(returns, *return_range).mean()) if return_range else None,
        "normalized_cost": float(normalized_cost(costs, cost_limit).mean()),
    }
