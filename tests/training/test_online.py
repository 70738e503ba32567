"""Online evaluation: its steps, its policies, its budget, and resuming after a kill at any step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drcorl_ray.config import Config
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import roll_out_in
from drcorl_ray.method.learner import Learner
from drcorl_ray.tasks.envs import make_simulator
from drcorl_ray.training.episode_budget import EpisodeLedger
from tests.evaluation.test_rollout import WALK
from tests.helpers.learners import make_learner, make_spec, make_table, pretrain, sampler, small_config, take_step
from tests.helpers.tiny import HerePool, Killed, online_session

TABLE = make_table(64, 1, 1)
SPEC = make_spec(1, 1)
MODES = [{"evaluation_mode": mode, "seed": seed} for seed, mode in enumerate(("offline", "online", "hybrid", "online"))]

PRETRAINED = pretrain(small_config(), SPEC, TABLE, [0], 2).result()


def online_config(*overrides: str) -> Config:
    given = ("extract.critic_steps=3", "extract.steps=12", "evaluation.online_interval=4", "evaluation.online_episodes=3")
    return small_config(*given, "evaluation.hybrid_transitions=300", *overrides)


class Session:
    """A learner and its online evaluation in a folder, as in a worker process; from a saved state or from the start."""

    def __init__(
        self, config: Config, folder: Path, state: Any = None, pool: Any = None, stop: int = 15, members=MODES
    ) -> None:
        self.learner: Learner = make_learner(config, SPEC, members, PRETRAINED)
        if state is not None:
            self.learner.load_state_dict(state)
        self.pool = pool or HerePool()
        self.evaluation = online_session(config, self.learner, WALK, folder, self.pool, stop)

    def go(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Train steps start … stop − 1 and return the state."""
        for step in range(start, stop):
            self.evaluation.before(step)
            take_step(self.learner, sampler(TABLE), 16, step)
        return {name: tensor.clone() for name, tensor in self.learner.state_dict().items()}


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@given(
    budget=st.integers(0, 12),
    charges=st.lists(st.tuples(st.sets(st.integers(0, 2), min_size=1), st.integers(1, 5), st.booleans(), st.booleans())),
)
def test_charges_never_exceed_the_budget_after_any_kill(tmp_path_factory, budget, charges):
    """A process may end after any charge, or while it writes the next one; the next process knows every granted charge."""
    path = tmp_path_factory.mktemp("ledger") / "episodes.jsonl"
    ledger, expected = EpisodeLedger(path, budget, [1, 0, 0]), np.array([1, 0, 0])
    for members, episodes, dies, half_written in charges:
        chosen = sorted(members)
        granted = ledger.charge(chosen, episodes)
        assert granted == [int(max(0, min(episodes, budget - expected[member]))) for member in chosen]
        expected[chosen] += granted
        if half_written:
            with path.open("a") as file:
                file.write('{"members": [0, 1')
        if dies or half_written:
            ledger = EpisodeLedger(path, budget, [9, 9, 9])
        assert ledger.spent.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("critic_steps", "interval", "staleness", "expected"),
    [
        (3, 4, 0, [(3, 3), (7, 7), (11, 11)]),
        (3, 4, 2, [(1, 3), (5, 7), (9, 11)]),
        (3, 4, 4, [(0, 3), (3, 7), (7, 11)]),
        (0, 5, 5, [(0, 0), (0, 5), (5, 10)]),
        (5, 20, 3, [(2, 5)]),
    ],
)
def test_evaluations_begin_and_take_effect_at_known_steps(tmp_path, critic_steps, interval, staleness, expected):
    """expected: (step of the start, step of the effect), computed by hand. The policies are those of the start."""
    config = online_config(
        f"extract.critic_steps={critic_steps}", f"evaluation.online_interval={interval}",
        f"evaluation.online_staleness={staleness}",
    )  # fmt: skip
    session, averages, spent = Session(config, tmp_path), [], []
    total = session.learner.total_steps
    for step in range(total):
        averages.append(session.learner.policies().weights[0][[1, 2, 3]])
        session.go(step, step + 1)
        spent.append(int(session.learner.online.spent[1]))
    in_effect = [step for step in range(total) if spent[step] > (spent[step - 1] if step else 0)]
    assert in_effect == [due for _, due in expected]
    assert len(session.pool.evaluations) == len(expected)
    for weights, (begun, _) in zip(session.pool.evaluations, expected, strict=True):
        np.testing.assert_array_equal(weights, averages[begun])
    seeds = [seed for member, seed in session.pool.begun if member == 0]
    assert len(set(seeds)) == 3 * len(expected)  # every evaluation has its own episodes


def test_the_estimate_is_the_mean_cost_of_its_episodes(tmp_path):
    """Compared with separate rollouts, also for the offline member and the appended transitions."""
    session = Session(online_config(), tmp_path)
    policies = session.learner.policies()
    state = session.go(0, 4)
    recorded = roll_out_in(make_simulator(WALK), policies, WALK, range(5_000_000, 5_000_003), 1)
    expected = recorded.stats.costs.mean(axis=1)
    assert state["online.estimate"][1:].tolist() == expected[1:].tolist()
    assert state["online.episodes"].tolist() == [0, 3, 3, 3]
    trajectory = recorded.trajectories[2, 0]
    rewards = trajectory["rewards"]
    assert state["online.counts"].tolist() == [0, 0, len(rewards), 0]
    observation, action, after, reward, cost, terminal, reward_rate, _ = state["online.table"][2].T.numpy()
    for mine, name in ((observation, "observations"), (action, "actions"), (after, "next_observations")):
        np.testing.assert_array_equal(mine, trajectory[name][:, 0])
    for mine, name in ((reward, "rewards"), (cost, "costs"), (terminal, "terminals")):
        np.testing.assert_array_equal(mine, trajectory[name])
    discounts = 0.99 ** np.arange(
        len(rewards)
    )  # over the rest of the episode, as in the dataset; it was truncated, not terminated
    np.testing.assert_allclose(reward_rate[0], (discounts * rewards).sum() / discounts.sum(), rtol=1e-5)


