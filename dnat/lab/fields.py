"""Entries of a record's tables, each checked: an error names the place, as "results.cost_after.madds"."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from ..errors import UsageError

Fields = Mapping[str, Any]


def entry(fields: Fields, where: str, wanted: str = "", fits: Callable[[Any], bool] = lambda value: True) -> Any:
    """The entry that the last part of `where` names; the whole is for the message.

    Raises:
        UsageError: it is not there, or is not what is wanted; so do the others.
    """
    key = where.rpartition(".")[2]
    if key not in fields:
        raise UsageError(f"a record lacks {where}: is it the record.json of a finished run?")
    if not fits(fields[key]):
        raise UsageError(f"{where} of a record must be {wanted}, not {fields[key]!r}")
    return fields[key]


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def subtable(fields: Fields, where: str) -> Fields:
    """An entry that is a table."""
    return cast(Fields, entry(fields, where, "a table", lambda value: isinstance(value, Mapping)))


def name(fields: Fields, where: str) -> str:
    """An entry that is a text with something in it."""
    return cast(str, entry(fields, where, "a name", lambda value: isinstance(value, str) and bool(value)))


def number(fields: Fields, where: str, least: float = 0.0, most: float = math.inf) -> float:
    """An entry that is a finite number from `least` to `most`."""
    entry(fields, where, "a finite number", lambda value: _is(value, int | float) and math.isfinite(value))
    limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
    return float(entry(fields, where, limits, lambda value: least <= value <= most))


def integer(fields: Fields, where: str, least: int) -> int:
    """An entry that is an integer of at least `least`."""
    wanted = f"an integer of at least {least}"
    return cast(int, entry(fields, where, wanted, lambda value: _is(value, int) and value >= least))
