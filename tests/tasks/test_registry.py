import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.tasks import registry as tasks
from drcorl_ray.tasks.envs import make_env
from drcorl_ray.tasks.registry import Task, all_tasks, get_task, register_task
from tests.helpers.policies import random_policy

DSRL_SUITES = ("velocity", "bullet", "safety_gymnasium", "metadrive")


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, so that a test's tasks do not outlive the test."""
    own = dict(tasks._TASKS)
    monkeypatch.setattr(tasks, "_TASKS", own)
    return own


@pytest.fixture(scope="module")
def infos():
    """dsrl's tables, without importing dsrl and its simulators."""
    package = importlib.util.find_spec("dsrl").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("dsrl_infos", Path(package) / "infos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_dsrls(infos):
    known = {task.name: task for task in all_tasks() if task.suite in DSRL_SUITES}
    assert len(known) == 38
    assert set(known) == set(infos.DATASET_URLS)
    for name, task in known.items():
        assert task.name == name
        assert task.dataset_file == infos.DATASET_URLS[name].rsplit("/", 1)[1]
        assert task.episode_length == infos.DEFAULT_MAX_EPISODE_STEPS[name]
        assert (task.return_min, task.return_max) == (infos.MIN_EPISODE_REWARD[name], infos.MAX_EPISODE_REWARD[name])
        assert (task.cost_min, task.cost_max) == (infos.MIN_EPISODE_COST[name], infos.MAX_EPISODE_COST[name])


def test_dsrls_environment_ids_are_names_too(infos):
    ids = {key.split("_density")[0] for key in infos.DENSITY_CFG}
    assert len(ids) >= 30
    assert {get_task(environment_id).environment_id for environment_id in ids} == ids
    assert get_task("OfflineMetadrive-easysparse-v0") is get_task("easysparse")
    assert get_task("OfflineHalfCheetahVelocityGymnasium-v1").name == "HalfCheetahVelocity"


@pytest.mark.parametrize(("typo", "meant"), [("HalfCheetahVelocty", "HalfCheetahVelocity"), ("pointcircle", "PointCircle")])
def test_unknown_task_names_the_nearest(typo, meant):
    with pytest.raises(UserError, match=f"'{typo}'.*'{meant}'") as caught:
        get_task(typo)
    assert "\n" not in str(caught.value)


# observations and actions of DSRL's data sets
SIZES = {
    "AntVelocity": (27, 8),
    "HalfCheetahVelocity": (17, 6),
    "HopperVelocity": (11, 3),
    "SwimmerVelocity": (8, 2),
    "Walker2dVelocity": (17, 6),
    "AntCircle": (34, 8),
    "AntRun": (33, 8),
    "BallCircle": (8, 2),
    "BallRun": (7, 2),
    "CarCircle": (8, 2),
    "CarRun": (7, 2),
    "DroneCircle": (18, 4),
    "DroneRun": (17, 4),
    **{f"Point{goal}": (size, 2) for goal, size in (("Goal1", 60), ("Goal2", 60), ("Circle1", 28), ("Circle2", 28))},
    **{f"Point{goal}": (76, 2) for goal in ("Button1", "Button2", "Push1", "Push2")},
    **{f"Car{goal}": (size, 2) for goal, size in (("Goal1", 72), ("Goal2", 72), ("Circle1", 40), ("Circle2", 40))},
    **{f"Car{goal}": (88, 2) for goal in ("Button1", "Button2", "Push1", "Push2")},
    **{road + traffic: (259, 2) for road in ("easy", "medium", "hard") for traffic in ("sparse", "mean", "dense")},
}
PACKAGES = {"bullet": "pybullet", "safety_gymnasium": "safety_gymnasium", "metadrive": "metadrive"}


@pytest.mark.parametrize("name", SIZES)
def test_every_task_runs_by_its_name(name):
    package = PACKAGES.get(get_task(name).suite, "gymnasium")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    env = make_env(name)
    observations, actions = SIZES[name]
    assert env.observation_space.shape == env.reset(seed=0)[0].shape == (observations,)
    assert env.action_space.shape == (actions,)
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    for action in np.random.default_rng(0).uniform(-1, 1, (5, actions)).astype(np.float32):
        observation, reward, _, truncated, info = env.step(action)
        assert observation.shape == (observations,)
        assert np.isfinite([*observation, reward, info["cost"]]).all()
        assert isinstance(info["cost"], float)
        assert info["cost"] >= 0
        assert not truncated
    env.close()


def test_which_tasks_are_cheap():
    cheap = {task.suite for task in all_tasks() if task.cheap}
    assert cheap == {"builtin", "velocity", "bullet"}
    assert not Task("Mine", "gymnasium", None, "Mine-v0", 10).cheap
    assert {task.suite for task in all_tasks() if task.environments_per_process} == {"metadrive"}


def test_importing_costs_no_simulator():
    code = (
        "import sys, drcorl_ray.tasks.registry; assert 'ray' not in sys.modules\n"
        "import drcorl_ray.tasks.envs, drcorl_ray.evaluation.rollout\n"
        "assert not {'ray', 'torch', 'mujoco', 'pybullet', 'bullet_safety_gym', 'dsrl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_users_environment(registry):
    task = register_task("Walk", "tests.helpers.small_envs:Walk-v0", 7)
    assert get_task("Walk") is task
    assert register_task("Walk", "tests.helpers.small_envs:Walk-v0", 7) == task
    env = make_env("Walk")
    assert env.action_space.low == -1
    start = env.reset(seed=3)[0][0]
    observation, reward, _, _, info = env.step(np.array([1.0], np.float32))
    assert observation[0] == reward == pytest.approx(start + 2.0)  # an action of 1 is the environment's 2
    assert info["cost"] == float(observation[0] > 1)
    steps = [env.step(np.zeros(1, np.float32))[3] for _ in range(6)]
    assert steps == [False] * 5 + [True]  # our 7 steps, not the 3 of gymnasium's registration

    policies = random_policy(1, 1, members=2)
    stats = evaluate(policies, "Walk", [0, 1, 2])
    for member, number in np.ndindex(stats.returns.shape):
        env.reset(seed=number)
        observation, total, cost, done, length = env.unwrapped.x, 0.0, 0.0, False, 0
        while not done:
            action = policies.select([member]).act(np.array([[[observation]]]))[0, 0]
            (observation,), reward, terminated, truncated, info = env.step(action)
            total, cost, length, done = total + reward, cost + info["cost"], length + 1, terminated or truncated
        assert (stats.returns[member, number], stats.costs[member, number]) == (total, cost)
        assert stats.lengths[member, number] == length
    assert stats.lengths.min() < 7 == stats.lengths.max()  # some end early, some at the limit


def test_a_users_mistakes_are_told(registry):
    register_task("NoCost", "tests.helpers.small_envs:NoCost-v0", 7)
    with pytest.raises(UserError, match=r"NoCost.*info\['cost'\]"):
        evaluate(random_policy(1, 1), "NoCost", [0])
    register_task("Nowhere", "Nowhere-v0", 7)
    with pytest.raises(UserError, match=r"Nowhere.*cannot make") as caught:
        make_env("Nowhere")
    assert "\n" not in str(caught.value)
    register_task("Discrete", "CartPole-v1", 7)
    with pytest.raises(UserError, match="action space must be a one-dimensional Box"):
        make_env("Discrete")
    with pytest.raises(UserError, match="already a task"):
        register_task("AntRun", "Walk-v0", 7)
    with pytest.raises(UserError, match="episode length"):
        register_task("Zero", "Walk-v0", 0)
