"""The tabular check against closed forms, value iteration, autograd and the learner's own Eq. 12."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drcorl_ray.method.adaptation import manipulate
from drcorl_ray.theory.bound import cost_bound, near
from drcorl_ray.theory.cmdp import CMDP, random_cmdp, random_policy
from drcorl_ray.theory.npg import adapted, natural_gradient, safe_adaptation, softmax
from drcorl_ray.theory.study import binding_budget, bounds, draw, rates, table


def test_values_are_the_discounted_sums():
    cmdp, policy = random_cmdp(3), random_policy(np.random.default_rng(0), 8, 4)
    state, total = cmdp.start, 0.0
    for step in range(300):
        total += cmdp.discount**step * float((state[:, None] * policy * cmdp.costs).sum())
        state = np.einsum("s,sa,san->n", state, policy, cmdp.transitions)
    assert cmdp.value(policy, cmdp.costs) == pytest.approx(total, abs=1e-12)


def test_the_optimum_without_a_budget_is_value_iterations():
    cmdp = random_cmdp(1)
    values = np.zeros(8)
    for _ in range(400):
        values = (cmdp.rewards + cmdp.discount * cmdp.transitions @ values).max(1)
    best, policy = cmdp.optimum()
    assert best == pytest.approx(float(cmdp.start @ values), abs=1e-9)
    assert cmdp.value(policy, cmdp.rewards) == pytest.approx(best, abs=1e-9)


def test_the_optimum_of_a_bandit_mixes_its_arms():
    """Arms (reward, cost) = (1, 1) and (0, 0), γ = ½: the optimum for a budget b ≤ 2 takes arm 1 with probability b/2."""
    cmdp = CMDP(np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), np.ones(1), 0.5)
    best, policy = cmdp.optimum(0.6)
    assert best == pytest.approx(0.6)
    np.testing.assert_allclose(policy, [[0.3, 0.7]], atol=1e-9)
    with pytest.raises(ValueError, match="no policy costs at most -1"):
        cmdp.optimum(-1.0)


def test_an_optimal_policy_keeps_its_budget_and_earns_what_it_says():
    cmdp = random_cmdp(5)
    budget = binding_budget(cmdp)
    best, policy = cmdp.optimum(budget)
    assert cmdp.value(policy, cmdp.costs) == pytest.approx(budget, abs=1e-9)
    assert cmdp.value(policy, cmdp.rewards) == pytest.approx(best, abs=1e-9)
    assert best < cmdp.optimum()[0] - 0.05


def test_the_natural_gradient_is_the_fishers_inverse_times_the_gradient():
    """By autograd and a pseudo-inverse, up to a constant in each state, which does not change a softmax."""
    cmdp = random_cmdp(2, states=4, actions=3)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    transitions, rewards, start = (torch.from_numpy(x) for x in (cmdp.transitions, cmdp.rewards, cmdp.start))
    policy = logits.softmax(1)
    chain = torch.einsum("sa,san->sn", policy, transitions)
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) - cmdp.discount * chain)
    [gradient] = torch.autograd.grad(start @ inverse @ (policy * rewards).sum(1), logits)
    visits = ((1 - cmdp.discount) * start @ inverse).detach().numpy()
    pi = policy.detach().numpy()
    fisher = np.zeros((12, 12))
    for s in range(4):
        for a in range(3):
            score = np.zeros((4, 3))
            score[s] = -pi[s]
            score[s, a] += 1.0
            fisher += visits[s] * pi[s, a] * np.outer(score.ravel(), score.ravel())
    expected = (np.linalg.pinv(fisher) @ gradient.numpy().ravel()).reshape(4, 3)
    found = natural_gradient(cmdp.q_values(pi, cmdp.rewards), pi, cmdp)
    np.testing.assert_allclose(found - found.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-8)


def test_the_band_follows_the_learners_own_gradient_manipulation():
    """The weight is the reward's share of the direction, by Eq. 12 written out. Fault: Eq. 46's weight without the 2."""
    generator = np.random.default_rng(4)
    seen = set()
    for _ in range(20):
        reward, safety = generator.standard_normal((2, 5, 3))
        region, weight, direction = adapted(reward, safety, 0.1, 0.2)
        flat = [torch.from_numpy(g.reshape(1, -1)) for g in (reward, safety)]
        np.testing.assert_allclose(direction.ravel(), manipulate(*flat)[0].numpy(), atol=1e-12)
        [[share, _]] = [np.linalg.lstsq(np.stack([reward.ravel(), safety.ravel()], 1), direction.ravel(), rcond=None)[0]]
        assert weight == pytest.approx(share)
        seen.add(region)
    assert seen == {"align", "conflict"}
    assert adapted(reward, safety, 0.0, 0.2)[:2] == ("safe", 1.0)
    region, weight, direction = adapted(reward, safety, 0.3, 0.2)
    assert (region, weight) == ("unsafe", 0.0)
    assert direction is safety


def test_the_weighted_policy_comes_to_the_optimum_as_the_theorem_says():
    """The gap falls about as 1/√T, the violation stays within the slack. Faults: unsafe iterations counted; no cost steps."""
    found = rates(problems=2, iterations=(30, 300, 3000), noises=(0.0,))
    assert -0.9 < found.gap_slope < -0.35
    assert found.gap[0, -1] < 0.03
    assert (found.violation[0] <= 0.5 / np.sqrt(found.iterations)).all()


def test_a_critics_error_leaves_a_floor():
    """Ten times the iterations do not help; ten times the error costs more. Fault: an error that averages out over time."""
    found = rates(problems=2, iterations=(300, 3000), noises=(0.0, 0.05, 0.5))
    total = found.gap.clip(min=0.0) + found.violation.clip(min=0.0)
    assert total[0, 1] < 0.5 * total[0, 0]
    assert total[1, 1] > 3.0 * total[0, 1]
    assert total[2, 1] > 0.8 * total[2, 0]
    assert total[2, 1] > 2.0 * total[1, 1]


def test_iterations_are_in_one_region_each():
    cmdp = random_cmdp(0)
    found = safe_adaptation(cmdp, binding_budget(cmdp), 200)
    assert len(found.steps) == 200
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["safe"] > 0
    assert found.shares["unsafe"] > 0
    assert softmax(np.array([[1000.0, 1000.0]])).tolist() == [[0.5, 0.5]]


def test_proposition_3_1_holds_and_its_parts_are_what_they_say():
    """The performance difference lemma (Eq. 29) with the same advantage. Fault: the KL divergence in one direction only."""
    found = bounds(problems=60)
    assert (found.proved, found.printed, found.tried) == (60, 60, 60)
    assert 0.0 < found.tightest < 1.0
    cmdp, generator = random_cmdp(7), np.random.default_rng(7)
    behaviour = random_policy(generator, 8, 4)
    policy = near(generator, behaviour, 0.3)
    q = cmdp.q_values(policy, cmdp.costs)
    advantage = (behaviour * (q - (policy * q).sum(1, keepdims=True))).sum(1)
    chain = np.einsum("sa,san->sn", behaviour, cmdp.transitions)
    visits = np.linalg.solve(np.eye(8) - cmdp.discount * chain.T, cmdp.start)
    difference = cmdp.value(behaviour, cmdp.costs) - cmdp.value(policy, cmdp.costs)
    assert difference == pytest.approx(float(visits @ advantage), abs=1e-12)
    both = [float((a * np.log(a / b)).sum(1).max()) for a, b in ((policy, behaviour), (behaviour, policy))]
    allowed = (cmdp.costs.max() + cmdp.discount * np.abs(advantage).max()) * np.sqrt(2 * max(both)) / (1 - cmdp.discount) ** 2
    bound = cost_bound(cmdp, policy, behaviour)
    assert bound.proved - bound.behaviour == pytest.approx(allowed)


def test_the_table_and_the_figure(tmp_path):
    found = rates(problems=1, iterations=(10, 20), noises=(0.0, 0.1))
    head, _, *lines = table(found)
    assert head == "| ε_offline | T = 10 | T = 20 |"
    assert lines[1].startswith("| 0.1 | ")
    assert f"{found.gap[1, 1]:.3f} / {found.violation[1, 1]:+.3f}" in lines[1]
    draw(tmp_path / "theory.png", found)
    assert (tmp_path / "theory.png").stat().st_size > 10000
