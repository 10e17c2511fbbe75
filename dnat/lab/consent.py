"""Code that a job names, and who said that it may run: "package.module:factory" is imported and called.

Whoever types such a name, or calls dnat in Python, wants it to run. A file or a run directory that names code may
be somebody else's; `dnat` asks before it imports anything for one. The yes is kept outside of the directory, for
this place, this name and these arguments: a directory that is changed to name other code is asked about again.
What the code itself does is nobody's to check, and a module that is changed later runs as it is then.
"""

import hashlib
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import atomic_write
from ..naming import CODE, is_code, place
from .sweep import Sweep


@dataclass(frozen=True)
class Code:
    """Code that is named.

    Attributes:
        kind: the setting that names it; see `CODE`.
        name: "package.module:NAME".
        options: arguments that it is called with.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.kind} {self.name}" + (f" with {given}" if given else "")

    def check(self) -> None:
        """Refuse a name that can never be meant.

        Raises:
            UsageError: a module of Python's own, or what is no such name.
        """
        place(self.kind, self.name)

    def source(self) -> str:
        """The file that would be imported first, as far as that can be told without importing anything."""
        top = self.name.partition(":")[0].partition(".")[0]
        try:
            found = importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
        except (ImportError, ValueError, OSError):
            found = None
        if found is None:
            return "not found"
        return found.origin or ", ".join(found.submodule_search_locations or ()) or "unknown"


def code_in(settings: Mapping[str, Any]) -> tuple[Code, ...]:
    """The code that a flat table of settings names; of a configuration file, or of `Job.flat`."""
    named = [(kind, settings[kind]) for kind in CODE if is_code(kind, settings.get(kind))]
    return tuple(Code(kind, str(name), _options(settings) if kind == "network" else {}) for kind, name in named)


def code_in_sweep(sweep: Sweep) -> tuple[Code, ...]:
    """The code that the trials of a sweep name, each once."""
    tables = (sweep.settings, *sweep.of_network.values(), *sweep.of_method.values(), *sweep.of_variant.values())
    of_methods = [_options(table) for table in (*sweep.of_method.values(), *sweep.of_variant.values())]
    found = []
    for network in sweep.networks:
        own = _options(sweep.settings) | _options(sweep.of_network.get(network, {}))
        # Those of a method come on top of them: a network is made several times then.
        found += [code for options in ({}, *of_methods) for code in code_in(_table(network, own | options))]
    found += [
        code for table in tables for code in code_in({k: table[k] for k in CODE if k in table and k != "network"})
    ]
    return tuple(code for i, code in enumerate(found) if code not in found[:i])


def _table(network: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"network": network, "network_options": options}


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = settings.get("network_options")
    return dict(options) if isinstance(options, Mapping) else {}


def is_trusted(where: Path, code: Iterable[Code]) -> bool:
    """Whether all this code was said to be trusted, when a file or a directory names it."""
    try:
        return all(_kept(where, one).is_file() for one in code)
    except (OSError, RuntimeError):
        return False


def trust(where: Path, code: Iterable[Code]) -> None:
    """Keep for later that code may run when a file or a directory names it.

    Raises:
        OSError: it cannot be kept.
    """
    for one in code:
        try:
            file = _kept(where, one)
        except RuntimeError as error:  # nobody's home is known
            raise OSError(str(error)) from error
        if not file.is_file():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            told = {"place": str(_resolved(where)), "code": str(one), "since": time.strftime("%Y-%m-%d")}
            atomic_write(file, (json.dumps(told, indent=1) + "\n").encode())


def folder() -> Path:
    """Where it is kept: $XDG_STATE_HOME/dnat/trusted, by default ~/.local/state/dnat/trusted.

    Raises:
        RuntimeError: there is no home.
    """
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = named if named.is_absolute() else Path.home() / ".local" / "state"
    return state / "dnat" / "trusted"


def _kept(where: Path, code: Code) -> Path:
    told = [str(_resolved(where)), code.kind, code.name, code.options]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode("utf-8", "backslashreplace"))
    return folder() / f"{digest.hexdigest()}.json"


def _resolved(where: Path) -> Path:
    return Path(os.path.realpath(where))
