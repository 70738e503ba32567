"""A run's stages without Ray: reading a store, building, resuming from files, and pretrained weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drcorl_ray.config import Config, PretrainConfig
from drcorl_ray.data.dsrl import make_dataset
from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.data.store import convert, read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.errors import UserError
from drcorl_ray.method.hyperparameters import behaviour_condition
from drcorl_ray.method.random import Stream
from drcorl_ray.method.replay import Replay
from drcorl_ray.tasks.registry import get_task
from drcorl_ray.training.build import Placement, Stage, build_pretrainer, build_runner
from drcorl_ray.training.checkpoint import load_state, save_state
from drcorl_ray.training.pretrained import Pretrained, load_pretrained, pretrain_seeds, pretrained_path, save_pretrained
from tests.helpers.columns import SOURCE, make_columns
from tests.helpers.learners import make_spec, small_config
from tests.helpers.tiny import start_learner


def open_made(folder: Path, columns: dict[str, np.ndarray] | None = None, **kw: Any) -> TaskData:
    """Write made-up columns to a store and open it as a PointCircle dataset."""
    dataset = make_dataset(make_columns(200) if columns is None else columns)
    convert(dataset, folder, **({"task": "PointCircle", "source": SOURCE} | kw))
    return TaskData.open(folder)


def full_replay(data: TaskData) -> Replay:
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    return replay


def fresh(config: Config, data: TaskData, seeds: list[int]) -> Pretrained:
    """Return pretrained weights after no steps."""
    return Pretrained(tuple(seeds), build_pretrainer(config.pretrain, data, seeds, Placement()).result())


# ---- the condition of the behaviour model ------------------------------------------------------------------------------

SPEC = make_spec(3, 2, reward_rate_mean=2.0, reward_rate_std=4.0)
EPISODES = EpisodeTotals(
    returns=np.arange(20.0), costs=np.array([0.0] * 5 + [10.0] * 10 + [11.0] * 5), lengths=np.array([1, 2] * 10)
)
RATES = np.arange(30, dtype=np.float32)


@pytest.mark.parametrize(
    ("limit", "quantile", "rate"),
    [
        (10.0, 0.0, 19.0),  # episodes 0-14 are within; the best tenth of them: 13 and 14, whose rows are 19-20 and 21
        (10.0, 0.5, 20.0),
        (10.0, 1.0, 21.0),
        (5.0, 1.0, 6.0),  # episodes 0-4: 4 alone, row 6
        (11.0, 0.0, 27.0),  # all: 18 and 19, rows 27 and 28-29
        (0.0, 0.5, 6.0),
    ],
)
def test_the_conditions_rate_comes_from_the_best_episodes_within_the_limit(limit, quantile, rate):
    """Fault: < instead of ≤ at the limit, the worst episodes, or the rows of other episodes."""
    condition = behaviour_condition(SPEC, quantile, limit, EPISODES, RATES)
    assert condition.dtype == np.float32
    assert condition.tolist() == [1.0, 0.0, 1.0, (rate - 2.0) / 4.0]


def test_an_unconditioned_members_condition_is_zero():
    assert behaviour_condition(SPEC, None, 10.0, EPISODES, RATES).tolist() == [0.0] * 4


def test_without_an_episode_within_the_limit_the_tenth_with_the_lowest_costs_is_used():
    """Costs 20 … 1: the 0.1-quantile is 2.9, so episodes 18 and 19, of which 18 has the higher return (row 27)."""
    costly = dataclasses.replace(EPISODES, costs=np.arange(20.0, 0.0, -1.0), returns=np.arange(20.0, 0.0, -1.0))
    assert behaviour_condition(SPEC, 0.5, 0.0, costly, RATES).tolist() == [1.0, 0.0, 1.0, (27.0 - 2.0) / 4.0]


# ---- opening a store ---------------------------------------------------------------------------------------------------


def test_an_opened_store_has_its_statistics(tmp_path):
    columns = make_columns(6)
    columns["rewards"] = np.array([1, 2, 3, 4, 5, 6], np.float32)
    columns["costs"] = np.array([0, 1, 0, 0, 2, 1], np.float32)
    columns["terminals"] = np.zeros(6, bool)
    columns["timeouts"] = np.array([0, 1, 0, 0, 0, 1], bool)
    data = open_made(tmp_path / "store", columns)
    spec, observations = data.spec, columns["observations"].astype(np.float64)
    assert (spec.observation_size, spec.action_size, spec.episode_length) == (3, 2, 200)
    assert (spec.return_min, spec.return_max, spec.max_cost) == (3.0, 18.0, 2.0)
    assert spec.mean_cost == pytest.approx(4 / 6)
    np.testing.assert_allclose(spec.observation_mean, observations.mean(0))
    np.testing.assert_allclose(spec.observation_std, observations.std(0) + 1e-3)
    assert data.reward_rates[1] == 2.0  # the last row of a truncated episode
    assert data.reward_rates[0] == pytest.approx((1 + 0.99 * 2) / 1.99)
    assert spec.reward_rate_mean == pytest.approx(data.reward_rates.mean())


def test_equal_returns_cannot_be_normalised(tmp_path):
    columns = make_columns(20) | {"rewards": np.zeros(20, np.float32)}
    with pytest.raises(UserError, match=r"every episode has the return 0\.0"):
        open_made(tmp_path / "store", columns)


# ---- building stages ---------------------------------------------------------------------------------------------------


def test_two_workers_draw_the_two_halves_of_one_workers_minibatch(tmp_path):
    """Fault: compute first_row from the worker's rank only, or from the other stage's batch size."""
    data, config = open_made(tmp_path / "store"), small_config("extract.batch_size=24", "scaling.workers=2")
    members = config.members()
    pretrained = fresh(config, data, [0])
    replay = full_replay(data)
    for batch_size, build in (
        (16, lambda placement: build_pretrainer(config.pretrain, data, [0], placement)),
        (
            24,
            lambda placement: start_learner(config, data, members, pretrained, placement),
        ),
    ):
        halves = [Placement(rank=rank, workers=2) for rank in (0, 1)]
        assert [placement.rows(batch_size) for placement in halves] == [batch_size // 2] * 2
        stages = [build(placement) for placement in halves]
        assert [stage.first_row for stage in stages] == [0, batch_size // 2]
        parts = [replay.sample(stage.draws(3), batch_size // 2) for stage in stages]
        whole = replay.sample(build(Placement()).draws(3), batch_size)
        for name, column in vars(whole).items():
            assert torch.equal(torch.cat([getattr(part, name) for part in parts], dim=1), column)


def test_members_start_from_their_own_seeds_pretraining(tmp_path):
    """Fault: number the sources by member instead of by seed."""
    data = open_made(tmp_path / "store")
    config = small_config("population=[{seed: 5}, {seed: 3}, {seed: 5, k: 0.0}]")
    members = config.members()
    assert pretrain_seeds(members) == [3, 5]
    pretrained = fresh(config, data, [3, 5])
    learner = start_learner(config, data, members, pretrained, Placement())
    ensemble = config.pretrain.cost_ensemble
    by_seed = dict(zip((3, 5), pretrained.tensors["q_cost.flat"].split(ensemble), strict=True))
    for seed, flat in zip((5, 3, 5), learner.networks["q_cost"].flat.split(ensemble), strict=True):
        assert torch.equal(flat, by_seed[seed])
    assert learner.draws(0).seeds.tolist() == [5, 3, 5]


@pytest.mark.parametrize("states", ["nearest", "all"])
def test_costs_are_estimated_on_the_standardised_states_of_the_data(tmp_path, states):
    """With "all" every row of this small store is used. Fault: use raw observations."""
    data = open_made(tmp_path / "store", make_columns(200, seed=3))
    config = small_config("population=[{cost_limit: 20}, {cost_limit: 200}]", f"extract.estimate_states={states}")
    learner = start_learner(config, data, config.members(), fresh(config, data, [0]), Placement())
    chosen = learner.estimation_states.observations[learner.estimated_on].numpy()
    raw = read_store(data.store, ("observations",))["observations"].astype(np.float64)
    standardised = (raw - np.array(data.spec.observation_mean)) / np.array(data.spec.observation_std)
    distance = np.abs(chosen[0][:, None].astype(np.float64) - standardised[None]).max(-1)
    assert distance.min(1).max() < 1e-5
    assert states == "nearest" or distance.min(0).max() < 1e-5


# ---- saving and resuming -----------------------------------------------------------------------------------------------


def bits(stage: Stage) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in stage.state_dict().items()}


@pytest.mark.parametrize("stop", [1, 4, 5, 9])
def test_pretraining_resumes_from_a_file_bitwise(tmp_path, stop):
    """It stops in each phase and between phases. Fault: leave an Adam moment or a target network out of state_dict."""
    data, config = open_made(tmp_path / "store"), small_config()
    replay, rows = full_replay(data), config.pretrain.batch_size
    straight = build_pretrainer(config.pretrain, data, [1, 2], Placement())
    total = straight.total_steps
    build_runner(straight, replay, rows, Placement(), config.scaling).advance(0, stop)
    save_state(tmp_path / "state.safetensors", straight, stop)
    build_runner(straight, replay, rows, Placement(), config.scaling).advance(stop, total)
    resumed = build_pretrainer(config.pretrain, data, [1, 2], Placement())
    assert load_state(tmp_path / "state.safetensors", resumed) == stop
    build_runner(resumed, replay, rows, Placement(), config.scaling).advance(stop, total)
    assert bits(resumed) == bits(straight)


@pytest.mark.parametrize("stop", [1, 2, 6])
def test_extraction_resumes_from_a_file_bitwise(tmp_path, stop):
    """It stops before, at and after the first policy step. All adaptation rules: the multiplier and 0-d counts matter."""
    data = open_made(tmp_path / "store")
    rules = "{adaptation: lagrangian, cost_limit: 0, k: 9}, {adaptation: crpo, policy_class: gaussian}, {cost_limit: 3}"
    config = small_config(f"population=[{rules}]", "extract.update_diffusion=true")
    members, replay, rows = config.members(), full_replay(data), config.extract.batch_size
    pretrained = fresh(config, data, [0])
    straight = start_learner(config, data, members, pretrained, Placement())
    build_runner(straight, replay, rows, Placement(), config.scaling).advance(0, stop)
    save_state(tmp_path / "state.safetensors", straight, stop)
    metrics = build_runner(straight, replay, rows, Placement(), config.scaling).advance(stop, straight.total_steps)
    assert straight.multiplier.value[0] > 0.1
    resumed = start_learner(config, data, members, pretrained, Placement())
    assert load_state(tmp_path / "state.safetensors", resumed) == stop
    again = build_runner(resumed, replay, rows, Placement(), config.scaling).advance(stop, resumed.total_steps)
    assert bits(resumed) == bits(straight)
    assert {name: value.tobytes() for name, value in again.items()} == {
        name: value.tobytes() for name, value in metrics.items()
    }


def test_a_users_own_task_is_opened_in_a_process_that_does_not_register_it(tmp_path):
    """Fault: look up its name in that process."""
    own = dataclasses.replace(get_task("PointCircle"), name="SomebodysTask")
    store = tmp_path / "store"
    convert(make_dataset(make_columns(200)), store, task="SomebodysTask", source=SOURCE)
    with pytest.raises(UserError, match="unknown task"):
        TaskData.open(store)
    assert TaskData.open(store, own).task == own


# ---- pretrained weights ------------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Return a different valid value of a pretraining setting."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return [*value, 8] if isinstance(value, list) else {"regression": "score"}[value]


def test_the_name_of_pretrained_weights_depends_on_every_input(tmp_path):
    """Fault: leave a key, the seed or the shards out of the identity."""
    data, config = open_made(tmp_path / "a"), small_config().pretrain
    root = tmp_path / "root"
    paths = {"as it is": pretrained_path(root, data, config, 0)}
    for key in PretrainConfig.model_fields:
        changed = config.model_copy(update={key: other(getattr(config, key))})
        assert changed != config
        paths[key] = pretrained_path(root, data, changed, 0)
    paths["seed"] = pretrained_path(root, data, config, 1)
    paths["precision"] = pretrained_path(root, data, config, 0, "bf16")
    columns = make_columns(200)
    columns["actions"][77, 1] += np.float32(2**-20)
    paths["store"] = pretrained_path(root, open_made(tmp_path / "b", columns), config, 0)
    columns = make_columns(200, seed=1)
    paths["other store"] = pretrained_path(root, open_made(tmp_path / "c", columns), config, 0)
    assert len(set(paths.values())) == len(paths)
    assert {path.parent for path in paths.values()} == {root / "pretrained"}


def test_the_name_of_pretrained_weights_depends_on_nothing_else(tmp_path):
    data, config = open_made(tmp_path / "a"), small_config()
    path = pretrained_path(tmp_path, data, config.pretrain, 0)
    renamed = SOURCE.model_copy(update={"file_name": "renamed.hdf5"})
    assert pretrained_path(tmp_path, open_made(tmp_path / "elsewhere", source=renamed), config.pretrain, 0) == path
    others = small_config("extract.steps=5", "member.k=0", "run.seed=9", "scaling.report_steps=7", "search.winners=3")
    assert pretrained_path(tmp_path, data, others.pretrain, 0) == path


def test_loaded_pretrained_weights_equal_the_pretrainers_result(tmp_path):
    """Fault: split an ensemble's rows between the seeds at the wrong row."""
    data, config = open_made(tmp_path / "store"), small_config()
    pretrainer = build_pretrainer(config.pretrain, data, [4, 5], Placement())
    build_runner(pretrainer, full_replay(data), 16, Placement(), config.scaling).advance(0, pretrainer.total_steps)
    paths = {seed: pretrained_path(tmp_path, data, config.pretrain, seed) for seed in (4, 5)}
    save_pretrained(paths, pretrainer)
    loaded, result = load_pretrained(list(paths.values())), pretrainer.result()
    assert loaded.seeds == (4, 5)
    assert loaded.tensors.keys() == result.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in result.items())


