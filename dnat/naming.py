"""Names: of things of the user's own ("package.module:NAME"), and what to say of one that is not known."""

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import UsageError, users_code

MOST_LISTED = 12
"""Beside a name that is near a longer list of others would only hide it."""

SOURCES = frozenset({"torchvision", "timm", "nasbench201", "nasbench_macro", "genotype", "genotype_imagenet"})
"""What stands before the colon of networks that are made from a name or a text, without code of the user's."""

MOST_LETTERS = 500
"""Of a name that is to be imported."""

_NEVER_MEANT = frozenset(
    {
        *("PIL", "builtins", "click", "jinja2", "markupsafe", "matplotlib", "numpy", "pip", "pkg_resources"),
        *("pydantic", "rich", "safetensors", "scipy", "setuptools", "tomli_w", "wandb"),
    }
)
"""Packages that come along with dnat or Python, beside the standard library: nobody's network stands there."""


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
    if len(name) > MOST_LETTERS:
        raise UsageError(f"{kind} {name!r:.60}... has {len(name)} letters, more than {MOST_LETTERS}")
    if not all(part.isidentifier() for part in source.split(".")):
        raise UsageError(
            f"{kind} {name!r}: {source!r} is not the name of a module; write package.module:factory, with dots "
            "for folders and without .py, from the folder in which the package lies"
        )
    if not own.isidentifier():
        raise UsageError(f"{kind} {name!r} names no function: write package.module:factory")
    if _is_foreign(source):
        raise UsageError(
            f"{kind} {name!r} is refused: {source.partition('.')[0]} belongs to Python or to what dnat is made "
            "of; name a module of your own, and rename it if it has the same name"
        )
    return source, own


CODE = ("network", "data", "task")
"""The settings that may name code."""


def names_code(settings: Mapping[str, Any]) -> bool:
    """Whether a table of settings names code that would be imported."""
    return any(is_code(kind, settings.get(kind)) for kind in CODE)


def look_here() -> None:
    """Let modules of the user's be found where the user stands, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def is_code(kind: str, name: object) -> bool:
    """Whether a setting (`network`, `data`, `task`) names code that would be imported: "package.module:NAME".

    >>> is_code("network", "mine:net"), is_code("network", "torchvision:resnet18"), is_code("data", "digits")
    (True, False, False)
    """
    source, colon, _ = str(name).partition(":")
    return bool(colon) and not (kind == "network" and source in SOURCES)


def _is_foreign(module: str) -> bool:
    """Whether a module is of the standard library, or of what comes along with dnat."""
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in _NEVER_MEANT


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
    thing = getattr(module, own)
    _refuse_foreign(kind, name, thing)
    return thing


def _refuse_foreign(kind: str, name: str, thing: Any) -> None:
    """Refuse what a module has from where nobody's network stands, by `from os import *`."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    home = str(getattr(thing, "__module__", None) or "")
    if callable(thing) and _is_foreign(home):
        raise UsageError(f"{kind} {name!r} is refused: it is {home}.{getattr(thing, '__name__', '')}, no {kind}")
