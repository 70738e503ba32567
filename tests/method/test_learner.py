"""The whole learner: the gradient identity (T1), a toy CMDP (T6), independence of the pack, resuming, workers (T7)."""

import math

import numpy as np
import pytest
import torch

from drcorl_ray.method import diffusion
from drcorl_ray.method.adaptation import REGIONS
from drcorl_ray.method.estimation_states import EstimationStates
from drcorl_ray.method.random import Stream
from tests.helpers.learners import extract, make_learner, make_spec, make_table, pretrain, sampler, small_config, take_step

SPEC = make_spec(3, 2)
TABLE = make_table(200, 3, 2)
MEMBERS = [
    {"seed": 1},
    {"seed": 2, "k": 0.0, "beta_0": 0.5, "cost_limit": 0.0, "alpha": 0.1, "cost_ensemble": 3},
    {"seed": 3, "adaptation": "crpo", "cost_limit": 3.0, "policy_class": "gaussian", "slack_plus": 0.0},
    {"seed": 4, "adaptation": "lagrangian", "policy_class": "gaussian_constant", "cost_limit": 1.0, "cost_ensemble": 1},
    {"seed": 5, "beta_schedule": "linear", "beta_1": 0.2, "cost_limit": 40.0, "actor_learning_rate": 0.01},
]
PRESETS = ["default", "paper"]


def start(preset: str = "default", members=MEMBERS, dtype=torch.float64, **kw):
    config = small_config(f"run.preset={preset}", "extract.critic_steps=2")
    table = {name: column.to(dtype) for name, column in TABLE.items()}
    pretrained = pretrain(config, SPEC, table, [0]).result()
    return make_learner(config, SPEC, members, pretrained, dtype=dtype, **kw), table


