"""Population networks against torch.nn modules, one member at a time."""

import pytest
import torch
from torch import nn

from drcorl_ray.method.actor import Actor, fold_condition
from drcorl_ray.method.networks import MLP, NoiseNetwork, fourier_features
from drcorl_ray.method.random import Draws, Stream
from drcorl_ray.method.train_state import TrainState, flat_gradients, reduce_together

SEEDS = torch.tensor([3, 11, 4])


def as_module(network: MLP, views: dict[str, torch.Tensor], member: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(len(network.hidden) + 1):
        weight = views[f"layers.{index}.weight"][member]
        linear = nn.Linear(*weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = weight.T.clone(), views[f"layers.{index}.bias"][member].clone()
        layers.append(linear)
        if index < len(network.hidden):
            if network.layer_norm:
                norm = nn.LayerNorm(weight.shape[1], dtype=torch.float64)
                norm.weight.data, norm.bias.data = (
                    views[f"norms.{index}.{part}"][member].clone() for part in ("gain", "shift")
                )
                layers.append(norm)
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_mlp_equals_torch_modules_member_by_member(layer_norm):
    network = MLP(5, (7, 6), 2, layer_norm)
    flat = network.layout.initialise(SEEDS, 0, dtype=torch.float64)
    flat += 0.1 * Draws(SEEDS, 1).normal(Stream.ROWS, flat.shape[1], dtype=torch.float64)  # gains and shifts off 1 and 0
    x = Draws(SEEDS, 0).normal(Stream.ROWS, 9, 5, dtype=torch.float64)
    views = network.layout.split(flat)
    outputs = network(views, x)
    for member in range(3):
        torch.testing.assert_close(outputs[member], as_module(network, views, member)(x[member]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [96, 128, 256])
def test_a_network_computes_the_same_bits_alone_and_beside_others(width):
    """Real sizes: BLAS rounds a matrix-vector product (one output) differently for one network and for several."""
    for outputs in (1, 6):
        network = MLP(23, (width, width), outputs, layer_norm=True)
        flat = network.layout.initialise(SEEDS, 0)
        x = Draws(SEEDS, 0).normal(Stream.ROWS, 256, 23)
        results = []
        for members in (slice(None), slice(1, 2)):
            state = TrainState(network, flat[members].clone())
            values = network(state.weights, x[members])
            results.append((values.detach(), flat_gradients(values.square().sum(), [state])[0]))
        for together, alone in zip(*results, strict=True):
            assert torch.equal(together[1:2], alone)


def test_start_values_are_torchs_bounds_and_the_members_own():
    network = MLP(100, (50,), 2)
    views = network.layout.split(network.layout.initialise(SEEDS, 0))
    assert views["layers.0.weight"].abs().max() <= 0.1
    assert views["layers.0.weight"].std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    alone = network.layout.initialise(SEEDS[1:2], 0)
    assert torch.equal(alone[0], network.layout.initialise(SEEDS, 0)[1])
    copies = network.layout.initialise(SEEDS, 0, copies=2).unflatten(0, (3, 2))
    assert not torch.equal(copies[:, 0], copies[:, 1])


def test_noise_network_shapes_and_dropout_masks():
    network = NoiseNetwork(observations=4, actions=2, conditions=4, width=8, blocks=2, expansion=3)
    weights = network.layout.split(network.layout.initialise(SEEDS, 0, dtype=torch.float64))
    draws = Draws(SEEDS, 0)
    noisy = draws.normal(Stream.ROWS, 5, 2, dtype=torch.float64)
    x = draws.normal(Stream.ROWS, 5, 4, dtype=torch.float64)
    times = draws.uniform(Stream.DIFFUSION_TIME, 5, dtype=torch.float64)
    plain = network(weights, noisy, times, x, x)
    assert plain.shape == (3, 5, 2)
    assert network.dropout_masks(draws, 5, 0.0, torch.float64) is None
    masks = network.dropout_masks(draws, 5, 0.5, torch.float64)
    assert masks is not None
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert not torch.allclose(network(weights, noisy, times, x, x, masks), plain)


def test_fourier_features_tell_times_apart():
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    features = fourier_features(times)
    distances = torch.cdist(features, features) + torch.eye(101)
    assert distances.min() > 0.1


def test_adam_equals_torch_and_honours_each_members_rate():
    network = MLP(3, (4,), 1)
    flat = network.layout.initialise(SEEDS, 0, dtype=torch.float64)
    ours = TrainState(network, flat.clone())
    rates = torch.tensor([1e-2, 0.0, 3e-3], dtype=torch.float64)
    theirs = [flat[member].clone().requires_grad_() for member in range(3)]
    optimisers = [torch.optim.AdamW([p], lr=float(rate), weight_decay=0.1) for p, rate in zip(theirs, rates, strict=True)]
    for step in range(5):
        gradient = Draws(SEEDS, step).normal(Stream.ROWS, flat.shape[1], dtype=torch.float64)
        for member, optimiser in enumerate(optimisers):
            theirs[member].grad = gradient[member].clone()
            optimiser.step()
        ours.descend(gradient, rates, weight_decay=0.1)
    torch.testing.assert_close(ours.flat, torch.stack([p.detach() for p in theirs]), rtol=1e-10, atol=1e-12)
    assert torch.equal(ours.flat[1], flat[1])


def test_flat_gradients_are_each_members_own():
    network = MLP(3, (4,), 1)
    state = TrainState(network, network.layout.initialise(SEEDS, 0, dtype=torch.float64))
    x = Draws(SEEDS, 0).normal(Stream.ROWS, 6, 3, dtype=torch.float64)
    (together,) = flat_gradients(network(state.weights, x).square().sum(), [state])
    for member in range(3):
        alone = TrainState(network, state.flat[member : member + 1].clone())
        (gradient,) = flat_gradients(network(alone.weights, x[member : member + 1]).square().sum(), [alone])
        torch.testing.assert_close(together[member], gradient[0], rtol=1e-12, atol=1e-12)


def test_ensembles_share_their_members_rate_and_follow_select():
    network = MLP(2, (3,), 1)
    part = TrainState(network, network.layout.initialise(SEEDS, 0, copies=2), copies=2, tracked=True)
    before = part.flat.clone()
    part.descend(torch.ones_like(part.flat), torch.tensor([0.0, 1e-2, 0.0]))
    assert (part.flat != before).any(1).tolist() == [False, False, True, True, False, False]
    part.track(0.5)
    expected = part.flat[[4, 5, 2, 3]].clone(), 0.5 * (part.flat + before)[[4, 5, 2, 3]]
    part.select(torch.tensor([2, 1]))
    assert torch.equal(part.flat, expected[0])
    torch.testing.assert_close(part.target_flat, expected[1])
    assert part.weights["layers.0.weight"].shape[0] == 4


def test_polyak_step():
    network = MLP(2, (3,), 1)
    part = TrainState(network, torch.zeros(1, network.layout.size, dtype=torch.float64), tracked=True)
    part.flat += 1.0
    for _ in range(3):
        part.track(0.1)
    assert part.target["layers.0.bias"][0, 0].item() == pytest.approx(1 - 0.9**3)


def test_reduce_together_returns_what_it_was_given_in_shape():
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor([7.0]), torch.tensor(8.0)]
    doubled = reduce_together(tensors, lambda flat: 2 * flat)
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, tensors, strict=True))


def test_folding_a_condition_into_the_bias_changes_nothing():
    conditioned, plain = Actor(4 + 3, (8, 8), 2), Actor(4, (8, 8), 2)
    flat = conditioned.layout.initialise(SEEDS, 0, dtype=torch.float64)
    observations = Draws(SEEDS, 0).normal(Stream.ROWS, 5, 4, dtype=torch.float64)
    conditions = Draws(SEEDS, 1).normal(Stream.ROWS, 3, dtype=torch.float64)
    joined = torch.cat([observations, conditions.unsqueeze(1).expand(-1, 5, -1)], dim=-1)
    expected = conditioned(conditioned.layout.split(flat), joined)
    folded = fold_condition(conditioned.layout, flat, plain.layout, conditions)
    got = plain(plain.layout.split(folded), observations)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
