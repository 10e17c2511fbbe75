"""What all settings have in common: they are frozen, checked by pydantic, and wrong ones are told in our words."""

import math
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ..errors import DnatError, UsageError, WrongTypeError
from ..naming import unknown

LARGEST = 1e30
"""The largest number: beyond the square root of what 32 bits hold nothing can be computed."""
LARGEST_INTEGER = 2**63 - 1

Count = Annotated[int, Field(ge=1, le=LARGEST_INTEGER)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Weight = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Settings that belong together.

    None stands for a value that is not given.

    Raises:
        ValueError: an unknown name or a value out of range, with the value and what is allowed.
        TypeError: a value of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise _in_our_words(type(self), values, error) from None

    def but(self, **values: Any) -> Self:
        """The same settings but for these, checked again."""
        return type(self)(**dict(self) | values)


def _in_our_words(part: type[Part], values: dict[str, Any], error: ValidationError) -> DnatError:
    """The error for the first setting that is wrong."""
    details = error.errors(include_url=False)
    first, fields = details[0], part.model_fields
    if isinstance(raised := first.get("ctx", {}).get("error"), DnatError):
        return raised
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return unknown("setting", name, fields)
    if name not in values:
        return UsageError(f"{part.__name__} needs {name}")
    kinds = kinds_of(fields[name])
    return _out_of_range(name, values[name], kinds, details) or (
        UsageError if get_origin(kinds[0][0]) is Literal else WrongTypeError
    )(f"{name} must be {' or '.join(_type_words(kinds))}, not {with_type(values[name])}")


_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _out_of_range(name: str, value: object, kinds: "Kinds", details: Any) -> DnatError | None:
    """The error for a number that is too small or too large; None if the setting is no number at all."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INTEGER:
        if all(bounds.get("le", LARGEST_INTEGER) >= LARGEST_INTEGER for _, bounds in kinds):
            return UsageError(f"{name} must be a number of at most 64 bits, not {shown(value)}")
    elif not any(d["loc"][0] == name for d in details if d["type"] in _BOUNDS):
        return None
    if isinstance(value, tuple) and len(value) != len(get_args(kinds[0][0])):
        return None
    if isinstance(value, float) and LARGEST < value < math.inf:
        return UsageError(f"{name} must be a number of at most {LARGEST:g}, not {shown(value)}")
    return UsageError(f"{name} must be {allowed(kinds)}, not {shown(value)}")


Kinds = list[tuple[Any, dict[str, Any]]]
"""What a setting may be: types, each with its bounds."""


def kinds_of(field: FieldInfo) -> Kinds:
    """What a setting may be."""
    return _of_type(field.annotation, _bounds(field.metadata))


def _of_type(annotation: Any, bounds: dict[str, Any]) -> Kinds:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of_type(arguments[0], bounds | _bounds(arguments[1:]))
    if origin in (Union, UnionType):
        return [kind for argument in arguments if argument is not type(None) for kind in _of_type(argument, {})]
    if origin is tuple and get_origin(arguments[0]) is Annotated:
        return [(annotation, _of_type(arguments[0], {})[0][1])]
    return [(annotation, bounds)]


def _bounds(metadata: Any) -> dict[str, Any]:
    """{"ge": 1, ...} of what stands beside a type."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            bounds |= _bounds(item.metadata)
        else:
            bounds |= {key: getattr(item, key) for key in ("gt", "ge", "lt", "le") if hasattr(item, key)}
    return bounds


def _type_words(kinds: Kinds) -> list[str]:
    names = [_type_name(annotation) for annotation, _ in kinds]
    return [name for name in names if name != "an integer" or "a number" not in names]


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if arguments[1:] else repr(arguments[0])
    if origin is tuple:
        many = arguments[1:] == (...,)
        return "a list of texts (in Python a tuple)" if many else f"{len(arguments)} numbers"
    if origin is dict:
        return "a table of texts" if arguments[1] is str else "a table"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    return names.get(annotation, annotation.__name__)


def allowed(kinds: Kinds | FieldInfo) -> str:
    """What a setting may be, in words: "'auto' or a positive number"."""
    kinds = kinds if isinstance(kinds, list) else kinds_of(kinds)
    return " or ".join(_type_words([k for k in kinds if not k[1]]) + [_range_words(*k) for k in kinds if k[1]])


def _range_words(annotation: Any, bounds: dict[str, Any]) -> str:
    low = bounds.get("ge", bounds.get("gt"))
    high = next((bounds[k] for k in ("le", "lt") if bounds.get(k, LARGEST) < LARGEST_INTEGER), None)
    if high is not None:
        if "gt" in bounds:
            return f"between {low} and {high}"
        return f"in [{low}, {high})" if "lt" in bounds else f"from {low} to {high}"
    if annotation is int:
        return f"at least {low}"
    return "a positive number" if "gt" in bounds else f"a number of at least {low}"


def with_type(value: object) -> str:
    """A value as an error shows it, with its type where that could be the mistake."""
    kind = {"str": "the text", "bool": "the truth value"}.get(type(value).__name__, type(value).__name__)
    return f"{kind} {shown(value)}"


def shown(value: object, most: int = 80) -> str:
    """A value as an error shows it: one line, not longer than one reads.

    >>> shown("a"), shown([1] * 99, 10), shown(10**5000)
    ("'a'", '[1, 1, ...', 'an integer of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of something that is in it
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[: most - 3]}..."
