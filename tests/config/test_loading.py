"""Settings files by name: one that exists wins, then those that come with the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from drcorl_ray.config import Config
from drcorl_ray.config.loading import as_config, load_config
from drcorl_ray.errors import UserError
from tests.helpers.paths import ROOT

LIMITED = "member: {cost_limit: 33}\n"


@pytest.mark.parametrize("name", ["velocity.yaml", "tune_configs/velocity.yaml"])
def test_a_shipped_file_is_found_by_name_unless_there_is_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_config([name]) == load_config([str(ROOT / "tune_configs" / "velocity.yaml")]) != Config()
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(LIMITED)
    assert load_config([name]) == load_config(["member.cost_limit=33"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("velocty.yaml", "velocty.yaml: cannot be read .no such file.; did you mean 'velocity.yaml'"),
        ("quickstart", "quickstart: cannot be read .no such file.; did you mean 'quickstart.yaml'"),
        ("zzz.yaml", "zzz.yaml: cannot be read .No such file or directory.; settings are written section.key=value"),
        ("elsewhere/velocity.yaml", "elsewhere/velocity.yaml: cannot be read .No such file"),
        ("x" * 300 + ".yaml", "File name too long"),
    ],
)
def test_an_unknown_file_names_the_nearest_shipped_one(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        load_config([name])


def test_settings_from_python_are_a_config_or_arguments():
    config = load_config(["run.seed=7"])
    assert as_config(config) is config
    assert as_config(["run.seed=7"]) == as_config("run.seed=7") == config
