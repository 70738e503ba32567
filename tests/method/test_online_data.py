"""Online results of a population: whose cost estimate is in force, and which transitions a member's minibatches contain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drcorl_ray.method.learner import Learner
from drcorl_ray.method.online_data import OnlineResult
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch
from tests.helpers.learners import extract, make_learner, make_spec, make_table, pretrain, sampler, small_config

MODES = [{"evaluation_mode": mode, "seed": 1} for mode in ("offline", "online", "hybrid")]
SPEC = make_spec(3, 2, observation_mean=(1.0, 2.0, 3.0), observation_std=(2.0, 2.0, 4.0))
TABLE = make_table(64, 3, 2)
CONFIG = small_config("evaluation.hybrid_transitions=12", "evaluation.hybrid_share=0.25")


def start(members=None, config=CONFIG, **kw) -> Learner:
    return make_learner(config, SPEC, members or MODES, pretrain(config, SPEC, TABLE, [1]).result(), **kw)


def columns(rows: int, value: float = 1.0) -> dict[str, np.ndarray]:
    """Every column of row i is value + i; observations are not standardised."""
    numbers = value + np.arange(rows, dtype=np.float32)
    wide = {"observations": 3, "actions": 2, "next_observations": 3}
    named = {name: np.repeat(numbers[:, None], width, axis=1) for name, width in wide.items()}
    return named | {name: numbers.copy() for name in ("rewards", "costs", "terminals", "reward_rates", "cost_rates")}


def evidence(costs, spent=(0, 0, 0), transitions=None, episodes=5, returns=(0.0, 0.0, 0.0)) -> OnlineResult:
    count = len(costs)
    means = np.array(costs, np.float64), np.array(returns[:count], np.float64)
    return OnlineResult(*means, np.full(count, episodes), np.array(spent), transitions or {})


def batch_of(learner: Learner, step: int, rows: int = 16, first_row: int = 0) -> tuple[Batch, Batch]:
    """The dataset's minibatch and the minibatch that the learner mixes from it."""
    draws = Draws(learner.hyper.seed, step, first_row)
    dataset = sampler(TABLE)(draws, rows)
    return dataset, learner.online.mix(dataset, draws)


def test_each_member_decides_by_the_estimate_of_its_mode():
    """Costs far below and far above every limit: the online and hybrid members follow them, the offline one its critics."""
    for costs, region in ((0.0, "safe"), (1e6, "unsafe")):
        learner = start()
        learner.observe(evidence([costs] * 3))
        metrics = extract(learner, TABLE, 0, 10)
        assert metrics[f"adaptation/{region}"][1:].tolist() == [1.0] * 2
        assert metrics["adaptation/cost_estimate"][1:].tolist() == pytest.approx([costs] * 2)
        assert metrics["adaptation/cost_estimate"][0] == metrics["adaptation/offline_estimate"][0]


def test_without_an_estimate_the_offline_one_holds():
    """Before the first evaluation and after the budget is spent, all three members are equal."""
    learner = start()
    learner.observe(evidence([3.0, 3.0, 3.0]))
    learner.observe(evidence([0.0] * 3, episodes=0))
    metrics = extract(learner, TABLE, 0, 10)
    assert torch.equal(metrics["adaptation/cost_estimate"], metrics["adaptation/offline_estimate"])
    assert torch.equal(learner.average[0], learner.average[1])
    assert torch.equal(learner.average[0], learner.average[2])


