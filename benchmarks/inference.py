"""Seconds for 1,000 single-state actions of our policy, a plain MLP and diffusion sampling (Fig. 2 of the paper).

python -m benchmarks.inference [--device cuda] [--output FILE.json]

Needs only torch, numpy and safetensors. A saved policy runs in numpy on the CPU; the others run on --device.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.population import ACTIONS, OBSERVATIONS, SPEC, Settings, make_pretrainer
from benchmarks.timing import interleaved, machine, table, write
from drcorl_ray.evaluation.speed import DENOISING_STEPS, STATES, Act, diffusion_policy, one_by_one
from drcorl_ray.policy.loading import Policy
from drcorl_ray.policy.mlp import MLPPolicy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    states = np.random.default_rng(0).standard_normal((STATES, OBSERVATIONS), dtype=np.float32)
    variants = {"policy": partial(one_by_one, our_policy().act, states)}
    variants["mlp"] = partial(one_by_one, bare_mlp(options.device), states)
    noise = make_pretrainer(Settings(), [0], options.device).networks["noise"]
    weights = {name: weight.detach() for name, weight in noise.weights.items()}
    for steps in DENOISING_STEPS:
        act = diffusion_policy(noise.network, weights, steps, options.device)
        variants[f"diffusion {steps}"] = partial(one_by_one, act, states[: STATES // 10])
    with torch.no_grad():
        seconds = interleaved(variants, 5, options.device)
    for steps in DENOISING_STEPS:
        seconds[f"diffusion {steps}"] *= 10
    show(seconds, options.device)
    write(options.output, {"machine": machine(options.device), "seconds": seconds})


def our_policy() -> Policy:
    generator = np.random.default_rng(1)
    sizes = [(OBSERVATIONS, 256), (256, 256), (256, ACTIONS)]
    weights = tuple(generator.normal(0.0, size[0] ** -0.5, (1, *size)).astype(np.float32) for size in sizes)
    biases = tuple(np.zeros((1, size), np.float32) for _, size in sizes)
    mean, std = (np.asarray(values, np.float32) for values in (SPEC.observation_mean, SPEC.observation_std))
    return Policy(MLPPolicy(mean, std, weights, biases), {})


def bare_mlp(device: str) -> Act:
    """Return the plain torch policy: copy a state to the device, run the network, copy the action back."""
    layers = (nn.Linear(OBSERVATIONS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, ACTIONS), nn.Tanh())
    network = nn.Sequential(*layers).to(device)
    return lambda state: network(torch.from_numpy(state).to(device)).cpu().numpy()


def show(seconds: dict[str, float], device: str) -> None:
    ours = seconds["policy"]
    targets = {"mlp": "ours no slower", "diffusion 15": "ours ≥ 25 × faster"}
    names = {"policy": "our policy (numpy)", "mlp": f"bare MLP 2 × 256 (torch, {device})"}
    table(
        f"{STATES:,} single-state actions",
        ("what", "seconds", "× ours", "target"),
        [
            (names.get(name, f"{name} steps (torch, {device})"), f"{took:.3f}", f"{took / ours:.1f}", targets.get(name, ""))
            for name, took in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
