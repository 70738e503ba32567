"""CDT: its windows, its transformer, its defining idea (actions follow the target cost and return), and its policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drcorl_ray.data.spec import EpisodeTotals
from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.rollout import evaluate
from drcorl_ray.method.baselines.cdt import CDT, target
from drcorl_ray.method.baselines.transformer import CausalTransformer, Context, scaled
from drcorl_ray.method.baselines.windows import History, best_so_far
from drcorl_ray.method.random import Draws
from drcorl_ray.method.replay import Batch
from drcorl_ray.policy.loading import Policy, load_policy
from drcorl_ray.tasks.registry import Task
from tests.helpers.baselines import BANDIT, baseline_config, make_population, train
from tests.helpers.learners import make_spec

WALK = Task("Walk", "gymnasium", None, "tests.helpers.small_envs:Walk-v0", 7)
WINDOWS = Draws(torch.tensor([3, 4]), 0)


def table(rewards: torch.Tensor, costs: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, zeros = torch.arange(len(rewards), dtype=torch.float64), torch.zeros(len(rewards), dtype=torch.float64)
    wide = rows[:, None]
    return {
        "observations": wide, "actions": wide, "next_observations": wide, "rewards": rewards, "costs": costs,
        "terminals": zeros, "reward_rates": zeros, "cost_rates": zeros,
    }  # fmt: skip


def windows(episodes: EpisodeTotals, rewards: list[float], costs: list[float], augmented: float, count: int = 400):
    columns = table(*(torch.tensor(x, dtype=torch.float64) for x in (rewards, costs)))
    history = History(episodes, columns["rewards"], columns["costs"], steps=3, augmented=augmented)
    sample = history.sample(lambda rows: Batch(**{name: x[rows] for name, x in columns.items()}), WINDOWS, count)
    return {name: x.unflatten(1, (-1, 3))[0] for name, x in vars(sample).items()}


def test_a_window_is_of_one_episode_and_has_its_costs_and_returns_to_go():
    """By hand, with episodes of rows 0-3 and 4-5. Fault: windows across episodes; sums without the step's own reward."""
    episodes = EpisodeTotals(np.array([10.0, 11.0]), np.array([3.0, 1.0]), np.array([4, 2]))
    sample = windows(episodes, [1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 0], augmented=0.0)
    to_go = [[3, 10], [3, 9], [2, 7], [0, 4], [1, 11], [0, 6]]
    last_rows = set()
    for rewards, valid, times, targets in zip(*(sample[x] for x in ("rewards", "valid", "times", "to_go")), strict=True):
        last = int(rewards[-1]) - 1
        first = 0 if last < 4 else 4
        expected = list(range(max(first, last - 2), last + 1))
        rows = [int(reward) - 1 for reward, is_valid in zip(rewards, valid, strict=True) if is_valid]
        assert rows == expected
        assert valid.tolist() == [False] * (3 - len(rows)) + [True] * len(rows)
        assert times[valid].tolist() == [row - first for row in expected]
        assert targets[valid].tolist() == [to_go[row] for row in expected]
        last_rows.add(last)
    assert last_rows == set(range(6))


def test_augmented_targets_are_paired_with_the_best_episode_within_their_cost():
    """Costs 0, 2, 2, 6 with returns 1, 5, 3, 9: below a cost κ of 2 it is the first, up to 6 the second, never the third."""
    episodes = EpisodeTotals(np.array([1.0, 5.0, 3.0, 9.0]), np.array([0.0, 2.0, 2.0, 6.0]), np.array([2, 2, 2, 2]))
    sample = windows(episodes, [1, 0, 5, 0, 3, 0, 9, 0], [0, 0, 2, 0, 2, 0, 6, 0], augmented=1.0)
    cost, total = sample["to_go"][:, -1].unbind(-1)
    row = sample["observations"][:, -1, 0].long()
    episode, rest = row // 2, torch.tensor([[0.0, 1], [0, 0], [2, 5], [0, 0], [2, 3], [0, 0], [6, 9], [0, 0]])[row]
    target_cost = torch.tensor(episodes.costs)[episode] + cost - rest[:, 0]
    target_return = torch.tensor(episodes.returns)[episode] + total - rest[:, 1]
    assert (target_cost <= 6).all()
    assert torch.equal(episode, torch.where(target_cost < 2, 0, 1))
    assert (target_return >= torch.tensor(episodes.returns)[episode]).all()
    assert 8.5 < float(target_return.max()) <= 9
    assert {int(x) for x in episode} == {0, 1}


