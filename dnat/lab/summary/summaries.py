"""Records of any number of finished runs -> their summary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ...errors import UsageError
from ...naming import unknown
from ..labels import method_order, natural_order
from ..metrics import Metric
from .comparison import Comparison, Row, comparisons_of, row_of
from .grouping import labels_by, told_apart
from .notes import Pair, notes_of
from .statistics import check_confidence, check_margin
from .trials import Trial, trial_from


@dataclass(frozen=True)
class Summary:
    """All rows and comparisons, in the order of the table, and what has to be known to read them.

    Attributes:
        rows: by data set, network and method: the baseline first, then as in `settings.METHODS`, then by name.
        comparisons: in the same order.
        notes: seeds that a method lacks, settings that differ, what cannot be significant.
        baseline: the method that the others are compared with.
        confidence: of all intervals; what is at most 1 - confidence is significant.
        margin: by which a method may be worse than the baseline; None where nobody asked.
    """

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    baseline: str
    confidence: float
    margin: float | None = None

    def comparison(self, row: Row) -> Comparison | None:
        """The comparison of a row's method with the baseline; None of the baseline, or where there is none."""
        wanted = row.data, row.network, row.method
        return next((c for c in self.comparisons if (c.data, c.network, c.method) == wanted), None)

    @property
    def significance(self) -> float:
        """The largest corrected p that is called significant."""
        return round(1 - self.confidence, 12)


def summarize(
    records: Iterable[Mapping[str, Any]],
    baseline: str = "original",
    seed: int = 0,
    confidence: float = 0.95,
    by: Iterable[str] = (),
    margin: float | None = None,
) -> Summary:
    """Statistics over seeds of any number of finished runs; their order does not matter.

    Args:
        records: as they stand in record.json of each run.
        baseline: the method, as `label` has it, that the others are compared with.
        seed: of the bootstrap; each row draws from it anew, so that no row depends on another.
        confidence: of all intervals, between 0 and 1.
        by: settings that make rows of their own where runs of a label differ in them; see `labels_by`.
        margin: by which a method may be worse than the baseline and still count as good: percentage points of
            shares, as accuracy is one, else in the metric's own unit.

    Raises:
        ValueError: no records, one that lacks something, two of the same network, data, method and seed, or a
            baseline that no record has ("original" may be missing: then there are no comparisons), or runs on one
            data set that are judged by different metrics.
        TypeError: see `trial_from`.
    """
    records = list(records)
    check_confidence(confidence)
    margin = None if margin is None else check_margin(margin)
    if not records:
        raise UsageError("there are no records to summarize")
    trials = [_numbered(i, record) for i, record in enumerate(records)]
    names = labels_by(records, by)
    trials = [replace(trial, method=name) for trial, name in zip(trials, names, strict=True)]
    _refuse_duplicates(trials, records)
    _refuse_other_metrics(trials)
    methods = {t.method for t in trials}
    if baseline not in methods and baseline != "original":
        raise unknown("baseline", baseline, methods)

    def order(pair: Pair) -> tuple[Any, ...]:
        trial = pair[0]
        method = method_order(trial.method, baseline)
        return natural_order(trial.data), natural_order(trial.network), method, trial.seed

    rows, comparisons, notes = [], [], []
    for _, pairs in groupby(sorted(zip(trials, records, strict=True), key=order), lambda p: order(p)[:2]):
        group = list(pairs)
        of_method = groupby((t for t, _ in group), lambda t: t.method)
        mine = [row_of(list(part), seed, confidence) for _, part in of_method]
        compared = comparisons_of(mine, baseline, confidence, margin)
        rows += mine
        comparisons += compared
        notes += notes_of(mine, compared, group, baseline, confidence)
    return Summary(tuple(rows), tuple(comparisons), tuple(notes), baseline, float(confidence), margin)


def _numbered(place: int, record: Mapping[str, Any]) -> Trial:
    """The trial of a record; errors name its place."""
    try:
        return trial_from(record)
    except (ValueError, TypeError) as error:
        raise type(error)(f"record {place + 1}: {error}") from error


def _refuse_duplicates(trials: Sequence[Trial], records: Sequence[Mapping[str, Any]]) -> None:
    first: dict[tuple[Any, ...], int] = {}
    for i, trial in enumerate(trials):
        key = trial.data, trial.network, trial.method, trial.seed
        if key not in first:
            first[key] = i
            continue
        both = [first[key], i]
        ends = (
            f"finished {records[j]['finished']}" if records[j].get("finished") else "time unknown" for j in both
        )
        which = " and ".join(f"{j + 1} ({end})" for j, end in zip(both, ends, strict=True))
        raise UsageError(
            f"records {which} are both of {trial.method} with {trial.network} on {trial.data} "
            f"at seed {trial.seed}: " + (told_apart([records[j] for j in both]) or "leave one of them out")
        )


def _refuse_other_metrics(trials: Sequence[Trial]) -> None:
    for data in dict.fromkeys(t.data for t in trials):
        holders: dict[Metric, list[str]] = {}
        for t in trials:
            if t.data == data and t.network not in holders.setdefault(t.metric, []):
                holders[t.metric].append(t.network)
        if len(holders) > 1:
            listed = ", ".join(f"{m.name} ({m.direction}) of {', '.join(names)}" for m, names in holders.items())
            raise UsageError(f"runs on {data} are judged by different metrics, {listed}: summarize them apart")