def test_only_the_member_itself_sees_its_transitions_and_only_in_its_share():
    """Values above 100 mark appended rows. Fault: another member's rows, the offline member's too, or another share."""
    learner = start([{"evaluation_mode": "hybrid", "seed": seed} for seed in (1, 2)] + [{"evaluation_mode": "online"}])
    learner.observe(evidence([0.0] * 3, transitions={member: columns(8, 100.0 * (member + 1)) for member in range(3)}))
    for step in range(20):
        dataset, mixed = batch_of(learner, step)
        replaced = (mixed.rewards > 50).nonzero()
        assert replaced.tolist() == [[member, row] for member in (0, 1) for row in (3, 7, 11, 15)]
        assert ((mixed.rewards[0, 3::4] - 100).long() < 8).all()
        assert ((mixed.rewards[1, 3::4] - 200).long() < 8).all()
        kept = [row for row in range(16) if row % 4 != 3]
        assert torch.equal(mixed.rewards[:, kept], dataset.rewards[:, kept])
        assert torch.equal(mixed.observations[2], dataset.observations[2])
    drawn = torch.cat([batch_of(learner, step)[1].rewards[0, 3::4] for step in range(100)])
    assert sorted(set(drawn.tolist())) == [100.0 + row for row in range(8)]


def test_appended_rows_arrive_whole_and_standardised():
    learner = start()
    learner.observe(evidence([0.0] * 3, transitions={2: columns(1, 7.0)}))
    _, mixed = batch_of(learner, 0)
    assert mixed.observations[2, 3].tolist() == [3.0, 2.5, 1.0]  # (7 − mean) / deviation
    assert mixed.next_observations[2, 3].tolist() == [3.0, 2.5, 1.0]
    assert mixed.actions[2, 3].tolist() == [7.0, 7.0]
    assert [mixed.costs[2, 3], mixed.terminals[2, 3], mixed.cost_rates[2, 3]] == [7.0] * 3


def test_no_row_beyond_the_budget_is_appended():
    """12 rows at most, in order: 5, 5 and the first 2 of 5 more."""
    learner = start()
    for first in (0.0, 10.0, 20.0, 30.0):
        learner.observe(evidence([0.0] * 3, transitions={member: columns(5, first) for member in range(3)}))
    assert learner.online.counts.tolist() == [0, 0, 12]
    rewards = learner.online.table[2, :, 8]
    assert rewards.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21]


def test_two_workers_mix_what_one_does():
    learner = start()
    learner.observe(evidence([0.0] * 3, transitions={2: columns(8, 100.0)}))
    _, whole = batch_of(learner, 3, 16)
    parts = [batch_of(learner, 3, rows, first_row)[1] for rows, first_row in ((6, 0), (10, 6))]
    assert torch.equal(torch.cat([part.rewards for part in parts], dim=1), whole.rewards)


def test_appended_transitions_reach_the_critics_but_not_the_behaviour_model():
    config = small_config("evaluation.hybrid_transitions=12", "extract.update_diffusion=true")
    hybrid, offline = start([{"evaluation_mode": "hybrid"}], config), start([{"evaluation_mode": "offline"}], config)
    for learner in (hybrid, offline):
        learner.observe(evidence([0.0], [0], {0: columns(8)}, episodes=0))
        extract(learner, TABLE, 0, 2)  # only critic steps: the policy does not change
    assert not torch.equal(hybrid.networks["q_cost"].flat, offline.networks["q_cost"].flat)
    assert torch.equal(hybrid.networks["noise"].flat, offline.networks["noise"].flat)


def test_state_select_and_join_keep_what_rollouts_told():
    """Members that are interrupted, split and joined again end with the same bits as without interruption."""
    told = evidence([0.0, 2.0, 30.0], [0, 5, 4], {2: columns(8)})
    whole = start()
    whole.observe(told)
    extract(whole, TABLE, 0, 8)

    resumed = start()
    resumed.observe(told)
    extract(resumed, TABLE, 0, 4)
    state = {name: tensor.clone() for name, tensor in resumed.state_dict().items()}
    resumed = start()
    resumed.load_state_dict(state)
    assert state["online.table"].shape[1] == 8  # not the room for 12
    extract(resumed, TABLE, 4, 8)

    first, second = start(), start()
    for learner, kept in ((first, [1]), (second, [2, 0])):
        learner.observe(told)
        extract(learner, TABLE, 0, 4)
        learner.select(kept)
    assert first.online.table.shape[1] == 0
    assert second.online.table.shape[1] == 12
    first.join(second)
    assert first.online.spent.tolist() == [5, 4, 0]
    extract(first, TABLE, 4, 8)
    for learner, order in ((resumed, [0, 1, 2]), (first, [1, 2, 0])):
        for name, part in whole.networks.items():
            flat = part.flat.unflatten(0, (3, -1))[order].flatten(0, 1)
            assert torch.equal(learner.networks[name].flat, flat), name


