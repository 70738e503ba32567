"""The configuration tree: precedence, one-line refusals, presets, YAML files, and a fuzz test of user input."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from drcorl_ray.config import BaselineMember, Config, MemberConfig
from drcorl_ray.config.loading import dump_config, load_config
from drcorl_ray.config.presets import PRESETS
from drcorl_ray.errors import UserError
from tests.helpers.paths import ROOT

CONFIGS = sorted((ROOT / "tune_configs").glob("*.yaml"))


def refusal(*arguments: str) -> str:
    """Return the one-line message of a refused configuration."""
    with pytest.raises(UserError) as caught:
        load_config(arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_later_sources_win(tmp_path):
    """Fault: swap the arguments of `_merge` in load_config."""
    file = write(tmp_path / "c.yaml", "extract: {steps: 7, critic_steps: 11}\nmember: {k: 3.0}\n")
    assert load_config().extract.steps == 600
    assert load_config(["run.preset=paper"]).extract.steps == 2050
    both = load_config([file, "run.preset=paper", "member.k=5"])
    assert (both.extract.steps, both.extract.critic_steps, both.member.k) == (7, 11, 5.0)
    assert both.extract.target_step == PRESETS["paper"]["extract"]["target_step"]
    assert both.extract.epoch_steps == Config().extract.epoch_steps


def test_a_named_file_replaces_the_default_file(tmp_path):
    default, named = (write(tmp_path / f"{name}.yaml", f"extract: {{steps: {n}}}") for name, n in (("a", 3), ("b", 4)))
    assert load_config([], Path(default)).extract.steps == 3
    assert load_config([named], Path(default)).extract.steps == 4


def test_a_later_file_wins_key_by_key(tmp_path):
    first = write(tmp_path / "a.yaml", "extract: {steps: 3, critic_steps: 5}\nmember: {k: 3.0}\n")
    second = write(tmp_path / "b.yaml", "extract: {steps: 4}\nrun: {preset: paper}\n")
    config = load_config([first, second, "member.k=6"])
    assert (config.extract.steps, config.extract.critic_steps, config.member.k) == (4, 5, 6.0)
    assert config.pretrain.learning_rate == PRESETS["paper"]["pretrain"]["learning_rate"]
    assert "b.yaml" in refusal(first, write(tmp_path / "b.yaml", "extract: {stepz: 4}\n"))


@pytest.mark.parametrize("section", ["pretrain", "extract", "member"])
def test_an_explicit_value_beats_the_preset_even_where_it_equals_the_default(section):
    """Fault: apply only the values that differ from the default."""
    defaults = getattr(Config(), section)
    for key in PRESETS["paper"][section]:
        preset = getattr(load_config(["run.preset=paper"]), section)
        assert getattr(preset, key) == PRESETS["paper"][section][key] != getattr(defaults, key)
        # an unconditioned behaviour model takes no reward rate: the two settings go together
        partner = ["pretrain.condition_dropout=0.3"] if key == "behaviour_reward_quantile" else []
        override = f"{section}.{key}={yaml.safe_dump(getattr(defaults, key), default_flow_style=True).splitlines()[0]}"
        assert getattr(getattr(load_config(["run.preset=paper", *partner, override]), section), key) == getattr(defaults, key)


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain.condition_dropout=1"],
        ["run.preset=paper", "member.behaviour_reward_quantile=0.9"],
        ["run.preset=paper", "population=[{}, {behaviour_reward_quantile: 0.9}]"],
        ["run.preset=paper", "search.space.behaviour_reward_quantile={low: 0.1, high: 0.9}"],
        ["pretrain.condition_dropout=0", "member.behaviour_reward_quantile=null"],
        ["search.space.seed={choices: [1, 2]}"],
        ["task.name=[PointCircle, PointCircle]"],
    ],
)
def test_settings_that_would_train_a_useless_policy_are_refused(arguments):
    """Fault: accept a condition that the behaviour model was never trained with, or a seed that was never pretrained."""
    with pytest.raises(UserError, match=r"behaviour model|space\.seed|lists a task twice"):
        load_config(arguments)


@pytest.mark.parametrize(
    "override",
    [
        "member.cost_ensemble=5",
        "population=[{cost_ensemble: 1}, {cost_ensemble: 5}]",
        "search.space={cost_ensemble: {choices: [1, 5]}}",
    ],
)
def test_more_critics_than_will_be_pretrained_are_refused_at_once(override):
    """Fault: do not check the search space, or the population."""
    assert refusal(override).startswith("member.cost_ensemble=5: pretrain.cost_ensemble=4 cost critics are pretrained")
    load_config([override, "pretrain.cost_ensemble=5"])


@pytest.mark.parametrize("spelled", ["search.space={alpha: {choices: [0.1]}}", "search={space: {alpha: {choices: [0.1]}}}"])
def test_a_search_space_replaces_earlier_ones(tmp_path, spelled):
    """A whole space replaces the default's and a file's; a single entry is merged. Fault: merge every space key by key."""
    ranges = "{k: {low: 0, high: 1}, slack_plus: {low: 0.1, high: 1}}"
    file = write(tmp_path / "a.yaml", f"search: {{configurations: 3, space: {ranges}}}\n")
    over = write(tmp_path / "b.yaml", "search: {space: {alpha: {choices: [0.1]}}}\n")
    for arguments in ([spelled], [file, spelled], [file, over]):
        assert [*load_config(arguments).search.space] == ["alpha"]
    assert load_config([file, spelled]).search.configurations == 3
    space = load_config([file, "search.space.k.high=2"]).search.space
    assert [*space] == ["k", "slack_plus"]
    assert (space["k"].low, space["k"].high) == (0, 2)


def test_the_preset_may_come_from_the_file(tmp_path):
    file = write(tmp_path / "c.yaml", "run: {preset: paper}\n")
    assert load_config([file]).member.beta_0 == 0.02
    assert load_config([file, "run.preset=default"]).member.beta_0 == 0.04


@pytest.mark.parametrize(
    ("override", "unknown", "hint"),
    [
        ("extrac.steps=3", "extrac", "'extract'"),
        ("extract.step=3", "extract.step", "'steps'"),
        ("member.bta_0=3", "member.bta_0", "'beta_0'"),
        ("data.filters.densty=0.5", "data.filters.densty", "'density'"),
        ("search.space.k.hig=3", "search.space.k.hig", "'high'"),
        ("search.space={bta_0: {low: 0.0, high: 1.0}}", "space.bta_0", "'beta_0'"),
        ("population=[{}, {kk: 1}]", "population.1: unknown key kk", "'k'"),
        ("zzz=1", "zzz", "valid: run, task, data"),
        ("extract.zzz.deep=1", "extract.zzz", "valid: steps,"),
        ('"a\nb"=1', "a b", "valid: run"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(override, unknown, hint):
    message = refusal(override)
    assert unknown in message
    assert hint in message


def test_unknown_keys_of_a_file_name_the_file(tmp_path):
    file = write(tmp_path / "c.yaml", "extract:\n  step: 3\n")
    assert refusal(file).startswith(f"{file}: unknown key extract.step; did you mean 'steps'?")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("extract.steps=many", "extract.steps"),
        ("extract.steps=0", "extract.steps"),
        ("extract.steps=2.5", "extract.steps"),
        ("extract=", "extract"),
        ("extract=3", "extract"),
        ("run.seed=-1", "run.seed"),
        ("run.seed=2147483648", "run.seed"),
        ("run.preset=[paper]", "run.preset"),
        ("run.algorithm=drcrl", "run.algorithm"),
        ("run.resume=maybe", "run.resume"),
        ("task.name=[]", "task.name"),
        ("data.dataset=[1]", "data.dataset"),
        ("pretrain.actor_hidden=[]", "pretrain.actor_hidden"),
        ("pretrain.actor_hidden=[8, x]", "pretrain.actor_hidden.1"),
        ("member.k=.nan", "member.k"),
        ("member.k=.inf", "member.k"),
        ("member.slack_minus=1.5", "member.slack_minus"),
        ("data.filters.epsilon=-.inf", "data.filters.epsilon"),
        ("population=[{k: .nan}]", "population.0: k"),
        ("population=3", "population"),
        ("run={1: 2}", "run.1"),
        ("scaling.workers=3", "batch_size 256 is not divisible by scaling.workers 3"),
        ("search.space={k: {low: 1.0}}", "search.space.k"),
        ("search.space={k: {low: 1.0, high: 2.0, choices: [1]}}", "search.space.k"),
        ("search.space={k: {low: 1.0, choices: [1]}}", "search.space.k"),
        ("search.space={k: {low: 2.0, high: 1.0}}", "search.space.k"),
        ("search.space={k: {low: 0.0, high: 1.0, log: true}}", "logarithmic"),
        ("search.space={k: {low: .nan, high: 1.0}}", "search.space.k"),
        ("search.space={k: {choices: []}}", "search.space.k"),
        ("search.space={k: {choices: [1, .nan]}}", "space.k: nan"),
        ("search.space={policy_class: {choices: [dirac, gausian]}}", "space.policy_class: 'gausian'"),
        ("search.space={alpha: {low: -1, high: 10}}", "space.alpha: -1.0"),
        ("search.space={cost_limit: {choices: [10, 20]}}", "cost_limits are not searched, only compared"),
        ("data.dataset={PointCircl: a.hdf5}", "data.dataset names 'PointCircl', which is no task; did you mean 'PointCircle"),
        ("search.space={slack_minus: {low: 0, high: 2}}", "space.slack_minus: 2.0"),
        ("search.space={seed: {low: 0, high: 5}}", "space.seed"),
        ("search.space={}", "nothing is searched"),
        ("search.space={k: {choices: [1], wen: {alpha: [0.1]}}}", "'when'"),
        ("search.space={k: {choices: [1], when: {alpha: [0.1]}}}", "alpha must be a key of the space, before k"),
        ("search.space={alpha: {low: 0, high: 1}, k: {choices: [1], when: {alpha: [0.1]}}}", "not among the choices of alpha"),
        ("search.space={alpha: {choices: [0.2]}, k: {choices: [1], when: {alpha: [0.1]}}}", "not among the choices of alpha"),
        ("search.sampler=tep", "'tpe'"),
        ("search.objective=per_tsk", "'per_task'"),
        ("search.sampler=grid", "sampler=grid needs choices, and space.k is a range"),
        ("search.rungs=[0.5, 0.25]", "rungs must rise"),
        ("search.rungs=[1.0]", "search.rungs"),
        ("search={rungs: [0.5], members_per_pack: 1}", "leaves nothing to cut"),
        ("search.points=[{kk: 1}]", "points.0.kk is not a key of the space; did you mean 'k'?"),
        ("search.points=[{k: 1}, {k: 9}]", "points.1.k: 9 is outside of space.k"),
        ("run.seed=2020-13-45", "run.seed=2020-13-45: not valid YAML"),
        ("run.seed=!!bool x", "not valid YAML"),
        ("run.seed=!!timestamp x", "not valid YAML"),
        ("run.seed=" + "1" * 5000, "not valid YAML"),
        ("run.seed=" + "[" * 1500, "not valid YAML"),
        ("run.seed=[", "not valid YAML"),
        ("run.seed=!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(override, key):
    assert key in refusal(override)


def test_one_batch_per_section_must_divide():
    assert load_config(["scaling.workers=2", "extract.batch_size=128"]).extract.batch_size == 128
    assert "255" in refusal("scaling.workers=2", "extract.batch_size=255")


def test_a_value_and_its_subkey_are_refused():
    assert "already given a value" in refusal("extract=3", "extract.steps=3")


@pytest.mark.parametrize("text", ["- 1\n", "3\n", "a: [1\n", "a: 2020-13-45\n", "\t"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = write(tmp_path / "c.yaml", text)
    assert refusal(file).startswith(f"{file}: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("absent.yaml", "binary.yaml", "."):
        assert refusal(str(tmp_path / name)).startswith(str(tmp_path / name).removesuffix("/."))


def test_an_empty_file_is_the_default(tmp_path):
    assert load_config([write(tmp_path / "c.yaml", "# nothing\n")]) == Config()


@pytest.mark.parametrize("name", ["table1", "velocity", "frontier", "k", "adaptation"])
def test_no_shipped_file_overrides_the_papers_preset(name):
    """Fault: a file that sets a key of the preset, as one once set monte_carlo_steps."""
    [path] = [path for path in CONFIGS if path.stem == name]
    config = load_config([str(path), "run.preset=paper"]).model_dump()
    assert {key: {name: config[key][name] for name in values} for key, values in PRESETS["paper"].items()} == PRESETS["paper"]


def test_every_setting_that_the_papers_preset_changes_is_a_numbered_deviation():
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    numbered = " ".join(line for line in method.splitlines() if line.startswith("| D"))
    default = Config().model_dump()
    changed = [(section, key) for section, values in PRESETS["paper"].items() for key in values]
    changed = [(section, key) for section, key in changed if PRESETS["paper"][section][key] != default[section][key]]
    assert [f"{section}.{key}" for section, key in changed if f"`{section}.{key}`" not in numbered] == []


def test_monte_carlo_steps_are_a_fifth_of_the_steps_unless_set():
    assert load_config(["pretrain.steps=500"]).pretrain.monte_carlo_steps == 100
    assert load_config(["pretrain.steps=500", "pretrain.monte_carlo_steps=7"]).pretrain.monte_carlo_steps == 7


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_is_not_changed(path, monkeypatch):
    """Every value of the file reaches the configuration, and neither the file's content nor the presets are modified."""
    presets, parsed = copy.deepcopy(PRESETS), []

    def remember(text):
        parsed.append((loaded := yaml.load(text, yaml.SafeLoader), copy.deepcopy(loaded)))
        return loaded

    monkeypatch.setattr("drcorl_ray.config.loading.yaml.safe_load", remember)
    config = load_config([str(path)])
    assert config.members()
    [(used, untouched), *_] = parsed
    assert used == untouched
    assert presets == PRESETS
    assert config.population == used.pop("population", [])
    for section, values in used.items():
        for key, value in values.items():
            dumped = getattr(config, section).model_dump(exclude_unset=True)[key]
            assert dumped == value


