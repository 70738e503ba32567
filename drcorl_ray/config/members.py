"""The members of a population: DRCORL's have the `member` section, a baseline's the settings in which they may differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from drcorl_ray.config.algorithms import Algorithm, algorithms, get_algorithm
from drcorl_ray.config.base import Section, nearest, validate
from drcorl_ray.config.baselines import SharedSettings
from drcorl_ray.config.sections import MemberConfig
from drcorl_ray.errors import UserError

if TYPE_CHECKING:
    from drcorl_ray.config import Config


class BaselineConfig(SharedSettings):
    """The shared settings, and a section `NAME` for each registered algorithm that has its own settings."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _own_sections(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        sections = {entry.name: entry.settings for entry in algorithms() if entry.settings is not None}
        valid = [*SharedSettings.model_fields, *sections]
        for key in values:
            if key not in valid:
                raise PydanticCustomError("unknown_key", "unknown key", {"key": str(key), "valid": valid})
        return {**values, **{name: _section(name, model, values.get(name, {})) for name, model in sections.items()}}

    def of_algorithm(self, algorithm: Algorithm) -> Any:
        """Return the algorithm's own section, None if it has none; defaults if it was registered after these settings."""
        return algorithm.settings and (self.model_extra or {}).get(algorithm.name, algorithm.settings())


def _section(name: str, model: type[Section], values: Any) -> Section:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        context = {"name": name, "model": model, "first": error.errors()[0]}
        raise PydanticCustomError("section", "invalid section", context) from error


class BaselineMember(Section):
    """A member of a baseline's population.

    Extra fields: `learning_rate`, the algorithm's shared_member_settings, and all of its own settings under "NAME.key".
    """

    model_config = ConfigDict(extra="allow")

    seed: int
    cost_limit: float

    @property
    def evaluation_mode(self) -> str:
        return "offline"

    @property
    def k(self) -> float:
        """Standard deviations that are added to the cost estimate; a baseline uses the mean."""
        return 0.0


MemberSettings = MemberConfig | BaselineMember


def member_keys(algorithm: Algorithm) -> list[str]:
    """Return the settings in which members of one population may differ, and which a search may search."""
    if algorithm.pretrained:
        return [*MemberConfig.model_fields]
    own_settings = [f"{algorithm.name}.{key}" for key in algorithm.member_settings]
    return ["seed", "cost_limit", "learning_rate", *algorithm.shared_member_settings, *own_settings]


def resolved_member(config: Config, algorithm: Algorithm, overrides: Mapping[str, Any], where: str) -> MemberSettings:
    """Return the configured member with some keys replaced and its seed set; UserError if a key is unknown or invalid.

    where: the beginning of the message.
    """
    if algorithm.pretrained:
        return _member(config, overrides, where)
    valid, own_keys = member_keys(algorithm), algorithm.own_keys
    for key in overrides:
        if key not in valid:
            raise UserError(f"{where}: unknown key {key}; members of {algorithm.name} may differ in {', '.join(valid)}")
    common = _member(config, {key: value for key, value in overrides.items() if key in MemberConfig.model_fields}, where)
    values: dict[str, Any] = {key: getattr(common, key) for key in ("seed", "cost_limit")}
    values["learning_rate"] = _learning_rate(config, algorithm, overrides, where)
    values |= {key: getattr(common, key) for key in algorithm.shared_member_settings}
    if algorithm.settings is not None:
        given = {own_keys[key]: value for key, value in overrides.items() if key in own_keys}
        configured = config.baseline.of_algorithm(algorithm).model_dump()
        section = validate(algorithm.settings, configured | given, f"{where}: {algorithm.name}")
        values |= {key: getattr(section, name) for key, name in own_keys.items()}
    return BaselineMember(**values)


def _member(config: Config, overrides: Mapping[str, Any], where: str) -> MemberConfig:
    values = config.member.model_dump() | dict(overrides)
    for key, default in (("seed", config.run.seed), ("evaluation_mode", config.evaluation.mode)):
        if values[key] is None:
            values[key] = default
    return validate(MemberConfig, values, where)


def _learning_rate(config: Config, algorithm: Algorithm, overrides: Mapping[str, Any], where: str) -> float:
    given = validate(SharedSettings, {key: overrides[key] for key in ("learning_rate",) if key in overrides}, where)
    rates = (given.learning_rate, config.baseline.learning_rate, algorithm.learning_rate, config.pretrain.learning_rate)
    return next(rate for rate in rates if rate is not None)


def row_settings(algorithm: str, member: MemberSettings) -> dict[str, Any]:
    """Return the `config` of a member's row in results.json; its cost limit is None if the algorithm is limit-blind."""
    blind = get_algorithm(algorithm).limit_blind
    return member.model_dump() | ({"cost_limit": None} if blind else {})


def check_values(config: Config) -> None:
    """Raise UserError if search.space names an unknown key, or a value that its key cannot have."""
    algorithm = get_algorithm(config.run.algorithm)
    keys = member_keys(algorithm)
    for key, entry in config.search.space.items():
        if key not in keys and key not in MemberConfig.model_fields:
            valid = MemberConfig.model_fields if algorithm.pretrained else keys
            raise UserError(f"search.space.{key} is not a setting of {algorithm.name}'s members{nearest(key, valid)}")
        for value in entry.examples():
            try:
                if key in keys:
                    resolved_member(config, algorithm, {key: value}, "member")
                else:
                    validate(MemberConfig, {key: value}, "member")
            except UserError as error:
                raise UserError(f"search.space.{key}: {value!r:.60} is not a valid value ({error})") from error


def check_searched(config: Config) -> None:
    """Raise UserError if search.space names settings that members of run.algorithm lack, as the default (DRCORL's) may."""
    algorithm = get_algorithm(config.run.algorithm)
    keys = member_keys(algorithm)
    unused = [key for key in config.search.space if key not in keys]
    if unused:
        raise UserError(
            f"search.space: {algorithm.name} has no {', '.join(unused)}; "
            f"set search.space={{KEY: {{low: …, high: …}}}} with keys among {', '.join(keys)}"
        )
