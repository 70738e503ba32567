"""Which states a cost estimate is made on: by hand, and by a second computation."""

import numpy as np
import pytest
import torch

from drcorl_ray.method.estimation_states import ROWS, STRETCH, EstimationStates, candidate_segments
from tests.helpers.learners import extract, make_estimation_states, make_table
from tests.method.test_learner import MEMBERS, SPEC, start


def test_footprints_by_hand():
    """Episodes of 12, 3 and 9 steps of at most 16: four states compared, quarters that begin at 0, 4, 8 and 12."""
    rows, ends, phases, stretch = candidate_segments(np.array([12, 3, 9]), 16)
    assert rows.tolist() == list(range(24))
    assert stretch == 4
    assert rows[ends].tolist() == [4, 5, 6, 7, 19, 20, 21, 22, 8, 9, 10, 11, 23]
    assert phases.tolist() == [1] * 8 + [2] * 5


def test_many_rows_are_thinned_out_evenly_within_each_episode():
    rows, ends, phases, stretch = candidate_segments(np.array([1000, 999] * 150), 1000)
    hop = 5
    assert len(rows) == 300 * 200 < ROWS
    assert rows[:2].tolist() == [0, hop]
    assert rows[200:202].tolist() == [1000, 1000 + hop]
    assert stretch == STRETCH // hop
    assert np.bincount(phases).tolist() == [300 * 30, *[300 * 50] * 3]
    assert rows[ends].min() == STRETCH


@pytest.mark.parametrize("episodes", [2249, 6600])
def test_larger_data_are_thinned_out_by_whole_episodes(episodes):
    """So that a stretch stays one: DSRL's larger files. Fault: one state in 35 or 101 of every episode."""
    rows, ends, phases, stretch = candidate_segments(np.full(episodes, 1000), 1000)
    every = -(-episodes * 1000 // (5 * ROWS))
    assert stretch == STRETCH // 5
    assert np.unique(rows // 1000).tolist() == list(range(0, episodes, every))
    assert ROWS / 2 < len(rows) <= ROWS
    assert np.unique(rows % 1000).tolist() == list(range(0, 1000, 5))
    assert (np.bincount(phases) > 0).all()
    assert rows[ends].max() < episodes * 1000


@pytest.mark.parametrize(("lengths", "ends", "stretch"), [([1], [0], 0), ([2, 1, 1], [1], 1), ([5, 3], [4], 4)])
def test_short_episodes_have_short_stretches(lengths, ends, stretch):
    found = candidate_segments(np.array(lengths), 1000)
    assert (found[1].tolist(), found[3]) == (ends, stretch)


def test_a_policy_is_estimated_where_it_would_come_to():
    """Second computation in numpy, a state at a time. Fault: the farthest, its own action, one phase, another's policy."""
    estimation_states = make_estimation_states(SPEC, nearest=3)
    offsets = torch.tensor([0.0, 0.6, -0.6], dtype=torch.float64)[:, None, None]
    chosen = estimation_states.choose(lambda states: states[..., :2].tanh() + offsets, 3)
    assert chosen.shape == (3, 6)
    for member in range(3):
        wanted = np.tanh(estimation_states.observations.numpy()[:, :2]) + offsets[member].numpy()
        difference = ((wanted - estimation_states.actions.numpy()) ** 2).mean(1)
        before = {end: difference[end - 4 : end].mean() for end in estimation_states.ends.tolist()}
        for phase, own in ((range(20), chosen[member, :3]), (range(20, 40), chosen[member, 3:])):
            candidates = [end for end in before if end in phase]
            assert set(own.tolist()) == set(sorted(candidates, key=before.__getitem__)[:3])


def test_many_states_are_compared_in_parts():
    """10,000 states, of which the data acts like the policy on the last two alone."""
    actions = torch.ones(10_001, 1)
    actions[-3:-1] = 0.1
    phases, ends = torch.zeros(9999, dtype=torch.int64), torch.arange(2, 10_001)
    estimation_states = EstimationStates(torch.zeros(10_001, 1), actions, ends, phases, stretch=2, nearest=1)
    assert estimation_states.choose(torch.zeros_like, 2).tolist() == [[10_000], [10_000]]


def test_all_candidates_are_estimated_on_if_none_is_nearest():
    estimation_states = make_estimation_states(SPEC, nearest=None)
    assert estimation_states.choose(torch.zeros_like, 2).tolist() == [estimation_states.ends.tolist()] * 2


def test_the_states_follow_the_policy():
    """Steps 0-1 train critics; then every second step the states are chosen anew. Fault: chosen once, or at every step."""
    learner, _ = start(members=[MEMBERS[4] | {"actor_learning_rate": 0.5}])
    table = make_table(200, 3, 2)
    changed = []
    for step in range(10):
        before = learner.estimated_on.clone()
        extract(learner, table, step, step + 1)
        changed.append(not torch.equal(before, learner.estimated_on))
    assert not any(changed[:3])
    assert not any(changed[3::2])
    assert any(changed[4::2])
