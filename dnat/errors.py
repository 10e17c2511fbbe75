"""The errors that are meant for users, with one base class: whatever else is raised is a bug of ours.

Their texts say what was wrong, the value, and what to do. They keep the built-in class that fits beside the base
class, so that `except ValueError` works as well. A command exits with `exit_code`.
"""

import sysconfig
from collections.abc import Iterator
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
        if not alone and not theirs:
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
