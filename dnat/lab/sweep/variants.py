"""Variants: a method with settings of its own under a name, so that several of them stand in one table."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import UsageError
from ...naming import unknown
from ...settings import ALIASES, METHODS, check_label, parse_setting, shown

Table = dict[str, Any]

_TABLES = {"network": "network_options", "search": "search"}
"""Settings that are tables, by the names under which one of their entries is given."""


def parse_variant(text: str) -> tuple[str, Table]:
    """A variant of the command line: its name, and its table as a file has it.

    A comma begins the next setting where `KEY=` follows it outside of brackets and quotes; any other belongs to
    the value.

    Raises:
        ValueError: it is none, or names a setting twice.

    >>> parse_variant("slow=dnat,lr_theta=1e-3,search.epochs=2")
    ('slow', {'method': 'dnat', 'lr_theta': 0.001, 'search': {'epochs': 2}})
    >>> parse_variant('wide=dnat@0.7,space=dnat,width,edges=["a.*", "b=1,c=2"]')
    ('wide', {'method': 'dnat@0.7', 'space': 'dnat,width', 'edges': ['a.*', 'b=1,c=2']})
    """
    name, equals, rest = text.partition("=")
    method, *settings = _parts(rest)
    if not equals or not name.strip() or not method.strip() or "=" in method:
        raise UsageError(f"a variant is NAME=METHOD,KEY=VALUE,... (slow=dnat,lr_theta=1e-3), not {shown(text)}")
    table: Table = {"method": method.strip()}
    for key, value in map(parse_setting, settings):
        group, dot, option = key.partition(".")
        place = table.setdefault(_TABLES[group], {}) if dot and group in _TABLES else table
        key = option if place is not table else key
        if key in place:
            raise UsageError(f"variant {name.strip()!r} has {key} twice: {shown(text)}")
        place[key] = value
    return name.strip(), table


def _parts(text: str) -> Iterator[str]:
    """A text divided at commas before `KEY=`, but for those in brackets or quotes."""
    depth, quote, start = 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth <= 0 and re.match(r"\s*[A-Za-z_][\w.]*\s*=", text[place + 1 :]):
            yield text[start:place]
            start = place + 1
    yield text[start:]


def check_variants(variants: Mapping[str, Any]) -> dict[str, Table]:
    """Variants by their names, if each is a table with a method.

    Raises:
        ValueError: one is not, or has a name that no variant can have.
    """
    for name, table in variants.items():
        if name in (*METHODS, *ALIASES):
            raise UsageError(f"variant {name!r} is named like a method: choose another name")
        if "," in name:
            raise UsageError(f"variant {name!r}: --methods divides names at commas; choose another name")
        check_label(name)
        if not isinstance(table, dict):
            raise UsageError(f"variant {name!r} must be a table: [variant.{name}] with a method and settings")
        method = table.get("method")
        if not isinstance(method, str):
            raise UsageError(f'[variant.{name}] needs a method: method = "dnat"')
        base = method.partition("@")[0]
        if base in variants:
            raise UsageError(f"variant {name!r} is one of variant {base!r}: name the method itself")
        if base not in (*METHODS, *ALIASES):
            raise UsageError(f"[variant.{name}]: {unknown('method', base, (*METHODS, *ALIASES))}")
        for key in {"network", "seed", "label"} & table.keys():
            raise UsageError(f"[variant.{name}] sets {key}, which the sweep gives to each trial: leave it out")
    return dict(variants)


def with_variants(methods: Iterable[str], variants: Iterable[str]) -> tuple[str, ...]:
    """The methods of a list, and the variants that it does not name, with a budget or without.

    >>> with_variants(["original", "slow@0.7"], ["slow", "fast"])
    ('original', 'slow@0.7', 'fast')
    """
    methods = tuple(methods)
    named = {method.partition("@")[0] for method in methods}
    return (*methods, *(name for name in variants if name not in named))