def assert_same_member(state, index, alone, members):
    for name, tensor in alone.items():
        if tensor.ndim:
            copies = len(tensor)
            rows = (
                state[name].unflatten(0, (members, copies))[index]
                if len(state[name]) != members
                else state[name][index : index + 1]
            )
            assert torch.equal(rows, tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_member_alone_equals_the_member_in_a_pack_bitwise(preset, dtype):
    pack, table = start(preset, dtype=dtype)
    extract(pack, table, 0, 10)
    regions = set()
    for index, member in enumerate(MEMBERS):
        alone, _ = start(preset, [member], dtype=dtype)
        extract(alone, table, 0, 10)
        regions.add(int(alone.region_counts.argmax()))
        assert_same_member(pack.state_dict(), index, alone.state_dict(), len(MEMBERS))
    assert len(regions) > 1  # so the members took different branches


def test_a_step_reports_its_region():
    """Each policy step reports 1 for its region and 0 for the others, so means over steps are shares of the regions."""
    pack, table = start()
    reports = [extract(pack, table, step, step + 1) for step in range(10)][2:]
    regions = torch.stack([torch.stack([metrics[f"adaptation/{name}"] for metrics in reports]) for name in REGIONS])
    assert torch.equal(regions.sum(1).T.long(), pack.region_counts)
    assert (regions.sum(0) == 1).all()
    assert len(pack.region_counts.sum(0).nonzero()) > 1


def test_members_end_at_different_policies():
    pack, table = start()
    extract(pack, table, 0, 10)
    assert len({tuple(row.tolist()) for row in pack.average}) == len(MEMBERS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resumed_extraction_equals_an_uninterrupted_one_bitwise(preset):
    straight, table = start(preset)
    extract(straight, table, 0, 10)
    first, _ = start(preset)
    extract(first, table, 0, 5)
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    resumed, _ = start(preset)
    resumed.load_state_dict(saved)
    extract(resumed, table, 5, 10)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("preset", PRESETS)
def test_pretraining_resumes_bitwise_and_does_not_depend_on_the_pack(preset):
    config = small_config(f"run.preset={preset}")
    straight = pretrain(config, SPEC, TABLE, [5, 9])
    half = pretrain(config, SPEC, TABLE, [5, 9], steps=7)
    rest = pretrain(config, SPEC, TABLE, [5, 9], steps=0)
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    sample = sampler(TABLE)
    for step in range(7, rest.total_steps):
        take_step(rest, sample, config.pretrain.batch_size, step)
    alone = pretrain(config, SPEC, TABLE, [9])
    for name, tensor in straight.result().items():
        assert torch.equal(rest.result()[name], tensor), name
        assert torch.equal(tensor[len(tensor) // 2 :], alone.result()[name]), name


class Lockstep:
    """Averages the flat tensors of two learners that run in threads, as an all-reduce of two workers does."""

    def __init__(self):
        import threading

        self.barrier, self.parts = threading.Barrier(2), [None, None]

    def reduction(self, rank):
        def reduce(tensor):
            self.parts[rank] = tensor
            self.barrier.wait()
            mean = (self.parts[0] + self.parts[1]) / 2
            self.barrier.wait()
            return mean

        return reduce


@pytest.mark.parametrize("preset", PRESETS)
def test_two_workers_with_half_the_batch_equal_one_worker(preset):
    from concurrent.futures import ThreadPoolExecutor

    whole, table = start(preset)
    extract(whole, table, 0, 8)
    lockstep = Lockstep()
    halves = [start(preset, first_row=8 * rank)[0] for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        reductions = [lockstep.reduction(rank) for rank in (0, 1)]
        list(pool.map(lambda learner, reduce: extract(learner, table, 0, 8, 8, reduce), halves, reductions))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(halves[0].state_dict()[name], tensor, rtol=1e-9, atol=1e-11, msg=name)
        assert torch.equal(halves[0].state_dict()[name], halves[1].state_dict()[name]), name


def test_gradient_identity():
    """The parts of Eq. 23 equal w(t)(ε − z) and ∇_a Q, backpropagated by hand through the actor alone (T1)."""
    learner, table = start(members=[{"seed": 1, "k": 1.5}])
    draws = learner.draws(3)
    batch = sampler(table)(draws, 16)
    actor, q_cost, q_reward = (learner.networks[name] for name in ("actor", "q_cost", "q_reward"))
    actions, std = learner._act(batch.observations, draws, Stream.POLICY_NOISE)
    reward, cost, behaviour, norm_reward, norm_cost = learner._policy_gradients(batch, actions, std, draws)

    leaf = actions.detach().requires_grad_()
    inputs = torch.cat([batch.observations, leaf], -1)[0]
    q = torch.stack(
        [q_reward.network({k: v[i : i + 1] for k, v in q_reward.target.items()}, inputs[None])[0, :, 0] for i in (0, 1)]
    )
    (by_reward,) = torch.autograd.grad(q.min(0).values.sum(), leaf, retain_graph=True)
    q = torch.stack(
        [q_cost.network({k: v[i : i + 1] for k, v in q_cost.target.items()}, inputs[None])[0, :, 0] for i in range(4)]
    )
    bound = q.mean(0) + 1.5 * ((q - q.mean(0)) ** 2).mean(0).sqrt()
    (by_cost,) = torch.autograd.grad(bound.sum(), leaf)
    low, high = diffusion.REGULARISER_TIMES
    t = low + (high - low) * draws.uniform(Stream.REGULARISER_TIME, 16, dtype=torch.float64)
    z = draws.normal(Stream.REGULARISER_NOISE, 16, 2, dtype=torch.float64)
    log_alpha = -(t**2) * 19.9 / 4 - t * 0.05
    alpha, sigma = log_alpha.exp()[..., None], (1 - (2 * log_alpha).exp()).sqrt()[..., None]
    conditions = learner.conditions[:, None].expand(-1, 16, -1)
    noisy = alpha * leaf.detach() + sigma * z
    epsilon = learner.architectures.noise(learner.noise_weights, noisy, t, batch.observations, conditions)
    by_behaviour = -(sigma**2) * (epsilon - z)
    leaves = list(actor.weights.values())
    for gradient, direction in ((reward, by_reward), (cost, by_cost), (behaviour, by_behaviour)):
        expected = torch.autograd.grad((actions * direction.detach()).sum() / 16, leaves, retain_graph=True)
        torch.testing.assert_close(gradient[0], torch.cat([g.flatten() for g in expected]), rtol=1e-9, atol=1e-12)
    assert float(norm_reward) == pytest.approx(float(by_reward.norm(dim=-1).mean()))
    assert float(norm_cost) == pytest.approx(float(by_cost.norm(dim=-1).mean()))
    assert not learner.noise_weights["output.weight"].requires_grad


def test_critic_losses_have_no_gradient_in_the_policy():
    learner, table = start(members=[{"seed": 1, "alpha": 0.3, "policy_class": "gaussian"}])
    draws = learner.draws(0)
    batch = sampler(table)(draws, 16)
    actions, _ = learner._act(batch.observations, draws, Stream.POLICY_NOISE)
    losses, _ = learner._critic_losses(batch, actions.detach(), draws)
    leaves = list(learner.networks["actor"].weights.values())
    for loss in losses.values():
        assert all(g is None for g in torch.autograd.grad(loss.sum(), leaves, allow_unused=True, retain_graph=True))


def test_beta_zero_is_cloning_by_the_score_alone():
    """With β = 0 the critics have no effect: members with different k and limits end at the same policy."""
    learner, table = start(members=[{"seed": 1, "beta_0": 0.0}, {"seed": 1, "beta_0": 0.0, "k": 9.0, "cost_limit": 0.0}])
    extract(learner, table, 0, 10)
    torch.testing.assert_close(learner.average[0], learner.average[1], rtol=0, atol=1e-12)


def test_a_member_that_diverges_does_not_change_the_others():
    diverged, table = start()
    diverged.networks["actor"].flat[1] = math.nan
    extract(diverged, table, 0, 6)
    assert diverged.finite().tolist() == [True, False, True, True, True]
    healthy, _ = start()
    extract(healthy, table, 0, 6)
    assert torch.equal(diverged.average[[0, 2, 3, 4]], healthy.average[[0, 2, 3, 4]])


def test_selected_members_train_on_as_before():
    pack, table = start()
    extract(pack, table, 0, 5)
    pack.select([3, 0])
    extract(pack, table, 5, 10)
    whole, _ = start()
    extract(whole, table, 0, 10)
    assert torch.equal(pack.average, whole.average[[3, 0]])
    assert torch.equal(pack.region_counts, whole.region_counts[[3, 0]])


def test_joined_members_train_on_as_before():
    """Members of two packs, one with pessimism and stochastic policies, stay bitwise the same after a join.

    Fault: a moment, a target or the multiplier is not joined.
    """
    whole, table = start()
    extract(whole, table, 0, 10)
    first, second = start()[0], start()[0]
    for pack, survivors in ((first, [3, 0]), (second, [1, 4, 2])):
        extract(pack, table, 0, 5)
        pack.select(survivors)
    first.join(second)
    extract(first, table, 5, 10)
    for name, tensor in first.state_dict().items():
        copies = len(tensor) // 5 if tensor.ndim else 0
        rows = [member * copies + copy for member in (3, 0, 1, 4, 2) for copy in range(copies)]
        assert torch.equal(tensor, whole.state_dict()[name][rows] if tensor.ndim else whole.state_dict()[name]), name


def test_policies_act_as_the_actor_does():
    learner, table = start(dtype=torch.float32)
    extract(learner, table, 0, 10)
    raw = table["observations"][:7].numpy()
    actions = learner.policies().act(np.broadcast_to(raw, (5, 7, 3)))
    weights = learner.architectures.actor.layout.split(learner.average)
    expected, _ = learner.architectures.actor(weights, torch.from_numpy(raw).expand(5, -1, -1))
    np.testing.assert_allclose(actions, expected.numpy(), atol=1e-6)


def toy_table() -> dict[str, torch.Tensor]:
    """One state, actions in [-1, 1], reward −(a − 0.8)², cost σ((a − 0.2)/0.25), a smooth step."""
    actions = torch.linspace(-0.95, 0.95, 400, dtype=torch.float64)[:, None]
    rows = len(actions)
    zeros = torch.zeros(rows, dtype=torch.float64)
    return {
        "observations": torch.zeros(rows, 1, dtype=torch.float64),
        "actions": actions,
        "next_observations": torch.zeros(rows, 1, dtype=torch.float64),
        "rewards": -(actions[:, 0] - 0.8).square(),
        "costs": torch.sigmoid((actions[:, 0] - 0.2) / 0.25),
        "terminals": torch.ones_like(zeros),
        "reward_rates": zeros,
        "cost_rates": zeros,
    }


def test_toy_constrained_optimum():
    """Every rule finds the best action with cost ≤ 0.2 per step, 0.2 − 0.25·log 4 ≈ −0.147, from a safe or unsafe start."""
    table = toy_table()
    spec = make_spec(1, 1, mean_cost=0.3)
    config = small_config(
        "extract.critic_steps=300", "extract.steps=500", "extract.batch_size=48", "pretrain.critic_hidden=[32,32]",
        "pretrain.cost_discount=0.0", "pretrain.discount=0.0", "extract.terminal_cost=false", "member.k=0", "member.beta_0=30",
        "member.cost_limit=20", "member.critic_learning_rate=0.003", "member.actor_learning_rate=0.003",
        "extract.cost_step_reward_weight=0", "member.pid_integral=0.05", "extract.estimate_smoothing=0.8",
        "extract.normalize_action_gradients=false", "member.slack_minus=0.2", "member.slack_shrink=1",
    )  # fmt: skip
    cases = [(rule, first) for rule in ("gradient_manipulation", "crpo", "lagrangian") for first in (-0.6, 0.7)]
    members = [{"adaptation": rule} for rule, _ in cases]
    learner = make_learner(config, spec, members, pretrain(config, spec, table, [0], steps=0).result())
    zeros, ends = torch.zeros(16, 1, dtype=torch.float64), torch.arange(16)
    learner.estimation_states = EstimationStates(zeros, zeros, ends, torch.zeros_like(ends), stretch=0, nearest=None)
    learner.estimated_on = ends.repeat(len(cases), 1)
    for member, (_, first) in enumerate(cases):
        learner.networks["actor"].weights["layers.2.bias"].detach()[member, 0] = math.atanh(first)
    extract(learner, table, 0, learner.total_steps)
    actions = learner.policies().act(np.zeros((len(cases), 1, 1), np.float32))[:, 0, 0]
    assert actions.tolist() == pytest.approx([0.2 - 0.25 * math.log(4)] * len(cases), abs=0.08)
