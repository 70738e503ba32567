"""The defining idea of each baseline, on a bandit whose answer is known: action a earns a and costs max(a, 0)."""

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
    """The best action within a limit l is l. Fault: drop the penalty, and every member goes to 1."""
    _, actions = bandit_actions(
        "bcq_lag", LIMITS, 900, *GAINS, "baseline.bcq_lag.perturbation=1.0", "baseline.learning_rate=0.003"
    )
    np.testing.assert_allclose(actions, [0.2, 0.6, 1.0], atol=0.12)


def test_bcq_lag_moves_a_decoded_action_no_further_than_told():
    """The decoder's middle is 0, the reward at 1, the limit far: Φ. Fault: Φ of a neighbour."""
    members = [{"cost_limit": 50.0, "bcq_lag.perturbation": reach} for reach in (0.0, 0.1, 0.4)]
    _, actions = bandit_actions("bcq_lag", members, 500, "baseline.learning_rate=0.003")
    np.testing.assert_allclose(actions, [0.0, 0.1, 0.4], atol=0.07)
    assert np.diff(actions).tolist() == pytest.approx([0.1, 0.3], abs=0.03)


def test_the_next_value_is_the_best_of_the_sampled_actions():
    """A second implementation, action by action: 0.75 · min + 0.25 · max of the target twins, then the largest."""
    learner = make_population("bcq_lag", baseline_config(), [{}, {"seed": 5}])
    critic = learner.networks["q_cost"]
    batch = sampler(make_table(50, 3, 2))(learner.draws(0), 3)
    states, actions = batch.observations.repeat_interleave(4, dim=1), torch.rand(2, 12, 2, dtype=torch.float64)
    found = learner._next_value(critic, states, actions)
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
            assert float(found[member, row]) == pytest.approx(max(values), rel=1e-9)


def test_a_terminal_ends_both_bootstraps():
    """Fault: the common implementation's cost backup, which goes on behind a terminal."""
    learner = make_population("bear_lag", baseline_config(), [{}])
    for part in ("q_reward", "q_cost"):
        flat = learner.networks[part].target_flat
        assert flat is not None
        flat.fill_(3.0)
    table = make_table(50, 3, 2) | {"terminals": torch.ones(50, dtype=torch.float64)}
    batch = sampler(table)(learner.draws(0), 8)
    losses = learner.losses(batch, learner.draws(0)).values
    for name, own in (("q_reward", batch.rewards * learner.reward_scale), ("q_cost", batch.costs)):
        part = learner.networks[name]
        q = part.network(
            part.weights, torch.cat([batch.observations, batch.actions], dim=-1).repeat_interleave(2, dim=0)
        ).squeeze(-1)
        torch.testing.assert_close(losses[name], (q - own).square().mean(-1).sum(0, keepdim=True))


# ---- BEAR-Lag ----------------------------------------------------------------------------------------------------------


def test_bear_lag_stops_at_the_limit():
    _, actions = bandit_actions(
        "bear_lag", LIMITS, 900, *GAINS, "baseline.bear_lag.mmd_limit=10", "baseline.learning_rate=0.003"
    )
    np.testing.assert_allclose(actions, [0.2, 0.6, 1.0], atol=0.15)


def test_bear_lag_stays_with_the_behaviour_as_told():
    """Data around 0.2, reward at 1. Fault: the weight of the distance left at its start."""
    members = [{"cost_limit": 50.0, "bear_lag.mmd_limit": limit, "bear_lag.mmd_sigma": 1.0} for limit in (0.05, 10.0)]
    learner, actions = bandit_actions("bear_lag", members, 900, "baseline.learning_rate=0.01", table=bandit(spread=0.05))
    assert abs(float(actions[0]) - 0.2) < 0.25
    assert float(actions[1]) > 0.9
    weights = learner.scalars["log_weight"].exp()
    assert weights[0] > 2.0 * weights[1]


# ---- CPQ ---------------------------------------------------------------------------------------------------------------


def test_the_policy_of_cpq_learns_from_actions_within_the_limit_alone():
    """Its gradient is that of Q_r where Q_c is under the threshold; here everywhere, and nowhere. Fault: no indicator."""
    learner = make_population("cpq", baseline_config(), [{"cost_limit": 10.0}, {"cost_limit": 0.0}])
    learner.networks["q_cost"].flat.zero_()
    learner.networks["q_cost"].weights["layers.2.bias"].detach().fill_(5.0)
    batch = sampler(make_table(50, 3, 2))(learner.draws(0), 8)
    place = list(learner.networks).index("actor")
    parts, metrics = learner.gradients("step", batch, learner.draws(0))
    assert parts[place][0].abs().max() > 1e-6
    assert parts[place][1].abs().max() == 0.0
    assert metrics["baseline/allowed"].tolist() == [1.0, 0.0]


def test_cpq_makes_actions_out_of_the_data_costly():
    """No data costs anything; around 0.2 stays cheap, −1 and 1 do not. Fault: the common implementation's penalty without a
    gradient, by which the critic learns nothing of them."""
    table = bandit(spread=0.05, cost_from=2.0)
    learner, _ = bandit_actions("cpq", [{"cost_limit": 5.0}], 700, "baseline.learning_rate=0.003", table=table)
    critic = learner.networks["q_cost"]
    inputs = torch.tensor([[[0.0, 0.2], [0.0, 0.9], [0.0, -0.9]]]).expand(2, -1, -1)
    near, right, left = critic.network(critic.weights, inputs).squeeze(-1).amin(0).tolist()
    assert abs(near) < 1.0
    assert max(right, left) > near + 2.0