def test_there_are_shipped_files():
    assert {"quickstart", "velocity"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("arguments", [[], ["run.preset=paper"], *([str(path)] for path in CONFIGS)])
def test_dump_and_load_round_trip(tmp_path, arguments):
    extra = [
        "member.beta_0=0.1234567890123456789",
        "pretrain.learning_rate=1e-5",
        "data.filters.inpaint_ranges=[[0.1, 0.2, 0.3, 0.4]]",
        "data.dataset={HopperVelocity: 'ä: b.hdf5'}",
        "population=[{seed: 3}, {k: 1}]",
        "run.dir='no'",
    ]
    config = load_config([*arguments, *extra])
    file = write(tmp_path / "c.yaml", dump_config(config))
    assert load_config([file]) == config


def test_members_override_the_member_section():
    config = load_config(["member.k=1", "run.seed=9", "population=[{}, {k: 2, seed: 4}, {seed: null}]"])
    assert [(member.k, member.seed) for member in config.members()] == [(1, 9), (2, 4), (1, 9)]
    assert [member.k for member in load_config().members()] == [MemberConfig().k]
    with pytest.raises(UserError, match="unknown key kk; did you mean 'k'"):
        config.member_with({"kk": 1})


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config().extract.steps = 3  # pyright: ignore


def loads_or_refuses(arguments: list[str]) -> None:
    config = message = None
    try:
        config = load_config(arguments)
    except UserError as error:
        message = str(error)
    if config is None:
        assert message is not None
        assert len(message.splitlines()) == 1
    else:
        assert isinstance(config.members()[0], MemberConfig | BaselineMember)
        yaml.safe_load(dump_config(config))


KEYS = [
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for key in getattr(field.annotation, "model_fields", {})
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["~", "!!int x", "&a"]),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20) | st.text(
    "&*!?|>-:{}[],'\"#@%~ \n\t0123x", max_size=12
)
sections = st.dictionaries(
    st.sampled_from([*Config.model_fields, "k"]),
    trees | st.dictionaries(st.sampled_from([key.split(".")[1] for key in KEYS]) | scalars, trees, max_size=3),
    max_size=3,
)


@settings(max_examples=150)
@given(dotted=st.sampled_from([*KEYS, "population", "search.space.k", "search.space.k.low"]) | texts, value=texts | trees)
def test_any_override_loads_or_is_refused(dotted, value):
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
    loads_or_refuses([f"{dotted}={text}"])


@settings(max_examples=150)
@given(content=texts | sections.map(yaml.safe_dump))
def test_any_file_loads_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(content, encoding="utf-8", newline="")
    loads_or_refuses([str(path)])


@settings(max_examples=50)
@given(content=st.binary(max_size=40))
def test_any_bytes_load_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    loads_or_refuses([str(path)])


def test_environment_ids_are_replaced_by_task_names():
    """Fault: compare the names as the user wrote them."""
    identity = "OfflineHopperVelocityGymnasium-v1"
    config = load_config([f"task.name={identity}", f"data.dataset={{{identity}: a.hdf5, BallRun: b.hdf5}}"])
    assert config.tasks == ["HopperVelocity"]
    assert config.data.dataset_of("HopperVelocity") == "a.hdf5"
    with pytest.raises(UserError, match="lists a task twice"):
        load_config([f"task.name=[HopperVelocity, {identity}]"])
