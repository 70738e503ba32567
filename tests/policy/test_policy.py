"""Policy files and their actions: shapes, values, independence of rows, hostile files, and use without torch or Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drcorl_ray.errors import UserError
from drcorl_ray.evaluation.policy_files import load_entries
from drcorl_ray.io.files import load_arrays, save_arrays, write_json
from drcorl_ray.policy.loading import load_policy, load_population
from drcorl_ray.policy.mlp import MLPPolicy
from tests.helpers.paths import ROOT

S, A = 5, 2


def make_population(members: int = 3, hidden: tuple[int, ...] = (16, 8), seed: int = 0) -> MLPPolicy:
    rng = np.random.default_rng(seed)
    sizes = (S, *hidden, A)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return MLPPolicy(
        draw(S),
        rng.uniform(0.5, 2.0, S).astype(np.float32),
        tuple(draw(members, a, b) / np.float32(np.sqrt(a)) for a, b in pairwise(sizes)),
        tuple(draw(members, b) for b in sizes[1:]),
    )


def observations(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 2.0, (rows, S)).astype(np.float32)


def reference_actions(population: MLPPolicy, member: int, states: np.ndarray) -> np.ndarray:
    """Compute actions with an independent implementation in float64: one state and one unit at a time."""
    actions = []
    for state in states.astype(np.float64):
        x = [(state[i] - population.observation_mean[i]) / population.observation_std[i] for i in range(S)]
        last = len(population.weights) - 1
        for layer, (weight, bias) in enumerate(zip(population.weights, population.biases, strict=True)):
            z = [bias[member, j] + sum(x[i] * weight[member, i, j] for i in range(len(x))) for j in range(weight.shape[2])]
            x = [np.tanh(value) if layer == last else max(value, 0.0) for value in z]
        actions.append(x)
    return np.array(actions)


@pytest.fixture
def saved(tmp_path):
    population = make_population()
    population.save(tmp_path / "policy.safetensors", 1, {"task": "PointCircle"})
    return population, tmp_path / "policy.safetensors"


def test_actions_equal_those_of_a_reference_implementation(saved):
    """Fault: use tanh in every layer, skip the standardisation, or take the wrong member."""
    population, path = saved
    states = observations(7)
    policy = load_policy(path)
    np.testing.assert_allclose(policy.act(states), reference_actions(population, 1, states), atol=2e-6)
    assert np.abs(policy.act(states) - reference_actions(population, 0, states)).max() > 0.01
    assert policy.meta["task"] == "PointCircle"
    everyone = population.act(np.stack([states] * 3))
    for member in range(3):
        np.testing.assert_allclose(everyone[member], reference_actions(population, member, states), atol=2e-6)


def test_shapes_of_observations_and_actions(saved):
    policy = load_policy(saved[1])
    assert policy.act(observations(1)[0]).shape == (A,)
    assert policy.act(observations(4)).shape == (4, A)
    assert policy.act(observations(0)).shape == (0, A)
    assert policy.act(observations(4).astype(np.float64).tolist()).dtype == np.float32
    assert np.abs(policy.act(1e6 * observations(50))).max() <= 1.0


@pytest.mark.parametrize("shape", [(), (S + 1,), (S - 1,), (0,), (3, S + 1), (S, 3), (2, 3, S), (1, 1, S)])
def test_other_shapes_are_refused(saved, shape):
    with pytest.raises(ValueError, match=rf"\[{S}\] or \[N, {S}\] expected, got \[") as caught:
        load_policy(saved[1]).act(np.zeros(shape))
    assert len(str(caught.value).splitlines()) == 1


@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 1000),
    first=st.integers(0, 39),
    hidden=st.sampled_from([(64, 48), (256, 256), (33, 77)]),
)
def test_the_action_for_a_row_does_not_depend_on_other_rows(rows, seed, first, hidden):
    """The actions are equal bit for bit. Fault: one matrix product for all rows, whose blocking depends on their number."""
    population = make_population(2, hidden)
    states = observations(rows, seed)
    many = population.act(np.stack([states, states]))
    row = first % rows
    one = population.act(np.stack([states[row : row + 1]] * 2))
    assert one[:, 0].tobytes() == many[:, row].tobytes()
    alone = population.select([1]).act(states[None])
    assert alone[0].tobytes() == many[1].tobytes()


def test_actions_do_not_depend_on_the_number_of_threads():
    """A rollout actor has one thread, a process that calls `evaluate` one per core. Fault: multiply blocks of 4 rows.

    OpenBLAS's kernel for Haswell and Zen shows this fault; a machine without that kernel uses its default kernel.
    """
    code = (
        "import numpy as np; from tests.policy.test_policy import *; "
        "print(make_population(1, (512, 512)).act(observations(40)[None]).tobytes().hex())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(printed) == 1


def test_a_perturbed_policy_has_the_array_names_of_all_releases(tmp_path):
    """A file written array by array loads, acts as computed here and is saved with the same names. Fault: rename an array."""
    rng = np.random.default_rng(0)
    shapes = {"layers.0.weight": (S, A), "layers.0.bias": (A,)}
    shapes |= {"perturbation.layers.0.weight": (S + A, A), "perturbation.layers.0.bias": (A,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    stored = arrays | {"observation_mean": np.zeros(S, np.float32), "observation_std": np.ones(S, np.float32)}
    stored["perturbation.reach"] = np.array(0.3, np.float32)
    save_arrays(tmp_path / "old.safetensors", stored, {"policy_schema": 1, "layers": 1, "perturbation_layers": 1})
    policy, states = load_policy(tmp_path / "old.safetensors"), observations(4)
    action = np.tanh(states @ arrays["layers.0.weight"] + arrays["layers.0.bias"])
    inputs = np.concatenate([states, action], axis=1)
    change = np.tanh(inputs @ arrays["perturbation.layers.0.weight"] + arrays["perturbation.layers.0.bias"])
    np.testing.assert_allclose(policy.act(states), (action + 0.3 * change).clip(-1, 1), atol=2e-6)
    policy.population.save(tmp_path / "new.safetensors", 0, {})
    written, meta = load_arrays(tmp_path / "new.safetensors")
    assert {name: array.tobytes() for name, array in written.items()} == {n: a.tobytes() for n, a in stored.items()}
    assert meta == {"policy_schema": 1, "layers": 1, "perturbation_layers": 1}


def test_select_takes_members_in_order():
    population = make_population(4)
    states = np.stack([observations(3)] * 4)
    chosen = population.select([2, 0, 2])
    assert chosen.members == 3
    np.testing.assert_array_equal(chosen.act(states[:3]), population.act(states)[[2, 0, 2]])


def test_finite_is_false_for_members_with_nan_or_inf():
    population = make_population(4)
    population.weights[1][2, 0, 0] = np.nan
    population.biases[0][0, 1] = np.inf
    assert population.finite().tolist() == [False, True, False, True]


def test_a_population_round_trips(tmp_path):
    population = make_population(3)
    population.save_population(tmp_path / "p.safetensors", {"finite": [True] * 3})
    loaded, meta = load_population(tmp_path / "p.safetensors")
    states = np.stack([observations(6)] * 3)
    assert loaded.act(states).tobytes() == population.act(states).tobytes()
    assert meta["finite"] == [True] * 3


def test_the_directory_of_a_run_loads_its_winner_or_first_member(saved, tmp_path):
    population, _ = saved
    for member, name in enumerate(("first", "second")):
        population.save(tmp_path / "policies" / f"{name}.safetensors", member, {})
    rows = [{"task": "T", "selection": "last", "policy": f"policies/{name}.safetensors"} for name in ("first", "second")]
    results = {"schema": 1, "run": {}, "rows": rows}
    states = observations(3)
    for selection, name in (("last", "first"), ("search_winner", "second")):
        expected = tmp_path / "policies" / f"{name}.safetensors"
        rows[1]["selection"] = selection
        write_json(tmp_path / "results.json", results)
        assert load_policy(str(tmp_path)).act(states).tobytes() == load_policy(expected).act(states).tobytes()
    for broken in ([], {}, 3, None, [1], [{"task": "T", "selection": "last"}], [{"selection": "last", "policy": "p"}], ["a"]):
        write_json(tmp_path / "results.json", results | {"rows": broken})
        assert "results.json: lists no policy" in refusal(tmp_path)
    for broken in ({"rows": []}, {}, [1], results | {"schema": 2}):
        write_json(tmp_path / "results.json", broken)
        assert "results.json: not results of schema 1" in refusal(tmp_path)


def test_a_run_of_several_tasks_has_no_single_policy(saved, tmp_path):
    """The message names one policy per task, winners first. Fault: load the first row of the first task."""
    rows = [
        {"task": task, "selection": selection, "policy": f"policies/{task}-{selection}.safetensors"}
        for selection in ("last", "search_winner")
        for task in ("A", "B")
    ]
    write_json(tmp_path / "results.json", {"schema": 1, "run": {}, "rows": rows})
    message = refusal(tmp_path)
    assert message == (
        f"{tmp_path}: has policies of 2 tasks; name one of them: {tmp_path}/policies/A-search_winner.safetensors, "
        f"{tmp_path}/policies/B-search_winner.safetensors"
    )


def test_an_unfinished_run_says_so(tmp_path):
    """Fault: the message is "cannot be read as JSON ([Errno 2] …)"."""
    assert refusal(tmp_path) == (f"{tmp_path}: not a finished run (results.json is missing); resume it or name a policy file")
    with pytest.raises(UserError, match="resume it or name a policy file"):
        load_entries([str(tmp_path)])


def test_loading_the_policy_of_a_run_imports_only_numpy_and_safetensors(saved, tmp_path):
    """Fault: read results.json in a module that imports the configuration, or import schema.py at run time."""
    population, _ = saved
    population.save(tmp_path / "policies" / "p.safetensors", 0, {})
    row = {"task": "T", "selection": "last", "policy": "policies/p.safetensors"}
    write_json(tmp_path / "results.json", {"schema": 1, "run": {}, "rows": [row]})
    code = f"""
        import sys
        from drcorl_ray.policy.loading import load_policy
        assert load_policy({str(tmp_path)!r}).act([0.0] * {S}).shape == ({A},)
        heavy = ("pydantic", "rich", "yaml", "torch", "ray", "h5py", "drcorl_ray.config")
        print([name for name in heavy if name in sys.modules])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["../p.safetensors", "/etc/passwd", "policies/../../p", "s3://b/p", "", ".", "a\0b", "\ud800", "x" * 256, 3, None]
)
def test_results_may_only_name_files_of_their_run(saved, tmp_path, name):
    """Fault: join any name in results.json to the folder of the run."""
    write_json(
        tmp_path / "results.json", {"schema": 1, "run": {}, "rows": [{"task": "T", "selection": "last", "policy": name}]}
    )
    for load in (load_policy, lambda run: load_entries([str(run)])):
        with pytest.raises(UserError, match=r"results\.json: names .*, which is no file beside it"):
            load(tmp_path)


