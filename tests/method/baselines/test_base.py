"""Properties of every baseline: independence of the pack, resuming, joining, workers, and exported policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drcorl_ray.config.algorithms import baselines
from drcorl_ray.config.loading import load_config
from drcorl_ray.errors import UserError
from drcorl_ray.policy.loading import load_policy, load_population
from tests.helpers.baselines import baseline_config, feed, make_population, train
from tests.helpers.learners import make_table

BASELINES = [algorithm.name for algorithm in baselines()]
TABLE = make_table(200, 3, 2)
MEMBERS = [{"seed": 3, "cost_limit": 5.0}, {"seed": 3, "cost_limit": 40.0}, {"seed": 8, "learning_rate": 5e-3}]


@pytest.fixture(params=BASELINES)
def algorithm(request) -> str:
    return request.param


def states_equal(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_member_alone_is_the_member_in_a_pack(algorithm):
    """A member trained alone is bitwise the member of a pack.

    Faults: a draw, a quantile or a softmax over the whole population; another member's limit.
    """
    pack = make_population(algorithm, baseline_config(), MEMBERS)
    train(pack, TABLE, 0, 12)
    for index, member in enumerate(MEMBERS):
        alone = make_population(algorithm, baseline_config(), [member])
        train(alone, TABLE, 0, 12)
        selected = make_population(algorithm, baseline_config(), MEMBERS)
        selected.load_state_dict(pack.state_dict())
        selected.select([index])
        assert states_equal(alone, selected)


def test_a_resumed_training_equals_an_uninterrupted_one(algorithm):
    """Fault: a multiplier or a dual weight is not in the state."""
    whole, half, rest = (make_population(algorithm, baseline_config(), MEMBERS) for _ in range(3))
    train(whole, TABLE, 0, 12)
    train(half, TABLE, 0, 5)
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    train(rest, TABLE, 5, 12)
    assert states_equal(whole, rest)


def test_two_joined_halves_equal_the_whole_population(algorithm):
    whole = make_population(algorithm, baseline_config(), MEMBERS)
    halves = [make_population(algorithm, baseline_config(), part) for part in (MEMBERS[:2], MEMBERS[2:])]
    for learner in (whole, *halves):
        train(learner, TABLE, 0, 4)
    halves[0].join(halves[1])
    assert states_equal(whole, halves[0])
    for learner in (whole, halves[0]):
        train(learner, TABLE, 4, 8)
    assert states_equal(whole, halves[0])


def test_a_member_that_diverges_does_not_change_the_others(algorithm):
    diverged, healthy = (make_population(algorithm, baseline_config(), MEMBERS) for _ in range(2))
    for network in diverged.networks.values():
        network.flat[network.copies] = torch.nan  # of member 1
    for learner in (diverged, healthy):
        train(learner, TABLE, 0, 4)
    assert diverged.finite().tolist() == [True, False, True]
    for learner in (diverged, healthy):
        learner.select([0, 2])
    assert states_equal(diverged, healthy)


@pytest.mark.parametrize("algorithm", [name for name in BASELINES if name not in ("cpq", "coptidice")])
def test_two_workers_with_half_the_batch_equal_one(algorithm):
    """Gradients and statistics are averaged. CPQ's quantile and COptiDICE's softmax are over each worker's rows (left out)."""
    one = make_population(algorithm, baseline_config(), MEMBERS)
    workers = [make_population(algorithm, baseline_config(), MEMBERS, first_row=first) for first in (0, 8)]
    for step in range(6):
        train(one, TABLE, step, step + 1)
        parts = [
            worker.gradients("step", feed(worker, TABLE)(worker.draws(step), 8), worker.draws(step))[0] for worker in workers
        ]
        means = [torch.stack(pair).mean(0) for pair in zip(*parts, strict=True)]
        for worker in workers:
            worker.update("step", means, torch.tensor(step))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(workers[0].state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def test_policies_act_as_the_learner_does(algorithm, tmp_path):
    """The numpy policies, from a population's file and from a member's file, give the learner's actions.

    Faults: the decoder's weights of the latent are used; Φ is not saved.
    """
    fourth = {"bcq_lag.perturbation": 0.6} if algorithm == "bcq_lag" else {}
    learner = make_population(algorithm, baseline_config(), [*MEMBERS, fourth], dtype=torch.float32)
    train(learner, {name: column.float() for name, column in TABLE.items()}, 0, 6)
    states = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(2))
    expected = learner.actions(states).detach().numpy()
    assert np.ptp(expected) > 0.05
    policies = learner.policies()
    np.testing.assert_allclose(policies.act(states.numpy()), expected, atol=1e-5)
    policies.save_population(tmp_path / "population.safetensors", {})
    loaded, _ = load_population(tmp_path / "population.safetensors")
    assert loaded.act(states.numpy()).tobytes() == policies.act(states.numpy()).tobytes()
    policies.save(tmp_path / "policy.safetensors", 3, {})
    alone = load_policy(tmp_path / "policy.safetensors").population
    np.testing.assert_allclose(alone.act(states[3:].numpy())[0], expected[3], atol=1e-5)


def test_settings_that_a_baseline_does_not_support_are_refused(algorithm):
    with pytest.raises(UserError, match=f"{algorithm} learns offline alone"):
        load_config([f"run.algorithm={algorithm}", "evaluation.mode=online"])
    if algorithm in ("bc", "bc_safe", "bc_reward", "bc_frontier", "cdt"):
        with pytest.raises(UserError, match=r"remove data\.window_rows"):
            load_config([f"run.algorithm={algorithm}", "data.window_rows=1000"])


def test_heads_that_do_not_divide_the_width_are_refused():
    """Fault: torch raises an error in a Ray worker."""
    with pytest.raises(UserError, match="embedding 20 is not divisible by heads 8"):
        load_config(["run.algorithm=cdt", "baseline.cdt.embedding=20"])
