"""Which runs make a row: those of one label, or of one label and the same values of some settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import UsageError
from ...naming import unknown
from ...settings import SETTINGS, UNCOUNTED, Job
from ..labels import label
from .trials import settings_of

Record = Mapping[str, Any]

_ROWS = ("network", "data", "seed")
"""Settings by which rows are divided, or runs paired, in any case."""

_OF_MACHINES = UNCOUNTED | {"device", "threads"}
"""Settings that tell where and how a run was computed."""


def parse_by(text: str | None) -> tuple[str, ...]:
    """Names of settings, separated by commas.

    >>> parse_by("preset, lr_theta"), parse_by(None)
    (('preset', 'lr_theta'), ())
    """
    return tuple(dict.fromkeys(filter(None, (part.strip() for part in (text or "").split(",")))))


def settings_by_name(job: Mapping[str, Any]) -> dict[str, str]:
    """A record's settings as text, by the names that --set takes."""
    return {key.replace("network_options.", "network.", 1): value for key, value in settings_of(job).items()}


def labels_by(records: Sequence[Record], by: Iterable[str] = ()) -> list[str]:
    """The name of each record's row: its label, with the values of settings in which runs of the label differ.

    Args:
        records: as in record.json, checked by `trial_from`.
        by: names of settings, as --set has them.

    Raises:
        ValueError: a name that is no setting, or one by which rows are divided in any case.
    """
    by = tuple(by)
    labels = [label(record["job"]) for record in records]
    settings = [settings_by_name(record["job"]) for record in records]
    known = {*SETTINGS, *Job.model_fields, *(key for table in settings for key in table)} - {"config"}
    for key in by:
        if key not in known:
            raise unknown("setting", key, known)
        if key in _ROWS:
            raise UsageError(
                f"rows are divided by {', '.join(_ROWS)} in any case: name another setting than {key}"
            )
    values: dict[tuple[str, str], set[str]] = {}
    for name, table in zip(labels, settings, strict=True):
        for key in by:
            values.setdefault((name, key), set()).add(table.get(key, "none"))
    return [
        " ".join([name, *(f"{key}={table.get(key, 'none')}" for key in by if len(values[name, key]) > 1)])
        for name, table in zip(labels, settings, strict=True)
    ]


def differing(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The settings that two or more runs differ in, by name, with the value in each: "none" where it has none."""
    tables = [settings_by_name(record["job"]) for record in records]
    names = sorted({key for table in tables for key in table if key not in _OF_MACHINES})
    values = {key: tuple(table.get(key, "none") for table in tables) for key in names}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def told_apart(records: Sequence[Record]) -> str:
    """In which settings runs differ, and the --by that makes rows of them; "" where they differ in none."""
    found = differing(records)
    if not found:
        return ""
    listed = [f"{key} ({' and '.join(row)})" for key, row in found.items()]
    more = f" and {len(listed) - _FEW} more" * (len(listed) > _FEW)
    by = ["preset"] if "preset" in found else list(found)  # others follow from it
    return f"they differ in {', '.join(listed[:_FEW])}{more}: --by {','.join(by)} makes a row of each"


_FEW = 8


def are_one_run(first: Record, second: Record) -> bool:
    """Whether two runs of one label and seed are the same, done twice: to the bit, with the same settings.

    Of the untouched network the bits suffice: that it was given settings of other methods changed nothing.
    """
    mine, theirs = first["results"], second["results"]
    if mine.get("weights_sha256") is None or mine != theirs:
        return False
    return first["job"].get("method") == "original" or not differing([first, second])
