"""What holds for every baseline: packs change nothing, nor do restarts, and a policy leaves as it acts."""

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
    """Faults: a draw, a quantile or a softmax over the population; a limit of a neighbour."""
    pack = make_population(algorithm, baseline_config(), MEMBERS)
    train(pack, TABLE, 0, 12)
    for place, member in enumerate(MEMBERS):
        alone = make_population(algorithm, baseline_config(), [member])
        train(alone, TABLE, 0, 12)
        chosen = make_population(algorithm, baseline_config(), MEMBERS)
        chosen.load_state_dict(pack.state_dict())
        chosen.select([place])
        assert states_equal(alone, chosen)


def test_a_resumed_training_ends_as_one_that_was_not(algorithm):
    """Fault: a multiplier or a dual weight that is not in the state."""
    whole, half, rest = (make_population(algorithm, baseline_config(), MEMBERS) for _ in range(3))
    train(whole, TABLE, 0, 12)
    train(half, TABLE, 0, 5)
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    train(rest, TABLE, 5, 12)
    assert states_equal(whole, rest)


def test_halves_join_to_the_whole(algorithm):
    whole = make_population(algorithm, baseline_config(), MEMBERS)
    halves = [make_population(algorithm, baseline_config(), part) for part in (MEMBERS[:2], MEMBERS[2:])]
    for learner in (whole, *halves):
        train(learner, TABLE, 0, 4)
    halves[0].join(halves[1])
    assert states_equal(whole, halves[0])
    for learner in (whole, halves[0]):
        train(learner, TABLE, 4, 8)
    assert states_equal(whole, halves[0])


def test_a_member_that_diverges_leaves_the_others_alone(algorithm):
    hurt, sound = (make_population(algorithm, baseline_config(), MEMBERS) for _ in range(2))
    for part in hurt.trainables.values():
        part.flat[part.copies] = torch.nan  # of member 1
    for learner in (hurt, sound):
        train(learner, TABLE, 0, 4)
    assert hurt.finite().tolist() == [True, False, True]
    for learner in (hurt, sound):
        learner.select([0, 2])
    assert states_equal(hurt, sound)


@pytest.mark.parametrize("algorithm", [name for name in BASELINES if name not in ("cpq", "coptidice")])
def test_two_workers_with_half_the_batch_equal_one(algorithm):
    """What is averaged are gradients and figures. CPQ's quantile and COptiDICE's softmax are over a worker's own part."""
    one = make_population(algorithm, baseline_config(), MEMBERS)
    workers = [make_population(algorithm, baseline_config(), MEMBERS, first_row=first) for first in (0, 8)]
    for step in range(6):
        train(one, TABLE, step, step + 1)
        found = [
            worker.gradients("step", feed(worker, TABLE)(worker.draws(step), 8), worker.draws(step))[0] for worker in workers
        ]
        means = [torch.stack(pair).mean(0) for pair in zip(*found, strict=True)]
        for worker in workers:
            worker.update("step", means, torch.tensor(step))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(workers[0].state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def test_policies_act_as_the_learner_does(algorithm, tmp_path):
    """In numpy, from the population's file and from a member's own. Faults: idle rows of a decoder that act; a lost reach."""
    own = {"bcq_lag.perturbation": 0.6} if algorithm == "bcq_lag" else {}
    learner = make_population(algorithm, baseline_config(), [*MEMBERS, own], dtype=torch.float32)
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


def test_settings_that_a_baseline_has_no_use_for_are_refused(algorithm):
    with pytest.raises(UserError, match=f"{algorithm} learns offline alone"):
        load_config([f"run.algorithm={algorithm}", "evaluation.mode=online"])
    if algorithm in ("bc", "bc_safe", "bc_reward", "bc_frontier", "cdt"):
        with pytest.raises(UserError, match=r"remove data\.window_rows"):
            load_config([f"run.algorithm={algorithm}", "data.window_rows=1000"])


def test_heads_that_do_not_share_the_width_are_refused():
    """Fault: an error of torch in a worker of Ray."""
    with pytest.raises(UserError, match="embedding 20 is not divisible by heads 8"):
        load_config(["run.algorithm=cdt", "baseline.cdt.embedding=20"])
