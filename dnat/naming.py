"""What to say when a name is not known: the value, the nearest name that is, and the list where it is needed."""

import difflib
from collections.abc import Iterable

from .errors import UsageError

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