def test_cpq_cuts_the_bootstrap_where_the_next_action_is_over_the_limit():
    """Target critics held at constants: rewards 7 to go, costs on either side of the threshold."""
    learner = make_population("cpq", baseline_config(), [{"cost_limit": 10.0}])
    batch = sampler(make_table(50, 3, 2) | {"terminals": torch.zeros(50, dtype=torch.float64)})(learner.draws(0), 8)
    threshold = float(learner.cost_threshold)
    assert threshold == pytest.approx(10.0 * (1 - 0.99**100) / (0.01 * 100))
    for cost, going_on in ((threshold - 1e-6, 1.0), (threshold + 1e-6, 0.0)):
        for name, value in (("q_reward", 7.0), ("q_cost", cost)):
            flat = learner.networks[name].target_flat
            assert flat is not None
            flat.zero_()
            learner.networks[name].target["layers.2.bias"].fill_(value)
        found = learner.losses(batch, learner.draws(0)).values["q_reward"]
        part = learner.networks["q_reward"]
        x = torch.cat([batch.observations, batch.actions], dim=-1).repeat_interleave(2, dim=0)
        target = batch.rewards * learner.reward_scale + 0.99 * going_on * 7.0
        expected = (part.network(part.weights, x).squeeze(-1) - target).square().mean(-1).sum(0, keepdim=True)
        torch.testing.assert_close(found, expected)


def test_cpq_raises_the_costs_of_the_quarter_that_is_furthest_from_the_data():
    """By hand, sample after sample. Faults: all of the policy's actions; those that are nearest to the data."""
    learner = make_population("cpq", baseline_config(), [{}, {"seed": 5}])
    batch, draws = sampler(make_table(50, 3, 2))(learner.draws(0), 8), learner.draws(0)
    found = learner._cost_outside(batch, draws)
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
        assert float(found[member]) == pytest.approx(float(costs[member, furthest].mean()), rel=1e-9)


# ---- COptiDICE ---------------------------------------------------------------------------------------------------------


def test_the_divergence_and_its_slope_fit_together():
    """f′⁻¹ is the inverse of f's derivative, by autograd, on both branches."""
    ratio = torch.tensor([0.05, 0.4, 0.99, 1.01, 2.5, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_chi(ratio).sum(), ratio)
    torch.testing.assert_close(soft_chi_slope_inverse(slope), ratio.detach())
    assert soft_chi(torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]


def test_tilted_weights_are_those_of_the_worst_distribution_around():
    """They maximise E[w·x] − τ·KL; at that the value is τ·ln E[exp(x/τ)]. Fault: KL without the mean 1."""
    values, temperature = torch.tensor([[0.3, -1.0, 2.0, 0.5]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    weights, divergence = tilted(values, temperature)
    assert float(weights.mean()) == pytest.approx(1.0)
    best = float((weights * values).mean() - 0.7 * divergence)
    assert best == pytest.approx(0.7 * np.log(np.mean(np.exp(values.numpy() / 0.7))))
    found = optimize.minimize(
        lambda x: (
            -np.mean(np.exp(x) / np.mean(np.exp(x)) * values.numpy()[0])
            + 0.7 * np.mean(np.exp(x) / np.mean(np.exp(x)) * np.log(np.exp(x) / np.mean(np.exp(x))))
        ),
        np.zeros(4),
    )
    assert -found.fun == pytest.approx(best, abs=1e-6)


def test_coptidice_weighs_the_data_until_it_keeps_the_limit():
    """Against the bandit's optimum on a grid, by another program: max E[w·r] − α·E[f(w)] with E[w·c] ≤ l and E[w] = 1.

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
    """A second implementation, row after row, with a discount, terminals and an upper bound that bind.

    Faults: the threshold as a cost-to-go; no next state in ν or χ; the mean cost in place of its upper bound.
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
        part = learner.networks[name]
        return float(part.network(part.weights, state[None, None]))

    nu, ratios, exponents, costs = 0.0, [], [], []
    for row in range(8):
        state, after, cost = batch.observations[0, row], batch.next_observations[0, row], float(batch.costs[0, row])
        on = gamma * (1.0 - float(batch.terminals[0, row]))
        reward = float(batch.rewards[0, row]) * 300.0 / 1000.0 - price * cost
        advantage = reward + on * value("nu", after) - value("nu", state)
        y = advantage / alpha
        ratio = np.exp(y) if y < 0 else y + 1.0
        f = ratio * (np.log(ratio) - 1.0) + 1.0 if ratio < 1 else 0.5 * (ratio - 1.0) ** 2
        nu += ((1.0 - gamma) * value("nu", starts[row]) + ratio * advantage - alpha * f) / 8
        ratios.append(ratio)
        costs.append(cost)
        chi, chi_after, chi_start = (value("chi", x) for x in (state, after, starts[row]))
        exponents.append((1.0 - gamma) * chi_start + ratio * (cost + on * chi_after - chi))
    tilt = np.exp(np.array(exponents) / temperature)
    tilt /= tilt.mean()
    divergence = np.mean(tilt * np.log(tilt))
    bound = np.mean(tilt * ratios * costs)
    limit = 3.0 * (1.0 - gamma**length) / length  # (1 - γ) times the cost-to-go that 3 an episode is
    expected = {
        "nu": nu,
        "chi": np.mean(tilt * exponents),
        "temperature": temperature * (0.01 - divergence),
        "price": price * (limit - bound),
    }
    assert divergence > 1e-3
    found = learner.losses(batch, draws).values
    for name, loss in expected.items():
        assert float(found[name]) == pytest.approx(float(loss), rel=1e-6), name


def test_the_bandit_is_what_it_says():
    table = bandit()
    assert BANDIT.episode_length == 1
    assert make_population("bc", baseline_config(), [{}], BANDIT).reward_scale == 1.0
    assert table["terminals"].all()
    assert torch.equal(table["costs"], table["rewards"].clamp(min=0.0))