def refusal(path: Path, load=load_policy) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def test_policy_and_population_files_are_distinguished(saved, tmp_path):
    population, path = saved
    population.save_population(tmp_path / "p.safetensors", {})
    assert "policy_schema is None" in refusal(tmp_path / "p.safetensors")
    assert "population_schema is None" in refusal(path, load_population)


def test_missing_and_other_files_are_refused(tmp_path):
    refusal(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"results\.json"):
        load_policy(tmp_path)
    (tmp_path / "x").write_bytes(b"import os")
    refusal(tmp_path / "x")


@pytest.mark.parametrize(
    "fault",
    [
        "schema", "no schema", "no layers", "layers x", "layers 0", "layers -1", "layers 2", "layers 99", "layers null",
        "layers huge",
        "missing weight", "missing bias", "missing mean", "missing std", "rank of weight", "rank of bias", "rank of mean",
        "width", "members of bias", "observation size", "std size", "scalar bias",
    ],
)  # fmt: skip
def test_wrong_contents_with_a_correct_checksum_are_refused(saved, fault):
    """The file is refused when it is loaded, not when the policy acts."""
    _, path = saved
    arrays, meta = load_arrays(path)
    if fault == "schema":
        meta["policy_schema"] = 2
    elif fault == "no schema":
        del meta["policy_schema"]
    elif fault == "no layers":
        del meta["layers"]
    elif fault.startswith("layers"):
        meta["layers"] = {"x": "x", "0": 0, "-1": -1, "2": 2, "99": 99, "null": None, "huge": 2**63}[fault.split()[1]]
    elif fault.startswith("missing"):
        name = {"weight": "layers.1.weight", "bias": "layers.0.bias", "mean": "observation_mean", "std": "observation_std"}
        del arrays[name[fault.split()[1]]]
    elif fault == "rank of weight":
        arrays["layers.0.weight"] = arrays["layers.0.weight"].ravel()
    elif fault == "rank of bias":
        arrays["layers.1.bias"] = arrays["layers.1.bias"][None]
    elif fault == "rank of mean":
        arrays["observation_mean"] = arrays["observation_mean"][None]
    elif fault == "members of bias":
        arrays["layers.0.bias"] = np.zeros((), np.float32)
    elif fault == "width":
        arrays["layers.1.weight"] = arrays["layers.1.weight"][:-1]
    elif fault == "observation size":
        arrays["observation_mean"], arrays["observation_std"] = np.zeros(S + 1, np.float32), np.ones(S + 1, np.float32)
    elif fault == "std size":
        arrays["observation_std"] = np.ones(1, np.float32)
    elif fault == "scalar bias":
        arrays["layers.2.bias"] = np.array(0.0, np.float32)
    save_arrays(path, arrays, meta)
    refusal(path)


