"""The base of every section of the configuration: a frozen, strict model, and errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from drcorl_ray.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
T = TypeVar("T", bound=BaseModel)
Widths = Annotated[list[PositiveInt], Field(min_length=1)]


class Section(BaseModel):
    """A frozen model that refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def nearest(name: str, valid: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a hint "; did you mean …?" or the list of valid names. elsewhere: {name: full key} of other sections."""
    names = list(valid)
    close = difflib.get_close_matches(name, [*names, *elsewhere], n=1)
    return f"; did you mean {elsewhere.get(close[0], close[0])!r}?" if close else f"; valid: {', '.join(names)}"


def validate(model: type[T], values: Mapping[str, Any], where: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> T:
    """Return the values as a model; UserError names the first wrong key, and the nearest valid one if it is unknown.

    where: the beginning of the message. elsewhere: {name: full key} of keys outside `member` that an unknown key of `member`
    may mean.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {_explain(model, first, [], elsewhere)}") from error


def _explain(model: type[BaseModel], error: Any, above: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """Return one line about an error of a model; above: the keys that lead to the model."""
    keys = [str(part) for part in error["loc"]]
    path = [*above, *keys]
    if error["type"] == "section":  # an algorithm's own section, which was validated separately
        inner = error["ctx"]
        return _explain(inner["model"], inner["first"], [*path, inner["name"]], elsewhere)
    if error["type"] == "unknown_key":
        key = error["ctx"]["key"]
        return f"unknown key {'.'.join([*path, key])}{nearest(key, error['ctx']['valid'])}"
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'config'}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.60})"
    section: Any = model
    for part in keys[:-1]:
        if get_origin(section) is dict:  # search.space: its keys are free, its values are sections
            section = get_args(section)[1]
            continue
        field = getattr(section, "model_fields", {}).get(part)
        section = field and field.annotation
    others = elsewhere if path[0] == "member" else {}
    return f"unknown key {'.'.join(path)}{nearest(path[-1], getattr(section, 'model_fields', {}), others)}"
