"""What every section of the configuration is made of: frozen, strict models, and errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
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


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint "; did you mean …?" or the list of valid names."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names)}"


def validate(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """The values as a model; UserError names the first wrong one, and for an unknown key the nearest valid one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {_explain(model, first)}") from error


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"{'.'.join(path) or 'config'}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.60})"
    section: Any = model
    for part in path[:-1]:
        if get_origin(section) is dict:  # search.space: its keys are free, its values are sections
            section = get_args(section)[1]
            continue
        section = getattr(section, "model_fields", {}).get(part)
        section = section and section.annotation
    return f"unknown key {'.'.join(path)}{nearest(path[-1], getattr(section, 'model_fields', {}))}"
