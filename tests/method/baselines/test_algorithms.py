"""The defining idea of each baseline, on a bandit with a known solution: action a has reward a and cost max(a, 0)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from drcorl_ray.method.baselines.coptidice import soft_chi, soft_chi_slope_inverse, tilted
from drcorl_ray.method.random import Stream
from tests.helpers.baselines import BANDIT, bandit, bandit_actions, baseline_config, make_population
from tests.helpers.learners import make_table, sampler

LIMITS = [{"cost_limit": 0.2}, {"cost_limit": 0.6}, {"cost_limit": 50.0}]
GAINS = ("member.pid_proportional=5", "member.pid_integral=0.05")


# ---- BCQ-Lag -----------------------------------------------------------------------------------------------------------


def test_bcq_lag_stops_at_the_limit():
    """The best action within a limit l is l, at most 1. Fault: without the penalty every member goes to 1."""
    _, actions = bandit_actions(
        "bcq_lag", LIMITS, 900, *GAINS, "baseline.bcq_lag.perturbation=1.0", "baseline.learning_rate=0.003"
    )
    np.testing.assert_allclose(actions, [0.2, 0.6, 1.0], atol=0.12)


def test_bcq_lag_changes_a_decoded_action_by_at_most_phi():
    """The decoded action is about 0, the best one is 1 and no limit binds, so the action is Φ. Fault: another member's Φ."""
    members = [{"cost_limit": 50.0, "bcq_lag.perturbation": perturbation} for perturbation in (0.0, 0.1, 0.4)]
    _, actions = bandit_actions("bcq_lag", members, 500, "baseline.learning_rate=0.003")
    np.testing.assert_allclose(actions, [0.0, 0.1, 0.4], atol=0.07)
    assert np.diff(actions).tolist() == pytest.approx([0.1, 0.3], abs=0.03)


def test_the_next_value_is_the_best_of_the_sampled_actions():
    """A second implementation, action by action: the largest of 0.75 · min + 0.25 · max of the target twins."""
    learner = make_population("bcq_lag", baseline_config(), [{}, {"seed": 5}])
    critic = learner.networks["q_cost"]
    batch = sampler(make_table(50, 3, 2))(learner.draws(0), 3)
    states, actions = batch.observations.repeat_interleave(4, dim=1), torch.rand(2, 12, 2, dtype=torch.float64)
    next_value = learner._next_value(critic, states, actions)
    for member in range(2):
        for row in range(3):
            values = []
            for n in range(4 * row, 4 * row + 4):
                x = torch.cat([states[member, n], actions[member, n]])
                twins = []
                for copy in (2 * member, 2 * member + 1):
                    weights = {name: w[copy] for name, w in critic.target.items()}
                    h = x
                    for layer in range(3):
                        h = h @ weights[f"layers.{layer}.weight"] + weights[f"layers.{layer}.bias"]
                        h = h.relu() if layer < 2 else h
                    twins.append(float(h))
                values.append(0.75 * min(twins) + 0.25 * max(twins))
            assert float(next_value[member, row]) == pytest.approx(max(values), rel=1e-9)


def test_a_terminal_ends_both_bootstraps():
    """Fault: the common implementation's cost backup, which continues after a terminal."""
    learner = make_population("bear_lag", baseline_config(), [{}])
    for name in ("q_reward", "q_cost"):
        flat = learner.networks[name].target_flat
        assert flat is not None
        flat.fill_(3.0)
    table = make_table(50, 3, 2) | {"terminals": torch.ones(50, dtype=torch.float64)}
    batch = sampler(table)(learner.draws(0), 8)
    losses = learner.losses(batch, learner.draws(0)).values
    inputs = torch.cat([batch.observations, batch.actions], dim=-1).repeat_interleave(2, dim=0)
    for name, target in (("q_reward", batch.rewards * learner.reward_scale), ("q_cost", batch.costs)):
        critic = learner.networks[name]
        q = critic.network(critic.weights, inputs).squeeze(-1)
        torch.testing.assert_close(losses[name], (q - target).square().mean(-1).sum(0, keepdim=True))


