"""Losses against hand-made tables, and learned values on probe MDPs with a cost channel (T4)."""

import pytest
import torch

from drcorl_ray.method import critics
from drcorl_ray.method.critics import ensemble_q
from drcorl_ray.method.pretrainer import Pretrainer
from tests.helpers.learners import extract, make_learner, make_spec, pretrain, sampler, small_config, take_step

F64 = {"dtype": torch.float64}


def test_expectile_table():
    difference = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    expected = torch.tensor([0.3 * 4, 0.3, 0.0, 0.7, 0.7 * 4])
    torch.testing.assert_close(critics.expectile_loss(difference, expectile=0.7), expected)


def test_expectile_of_a_coin():
    """The τ-expectile of a fair {0, 1} coin is τ."""
    value = torch.zeros(1, 2, requires_grad=True, **F64)
    optimiser = torch.optim.SGD([value], lr=0.5)
    for _ in range(200):
        shared = value[:, :1].expand(-1, 2)
        loss = critics.value_loss(torch.tensor([[[0.0, 1.0], [5.0, 1.0]]], **F64), shared, expectile=0.7).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert value[0, 0].item() == pytest.approx(0.7, abs=1e-6)


def test_targets_by_hand():
    rewards, terminals = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    values = torch.tensor([[10.0, 10.0]])
    assert critics.reward_target(rewards, terminals, values, discount=0.9).tolist() == [[[10.0, 2.0]]]
    next_q = torch.tensor([[[10.0, 10.0], [-4.0, -4.0]]])
    plain = critics.cost_target(rewards, terminals, next_q, discount=0.5, ceiling=None, terminal_value=0.0)
    assert plain.tolist() == [[[6.0, 2.0], [-1.0, 2.0]]]
    guarded = critics.cost_target(rewards, terminals, next_q, discount=0.5, ceiling=8.0, terminal_value=3.0)
    assert guarded.tolist() == [[[5.0, 3.5], [1.0, 3.5]]]


def test_no_loss_broadcasts_rows_against_rows():
    q = torch.randn(2, 3, 5, requires_grad=True, **F64)
    target = torch.randn(2, 1, 5, **F64)
    loss = critics.q_loss(q, target)
    assert loss.shape == (2,)
    by_hand = [sum(((target[p, 0] - q[p, e]) ** 2).mean() for e in range(3)) for p in range(2)]
    torch.testing.assert_close(loss, torch.stack(by_hand))


def test_upper_confidence_bound_and_episode_cost():
    q = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [3.0, 4.0]]], **F64)
    both = critics.in_use(torch.tensor([2, 2]), 2)
    assert critics.upper_confidence_bound(q, both, k=torch.tensor([0.0, 2.0], **F64)).tolist() == [[2.0, 0.0], [4.0, 6.0]]
    # a policy that costs 0.3 per step has Q_c = 0.3 / (1 − γ) and an episode cost of 0.3 · L
    stationary = torch.full((1, 4), 0.3 / (1 - 0.97), **F64)
    assert float(critics.episodic_cost(stationary, discount=0.97, episode_length=200)[0]) == pytest.approx(60.0)


def test_ensemble_moments_by_hand():
    """Members that use 1, 2, 3 and 4 of the critics 1, 3, 8, 100. Fault: the std over n - 1; the divisor of all four."""
    q = torch.tensor([1.0, 3.0, 8.0, 100.0], **F64).view(1, 4, 1).repeat(4, 1, 1).requires_grad_()
    mean, std = critics.ensemble_moments(q, critics.in_use(torch.tensor([1, 2, 3, 4]), 4))
    assert mean.squeeze(1).tolist() == pytest.approx([1, 2, 4, 28])
    assert std[0] == 0
    assert std.squeeze(1).tolist() == pytest.approx([0, 1, (26 / 3) ** 0.5, (6938 / 4) ** 0.5])
    of_mean, of_std = (torch.autograd.grad(x.sum(), q, retain_graph=True)[0].squeeze(2) for x in (mean, std))
    expected = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4] * 4]
    torch.testing.assert_close(of_mean, torch.tensor(expected, **F64))
    assert of_std[0].tolist() == [0] * 4  # a single critic has no deviation, and its gradient no nan
    torch.testing.assert_close(of_std[1], torch.tensor([-1 / 2, 1 / 2, 0, 0], **F64))


@pytest.mark.parametrize("size", range(1, 9))
def test_ensemble_moments_of_a_whole_ensemble_are_bitwise_plain(size):
    """A member that uses all critics has the same bits as without the choice."""
    q = torch.randn(3, size, 50, generator=torch.Generator().manual_seed(size))
    mean, std = critics.ensemble_moments(q, critics.in_use(torch.full((3,), size), size))
    assert torch.equal(mean, q.mean(1))
    assert torch.equal(std, q.std(1, correction=0))