def make_context(steps: int, members: int = 2, rows: int = 5, seed: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(members, rows, steps, *size, generator=generator, dtype=torch.float64)  # noqa: E731
    times = torch.arange(steps).expand(members, rows, -1)
    return Context(draw(2).abs(), draw(3), draw(2).tanh(), times, torch.ones(members, rows, steps, dtype=torch.bool))


def make_network(members: int = 2) -> tuple[CausalTransformer, dict[str, torch.Tensor]]:
    network = CausalTransformer(3, 2, 20, width=16, blocks=2, heads=2)
    flat = network.layout.initialise(torch.arange(members), 1, dtype=torch.float64)
    return network, network.layout.split(flat)


def test_an_output_depends_only_on_earlier_tokens_of_its_episode():
    """An action's distribution depends neither on that action nor on later tokens, and no output depends on padding.

    Faults: no causal mask; padding is attended to.
    """
    network, weights = make_network()
    context = make_context(4)
    mean, log_std, logit = network(weights, context)
    later = make_context(4, seed=1)
    joined = Context(
        *(torch.cat([x[:, :, :2], y[:, :, 2:]], dim=2) for x, y in zip(*map(_parts, (context, later)), strict=True))
    )
    joined.actions[:, :, 1] = 0.3  # the second step's action
    again = network(weights, joined)
    torch.testing.assert_close(again[0][:, :, :2], mean[:, :, :2])
    torch.testing.assert_close(again[1][:, :, :2], log_std[:, :, :2])
    torch.testing.assert_close(again[2][:, :, 0], logit[:, :, 0])
    assert (again[2][:, :, 1] - logit[:, :, 1]).abs().min() > 1e-6
    assert (again[0][:, :, 2] - mean[:, :, 2]).abs().max() > 1e-3

    times = context.times - 2
    valid = times >= 0
    cut = Context(context.to_go, context.states, context.actions, times.clamp(min=0), valid)
    alone = Context(*(x[:, :, 2:] for x in _parts(cut)))
    torch.testing.assert_close(network(weights, cut)[0][:, :, 2:], network(weights, alone)[0])


def _parts(context: Context):
    return context.to_go, context.states, context.actions, context.times, context.valid


@pytest.mark.parametrize("kind", ["cost", "return"])
def test_actions_follow_the_targets(kind):
    """Half of the episodes act −0.5, half 0.5, and they differ only in their cost or only in their return.

    This is CDT's defining idea. Fault: without that token in the network both members act 0.
    """
    generator = torch.Generator().manual_seed(0)
    side = (torch.rand(400, generator=generator) < 0.5).float()
    costs, rewards = (5.0 * side, torch.ones(400)) if kind == "cost" else (torch.ones(400), 100.0 * side)
    states = 0.1 * torch.randn(400, 1, generator=generator)
    columns = {name: x.float() for name, x in table(rewards, costs).items()}
    columns |= {"observations": states, "actions": (side - 0.5)[:, None]}
    episodes = EpisodeTotals(rewards.numpy(), costs.numpy(), np.ones(400, int))
    config = baseline_config("baseline.cdt.dropout=0", "baseline.cdt.augmented=0")
    members = (
        [{"cost_limit": 0.0}, {"cost_limit": 5.0}]
        if kind == "cost"
        else [{"cdt.target_return": 0.0}, {"cdt.target_return": 1.0}]
    )
    members = [{"learning_rate": 0.005, **member} for member in members]
    learner = make_population("cdt", config, members, BANDIT, torch.float32, episodes=episodes)
    train(learner, columns, 0, 150, rows=64)
    np.testing.assert_allclose(learner.actions(torch.zeros(2, 1, 1)).detach().flatten(), [-0.5, 0.5], atol=0.1)


def test_of_equal_returns_the_cheapest_episode_is_the_best():
    """Episodes are in order of cost. Fault: the last of equal returns, which has a higher cost."""
    assert best_so_far(np.array([1.0, 5.0, 5.0, 3.0, 5.0, 6.0])).tolist() == [0, 1, 1, 1, 1, 5]


def test_a_context_longer_than_an_episode_is_saved_in_a_loadable_form(tmp_path):
    """Fault: the policy file is refused on loading, after the training."""
    trained(length=7, context=10).policies().save(tmp_path / "p.safetensors", 0, {})
    assert load_policy(tmp_path / "p.safetensors").population.context == 7


def test_the_target_return_is_one_of_episodes_within_the_limit():
    episodes = EpisodeTotals(np.array([5.0, 9.0, 2.0, 20.0]), np.array([4.0, 10.0, 0.5, 50.0]), np.ones(4, int))
    assert target(episodes, 10.0, 1.0) == (10.0, 9.0)
    assert target(episodes, 9.9, 1.0) == (9.9, 5.0)
    assert target(episodes, 10.0, 0.5) == (10.0, 5.5)
    assert target(episodes, 0.1, 1.0) == (0.1, 2.0)  # of the cheapest episode


def test_the_learning_rate_warms_up():
    """Fault: the full learning rate at the first step."""
    learner = make_population("cdt", baseline_config("baseline.cdt.warm_up=100"), [{"learning_rate": 1e-2}])
    before = learner.networks["transformer"].flat.clone()
    train(learner, table(torch.ones(40).double(), torch.zeros(40).double()) | _of_spec(40), 0, 1)
    moved = (learner.networks["transformer"].flat - before).abs().max()
    assert 0.5e-4 < float(moved) < 1.2e-4


def _of_spec(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "observations": torch.randn(rows, 3, generator=generator).double(),
        "actions": torch.rand(rows, 2, generator=generator).double(),
    }


def trained(members: int = 2, observations: int = 3, actions: int = 2, length: int = 7, context: int = 3) -> CDT:
    spec = make_spec(observations, actions, episode_length=length, return_max=30.0)
    config = baseline_config(f"baseline.cdt.context={context}")
    settings = [{"seed": seed, "cost_limit": 10.0 * (1 + seed)} for seed in range(members)]
    learner = make_population("cdt", config, settings, spec, torch.float32)
    assert isinstance(learner, CDT)
    learner.networks["transformer"].flat.mul_(3.0)  # so that earlier steps have an effect
    return learner


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_numpy_policy_acts_as_the_network(steps):
    """Histories of several lengths that begin at step 2 of an episode give the network's actions, for every member."""
    learner, first = trained(), 2
    policies, context = learner.policies(), make_context(steps)
    transformer = learner.networks["transformer"]
    raw = 5.0 * context.to_go
    inputs = Context(scaled(raw, learner.units), context.states, context.actions, context.times + first, context.valid)
    inputs = Context(*(x.float() if x.is_floating_point() else x for x in _parts(inputs)))
    with torch.no_grad():
        expected = transformer.network(transformer.weights, inputs)[0]
    for member in range(2):
        actions = policies.next_actions(
            member, *(x[member].float().numpy() for x in (raw, context.states, context.actions[:, :, :-1])), first
        )
        np.testing.assert_allclose(actions, expected[member, :, -1].clamp(-1, 1), atol=2e-5)


def history_actions(policy: Policy, observations: list[np.ndarray], rewards: list[float], costs: list[float]) -> list:
    """Return an episode's expected actions, each computed from the whole history."""
    population, actions = policy.population, []
    for step in range(len(observations)):
        start = max(0, step - population.context + 1)
        target = population.target[0].astype(np.float64)
        to_go = np.array([target - [sum(costs[:n]), sum(rewards[:n])] for n in range(start, step + 1)], np.float32)
        states = np.stack([population.standardised(x) for x in observations[start : step + 1]])
        past = np.array(actions[start:step], np.float32).reshape(step - start, population.action_size)
        actions.append(population.next_actions(0, to_go[None], states[None], past[None], start)[0])
    return actions


def test_an_episode_acts_on_its_own_history(tmp_path):
    """The episode is longer than the context.

    Faults: the targets stay constant; the window does not move; previous actions are lost.
    """
    trained().policies().save(tmp_path / "p.safetensors", 1, {})
    policy = load_policy(tmp_path / "p.safetensors")
    rng = np.random.default_rng(0)
    observations, rewards, costs = list(rng.normal(size=(6, 3))), list(rng.normal(size=6)), list(rng.random(6))
    episode, actions = policy.episode(), []
    for observation, reward, cost in zip(observations, rewards, costs, strict=True):
        actions.append(episode.act(observation))
        episode.note(reward, cost)
    expected = history_actions(policy, observations, rewards, costs)
    assert np.stack(actions).tobytes() == np.stack(expected).tobytes()
    constant_targets = history_actions(policy, observations, [0.0] * 6, [0.0] * 6)
    assert np.abs(np.stack(constant_targets) - np.stack(expected)).max() > 1e-3
    with pytest.warns(UserWarning, match=r"ignores this policy's memory; call policy\.episode"):
        first = policy.act(np.stack(observations))
    assert first[0].tobytes() == actions[0].tobytes()
    assert first[3].tobytes() == policy.episode().act(observations[3]).tobytes()


def test_batched_episodes_equal_single_episodes_bitwise():
    """The episodes have different lengths. Fault: one matrix product for all episodes, which rounds differently."""
    from drcorl_ray.tasks.envs import make_env

    env = make_env(WALK)
    sizes = (env.observation_space.shape[0], env.action_space.shape[0])
    policies, seeds = trained(3, *sizes).policies(), [11, 4, 7, 2]
    stats = evaluate(policies, WALK, seeds)
    for member in range(3):
        for index, seed in enumerate(seeds):
            episode, (observation, _), total, cost, length, done = (
                Policy(policies.select([member]), {}).episode(), env.reset(seed=seed), 0.0, 0.0, 0, False,
            )  # fmt: skip
            while not done:
                observation, reward, terminated, truncated, info = env.step(episode.act(observation))
                episode.note(float(reward), info["cost"])
                total, cost, length = total + float(reward), cost + info["cost"], length + 1
                done = terminated or truncated
            batched = (stats.returns[member, index], stats.costs[member, index], stats.lengths[member, index])
            assert batched == (total, cost, length)


@pytest.mark.parametrize(
    "fault",
    [
        "heads",
        "boolean heads",
        "context",
        "units",
        "no units",
        "missing array",
        "extra array",
        "width",
        "target",
        "huge context",
        "unit of zero",
    ],
)
def test_invalid_policy_files_are_refused(fault, tmp_path):
    from drcorl_ray.io.files import load_arrays, save_arrays

    path = tmp_path / "p.safetensors"
    trained().policies().save(path, 0, {})
    arrays, meta = load_arrays(path)
    changes = {
        "heads": {"heads": 3}, "boolean heads": {"heads": True},
        "context": {"context": 0}, "units": {"units": [1.0]}, "no units": {"units": None},
        "huge context": {"context": 2**62}, "unit of zero": {"units": [1.0, 0.0]},
    }  # fmt: skip
    if fault == "missing array":
        del arrays["blocks.1.0.bias"]
    elif fault == "extra array":
        arrays["extra"] = arrays["target"]
    elif fault == "width":
        arrays["out.norm.gain"] = arrays["out.norm.gain"][:-1]
    elif fault == "target":
        arrays["target"] = arrays["target"][:1]
    else:
        meta |= changes[fault]
    save_arrays(path, arrays, meta)
    with pytest.raises(UserError, match=r"p\.safetensors: not a") as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)
