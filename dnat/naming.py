"""Names: of things of the user's own ("package.module:NAME"), and what to say of one that is not known."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from .errors import UsageError, users_code

MOST_LISTED = 12
"""Beside a name that is near a longer list of others would only hide it."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list.

    Args:
        kind: what the name should have been, in the singular ("network", "key", "choice").
        name: what was given.
        known: the names that exist.

    Returns:
        A `UsageError` to be raised by the caller.

    >>> print(unknown("network", "resent20", ["resnet20", "resnet56"]))
    unknown network 'resent20'; did you mean 'resnet20'? Known: resnet20, resnet56
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close and len(names) > MOST_LISTED:
        return UsageError(f"unknown {kind} {name!r:.100}; did you mean {close[0]!r}?")
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return UsageError(f"unknown {kind} {name!r:.100}{hint} Known: {', '.join(names)}")


def place(kind: str, name: str) -> tuple[str, str]:
    """The module of something of the user's, and the name in it, from "package.module:NAME".

    Args:
        kind: what it is, for messages ("network", "task").
        name: as above.

    Raises:
        ValueError: it is no such name.
    """
    source, _, own = name.partition(":")
    if not all(part.isidentifier() for part in source.split(".")):
        raise UsageError(
            f"{kind} {name!r}: {source!r} is not the name of a module; write package.module:factory, with dots "
            "for folders and without .py, from the folder in which the package lies"
        )
    if not own.isidentifier():
        raise UsageError(f"{kind} {name!r} names no function: write package.module:factory")
    return source, own


def imported(kind: str, name: str, suits: Callable[[Any], bool] = callable) -> Any:
    """What stands in a module of the user's under a name: "package.module:NAME".

    Args:
        kind, name: as of `place`.
        suits: which of the module's names are told where there is none of this name.

    Raises:
        ValueError: it is no such name, the module cannot be imported, or holds nothing of that name.
    """
    source, own = place(kind, name)
    with users_code(f"{kind} {name!r} cannot be imported"):
        module = importlib.import_module(source)
    if not hasattr(module, own):
        what = "function" if suits is callable else kind
        there = unknown(f"{what} of {source}", own, [n for n, f in vars(module).items() if suits(f)])
        raise UsageError(f"{kind} {name!r} cannot be imported: {there}")
    return getattr(module, own)
