"""Settings as TOML: files, and the `key=value` of the command line."""

import re
import tomllib
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..files import read_text
from .part import shown

MOST_DEPTH = 32
"""Lists and tables in settings that stand in more of others are a mistake, or an attack."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a configuration file, not yet checked.

    Raises:
        ValueError: the file is missing or is not TOML; the message names the file and the place.
    """
    try:
        text = read_text(path)
    except DataError as error:
        raise UsageError(str(error).replace(f"{path} cannot", f"{path}: cannot", 1)) from error
    try:
        return parse_toml(text)
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """A text of TOML as a table; also what Python's own reader takes or dies of, but no setting can be.

    Raises:
        ValueError: it is no TOML, is nested too deeply, or has an integer of more than 64 bits.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise UsageError("its lists or tables are nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # an integer of thousands of digits
        raise UsageError("it holds an integer of more than 64 bits") from None
    _check_size(table)
    return table


def _check_size(value: Any, depth: int = 0) -> None:
    if depth > MOST_DEPTH:
        raise UsageError("its lists or tables are nested too deeply")
    if isinstance(value, int) and value.bit_length() > 63:
        raise UsageError("it holds an integer of more than 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(item, depth + 1)


def parse_setting(text: str) -> tuple[str, Any]:
    """A `key=value` of the command line; `network.width=8` sets an argument of the network's constructor.

    Values are TOML values; a bare word is taken as text.

    Raises:
        ValueError: it is not one setting, or its value is none.

    >>> parse_setting("lr=0.1"), parse_setting("gate=raw"), parse_setting("network.width=8")
    (('lr', 0.1), ('gate', 'raw'), ('network.width', 8))
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not re.fullmatch(r"[^\s=]+", key):
        raise UsageError(f"--set takes key=value, not {shown(text)}")
    try:
        table = parse_toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    except UsageError as error:
        raise UsageError(f"--set {key}: {error}") from None
    if table.keys() != {"value"}:
        raise UsageError(f"--set takes one key=value, not {shown(text)}: repeat --set for each")
    return key, table["value"]
