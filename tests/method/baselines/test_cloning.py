"""Behaviour cloning: the episodes that each kind imitates, and the comparison that trains it beside a run."""

from __future__ import annotations

import numpy as np
import pytest

from drcorl_ray.config import Config, MemberConfig
from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.data.store import read_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed import comparison
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import Rollouts
from drcorl_ray.method.baselines.behaviour_cloning import Cloning, FrontierCloning, RewardCloning, SafeCloning
from drcorl_ray.method.replay import Replay
from drcorl_ray.policy.population import PopulationPolicy
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.training.build import Placement, build_baseline, build_runner
from drcorl_ray.training.loop import save_last
from tests.helpers.baselines import baseline_config
from tests.helpers.columns import make_columns
from tests.training.test_build import open_made

CLONING = ("baseline.steps=150", "pretrain.learning_rate=0.01", "baseline.batch_size=64")
SAFE_ACTION, BOLD_ACTION = np.array([0.5, -0.25]), np.array([-0.3, 0.55])


@pytest.fixture(scope="module")
def two_styles(tmp_path_factory) -> TaskData:
    """Episodes of 10 steps on the same states: a quarter has cost 2 and one action, the rest cost 10 and another action."""
    columns = make_columns(400)
    safe = np.repeat(np.arange(40) % 4 == 0, 10)
    columns["actions"] = np.where(safe[:, None], SAFE_ACTION, BOLD_ACTION).astype(np.float32)
    columns["costs"] = np.where(safe, 0.2, 1.0).astype(np.float32)
    columns["terminals"] = np.zeros(400, bool)
    columns["timeouts"] = np.arange(400) % 10 == 9
    return open_made(tmp_path_factory.mktemp("styles") / "store", columns)


def clone(data: TaskData, kind: str, members: list[dict], *overrides: str) -> PopulationPolicy:
    config = baseline_config(*CLONING, *overrides)
    learner = build_baseline(config, data, kind, [config.member_with(member, kind) for member in members], Placement())
    replay = Replay(data.manifest)
    replay.insert(read_store(data.store))
    rows = config.training_of(kind).batch_size
    build_runner(learner, replay, rows, Placement(), config.scaling).advance(0, learner.total_steps)
    return learner.policies()


def actions_of(population: PopulationPolicy, data: TaskData) -> np.ndarray:
    states = read_store(data.store, ("observations",))["observations"]
    return population.act(np.stack([states] * population.members)).mean(1)


def test_bc_imitates_all_and_bc_safe_the_safe_episodes(two_styles):
    """An episode cost of 2 is within a limit of 2. Fault: a step's cost is compared with the limit, or no limit is used."""
    [everything] = actions_of(clone(two_styles, "bc", [{}]), two_styles)
    safe, loose = actions_of(clone(two_styles, "bc_safe", [{"cost_limit": 2.0 + 1e-5}, {"cost_limit": 10.01}]), two_styles)
    mixture = 0.25 * SAFE_ACTION + 0.75 * BOLD_ACTION
    np.testing.assert_allclose(safe, SAFE_ACTION, atol=0.02)
    np.testing.assert_allclose(everything, mixture, atol=0.06)
    assert loose.tobytes() == everything.tobytes()  # the same rows and seed: the same policy


def test_a_limit_without_episodes_is_refused(two_styles):
    with pytest.raises(UserError, match="member 1 has no rows"):
        clone(two_styles, "bc_safe", [{}, {"cost_limit": 1.0}])


def test_the_episodes_of_each_kind():
    """By hand: the best tenth of ten episodes is one; the frontier at costs 0, 2, 5, 9 is 10, 12, 12, 30, its width 3."""
    returns = np.array([10.0, 0.0, 12.0, 8.5, 11.0, 9.5, 30.0, 28.0, 26.9, 3.0])
    costs = np.array([0.0, 0.0, 2.0, 2.0, 5.0, 5.0, 9.0, 9.0, 9.0, 9.0])
    episodes = EpisodeTotals(returns, costs, np.full(10, 7))
    kinds = (Cloning, SafeCloning, RewardCloning, FrontierCloning)
    numbers = [np.flatnonzero(kind.selected(episodes, 2.0)).tolist() for kind in kinds]
    assert numbers == [[*range(10)], [0, 1, 2, 3], [6], [0, 2, 4, 5, 6, 7]]
    assert [kind.can_learn(episodes, -1.0) for kind in kinds] == [True, False, True, True]


