"""Every setting with its text, for listings, flags and documents: each stands once, beside its field."""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .config import PARTS, Config
from .job import ALIASES, Job
from .part import Part, allowed, kinds_of
from .presets import PRESETS
from .search import Search


@dataclass(frozen=True)
class Setting:
    """What is to be told of a setting.

    Attributes:
        name: as `--set` and files have it; search.NAME of those in the table `search`.
        part: of a run's settings ("training"); "run" for what stands in none.
        types: that it may have (int, float, str, bool, dict, tuple); texts of a list of `choices` are none.
        choices: texts that it may be.
        allowed: what it may be, in words.
        default: where none is given, for each preset; empty where a rule makes it, which the text tells.
        text: what it is.
    """

    name: str
    part: str
    types: tuple[Any, ...]
    choices: tuple[str, ...]
    allowed: str
    default: str
    text: str

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return re.split(r"(?<=\.)\s", self.text, maxsplit=1)[0]


@functools.cache
def described() -> Mapping[str, Setting]:
    """All settings by their names, part by part."""
    return MappingProxyType({setting.name: setting for setting in _all()})


def _all() -> Iterator[Setting]:
    owners: tuple[type[Part], ...] = (Job, Config)
    for owner in owners:
        for name, field in owner.model_fields.items():
            if name not in ("config", "search", *PARTS):
                yield _described(name, "run", field)
    for part, owner in PARTS.items():
        for name, field in owner.model_fields.items():
            yield _described(name, part, field)
    for name, field in Search.model_fields.items():
        yield _described(f"search.{name}", "search", field)


def _described(name: str, part: str, field: FieldInfo) -> Setting:
    kinds = kinds_of(field)
    choices = tuple(c for kind, _ in kinds if get_origin(kind) is Literal for c in get_args(kind))
    types = tuple(get_origin(kind) or kind for kind, _ in kinds if get_origin(kind) is not Literal)
    text = " ".join((field.description or "").split())
    return Setting(
        name=name,
        part=part,
        types=types,
        choices=(*choices, *ALIASES) if name == "method" else choices,
        allowed=allowed(field),
        default=_default(name, field),
        text=text,
    )


def _default(name: str, field: FieldInfo) -> str:
    if not field.is_required():
        value = field.get_default(call_default_factory=True)
        return "" if value is None or value == {} else written(value)
    values = {preset: written(table[name]) for preset, table in PRESETS.items() if name in table}
    if len({*values.values()}) <= 1:
        return next(iter(values.values()), "")
    return ", ".join(f"{preset} {value}" for preset, value in values.items())


def written(value: object) -> str:
    """A value as one writes it in a file.

    >>> written(True), written((0.5, 1)), written("dnat")
    ('true', '[0.5, 1]', 'dnat')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