@pytest.mark.parametrize("staleness", [0, 1, 3, 4])
def test_a_run_killed_between_any_two_steps_has_the_same_result(tmp_path, staleness):
    """Also while an evaluation runs: its policies are part of the state. No finished evaluation is repeated."""
    config = online_config(f"evaluation.online_staleness={staleness}")
    whole = Session(config, tmp_path / "whole")
    expected = whole.go(0, 15)
    assert expected["online.spent"].tolist() == [0, 9, 9, 9]
    for checkpoint in range(0, 15, 2):
        for killed in {checkpoint, min(15, checkpoint + 3)}:
            folder = tmp_path / f"{checkpoint}-{killed}"
            first = Session(config, folder)
            state = first.go(0, checkpoint)
            first.go(checkpoint, killed)  # steps that no checkpoint knows
            second = Session(config, folder, state)
            resumed = second.go(checkpoint, 15)
            lost = [due for due in (3, 7, 11) if max(0, due - staleness) < killed <= due]
            assert len(set(first.pool.begun) & set(second.pool.begun)) == 9 * len(lost)
            assert resumed.pop("online.spent").tolist() == [0, *[9 + 3 * len(lost)] * 3]
            assert_same_state(resumed, {name: expected[name] for name in resumed})


@pytest.mark.parametrize("staleness", [0, 2, 4])
@pytest.mark.parametrize("rung", [6, 7, 8])
def test_a_pack_continues_where_another_stopped(tmp_path, staleness, rung):
    """An evaluation that spans a rung begins in the next pack, with the previous pack's policies. No episode is repeated."""
    config = online_config(f"evaluation.online_staleness={staleness}")
    expected = Session(config, tmp_path / "whole").go(0, 15)
    first = Session(config, tmp_path / "first", stop=rung)
    state = first.go(0, rung)
    second = Session(config, tmp_path / "second", state)
    assert_same_state(second.go(rung, 15), expected)
    assert not set(first.pool.begun) & set(second.pool.begun)


def test_a_member_alone_is_the_member_in_a_pack(tmp_path):
    config = online_config("evaluation.online_staleness=2")
    pack = Session(config, tmp_path / "pack").go(0, 15)
    for member in (1, 2):
        alone = Session(config, tmp_path / f"alone-{member}", members=[MODES[member]]).go(0, 15)
        for name in ("average", "online.estimate", "online.spent", "online.counts", "q_cost.flat"):
            rows = pack[name].unflatten(0, (4, -1))[member]
            assert torch.equal(rows, alone[name].view(rows.shape)), name


@settings(max_examples=40)
@given(
    budget=st.integers(0, 11),
    kills=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 8)), max_size=4),
    staleness=st.sampled_from([0, 2]),
)
def test_random_kills_never_exceed_the_budget_and_every_episode_is_reported(tmp_path_factory, budget, kills, staleness):
    """Each session is killed after a number of episodes or after a step; the next one resumes from its last checkpoint."""
    config = online_config(f"evaluation.online_budget={budget}", f"evaluation.online_staleness={staleness}")
    folder = tmp_path_factory.mktemp("run")
    begun, charged, state, step = 0, 0, None, 0
    for stop, episodes in [*sorted(kills), (15, None)]:
        session = Session(config, folder, state, HerePool(episodes))
        try:
            if stop > step:
                state, step = session.go(step, stop), stop
        except Killed:
            charged += 1  # granted to an episode that did not begin
        begun += len(session.pool.begun)
    assert state is not None
    spent = state["online.spent"].numpy()
    assert (spent <= budget).all()
    assert 0 <= spent.sum() - begun <= charged
    assert spent[0] == 0
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert sum(sum(line["episodes"]) for line in lines[1:]) == spent.sum()
    if not kills:
        assert spent[1:].tolist() == [min(budget, 9)] * 3


def test_the_offline_estimate_is_used_when_the_budget_is_spent(tmp_path):
    """A budget of four episodes gives three, then one, then none; every step reports the episodes behind its estimate."""
    session = Session(online_config("evaluation.online_budget=4"), tmp_path)
    assert session.go(0, 7)["online.episodes"].tolist() == [0, 3, 3, 3]
    assert session.go(7, 11)["online.episodes"].tolist() == [0, 1, 1, 1]
    state = session.go(11, 15)
    assert state["online.episodes"].tolist() == [0, 0, 0, 0]
    assert state["online.spent"].tolist() == [0, 4, 4, 4]


def test_a_diverged_member_is_not_rolled_out(tmp_path):
    session = Session(online_config(), tmp_path)
    session.learner.average[1] = torch.nan
    state = session.go(0, 4)
    assert state["online.episodes"].tolist() == [0, 0, 3, 3]
    assert state["online.spent"].tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize(
    "line", [b"\xff\n", b"{}\n", b"[1]\n", b'{"members": [0], "episodes": [-1]}\n', b'{"members": [2], "episodes": [1]}\n']
)
def test_a_damaged_ledger_is_named(tmp_path, line):
    """The spent episodes are then unknown. Fault: a traceback, or a budget that grows."""
    path = tmp_path / "episodes.jsonl"
    EpisodeLedger(path, 10, [1, 2]).charge([0], 3)
    with path.open("ab") as file:
        file.write(line)
    with pytest.raises(UserError, match=r"episodes\.jsonl: line 3 is damaged"):
        EpisodeLedger(path, 10, [1, 2])
