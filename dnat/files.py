"""Files that are there whole or not at all, tables that tell whether they were changed, and what is set aside.

All that is read here may be somebody else's: only regular files of a size that can be meant are, and no text makes
Python's readers fail in ways of their own.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DataError, UsageError, is_of_no_file

SEAL = "sha256"
"""The entry of a sealed table with the digest of all others."""

MOST_TEXT = 8 << 20
"""Bytes of a file that people write: settings, a genotype."""
MOST_TABLE = 64 << 20
"""Bytes of a table that dnat writes; those of large networks have a few."""
MOST_LOG = 1 << 30
"""Bytes of rows, of which a run of thousands of epochs and edges has many."""
MOST_DEPTH = 64
"""Lists and tables of a file of JSON that stand in more of others are a mistake, or an attack."""


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


def read_bytes(path: str | Path, most: int = MOST_TABLE) -> bytes:
    """A file's content, if it is a regular file: a pipe could be waited for, for ever, and a device has no end.

    Args:
        path: of the file; a link to one will do.
        most: bytes that it may have.

    Raises:
        DataError: it is missing, no such file, or larger.
        OSError: the machine does not give it; see `unreadable`.
    """
    try:
        # Whoever opens a pipe would wait for its other end without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            told = os.fstat(descriptor)
            if not stat.S_ISREG(told.st_mode):
                raise DataError(f"{path} cannot be read: it is no regular file")
            if told.st_size > most:
                raise DataError(f"{path} cannot be read: it has {told.st_size:,} bytes, more than {most:,}")
            return file.read(told.st_size + 1) or b""
    except IsADirectoryError as error:
        raise DataError(f"{path} cannot be read: it is no regular file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except DataError:
        raise
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path} cannot be read: {error}") from error


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    """A text file's content; see `read_bytes`.

    Raises:
        DataError: also where it is no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read: it is no text of UTF-8 ({error.reason})") from error


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON holds.

    Raises:
        ValueError: it is no JSON; or what no file of dnat has, and Python's reader takes: NaN, an integer of more
            than 64 bits, lists or tables in more than `MOST_DEPTH` others.
    """
    try:
        value = json.loads(text, parse_int=_integer, parse_constant=_no_number)
    except RecursionError:
        raise UsageError(_TOO_DEEP) from None
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return value
    raise UsageError(_TOO_DEEP)


_TOO_DEEP = "its lists or tables are nested too deeply"


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= (number := int(text)) < 1 << 64:
        raise UsageError("it holds an integer of more than 64 bits")
    return number


def _no_number(text: str) -> float:
    raise UsageError(f"it holds {text}, which is no number")


def refuse_links(directory: str | Path, *, folders: bool = False) -> None:
    """Refuse a directory of dnat's in which something else stands than files and folders.

    Whoever made it could have put links there to files of yours, which would be read into a report or written
    over, and pipes, which would be waited for.

    Args:
        directory: of a run or a sweep; may be a link itself, and need not exist.
        folders: whether links to folders are taken, as of trials that lie on another disk.

    Raises:
        DataError: it names what stands there.
    """
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                plain = entry.is_dir(follow_symlinks=folders) or entry.is_file(follow_symlinks=False)
                if not plain:
                    kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                    raise DataError(
                        f"{os.path.join(directory, entry.name)} is {kind}, through which nothing is read or "
                        "written there: put a copy in its place, or delete it"
                    )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unreadable(directory, error) from error


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; an empty one where the file is missing.

    Raises:
        DataError: it cannot be read, or holds no table.
    """
    if not os.path.lexists(path):
        return {}
    try:
        table = parse_json(read_bytes(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{path} holds no table")
    return table


def unreadable(path: str | Path, error: OSError) -> Exception:
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
