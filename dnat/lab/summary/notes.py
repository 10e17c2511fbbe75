"""What has to be known to read a comparison: missing seeds, settings that differ, what cannot be significant."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...settings import UNCOUNTED
from ..formatting import p_text
from .comparison import Comparison, Row
from .statistics import MOST_FLIPS
from .trials import Trial, settings_of

Pair = tuple[Trial, Mapping[str, Any]]
"""A trial and its record."""

_SINCE = {
    "task": "classification",
    **{"optimizer": "sgd", "label_smoothing": "0.0", "ema": "0.0", "validation": "0.0", "compile": "False"},
    "patience": "0",
}
"""Settings that older records lack, and how their runs were trained."""

_RECIPE = (
    *("network_options", "weights", "image_size", "train_limit", "test_limit", "crop", "epochs", "batch_size"),
    *("lr", "momentum", "weight_decay", "grad_clip", "cutout", "auxiliary", "drop_path", "amp", "warm_up"),
    *("distillation", "feature_distillation", "task", "optimizer", "label_smoothing", "ema", "validation"),
    "compile",
)
"""Settings that all methods of a comparison should share."""

_NO_MATTER = UNCOUNTED | {"seed", "device", "threads", "network", "data"}
"""Settings in which the trials of a row may differ."""


def notes_of(
    rows: Sequence[Row], compared: Sequence[Comparison], group: Sequence[Pair], baseline: str, confidence: float
) -> list[str]:
    """What has to be known of one network on one data set."""
    where = f"{rows[0].network} on {rows[0].data}"
    notes = [*_seed_notes(rows, compared, baseline), *_power_notes(compared, round(1 - confidence, 12))]
    notes += [*_setting_notes(group), *_record_notes(rows)]
    return [f"{where}: {note}" for note in notes]


def _seed_notes(rows: Sequence[Row], compared: Sequence[Comparison], baseline: str) -> list[str]:
    everything = sorted({s for row in rows for s in row.seeds})
    lacking: dict[str, list[str]] = {}
    for row in rows:
        missing = [str(s) for s in everything if s not in row.seeds]
        if missing:
            seeds = f"seed{'s' * (len(missing) > 1)} {', '.join(missing)}"
            lacking.setdefault(seeds, []).append(row.method)
    notes = [f"{', '.join(methods)} lack{'s' * (len(methods) == 1)} {seeds}" for seeds, methods in lacking.items()]
    if baseline not in {row.method for row in rows}:
        near = [row.method for row in rows if row.method.startswith(f"{baseline} ")]
        choice = f"; --baseline takes {' or '.join(map(repr, near))}" if near else ""
        notes.append(f"there are no runs of {baseline}, so that nothing is compared{choice}")
    else:
        known = {c.method for c in compared} | {baseline}
        alone = [row.method for row in rows if row.method not in known]
        notes += [f"{method} has no seed in common with {baseline}" for method in alone]
    notes += [f"{c.method} less {c.baseline}: {c.why}" for c in compared if c.why]
    return notes


def _power_notes(compared: Sequence[Comparison], level: float) -> list[str]:
    """Comparisons that cannot be significant with so few seeds, whatever the method does."""
    family = sum(c.p is not None for c in compared)
    notes: dict[tuple[int, float, float], list[str]] = {}
    for c in compared:
        if c.least_p is not None and c.least_p_holm is not None and c.least_p_holm > level:
            notes.setdefault((c.n, c.least_p, c.least_p_holm), []).append(c.method)
    enough = next((n for n in range(2, 64) if family * 2.0 ** (1 - n) <= level), None)
    advice = f"; {enough} seeds for each would be enough" if enough and enough <= MOST_FLIPS else ""
    return [
        f"{', '.join(methods)} cannot be significant at n = {n}: the smallest p that the test can give is "
        f"{p_text(least)}, {p_text(corrected)} when corrected for {family} comparison{'s' * (family > 1)}{advice}"
        for (n, least, corrected), methods in notes.items()
    ]


def _setting_notes(group: Sequence[Pair]) -> list[str]:
    """Settings that should be the same and are not: of training for all methods, all others for each."""
    notes = []
    settings = [(trial.method, _SINCE | settings_of(record["job"])) for trial, record in group]
    for key in sorted({k for _, s in settings for k in s if k.partition(".")[0] in _RECIPE}):
        holders = _holders(settings, key)
        if len(holders) > 1:
            notes.append(f"not all were trained alike: {key} is {_listed_holders(holders)}")
    differing: dict[str, list[str]] = {}
    for method in dict.fromkeys(m for m, _ in settings):
        mine = [(m, s) for m, s in settings if m == method]
        for key in sorted({k for _, s in mine for k in s if k.partition(".")[0] not in (*_RECIPE, *_NO_MATTER)}):
            holders = _holders(mine, key)
            if len(holders) > 1:
                differing.setdefault(f"differ in {key}: {', '.join(sorted(holders))}", []).append(method)
    notes += [f"the runs of {', '.join(methods)} {what}" for what, methods in differing.items()]
    sizes = [(t.method, {"": f"{t.params_before:,} params, {t.madds_before:,} MAdds"}) for t, _ in group]
    holders = _holders(sizes, "")
    if len(holders) > 1:
        notes.append(f"not all began with the same network: {_listed_holders(holders, '; ')}")
    prints = {record["data_fingerprint"] for _, record in group if record.get("data_fingerprint")}
    if len(prints) > 1:
        notes.append("the images' fingerprints differ (also where some runs read images from files as they train)")
    return notes


def _holders(settings: Iterable[tuple[str, Mapping[str, str]]], key: str) -> dict[str, list[str]]:
    """{value of a setting: methods that have it}."""
    holders: dict[str, list[str]] = {}
    for method, table in settings:
        methods = holders.setdefault(table.get(key, "not set"), [])
        if method not in methods:
            methods.append(method)
    return holders


def _listed_holders(holders: Mapping[str, Sequence[str]], between: str = ", ") -> str:
    return between.join(f"{value} ({', '.join(methods)})" for value, methods in sorted(holders.items()))


def _record_notes(rows: Sequence[Row]) -> list[str]:
    """What the records leave open: several devices, and results of which it is not known whether they are dead."""
    notes = []
    devices = sorted({device for row in rows for device in row.devices})
    if len(devices) > 1:
        notes.append(f"hours and latencies were taken on different devices: {', '.join(devices)}")
    unknown_of = [f"{row.unknown} of {row.method}" for row in rows if row.unknown]
    if unknown_of:
        notes.append(f"whether results are dead is not known of older runs: {', '.join(unknown_of)}")
    return notes
