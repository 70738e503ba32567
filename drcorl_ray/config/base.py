"""What every section of the configuration is made of: frozen, strict models, and errors that name the key."""

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
    """Frozen, with unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def nearest(name: str, valid: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """A hint "; did you mean …?" or the list of valid names. elsewhere: {name: full key} of other sections."""
    names = list(valid)
    close = difflib.get_close_matches(name, [*names, *elsewhere], n=1)
    return f"; did you mean {elsewhere.get(close[0], close[0])!r}?" if close else f"; valid: {', '.join(names)}"


def validate(model: type[T], values: Mapping[str, Any], where: str, elsewhere: Mapping[str, str] = MappingProxyType({})) -> T:
    """The values as a model; UserError names the first wrong one, and for an unknown key the nearest valid one.

    elsewhere: {name: full key} of what may be meant by an unknown key of `member`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {_explain(model, first, [], elsewhere)}") from error


def _explain(model: type[BaseModel], error: Any, above: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """One line on an error of a model; above: the keys that lead to it."""
    own = [str(part) for part in error["loc"]]
    path = [*above, *own]
    if error["type"] == "section":  # an algorithm's own section, validated apart
        inner = error["ctx"]
        return _explain(inner["model"], inner["first"], [*path, inner["name"]], elsewhere)
    if error["type"] == "unknown_key":
        key = error["ctx"]["key"]
        return f"unknown key {'.'.join([*path, key])}{nearest(key, error['ctx']['valid'])}"
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'config'}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.60})"
    section: Any = model
    for part in own[:-1]:
        if get_origin(section) is dict:  # search.space: its keys are free, its values are sections
            section = get_args(section)[1]
            continue
        section = getattr(section, "model_fields", {}).get(part)
        section = section and section.annotation
    others = elsewhere if path[0] == "member" else {}
    return f"unknown key {'.'.join(path)}{nearest(path[-1], getattr(section, 'model_fields', {}), others)}"