def test_pretrained_weights_do_not_depend_on_the_other_seeds(tmp_path):
    """Fault: a draw that depends on the seed's index in the population."""
    data, config = open_made(tmp_path / "store"), small_config("pretrain.policy=score", "pretrain.noise_dropout=0.1")
    tensors = []
    for name, seeds in (("pack", [4, 5]), ("alone", [5])):
        pretrainer = build_pretrainer(config.pretrain, data, seeds, Placement())
        build_runner(pretrainer, full_replay(data), 16, Placement(), config.scaling).advance(0, pretrainer.total_steps)
        save_pretrained({5: tmp_path / name}, pretrainer)
        tensors.append(load_pretrained([tmp_path / name]).tensors)
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_damaged_pretrained_weights_are_refused(tmp_path):
    data, config = open_made(tmp_path / "store"), small_config()
    path = tmp_path / "pretrained.safetensors"
    save_pretrained({0: path}, build_pretrainer(config.pretrain, data, [0], Placement()))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-1000] ^= 1
    for damaged in (bytes(flipped), content[:-1], content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            load_pretrained([path])
        assert len(str(caught.value).splitlines()) == 1
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        load_pretrained([tmp_path / "absent.safetensors"])


def test_random_streams_are_distinct():
    """The estimation states are drawn at step 0 of pretraining's counters, so their stream must be their own."""
    assert len({int(stream) for stream in Stream}) == len(Stream)
