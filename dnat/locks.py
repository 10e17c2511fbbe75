"""The lock of a directory in which one process at a time may work: a run's, or a sweep's. Needs no torch."""

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from .errors import DnatError

try:
    import fcntl
except ImportError:  # Windows: no locks of this kind
    fcntl = None  # type: ignore[assignment]

THERE_ARE_LOCKS = fcntl is not None

LOCK = ".lock"
"""The file of a directory that says who works there."""

_HELD = (errno.EACCES, errno.EAGAIN)
"""What a lock says that another process has; anything else means that there are no locks here."""

_mine: set[Path] = set()
"""Lock files that this process holds. It must not open them again: closing any copy would give the lock back."""


class LockedError(DnatError, OSError):
    """A directory that another process works in, or that cannot be written."""

    exit_code = 73

    def __str__(self) -> str:
        return str(self.args[0])


class Lock:
    """Holds a directory until it is closed, or its process ends, however it does.

    Raises:
        LockedError: another process holds it, or this one.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory.resolve() / LOCK
        if self._path in _mine:
            raise LockedError(f"{directory} is in use by this very process")
        self._file: IO[Any] | None = _opened(self._path)
        if fcntl is not None:
            try:
                # lockf, not flock: workers do not inherit it, so that it ends with this process, even by kill -9.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                if error.errno not in _HELD:
                    raise LockedError(
                        f"{directory} cannot be locked ({error.strerror}): its file system has no locks, or "
                        "its lock service is down; take a directory on another one"
                    ) from error
                raise LockedError(f"{directory} is in use by {holder(directory)}") from None
        _mine.add(self._path)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        self._file.flush()

    def close(self) -> None:
        """Give the directory back."""
        if self._file is not None:
            _mine.discard(self._path)
            self._file.close()
            self._file = None


def _opened(path: Path) -> IO[Any]:
    """A lock file, made where it is missing; one that is a link, or no file, is refused: it is written over."""
    try:
        return open(path, "a+", opener=lambda name, flags: _without_waiting(name, flags | _NO_LINK))
    except OSError as error:
        if path.is_symlink():
            raise LockedError(f"{path} is a link: delete it") from error
        raise


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def _without_waiting(name: str, flags: int) -> int:
    """Open as usual; a pipe is not waited for."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o644)


def is_held(directory: str | Path) -> bool:
    """Whether a process works in a run directory, or in a sweep's."""
    path = Path(directory).resolve() / LOCK
    if path in _mine:
        return True
    if fcntl is None or not path.exists():
        return False
    with open(path, "rb", opener=_without_waiting) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
    return False


def holder(directory: str | Path) -> str:
    """Who works in a directory, as its lock file says."""
    try:
        with open(Path(directory) / LOCK, "rb", opener=_without_waiting) as file:
            who = json.loads(file.read(1000))
        return f"pid {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
