"""The benchmarks compare equal work: their eager learner computes the same as a population of one member."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.eager import EagerLearner, take_weights
from benchmarks.population import SETTINGS, Settings, make_learner, make_replay, named, stored_settings
from drcorl_ray.method.adaptation import REGIONS
from drcorl_ray.method.diffusion import REGULARISER_TIMES, spread
from drcorl_ray.method.learner import Learner
from drcorl_ray.method.random import Draws, Stream

SMALL = {
    "pretrain": {"noise_width": 16, "noise_expansion": 2, "actor_hidden": [16, 16], "critic_hidden": [16, 16]},
    "extract": {"steps": 6, "critic_steps": 0, "batch_size": 32},
}


def test_the_benchmarks_measure_the_default_settings():
    stored = json.loads(json.dumps(stored_settings()))
    assert json.loads(SETTINGS.read_text()) == stored, "run python -m benchmarks.population to regenerate settings.json"


@pytest.mark.parametrize(("region", "cost_limit"), [(0, 500.0), (1, 60.0), (2, 0.0)], ids=REGIONS)
def test_the_eager_learner_equals_the_population(region, cost_limit):
    """All weights agree after every step. Fault: another sign, target, schedule or learning rate in either of them."""
    settings = Settings(**SMALL, member={"cost_limit": cost_limit})
    learner = make_learner(settings, 1, dtype=torch.float64, estimation_states=400)
    replay = make_replay(500, dtype=torch.float64)
    eager = eager_twin(learner, settings)
    for step in range(settings.extract.steps):
        draws = learner.draws(step)
        batch = replay.sample(draws, 32)
        learner.prepare(step)
        states = learner.estimation_states.observations[learner.estimated_on]
        eager.states = states[0]
        parts, _ = learner.gradients("policy", batch, draws)
        metrics = learner.update("policy", parts, torch.tensor(step))
        columns = {name: column[0] for name, column in vars(batch).items()}
        estimate = eager.step(columns, *randomness(draws, states.shape[1]))
        torch.testing.assert_close(estimate, metrics["adaptation/cost_estimate"][0], rtol=1e-9, atol=1e-9)
        compare(eager, learner)
    assert learner.region_counts[0, region] > 0


BARE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pydantic", "ray", "gymnasium", "rich", "h5py", "optuna", "yaml", "dsrl", "wandb", "psutil"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
for name in ("gpu", "learner", "inference"):
    importlib.import_module(f"benchmarks.{name}")
assert "torch._dynamo" not in sys.modules, "the compiler is imported but not used; it adds seconds to every worker's start"
"""


def test_the_gpu_benchmarks_need_only_torch_numpy_and_safetensors():
    """Faults: an import of `drcorl_ray.config` outside TYPE_CHECKING; an import of the compiler at the top of a module."""
    run = subprocess.run([sys.executable, "-c", BARE], cwd=SETTINGS.parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def eager_twin(learner: Learner, settings: Settings) -> EagerLearner:
    eager = EagerLearner(settings, learner.conditions[0], learner.estimation_states.observations[:1], "cpu", torch.float64)
    noise = {name: weight[0] for name, weight in learner.noise_weights.items()}
    take_weights(eager.noise, noise)
    for module, part in ((eager.policy.mlp, "actor"), (eager.average.mlp, "actor")):
        take_weights(module, {name: weight[0] for name, weight in named(learner, part).items()})
    for modules, part in ((eager.rewards, "q_reward"), (eager.costs, "q_cost")):
        for index, module in enumerate(modules):
            take_weights(module, {name: weight[index] for name, weight in named(learner, part).items()})
    eager.reward_targets.load_state_dict(eager.rewards.state_dict())
    eager.cost_targets.load_state_dict(eager.costs.state_dict())
    return eager


def randomness(draws: Draws, states: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the population draws for its one member in a step: times, noise, rows of the estimation states."""
    times = spread(draws.uniform(Stream.REGULARISER_TIME, 32, dtype=torch.float64), REGULARISER_TIMES)
    noise = draws.normal(Stream.REGULARISER_NOISE, 32, 6, dtype=torch.float64)
    return times[0], noise[0], draws.integers(Stream.ESTIMATE_ROWS, 32, states)[0]


def compare(eager: EagerLearner, learner: Learner) -> None:
    twin = EagerLearner(Settings(**SMALL), learner.conditions[0], eager.states, "cpu", torch.float64)
    layout = learner.architectures.actor.layout
    for module, flat in ((eager.policy, learner.networks["actor"].flat), (eager.average, learner.average)):
        take_weights(twin.policy.mlp, {name: weight[0] for name, weight in layout.split(flat).items()})
        for mine, theirs in zip(module.parameters(), twin.policy.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10, check_dtype=True)
    for modules, part in ((eager.rewards, "q_reward"), (eager.costs, "q_cost")):
        for index, module in enumerate(modules):
            weights = {name: weight[index] for name, weight in named(learner, part).items()}
            take_weights(twin.costs[0], weights)
            for mine, theirs in zip(module.parameters(), twin.costs[0].parameters(), strict=True):
                torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-9, atol=1e-10)