def test_the_best_evaluated_policy_is_kept():
    """By hand, limit 10: the lowest cost counts above it, the return within it; an unsafe policy never replaces a safe one."""
    learner = start([{"evaluation_mode": mode, "cost_limit": 10.0} for mode in ("online", "hybrid", "offline")])
    scores = [(50.0, 9.0), (40.0, 8.0), (45.0, 99.0), (10.05, 3.0), (2.0, 2.0), (9.0, 4.0), (11.0, 50.0), (0.0, 3.5)]
    best = [0, 1, 1, 3, 3, 5, 5, 5]
    for step, (cost, gain) in enumerate(scores):
        learner.average.fill_(float(step))
        learner.observe(evidence([cost] * 3, returns=(gain, gain, gain)))
        assert learner.online.best[:2, 0].tolist() == [best[step]] * 2
    assert learner.online.best_cost.tolist() == [9.0, 9.0, torch.inf]
    learner.online.hold(torch.full_like(learner.average, 77.0), 3)
    learner.observe(evidence([9.0] * 3, returns=(5.0, 5.0, 5.0)))
    assert learner.online.best[0, 0] == 77.0  # the policies that were evaluated, not the current ones
    learner.observe(evidence([0.0] * 3, returns=(9.0, 9.0, 9.0), episodes=0))
    assert learner.online.best[0, 0] == 77.0


def test_a_pack_without_online_members_joins_one_that_waits_for_an_evaluation():
    offline, online = start([{"evaluation_mode": "offline"}]), start([{"evaluation_mode": "online"}])
    online.online.hold(online.average, 5)
    held = online.average.clone()
    offline.join(online)
    assert offline.online.pending_step == 5
    assert torch.equal(offline.online.pending[1:], held)


def test_a_held_policy_outlives_a_checkpoint():
    learner = start()
    learner.online.hold(learner.average, 5)
    learner.online.best_cost[0] = 3.0
    held = learner.average.clone()
    extract(learner, TABLE, 0, 6)
    other = start()
    other.load_state_dict(learner.state_dict())
    assert (other.online.pending_step, torch.equal(other.online.pending, held)) == (5, True)
    other.online.release()
    assert (other.online.pending_step, other.online.pending.numel()) == (-1, 0)


def test_the_offline_estimate_of_the_averaged_policy_by_hand():
    """Mean and deviation of the critics' values at the policy's actions, state by state in numpy."""
    learner = start()
    extract(learner, TABLE, 0, 8)
    mean, deviation = learner.offline_estimate()
    policies = learner.policies()
    scale = (1 - CONFIG.pretrain.cost_discount) * SPEC.episode_length
    part = learner.networks["q_cost"]
    for member in range(3):
        states = learner.estimation_states.observations[learner.estimated_on[member]]
        raw = states.numpy() * policies.observation_std + policies.observation_mean
        actions = torch.from_numpy(policies.select([member]).act(raw[None])[0]).double()
        values = part.network(part.target, torch.cat([states, actions], -1).expand(12, -1, -1)).squeeze(-1)
        own = values.unflatten(0, (3, 4))[member].numpy()
        assert mean[member] == pytest.approx(own.mean() * scale, rel=1e-4)
        assert deviation[member] == pytest.approx(own.std(axis=0).mean() * scale, rel=1e-3)