# ---- BEAR-Lag ----------------------------------------------------------------------------------------------------------


def test_bear_lag_stops_at_the_limit():
    _, actions = bandit_actions(
        "bear_lag", LIMITS, 900, *GAINS, "baseline.bear_lag.mmd_limit=10", "baseline.learning_rate=0.003"
    )
    np.testing.assert_allclose(actions, [0.2, 0.6, 1.0], atol=0.15)


def test_bear_lag_stays_within_the_mmd_limit_of_the_behaviour():
    """The data acts around 0.2 and the best action is 1. Fault: the dual weight stays at its start."""
    members = [{"cost_limit": 50.0, "bear_lag.mmd_limit": limit, "bear_lag.mmd_sigma": 1.0} for limit in (0.05, 10.0)]
    learner, actions = bandit_actions("bear_lag", members, 900, "baseline.learning_rate=0.01", table=bandit(spread=0.05))
    assert abs(float(actions[0]) - 0.2) < 0.25
    assert float(actions[1]) > 0.9
    weights = learner.scalars["log_weight"].exp()
    assert weights[0] > 2.0 * weights[1]


# ---- CPQ ---------------------------------------------------------------------------------------------------------------


def test_the_policy_of_cpq_learns_from_actions_within_the_limit_alone():
    """Its gradient is that of Q_r where Q_c ≤ the threshold: here in all rows, or in none. Fault: no indicator."""
    learner = make_population("cpq", baseline_config(), [{"cost_limit": 10.0}, {"cost_limit": 0.0}])
    learner.networks["q_cost"].flat.zero_()
    learner.networks["q_cost"].weights["layers.2.bias"].detach().fill_(5.0)
    batch = sampler(make_table(50, 3, 2))(learner.draws(0), 8)
    parts, metrics = learner.gradients("step", batch, learner.draws(0))
    gradient = parts[list(learner.networks).index("actor")]
    assert gradient[0].abs().max() > 1e-6
    assert gradient[1].abs().max() == 0.0
    assert metrics["baseline/allowed"].tolist() == [1.0, 0.0]


def test_cpq_raises_the_cost_of_out_of_distribution_actions():
    """The data, around 0.2, has no costs; its actions stay cheap and those near −1 and 1 become costly.

    Fault: the common implementation's penalty, which has no gradient, so the critic does not learn from it.
    """
    table = bandit(spread=0.05, cost_from=2.0)
    learner, _ = bandit_actions("cpq", [{"cost_limit": 5.0}], 700, "baseline.learning_rate=0.003", table=table)
    critic = learner.networks["q_cost"]
    inputs = torch.tensor([[[0.0, 0.2], [0.0, 0.9], [0.0, -0.9]]]).expand(2, -1, -1)
    near, right, left = critic.network(critic.weights, inputs).squeeze(-1).amin(0).tolist()
    assert abs(near) < 1.0
    assert max(right, left) > near + 2.0


def test_cpq_does_not_bootstrap_from_a_next_action_over_the_limit():
    """The target critics are constants: 7 for the reward, and just below or above the threshold for the cost."""
    learner = make_population("cpq", baseline_config(), [{"cost_limit": 10.0}])
    batch = sampler(make_table(50, 3, 2) | {"terminals": torch.zeros(50, dtype=torch.float64)})(learner.draws(0), 8)
    threshold = float(learner.cost_threshold)
    assert threshold == pytest.approx(10.0 * (1 - 0.99**100) / (0.01 * 100))
    for cost, bootstrap in ((threshold - 1e-6, 1.0), (threshold + 1e-6, 0.0)):
        for name, value in (("q_reward", 7.0), ("q_cost", cost)):
            flat = learner.networks[name].target_flat
            assert flat is not None
            flat.zero_()
            learner.networks[name].target["layers.2.bias"].fill_(value)
        loss = learner.losses(batch, learner.draws(0)).values["q_reward"]
        critic = learner.networks["q_reward"]
        x = torch.cat([batch.observations, batch.actions], dim=-1).repeat_interleave(2, dim=0)
        target = batch.rewards * learner.reward_scale + 0.99 * bootstrap * 7.0
        expected = (critic.network(critic.weights, x).squeeze(-1) - target).square().mean(-1).sum(0, keepdim=True)
        torch.testing.assert_close(loss, expected)


