"""The errors that are meant for users, with one base class: whatever else is raised is a bug of ours.

Their texts say what was wrong, the value, and what to do. They keep the built-in class that fits beside the base
class, so that `except ValueError` works as well. A command exits with `exit_code`.
"""

import errno
import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class DnatError(Exception):
    """Base of all errors that dnat raises on purpose: wrong use, bad data, code of the user's that failed."""

    exit_code = 2


class UsageError(DnatError, ValueError):
    """A value that cannot be used."""


class WrongTypeError(DnatError, TypeError):
    """A value of a type that cannot be used."""


class UserCodeError(DnatError, ValueError):
    """Code of the user's that failed (a forward, a factory, a module that is imported); its error is chained."""


@contextmanager
def users_code(what: str, *, alone: bool = True) -> Iterator[None]:
    """Within, code of the user's runs: what it raises becomes a `UserCodeError` that names the place.

    Args:
        what: what was done and failed, for the message.
        alone: whether nothing else runs within. Otherwise an error that arose in code of dnat's stays what it is.
    """
    try:
        yield
    except DnatError:
        raise
    except (Exception, SystemExit) as error:
        place, theirs = _place(error)
        if (not alone and not theirs) or is_of_memory(error):
            raise
        told = f"it calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        raise UserCodeError(f"{what}: {kind}{told}{f' ({place})' if place else ''}") from error


def _place(error: BaseException) -> tuple[str, bool]:
    """The innermost "FILE:LINE" of the user's behind an error, and whether no code of dnat's lies further in."""
    place, theirs, step = "", False, error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(_OURS):
            theirs = False
        elif not _is_library(file):
            place, theirs = f"{file}:{step.tb_lineno}", True
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename and not _is_library(error.filename):
        place = f"{error.filename}:{error.lineno}"
    return place, theirs


_OURS = Path(__file__).resolve().parent
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


def _is_library(file: str) -> bool:
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or file.startswith("<") or path.is_relative_to(_STANDARD)


class DataError(DnatError, ValueError):
    """Data that cannot be used."""

    exit_code = 65


class MachineError(DnatError, OSError):
    """What the machine cannot do: its disk or its memory is full, or a file may not be written.

    It has `errno`, `strerror` and `filename` of the error that it tells of, which is chained. Its exit code is 73,
    or 75 where a run was stopped by it that can go on.
    """

    exit_code = 73

    def __str__(self) -> str:
        what = f"{self.filename}: {self.strerror}" if self.filename else f"{self.strerror}"
        return what + (f": {_REMEDIES[self.errno]}" if self.errno in _REMEDIES else "")


_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "the disk, or the terminal, does not answer",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "end other programs, or take a smaller batch_size",
    errno.EAGAIN: "raise the limit on processes (ulimit -u)",
    errno.EROFS: "choose another directory",
    errno.EACCES: "ask for the right to do so, or choose another file",
    errno.EPERM: "ask for the right to do so, or choose another file",
}

_OF_NO_FILE = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    *(errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
)

_OF_MEMORY = re.compile(
    r"can.?t allocate memory|cannot allocate memory|not enough memory|out of memory|std::bad_alloc|"
    r"failed to map segment|unable to mmap|could not (create|execute) a (memory|primitive)",
    re.IGNORECASE,
)
"""What torch, the C library and CUDA say when memory is used up; not all of them by a class of its own."""


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, which is never the fault of the code that asked for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError | ImportError) and not isinstance(error, DnatError)
    return isinstance(error, MemoryError) or (told and bool(_OF_MEMORY.search(str(error))))


def is_of_no_file(error: BaseException) -> bool:
    """Whether an error says nothing of the file that was read, which may be whole: memory, handles, the disk."""
    return is_of_memory(error) or (isinstance(error, OSError) and error.errno in _OF_NO_FILE)


def of_machine(error: BaseException) -> MachineError | None:
    """An error of the machine's as one that is told to users; None of any other, as of the user's own code."""
    if isinstance(error, DnatError):
        return error if isinstance(error, MachineError) else None
    if is_of_memory(error):
        first = (str(error).splitlines() or [""])[0].removeprefix("[Errno 12] ")
        return MachineError(errno.ENOMEM, f"there is not enough memory{f' ({first})' if first else ''}")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return MachineError(errno.EAGAIN, str(error))
    if not isinstance(error, OSError) or error.errno is None or _place(error)[1]:
        return None
    return MachineError(error.errno, error.strerror, *(() if error.filename is None else (error.filename,)))


@contextmanager
def told_of_machine(goes_on: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within, an error of the machine's becomes a `MachineError`; `goes_on` says whether a run can go on then."""
    try:
        yield
    except Exception as error:
        told = of_machine(error)
        if told is None:
            raise
        if goes_on():
            told.exit_code = 75
        if told is error:
            raise
        raise told from error
