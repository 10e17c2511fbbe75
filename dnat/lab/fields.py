"""Entries of a record's tables, each checked: an error names the place, as "results.cost_after.madds"."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

Fields = Mapping[str, Any]


def entry(fields: Fields, where: str) -> Any:
    """The entry that the last part of `where` names; the whole is for the message.

    Raises:
        UsageError: it is not there. The others raise it also where it is of another type, or out of range.
    """
    key = where.rpartition(".")[2]
    if key not in fields:
        raise UsageError(f"a record lacks {where}: is it the record.json of a finished run?")
    return fields[key]


def subtable(fields: Fields, where: str) -> Fields:
    """An entry that is a table."""
    value = entry(fields, where)
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} of a record must be a table, not {value!r}")
    return value


def name(fields: Fields, where: str) -> str:
    """An entry that is a text with something in it."""
    value = entry(fields, where)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} of a record must be a name, not {value!r}")
    return value


def number(fields: Fields, where: str, most: float = math.inf) -> float:
    """An entry that is a finite number from 0 to `most`."""
    value = entry(fields, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where} of a record must be a finite number, not {value!r}")
    if not 0 <= value <= most:
        limits = "at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise UsageError(f"{where} of a record must be {limits}, not {value!r}")
    return float(value)


def integer(fields: Fields, where: str, least: int) -> int:
    """An entry that is an integer of at least `least`."""
    value = entry(fields, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{where} of a record must be an integer of at least {least}, not {value!r}")
    return value