def probe_table(terminals: list[float], rewards: list[float], costs: list[float]) -> dict[str, torch.Tensor]:
    """Two states on a line: row i goes from state i to state i + 1 (or stays beyond the end); one action."""
    observations = torch.tensor([[-1.0], [1.0]], **F64)
    return {
        "observations": observations,
        "actions": torch.zeros(2, 1, **F64),
        "next_observations": observations[[1, 1]],
        "rewards": torch.tensor(rewards, **F64),
        "costs": torch.tensor(costs, **F64),
        "terminals": torch.tensor(terminals, **F64),
        "reward_rates": torch.zeros(2, **F64),
        "cost_rates": torch.zeros(2, **F64),
    }


def learned_q(table: dict[str, torch.Tensor], *overrides: str) -> tuple[list[float], list[float]]:
    """Q_r and Q_c of the data's own rows after the critic phase of pretraining."""
    config = small_config(
        "pretrain.steps=800", "pretrain.monte_carlo_steps=0", "pretrain.target_step=0.1", "pretrain.discount=0.5",
        "pretrain.cost_discount=0.5", "pretrain.learning_rate=0.008", "pretrain.batch_size=32", *overrides,
    )  # fmt: skip
    pretrainer = Pretrainer(make_spec(1, 1), config.pretrain, [0], dtype=torch.float64)
    sample = sampler(table)
    for step in range(2 * config.pretrain.steps, pretrainer.total_steps):
        take_step(pretrainer, sample, 32, step)
    with torch.no_grad():
        return tuple(  # type: ignore[return-value]
            ensemble_q(part, part.weights, table["observations"][None], table["actions"][None]).mean((0, 1)).tolist()
            for part in (pretrainer.networks["q_reward"], pretrainer.networks["q_cost"])
        )


def test_probe_terminal_cuts_the_bootstrap_and_discounts_one_step():
    q_r, q_c = learned_q(probe_table([0.0, 1.0], [0.0, 2.0], [0.0, 1.0]))
    assert q_r == pytest.approx([1.0, 2.0], abs=0.05)
    assert q_c == pytest.approx([0.5, 1.0], abs=0.05)


def test_probe_timeout_goes_on_bootstrapping():
    """Without a terminal the last state repeats for ever: Q = x / (1 − γ)."""
    q_r, q_c = learned_q(probe_table([0.0, 0.0], [0.0, 2.0], [0.0, 1.0]))
    assert q_r == pytest.approx([2.0, 4.0], abs=0.1)
    assert q_c == pytest.approx([1.0, 2.0], abs=0.1)


def test_monte_carlo_steps_regress_on_the_rates():
    table = probe_table([0.0, 1.0], [0.0, 0.0], [0.0, 0.0]) | {
        "reward_rates": torch.tensor([0.25, 1.0], **F64),
        "cost_rates": torch.tensor([0.1, 0.4], **F64),
    }
    q_r, q_c = learned_q(table, "pretrain.monte_carlo_steps=800")
    assert q_r == pytest.approx([0.5, 2.0], abs=0.05)
    assert q_c == pytest.approx([0.2, 0.8], abs=0.05)


def test_pessimism_raises_the_estimate_on_the_policys_actions_and_only_there():
    """The data's action is 0, the policy's is 0.8 (its bias); one step MDP with cost 0.5."""
    table = probe_table([1.0, 1.0], [0.0, 0.0], [0.5, 0.5])
    spec = make_spec(1, 1)
    config = small_config(
        "extract.critic_steps=500", "extract.batch_size=64", "extract.terminal_cost=false", "pretrain.critic_hidden=[32,32]"
    )
    start = pretrain(config, spec, table, [0], steps=0).result()
    values = {}
    for alpha in (0.0, 0.2):
        learner = make_learner(config, spec, [{"alpha": alpha, "critic_learning_rate": 3e-3}], start)
        actor = learner.networks["actor"]
        actor.weights["layers.2.weight"].detach()[..., 0] = 0.0
        actor.weights["layers.2.bias"].detach()[..., 0] = 1.0986  # tanh⁻¹(0.8)
        extract(learner, table, 0, 500)
        q_cost = learner.networks["q_cost"]
        with torch.no_grad():
            for name, action in (("data", 0.0), ("policy", 0.8)):
                actions = torch.full((1, 2, 1), action, **F64)
                values[alpha, name] = float(ensemble_q(q_cost, q_cost.weights, table["observations"][None], actions).mean())
    assert values[0.0, "data"] == pytest.approx(0.5, abs=0.02)
    assert values[0.2, "data"] == pytest.approx(0.5, abs=0.1)
    assert values[0.2, "policy"] > values[0.0, "policy"] + 0.5
