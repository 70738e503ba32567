"""The states on which a cost is estimated, against examples by hand and a second implementation."""

import numpy as np
import pytest
import torch

from drcorl_ray.method.estimation_states import ROWS, STRETCH, EstimationStates, candidate_segments
from tests.helpers.learners import extract, make_estimation_states, make_table
from tests.method.test_learner import MEMBERS, SPEC, start


def test_candidate_segments_by_hand():
    """Episodes of 12, 3 and 9 steps, at most 16: a stretch has four states, and the phases begin at steps 0, 4, 8 and 12."""
    rows, ends, phases, stretch = candidate_segments(np.array([12, 3, 9]), 16)
    assert rows.tolist() == list(range(24))
    assert stretch == 4
    assert rows[ends].tolist() == [4, 5, 6, 7, 19, 20, 21, 22, 8, 9, 10, 11, 23]
    assert phases.tolist() == [1] * 8 + [2] * 5


def test_many_rows_are_subsampled_evenly_within_each_episode():
    """300,000 rows: every fifth state of each episode is compared."""
    rows, ends, phases, stretch = candidate_segments(np.array([1000, 999] * 150), 1000)
    hop = 5
    assert len(rows) == 300 * 200 < ROWS
    assert rows[:2].tolist() == [0, hop]
    assert rows[200:202].tolist() == [1000, 1000 + hop]
    assert stretch == STRETCH // hop
    assert np.bincount(phases).tolist() == [300 * 30, *[300 * 50] * 3]
    assert rows[ends].min() == STRETCH


@pytest.mark.parametrize("episodes", [2249, 6600])
def test_larger_datasets_are_subsampled_by_whole_episodes(episodes):
    """In datasets as large as DSRL's largest a stretch keeps its 20 states. Fault: one state in 35 or 101 of every episode."""
    rows, ends, phases, stretch = candidate_segments(np.full(episodes, 1000), 1000)
    episode_stride = -(-episodes * 1000 // (5 * ROWS))
    assert stretch == STRETCH // 5
    assert np.unique(rows // 1000).tolist() == list(range(0, episodes, episode_stride))
    assert ROWS / 2 < len(rows) <= ROWS
    assert np.unique(rows % 1000).tolist() == list(range(0, 1000, 5))
    assert (np.bincount(phases) > 0).all()
    assert rows[ends].max() < episodes * 1000


@pytest.mark.parametrize(("lengths", "ends", "stretch"), [([1], [0], 0), ([2, 1, 1], [1], 1), ([5, 3], [4], 4)])
def test_short_episodes_have_short_stretches(lengths, ends, stretch):
    segments = candidate_segments(np.array(lengths), 1000)
    assert (segments[1].tolist(), segments[3]) == (ends, stretch)


def test_a_policy_is_estimated_on_the_states_that_it_would_reach():
    """A second implementation in numpy, state by state.

    Faults: the most distant candidates; the candidate's own action is compared too; one phase only; another member's policy.
    """
    estimation_states = make_estimation_states(SPEC, nearest=3)
    offsets = torch.tensor([0.0, 0.6, -0.6], dtype=torch.float64)[:, None, None]
    selected = estimation_states.choose(lambda states: states[..., :2].tanh() + offsets, 3)
    assert selected.shape == (3, 6)
    for member in range(3):
        policy_actions = np.tanh(estimation_states.observations.numpy()[:, :2]) + offsets[member].numpy()
        squared_error = ((policy_actions - estimation_states.actions.numpy()) ** 2).mean(1)
        distance = {end: squared_error[end - 4 : end].mean() for end in estimation_states.ends.tolist()}
        for phase, ends in ((range(20), selected[member, :3]), (range(20, 40), selected[member, 3:])):
            candidates = [end for end in distance if end in phase]
            assert set(ends.tolist()) == set(sorted(candidates, key=distance.__getitem__)[:3])


def test_many_states_are_compared_in_chunks():
    """Of 10,001 states the data acts almost like the policy only on the two before the last one, which is found."""
    actions = torch.ones(10_001, 1)
    actions[-3:-1] = 0.1
    phases, ends = torch.zeros(9999, dtype=torch.int64), torch.arange(2, 10_001)
    estimation_states = EstimationStates(torch.zeros(10_001, 1), actions, ends, phases, stretch=2, nearest=1)
    assert estimation_states.choose(torch.zeros_like, 2).tolist() == [[10_000], [10_000]]


def test_all_candidates_are_selected_without_nearest():
    estimation_states = make_estimation_states(SPEC, nearest=None)
    assert estimation_states.choose(torch.zeros_like, 2).tolist() == [estimation_states.ends.tolist()] * 2


def test_the_states_follow_the_policy():
    """After two critic steps, every second policy step re-selects the states. Fault: only once, or at every step."""
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