def test_a_policy_acts_without_torch_and_ray(saved):
    """A new interpreter refuses both imports; no simulator and no HDF5 is imported. Fault: import torch in policy/."""
    _, path = saved
    np.save(path.with_name("states.npy"), observations(6))
    code = """
        import sys
        import numpy as np

        class Forbidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("ray", "torch"):
                    raise ImportError(f"{name} is forbidden here")

        sys.meta_path.insert(0, Forbidden())
        import drcorl_ray
        actions = drcorl_ray.load_policy(sys.argv[1]).act(np.load(sys.argv[2]))
        heavy = {"ray", "torch", "h5py", "pyarrow", "mujoco", "gymnasium", "matplotlib", "pydantic"} & sys.modules.keys()
        print(sorted(heavy), actions.dtype, actions.tobytes().hex())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), path, path.with_name("states.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = load_policy(path).act(observations(6))
    assert done.stdout == f"[] float32 {expected.tobytes().hex()}\n"


def test_arrays_with_different_numbers_of_members_are_refused(tmp_path):
    make_population(3).save_population(tmp_path / "p.safetensors", {})
    arrays, meta = load_arrays(tmp_path / "p.safetensors")
    save_arrays(tmp_path / "p.safetensors", arrays | {"layers.1.bias": arrays["layers.1.bias"][:1]}, meta)
    refusal(tmp_path / "p.safetensors", load_population)
