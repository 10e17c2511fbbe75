"""Files that are there whole or not at all, tables that tell whether they were changed, and what is set aside."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DataError, is_of_no_file

SEAL = "sha256"
"""The entry of a sealed table with the digest of all others."""


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process or the machine dies.

    A temporary file in the same directory is written, flushed to the disk and moved into place, and the move is
    flushed as well. On any error the temporary file is removed and the error raised.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with named(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Within, an error of the system's names this file: of an open file they name none, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _sync_directory(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically.

    Raises:
        ValueError: it holds NaN or infinity, which JSON cannot hold.
    """
    atomic_write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sealed(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of JSON with a digest of itself, by which a change is noticed."""
    return {**table, SEAL: seal_of(table)}


def seal_of(table: Mapping[str, Any]) -> str:
    """The SHA-256 of what a table of JSON holds, but for its seal."""
    plain = json.loads(json.dumps({key: value for key, value in table.items() if key != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; an empty one where the file is missing.

    Raises:
        DataError: it cannot be read, or holds no table.
    """
    if not os.path.lexists(path):
        return {}
    if path.exists() and not path.is_file():  # a pipe could be waited for, for ever
        raise DataError(f"{path} cannot be read: it is no regular file")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(table, dict):
        raise DataError(f"{path} holds no table")
    return table


def unreadable(path: Path, error: OSError) -> Exception:
    """What to raise of a file that cannot be read: that the data is bad, unless the error says nothing of it."""
    if is_of_no_file(error):
        return OSError(error.errno, error.strerror, str(path))
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def read_sealed(path: Path) -> dict[str, Any]:
    """A table that was written with a seal, without it; an empty one where the file is missing.

    One without a seal, as an older dnat wrote them, is taken as it is.

    Raises:
        DataError: it cannot be read, or is not what was written.
    """
    table = read_table(path)
    if SEAL in table and table.pop(SEAL) != seal_of(table):
        raise DataError(f"{path} is not what was written there: its digest differs")
    return table


def digest_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is {'no regular file' if os.path.lexists(path) else 'gone'}")
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
                size += len(part)
    except OSError as error:
        raise unreadable(path, error) from error
    return {"size": size, "sha256": digest.hexdigest()}


def set_aside(path: Path) -> str:
    """Rename a damaged file to NAME.corrupt, or another such name that is free; returns the new name."""
    number, free = 1, path.with_name(f"{path.name}.corrupt")
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}.corrupt")
    path.rename(free)
    return free.name


def remove(path: Path) -> None:
    """Delete a file, or a folder that stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