def test_cpq_penalises_the_quarter_of_the_actions_that_is_furthest_from_the_data():
    """A second implementation. Faults: all of the policy's actions; the quarter that is closest to the data."""
    learner = make_population("cpq", baseline_config(), [{}, {"seed": 5}])
    batch, draws = sampler(make_table(50, 3, 2))(learner.draws(0), 8), learner.draws(0)
    outside = learner._cost_outside(batch, draws)
    actor, encoder, critic = (learner.networks[name] for name in ("actor", "encoder", "q_cost"))
    states = batch.observations.repeat_interleave(4, dim=1)
    noise = draws.normal(Stream.LATENT, 8, 4, 2, dtype=torch.float64).flatten(1, 2)
    actions = actor.network.sample(actor.weights, states, noise).tanh()
    mean, log_std = encoder.network(encoder.weights, torch.cat([states, actions], dim=-1)).chunk(2, dim=-1)
    log_std = log_std.clamp(-4.0, 15.0)
    distance = 0.5 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).mean(-1)
    inputs = torch.cat([states, actions], dim=-1).repeat_interleave(2, dim=0)
    costs = critic.network(critic.weights, inputs).squeeze(-1).unflatten(0, (2, 2)).amin(1)
    for member in range(2):
        furthest = np.argsort(distance[member].detach().numpy())[-8:]  # of 32
        assert float(outside[member]) == pytest.approx(float(costs[member, furthest].mean()), rel=1e-9)


# ---- COptiDICE ---------------------------------------------------------------------------------------------------------