def test_bc_is_trained_once_for_all_limits(two_styles):
    """It has a row at each limit; bc_safe has none at a limit without episodes. Fault: bc is trained once per limit."""
    members = [MemberConfig(cost_limit=limit, seed=seed) for seed in (0, 4) for limit in (1.0, 5.0, 20.0)]
    everything, safe = comparison.plan(Config(), two_styles, members)
    assert [member.seed for member in everything.members] == [0, 4]
    assert everything.places == (0, 0, 0, 1, 1, 1)
    assert [(member.seed, member.cost_limit) for member in safe.members] == [(0, 5.0), (0, 20.0), (4, 5.0), (4, 20.0)]
    assert safe.places == (0, 1, 2, 3)
    for compared in (everything, safe):
        limits = (1.0, 5.0, 20.0) if compared is everything else (5.0, 20.0)
        assert [(c.seed, c.cost_limit) for c in compared.infos] == [(seed, limit) for seed in (0, 4) for limit in limits]
        assert {c.algorithm for c in compared.infos} == {compared.algorithm}
    assert everything.infos[0].config == {"seed": 0, "cost_limit": None, "learning_rate": 1e-3}
    assert safe.infos[0].config == {"seed": 0, "cost_limit": 5.0, "learning_rate": 1e-3}


def test_an_algorithm_that_uses_the_limit_is_trained_at_each(two_styles):
    config = Config.model_validate({"evaluation": {"baselines": ["cpq"]}})
    members = [MemberConfig(cost_limit=limit, seed=2) for limit in (1.0, 20.0)]
    [compared] = comparison.plan(config, two_styles, members)
    assert [member.cost_limit for member in compared.members] == [1.0, 20.0]
    rate, scale = {"learning_rate": 1e-3}, {"cpq.ood_scale": 1.5}
    assert compared.infos[1].config == {"seed": 2, "cost_limit": 20.0, **rate, **scale}  # and no key of DRCORL's
    assert compared.places == (0, 1)


def test_a_runs_own_algorithm_is_not_trained_beside_it(two_styles):
    """Fault: it is in the results twice, with different settings, and missing in Table 1."""
    config = baseline_config("run.algorithm=bc", "evaluation.baselines=[bc, bc_safe]")
    assert [plan.algorithm for plan in comparison.plan(config, two_styles, config.members())] == ["bc_safe"]


def test_cdt_is_trained_once_and_evaluated_at_each_limit(two_styles, tmp_path):
    """At each limit its targets are that limit and the best return within it. Fault: the first limit's target for all."""
    config = baseline_config("evaluation.baselines=[cdt]", "baseline.steps=3")
    [compared] = comparison.plan(config, two_styles, [MemberConfig(cost_limit=limit, seed=2) for limit in (5.0, 20.0)])
    assert (len(compared.members), compared.places) == (1, (0, 0))
    learner = build_baseline(config, two_styles, "cdt", compared.members, Placement())
    run = RunDirectory(tmp_path)
    folder = run.baseline(two_styles.task.name, "cdt")
    save_last(folder.population, learner)

    class RecordingPool:
        def evaluate(self, policies, task, seeds):
            self.policies = policies
            return Rollouts.empty(policies.members, seeds).stats

    pool = RecordingPool()
    comparison._rows(two_styles, run, compared, folder.population, pool, [1])  # type: ignore[arg-type]
    returns, costs = two_styles.episodes.returns, two_styles.episodes.costs
    expected = [[limit, returns[costs <= limit].max()] for limit in (5.0, 20.0)]
    np.testing.assert_allclose(pool.policies.arrays()["target"], expected, rtol=1e-6)
