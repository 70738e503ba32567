"""Read and write configurations. Later wins: defaults, preset (`run.preset`), YAML files in order, `section.key=value`."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from drcorl_ray.config import Config, validate
from drcorl_ray.config.algorithms import algorithms
from drcorl_ray.config.presets import PRESETS
from drcorl_ray.errors import UserError

_WHOLE = ("search.space",)  # keys whose mappings are replaced, not merged
_FOLDER = "tune_configs"
_PACKAGE = Path(__file__).resolve().parents[1]
# The shipped settings files: inside an installed package, beside it in a checkout.
_SHIPPED = _PACKAGE / _FOLDER if (_PACKAGE / _FOLDER).is_dir() else _PACKAGE.parent / _FOLDER
QUICKSTART = _SHIPPED / "quickstart.yaml"


def load_config(arguments: Sequence[str] = (), default_file: Path | None = None) -> Config:
    """Build the Config from command-line arguments `[CONFIG.yaml …] [section.key=value …]`; UserError on anything invalid.

    A file that does not exist is looked for in tune_configs/, which comes with the package. default_file: read when the
    arguments name no file.

    >>> import drcorl_ray
    >>> config = drcorl_ray.load_config(["velocity.yaml", "task.name=HopperVelocity", "extract.steps=900"])
    >>> config.extract.steps
    900
    """
    files = [_settings_file(argument) for argument in arguments if "=" not in argument]
    if not files and default_file is not None:
        files = [default_file]
    content = functools.reduce(lambda base, top: _merge(base, top, _WHOLE), map(read_yaml, files), {})
    settings = [argument for argument in arguments if "=" in argument]
    explicit = _merge(content, _parse_overrides(settings), _WHOLE if any(map(_gives_space, settings)) else ())
    run = explicit.get("run")
    preset = run.get("preset") if isinstance(run, Mapping) else None
    base = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    elsewhere = {"baseline.learning_rate": "baseline.learning_rate"}
    elsewhere |= {key: f"baseline.{key}" for algorithm in algorithms() for key in algorithm.own_keys}
    return validate(Config, _merge(base, explicit), ", ".join(map(str, files)) or "arguments", elsewhere)


def as_config(settings: Config | Sequence[str], default_file: Path | None = None) -> Config:
    """Return a Config unchanged; build one from arguments, or from a single one, by `load_config`."""
    if isinstance(settings, Config):
        return settings
    return load_config([settings] if isinstance(settings, str) else settings, default_file)


def _settings_file(name: str) -> Path:
    """Return the file at that path, else the shipped file of that name; UserError names the nearest shipped one."""
    path, shipped = Path(name), {file.stem: file for file in _SHIPPED.glob("*.yaml")}
    if path.parent not in (Path(), Path(_FOLDER)) or os.path.lexists(path):
        return path
    if path.suffix == ".yaml" and path.stem in shipped:
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    if near:
        raise UserError(f"{name}: cannot be read (no such file); did you mean '{near[0]}.yaml', which comes with the package?")
    return path  # reading it says what is wrong


def dump_config(config: Config) -> str:
    """Return the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file (plain data only, no Python tags); UserError if it holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); settings are written section.key=value"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not a text file ({error})") from error
    content = _parse_yaml(text, str(path))
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    return content or {}


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    # PyYAML also raises these, for "2020-13-45", "!!bool x", "!!timestamp x", integers of 5000 digits, deep nesting
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML ({error})") from error


def _parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for argument in arguments:
        dotted, text = argument.split("=", 1)
        *parents, key = dotted.lstrip("-").split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{argument}: {parent} was already given a value")
        node[key] = _parse_yaml(text, argument)
    return tree


def _gives_space(argument: str) -> bool:
    """Whether a setting replaces the whole search.space rather than one entry of it."""
    dotted, text = argument.split("=", 1)
    return dotted.lstrip("-") == "search.space" or (dotted.lstrip("-") == "search" and "space" in text)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any], whole: Collection[str] = (), above: str = "") -> dict[str, Any]:
    """Merge `top` over `base`, key by key; whole: dotted keys whose mappings are replaced. above: "section." of these keys."""
    merged = dict(base)
    for key, value in top.items():
        below, name = merged.get(key), f"{above}{key}"
        if isinstance(below, Mapping) and isinstance(value, Mapping) and name not in whole:
            value = _merge(below, value, whole, f"{name}.")
        merged[key] = value
    return merged