def test_the_divergence_and_its_inverse_slope_agree():
    """f′⁻¹ is the inverse of f's derivative, by autograd, on both branches."""
    ratio = torch.tensor([0.05, 0.4, 0.99, 1.01, 2.5, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_chi(ratio).sum(), ratio)
    torch.testing.assert_close(soft_chi_slope_inverse(slope), ratio.detach())
    assert soft_chi(torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]


def test_tilted_weights_are_those_of_the_worst_distribution():
    """They maximise E[w·x] − τ·KL, and the maximum is τ·ln E[exp(x/τ)]. Fault: the KL of weights whose mean is not 1."""
    values, temperature = torch.tensor([[0.3, -1.0, 2.0, 0.5]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    weights, divergence = tilted(values, temperature)
    assert float(weights.mean()) == pytest.approx(1.0)
    best = float((weights * values).mean() - 0.7 * divergence)
    assert best == pytest.approx(0.7 * np.log(np.mean(np.exp(values.numpy() / 0.7))))
    optimum = optimize.minimize(
        lambda x: (
            -np.mean(np.exp(x) / np.mean(np.exp(x)) * values.numpy()[0])
            + 0.7 * np.mean(np.exp(x) / np.mean(np.exp(x)) * np.log(np.exp(x) / np.mean(np.exp(x))))
        ),
        np.zeros(4),
    )
    assert -optimum.fun == pytest.approx(best, abs=1e-6)


def test_coptidice_reweights_the_data_to_the_constrained_optimum():
    """The bandit's optimum on a grid is found by SLSQP: max E[w·r] − α·E[f(w)] with E[w·c] ≤ l and E[w] = 1.

    Faults: a threshold in another unit; a price that does not rise.
    """
    limits = [0.15, 0.25, 50.0]
    settings = ("baseline.learning_rate=0.002", "baseline.discount=0")
    learner, actions = bandit_actions("coptidice", [{"cost_limit": limit} for limit in limits], 1500, *settings, rows=256)
    grid = np.linspace(-1.0, 1.0, 101)
    reward, cost = grid * learner.reward_scale, np.maximum(grid, 0.0)
    for member, limit in enumerate(limits):

        def value(w: np.ndarray) -> float:
            f = np.where(w < 1, w * (np.log(np.maximum(w, 1e-10)) - 1) + 1, 0.5 * (w - 1) ** 2)
            return -float(np.mean(w * reward - 0.5 * f))

        best = optimize.minimize(
            value,
            np.ones(101),
            method="SLSQP",
            bounds=[(1e-6, None)] * 101,
            constraints=[
                {"type": "eq", "fun": lambda w: np.mean(w) - 1.0},
                {"type": "ineq", "fun": lambda w, limit=limit: limit - np.mean(w * cost)},
            ],
            options={"maxiter": 300},
        )
        expected = np.tanh(np.mean(best.x * np.arctanh(np.clip(grid, -0.999, 0.999))))
        assert float(actions[member]) == pytest.approx(expected, abs=0.12), limit
    price = torch.nn.functional.softplus(learner.networks["price"].weights["value"][:, 0])
    assert price[0] > price[1] > price[2]
    assert price[2] < 0.4


def test_coptidice_losses_are_those_of_its_paper():
    """A second implementation, row by row, with a discount, terminals and an upper bound that differs from the mean.

    Faults: the threshold as a cost-to-go; no next state in ν or χ; the mean cost instead of its upper bound.
    """
    learner = make_population("coptidice", baseline_config("baseline.coptidice.alpha=0.7"), [{"cost_limit": 3.0}])
    table = make_table(50, 3, 2)
    table["terminals"] = (torch.arange(50) % 3 == 0).double()
    batch, draws = sampler(table)(learner.draws(0), 8), learner.draws(0)
    assert 0 < float(batch.terminals.sum()) < 8
    gamma, alpha, length = 0.99, 0.7, 100
    price, temperature = (float(np.log1p(np.exp(1.0))) for _ in range(2))
    starts = learner.starts[draws.integers(Stream.INITIAL_ROWS, 8, len(learner.starts))[0]]

    def value(name: str, state: torch.Tensor) -> float:
        function = learner.networks[name]
        return float(function.network(function.weights, state[None, None]))

    nu, ratios, exponents, costs = 0.0, [], [], []
    for row in range(8):
        state, after, cost = batch.observations[0, row], batch.next_observations[0, row], float(batch.costs[0, row])
        discount = gamma * (1.0 - float(batch.terminals[0, row]))
        reward = float(batch.rewards[0, row]) * 300.0 / 1000.0 - price * cost
        advantage = reward + discount * value("nu", after) - value("nu", state)
        y = advantage / alpha
        ratio = np.exp(y) if y < 0 else y + 1.0
        f = ratio * (np.log(ratio) - 1.0) + 1.0 if ratio < 1 else 0.5 * (ratio - 1.0) ** 2
        nu += ((1.0 - gamma) * value("nu", starts[row]) + ratio * advantage - alpha * f) / 8
        ratios.append(ratio)
        costs.append(cost)
        chi, chi_after, chi_start = (value("chi", x) for x in (state, after, starts[row]))
        exponents.append((1.0 - gamma) * chi_start + ratio * (cost + discount * chi_after - chi))
    tilt = np.exp(np.array(exponents) / temperature)
    tilt /= tilt.mean()
    divergence = np.mean(tilt * np.log(tilt))
    bound = np.mean(tilt * ratios * costs)
    limit = 3.0 * (1.0 - gamma**length) / length  # (1 - γ) times the cost-to-go of an episode cost of 3
    expected = {
        "nu": nu,
        "chi": np.mean(tilt * exponents),
        "temperature": temperature * (0.01 - divergence),
        "price": price * (limit - bound),
    }
    assert divergence > 1e-3
    losses = learner.losses(batch, draws).values
    for name, loss in expected.items():
        assert float(losses[name]) == pytest.approx(float(loss), rel=1e-6), name


def test_the_bandit_has_the_stated_rewards_and_costs():
    table = bandit()
    assert BANDIT.episode_length == 1
    assert make_population("bc", baseline_config(), [{}], BANDIT).reward_scale == 1.0
    assert table["terminals"].all()
    assert torch.equal(table["costs"], table["rewards"].clamp(min=0.0))
