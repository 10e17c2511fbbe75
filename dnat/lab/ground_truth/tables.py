"""Tables of accuracies, from files of several forms."""

import csv
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import DataError, UsageError, WrongTypeError
from ...files import MOST_LOG, read_bytes
from .spaces import check_space, read_architecture


def read_table(path: str | Path, space: str) -> dict[str, float]:
    """A table of accuracies from a file.

    Args:
        path: a CSV file with the header `architecture,accuracy`, or a JSON file with an object {architecture:
            accuracy}; accuracies are in percent. In place of an accuracy an object with a number "mean_acc" will
            do, as in NAS-Bench-Macro's own file. Either file may be packed (.xz).
        space: one of `SPACES`.

    Returns:
        {architecture as digits: accuracy in percent}.

    Raises:
        ValueError: a file that cannot be read, or is no such table; the message names the line or the key.
    """
    check_space(space)
    path = Path(path)
    packed = path.suffix.lower() == ".xz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind not in (".csv", ".json"):
        raise UsageError(f"{path}: a table is a file .csv or .json, not {path.suffix or 'one without a suffix'!r}")
    try:
        read = read_bytes(path, MOST_LOG)
        text = (lzma.decompress(read) if packed else read).decode("utf-8-sig")
    except DataError as error:
        raise UsageError(str(error).replace(f"{path} cannot", f"{path}: cannot", 1)) from error
    except lzma.LZMAError as error:
        raise UsageError(f"{path}: is no file of xz: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error}") from error
    return checked_table(_rows_of_json(path, text) if kind == ".json" else _rows_of_csv(path, text), space)


def _rows_of_csv(path: Path, text: str) -> list[tuple[str, str, Any]]:
    """(where, architecture, accuracy) of each line."""
    lines = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    if header != ["architecture", "accuracy"]:
        raise UsageError(f"{path}, line 1: the header must be 'architecture,accuracy', not {','.join(header)!r}")
    rows: list[tuple[str, str, Any]] = []
    for cells in lines:
        where = f"{path}, line {lines.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != 2:
            raise UsageError(f"{where}: an architecture and an accuracy are needed, not {len(cells)} cells")
        try:
            accuracy = float(cells[1])
        except ValueError:
            raise UsageError(f"{where}: the accuracy must be a number, not {cells[1]!r}") from None
        rows.append((where, cells[0].strip(), accuracy))
    return rows


def _rows_of_json(path: Path, text: str) -> list[tuple[str, str, Any]]:
    """(where, architecture, accuracy) of each key; a key that is there twice comes twice."""
    try:
        table = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not text.lstrip().startswith("{"):
        raise UsageError(f"{path}: must be an object {{architecture: accuracy}}, not {type(table).__name__}")
    return [(f"{path}, key {key!r}", key, _accuracy_of(value)) for key, value in table]


def _accuracy_of(value: Any) -> Any:
    """An accuracy as NAS-Bench-Macro publishes it: several runs, their mean, and what the network costs."""
    names = [name for name, _ in value] if _is_object(value) else []
    return dict(value)["mean_acc"] if names.count("mean_acc") == 1 else value


def _is_object(value: Any) -> bool:
    """Whether a value was an object of JSON, which is read as a list of pairs."""
    return isinstance(value, list) and all(isinstance(pair, tuple) for pair in value)


def checked_table(rows: Iterable[tuple[str, Any, Any]], space: str) -> dict[str, float]:
    """A table from (where, architecture, accuracy); `where` is for the message of an error."""
    table: dict[str, float] = {}
    first: dict[str, str] = {}
    for where, text, accuracy in rows:
        if not isinstance(text, str):
            raise WrongTypeError(f"{where}: an architecture is a text, not {type(text).__name__}")
        try:
            architecture = read_architecture(space, text)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if architecture in table:
            raise UsageError(f"{where}: {architecture} is there already ({first[architecture]})")
        number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
        if not number or not 0 <= accuracy <= 100:
            raise UsageError(f"{where}: the accuracy must be a number of percent, from 0 to 100, not {accuracy!r}")
        table[architecture], first[architecture] = float(accuracy), where
    if not table:
        raise UsageError("the table of accuracies is empty")
    largest = max(table.values())
    if largest <= 1:
        raise UsageError(f"accuracies must be in percent, but the largest is {largest:g}: multiply them by 100")
    return table
