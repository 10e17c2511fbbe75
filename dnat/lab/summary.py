"""Records of finished runs -> means, intervals and tests over seeds, and a table of them.

Trials of one network on one data set with one method make a row. A method is compared with the baseline on the
same network and data by the differences of accuracies at equal seeds: there both began with the same weights and
saw the same images in the same order, so that what a seed does to both cancels out. Differences are in percentage
points, the method less the baseline.

Which p counts. Where at most 20 seeds are common to both, it is that of the exact sign-flip test of the mean
difference (Fisher's randomization test for pairs): if the method made no difference, either sign of each one would
have been as likely. It assumes no distribution, which matters here: dead networks make accuracies far from
normal. Its smallest value is 2/2**n, so that at n = 5 it cannot fall below 0.0625, whatever the method does; a
`Comparison` says so (`least_p`, `least_p_holm`). With more seeds it is the paired t test's. All p values are
two-sided; over the methods of one network and data set they are corrected by Holm's procedure.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from ..config import ALIASES, METHODS, WHERE
from ..errors import UsageError, WrongTypeError
from ..naming import unknown
from ..seeds import check_seed

Interval = tuple[float, float]
"""Lower and upper end."""

MOST_FLIPS = 20
"""With more differences their signs are not flipped in all ways."""

RESAMPLES = 9999
"""How often the bootstrap draws."""

_DECIMALS = 9
"""Decimals of differences: accuracies are shares of whole images, so that what differs by less is rounding."""

_RECIPE = (
    "network_options",
    "weights",
    "image_size",
    "train_limit",
    "test_limit",
    "crop",
    "epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "grad_clip",
    "cutout",
    "auxiliary",
    "drop_path",
    "amp",
    "warm_up",
    "distillation",
    "feature_distillation",
)
"""Settings that all methods of a comparison should share."""

_NO_MATTER = WHERE | {"seed", "device", "threads", "network", "data", "method"}
"""Settings in which the trials of a row may differ."""


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval for the mean: mean -+ t * std / sqrt(n), with n - 1 degrees of freedom.

    It supposes values that are about normal. Where all are equal both ends are their value.

    Args:
        values: at least two, finite.
        confidence: how often such an interval holds the true mean; between 0 and 1.

    Raises:
        ValueError, TypeError: too few values, one that is no finite number, a confidence out of range.

    >>> [round(end, 2) for end in t_interval([91.0, 92.0, 93.0])]
    [89.52, 94.48]
    """
    values = _finite(values, "values", least=2)
    t = float(stdtrit(len(values) - 1, (1 + _confidence(confidence)) / 2))
    mean, reach = statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))
    return mean - reach, mean + reach


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The percentile bootstrap's interval for the mean.

    The order of values does not matter. With few values the interval is too short: with five it holds the mean of
    normal values in about 83 of 100 cases where 95 are wanted, so that it is the t interval's companion, not its
    substitute. It is never wider than the values.

    Args:
        values: at least two, finite.
        confidence: between 0 and 1.
        seed: of the draws, which come from NumPy's Philox generator.
        resamples: number of draws, at least 1.

    Raises:
        ValueError, TypeError: as for `t_interval`; a seed or number of draws out of range.

    >>> bootstrap_interval([91.0, 92.0])
    (91.0, 92.0)
    """
    drawn = np.sort(_finite(values, "values", least=2))
    tail = (1 - _confidence(confidence)) / 2
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise UsageError(f"resamples must be an integer of at least 1, not {resamples!r}")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(check_seed(seed))))
    means = drawn[generator.integers(0, len(drawn), (resamples, len(drawn)))].mean(axis=1)
    low, high = np.clip(np.quantile(means, [tail, 1 - tail]), drawn[0], drawn[-1])
    return float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float:
    """p of the exact sign-flip test that the mean of paired differences is 0, two-sided.

    It is the share of the 2**n ways to choose signs that give a mean as far from 0 as the one that was found,
    which is one of them. Means that differ by rounding alone count as equal. The smallest p is 2/2**n: only that
    way and its opposite are as extreme.

    Args:
        differences: 1 to 20, finite.

    Raises:
        ValueError, TypeError: none or too many differences, or one that is no finite number.

    >>> sign_flip([1.0, 2.0, 0.5, 1.5, 3.0])
    0.0625
    """
    values = _finite(differences, "differences", least=1)
    if len(values) > MOST_FLIPS:
        raise UsageError(
            f"signs of at most {MOST_FLIPS} differences can be flipped in all ways, not of {len(values)}: "
            "use the paired t test"
        )
    sums = np.array(values[:1])  # its other sign gives the same sums, but for their sign
    for value in values[1:]:
        sums = np.concatenate((sums + value, sums - value))
    rounding = 1e-12 * math.fsum(map(abs, values))
    return float(np.mean(np.abs(sums) >= abs(math.fsum(values)) - rounding))


def wilcoxon(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test of paired differences, two-sided and exact for any number of them.

    Zeros are left out, as Wilcoxon did; equal sizes get the mean of their ranks, and p is exact for those ranks.
    Where nothing but zeros is left p is 1.

    Args:
        differences: at least one, finite.

    Raises:
        ValueError, TypeError: no differences, or one that is no finite number.

    >>> wilcoxon([1.0, 2.0, -0.5, 1.5, 3.0])
    0.125
    """
    values = np.array([v for v in _finite(differences, "differences", least=1) if v])
    if not len(values):
        return 1.0
    _, place, count = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(count) - count + 1)[place]  # twice the mean ranks: integers
    total, found = int(ranks.sum()), int(ranks[values > 0].sum())
    chances = np.zeros(total + 1)  # of each sum of the ranks whose differences are positive
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = chances[rank:] + chances[:-rank]
        chances /= 2
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * found - total)
    return min(1.0, float(chances[extreme].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down procedure, in the order they were given in.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be smaller than the one before it,
    nor larger than 1. Whoever rejects what is at most 0.05 then errs anywhere in the family with a probability of
    at most 0.05, however the tests depend on one another (Holm 1979).

    Raises:
        ValueError, TypeError: a value that is no number from 0 to 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = _finite(p_values, "p values", least=0)
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"p values must be from 0 to 1, not {value!r}")
    corrected, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        corrected[i] = largest
    return corrected


def _finite(values: Sequence[float], name: str, least: int) -> tuple[float, ...]:
    """The values as floats, if they are enough and all are finite numbers."""
    found = tuple(values)
    if len(found) < least:
        raise UsageError(f"{name}: at least {least} {'is' if least == 1 else 'are'} needed, not {len(found)}")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise WrongTypeError(f"{name} must be numbers, not {type(value).__name__} {value!r}")
        if not math.isfinite(value):
            raise UsageError(f"{name} must be finite, not {value!r}")
    return tuple(map(float, found))


def _confidence(confidence: float) -> float:
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise WrongTypeError(f"confidence must be a number, not {type(confidence).__name__} {confidence!r}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must be between 0 and 1 (0.95 for 95 %), not {confidence!r}")
    return float(confidence)


def label(job: Mapping[str, Any]) -> str:
    """The name of a job's method as tables have it: dnat with its mode, and what limits it.

    Args:
        job: settings as they stand in a record, or `Job.flat()`.

    Raises:
        ValueError: no method, or dnat without a mode.

    >>> label({"method": "dnat", "mode": "full", "budget": 0.7})
    'dnat-full 0.7'
    >>> label({"method": "nat", "search": {"official": True}})
    'nat (official)'
    >>> label({"method": "dnat", "mode": "cell", "latency_budget": "5ms"})
    'dnat-cell latency 5ms'
    """
    name = _text(job, "job.method")
    if name == "dnat":
        name += f"-{_text(job, 'job.mode')}"
    search = job.get("search")
    if isinstance(search, Mapping) and search.get("official"):
        # Of NAO's code the model alone is there, and not its search.
        name += " (official model)" if name == "nao" else " (official)"
    for key, prefix in (("budget", ""), ("latency_budget", "latency ")):
        if job.get(key) is not None:
            name += f" {prefix}{job[key]}"
    return name


@dataclass(frozen=True)
class Trial:
    """One finished run.

    Attributes:
        network, data: by name.
        method: as `label` has it.
        seed: of the run.
        accuracy: on the test images, in percent.
        params, madds: of the result.
        params_before, madds_before: of the network as it was given.
        latency_before, latency_after: seconds for a batch; None where the record has none.
        search_seconds: what a method took that searches before it trains.
        training_seconds: everything else. dnat chooses while it trains, so that all of its time stands here.
        dead: whether the result gives every image the same answer; None where an older record does not say.
        device: where it ran ("cpu", "cuda:0"); empty where the record does not say.
    """

    network: str
    data: str
    method: str
    seed: int
    accuracy: float
    params: int
    madds: int
    params_before: int
    madds_before: int
    latency_before: float | None
    latency_after: float | None
    search_seconds: float
    training_seconds: float
    dead: bool | None
    device: str = ""


def trial_from(record: Mapping[str, Any]) -> Trial:
    """What a comparison needs of a run's record.json.

    Raises:
        ValueError: something is missing or out of range; the message says what and where.
        TypeError: the record is no table.
    """
    if not isinstance(record, Mapping):
        raise WrongTypeError(f"a record must be a table as in record.json, not {type(record).__name__} {record!r}")
    job = _table(record, "job")
    results = _table(record, "results")
    before, after = (_table(results, f"results.{name}") for name in ("cost_before", "cost_after"))
    seconds = _table(record, "seconds")
    taken = {stage: _number(seconds, f"seconds.{stage}") for stage in seconds}
    if "seed" not in job:
        raise UsageError(_lacks("job.seed"))
    if results.get("dead") not in (None, True, False):
        raise UsageError(f"results.dead of a record must be true or false, not {results['dead']!r}")
    times, device = _latencies(record)
    return Trial(
        network=_text(job, "job.network"),
        data=_text(job, "job.data"),
        method=label(job),
        seed=check_seed(job["seed"]),
        accuracy=100 * _number(results, "results.test_accuracy", most=1),
        params=_whole(after, "results.cost_after.params", 0),
        madds=_whole(after, "results.cost_after.madds", 0),
        params_before=_whole(before, "results.cost_before.params", 1),
        madds_before=_whole(before, "results.cost_before.madds", 1),
        latency_before=times[0],
        latency_after=times[1],
        search_seconds=taken.get("search", 0.0),
        training_seconds=math.fsum(v for stage, v in taken.items() if stage != "search"),
        dead=results.get("dead"),
        device=device,
    )


def _latencies(record: Mapping[str, Any]) -> tuple[tuple[float | None, float | None], str]:
    """Seconds before and after, and the device."""
    device = str(record["job"].get("device", "auto"))
    if record.get("latency") is None:
        return (None, None), "" if device == "auto" else device
    latency = _table(record, "latency")
    before, after = (_table(latency, f"latency.{name}") for name in ("before", "after"))
    times = _number(before, "latency.before.seconds"), _number(after, "latency.after.seconds")
    return times, str(after.get("device", "" if device == "auto" else device))


def _lacks(where: str) -> str:
    return f"a record lacks {where}: is it the record.json of a finished run?"


def _get(table: Mapping[str, Any], where: str) -> Any:
    """The entry that the last part of `where` names; the whole is for the message."""
    key = where.rpartition(".")[2]
    if key not in table:
        raise UsageError(_lacks(where))
    return table[key]


def _table(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = _get(table, where)
    if not isinstance(found, Mapping):
        raise UsageError(f"{where} of a record must be a table, not {found!r}")
    return found


def _text(table: Mapping[str, Any], where: str) -> str:
    found = _get(table, where)
    if not isinstance(found, str) or not found:
        raise UsageError(f"{where} of a record must be a name, not {found!r}")
    return found


def _number(table: Mapping[str, Any], where: str, most: float = math.inf) -> float:
    found = _get(table, where)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise UsageError(f"{where} of a record must be a finite number, not {found!r}")
    if not 0 <= found <= most:
        limits = "at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise UsageError(f"{where} of a record must be {limits}, not {found!r}")
    return float(found)


def _whole(table: Mapping[str, Any], where: str, least: int) -> int:
    found = _get(table, where)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise UsageError(f"{where} of a record must be an integer of at least {least}, not {found!r}")
    return found


@dataclass(frozen=True)
class Row:
    """The trials of one method with one network on one data set.

    Attributes:
        data, network, method: as in `Trial`.
        seeds: in order.
        accuracies: of each seed, in percent.
        mean: of the accuracies.
        std: their sample standard deviation (divided by n - 1), in points; None of one trial.
        interval: Student's, for the mean; None of one trial.
        bootstrap: the bootstrap's; None of one trial.
        dead: how many results are dead, of those that are known.
        unknown: of how many that is not known.
        params, madds: of the results, mean.
        params_change, madds_change: to before, in percent, mean; negative where the results are smaller.
        latency_before, latency_after: seconds, mean; None where a record has none.
        search_hours, training_hours: of a run, mean.
        total_hours: of all runs together.
        devices: where they ran.
    """

    data: str
    network: str
    method: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    mean: float
    std: float | None
    interval: Interval | None
    bootstrap: Interval | None
    dead: int
    unknown: int
    params: float
    madds: float
    params_change: float
    madds_change: float
    latency_before: float | None
    latency_after: float | None
    search_hours: float
    training_hours: float
    total_hours: float
    devices: tuple[str, ...]

    @property
    def n(self) -> int:
        """The number of trials."""
        return len(self.seeds)


@dataclass(frozen=True)
class Comparison:
    """A method beside the baseline on the same network and data, paired by seed.

    Attributes:
        data, network, method, baseline: what is compared.
        seeds: that both have, in order.
        differences: of accuracies, method less baseline, in points, for each seed.
        mean: of the differences.
        std: their sample standard deviation; None of one.
        interval: Student's, for the mean difference; None of one.
        d_z: mean / std, the size of the effect; None without a std above 0.
        p_flip: of the sign-flip test; None of one seed or more than 20.
        p_t: of the paired t test; None of one seed or where all differences are equal.
        p_wilcoxon: of Wilcoxon's signed-rank test, exact; None of one seed.
        why: why a p is missing; empty where none is.
        test: whose p counts: "sign-flip"; with more than 20 seeds "t", or "wilcoxon" where there is no t; or "".
        p: that one; None of one seed.
        least_p: the smallest that this test can give with so many seeds; None of one seed.
        p_holm: p corrected over the methods of this network and data set.
        least_p_holm: the smallest that can become of it, if all of them had their `least_p`.
    """

    data: str
    network: str
    method: str
    baseline: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    std: float | None
    interval: Interval | None
    d_z: float | None
    p_flip: float | None
    p_t: float | None
    p_wilcoxon: float | None
    why: str
    test: str
    p: float | None
    least_p: float | None
    p_holm: float | None = None
    least_p_holm: float | None = None

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.seeds)


@dataclass(frozen=True)
class Summary:
    """All rows and comparisons, in the order of the table, and what has to be known to read them.

    Attributes:
        rows: by data set, network and method: the baseline first, then as in `dnat.config.METHODS`, then by name.
        comparisons: in the same order.
        notes: seeds that a method lacks, settings that differ, what cannot be significant.
        baseline: the method that the others are compared with.
        confidence: of all intervals; what is at most 1 - confidence is significant.
    """

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    baseline: str
    confidence: float

    def comparison(self, row: Row) -> Comparison | None:
        """The comparison of a row's method with the baseline; None of the baseline, or where there is none."""
        wanted = row.data, row.network, row.method
        return next((c for c in self.comparisons if (c.data, c.network, c.method) == wanted), None)

    @property
    def significance(self) -> float:
        """The largest corrected p that is called significant."""
        return round(1 - self.confidence, 12)


def summarize(
    records: Iterable[Mapping[str, Any]], baseline: str = "original", seed: int = 0, confidence: float = 0.95
) -> Summary:
    """Statistics over seeds of any number of finished runs; their order does not matter.

    Args:
        records: as they stand in record.json of each run.
        baseline: the method, as `label` has it, that the others are compared with.
        seed: of the bootstrap; each row draws from it anew, so that no row depends on another.
        confidence: of all intervals, between 0 and 1.

    Raises:
        ValueError: no records, one that lacks something, two of the same network, data, method and seed, or a
            baseline that no record has ("original" may be missing: then there are no comparisons).
        TypeError: see `trial_from`.
    """
    records = list(records)
    _confidence(confidence)
    if not records:
        raise UsageError("there are no records to summarize")
    trials = [_numbered(i, record) for i, record in enumerate(records)]
    _refuse_duplicates(trials, records)
    methods = {t.method for t in trials}
    if baseline not in methods and baseline != "original":
        raise unknown("baseline", baseline, methods)
    pairs = sorted(zip(trials, records, strict=True), key=lambda pair: _place(pair[0], baseline))
    rows, comparisons, notes = [], [], []
    for group in _grouped(pairs, lambda t: (t.data, t.network)):
        of_method = _grouped(group, lambda t: t.method)
        found = [_row([t for t, _ in part], seed, confidence) for part in of_method]
        compared = _compared(found, baseline, confidence)
        rows += found
        comparisons += compared
        notes += _notes(found, compared, group, baseline, confidence)
    return Summary(tuple(rows), tuple(comparisons), tuple(notes), baseline, float(confidence))


_Pair = tuple[Trial, Mapping[str, Any]]


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
        settings = [settings_of(records[j]["job"]) for j in both]
        names = sorted({k for s in settings for k in s} - WHERE)
        differing = [k for k in names if settings[0].get(k) != settings[1].get(k)]
        shown = "; ".join(f"{k} {' and '.join(s.get(k, 'not set') for s in settings)}" for k in differing)
        which = " and ".join(f"{j + 1} ({_ended(records[j])})" for j in both)
        raise UsageError(
            f"records {which} are both of {trial.method} with {trial.network} on {trial.data} "
            f"at seed {trial.seed}: "
            + (f"they differ in {shown}; summarize them apart" if differing else "leave one of them out")
        )


def _ended(record: Mapping[str, Any]) -> str:
    return f"finished {record['finished']}" if record.get("finished") else "time unknown"


def settings_of(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, with those of tables inside as `table.name`; without those that are not set."""
    found: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, Mapping):
            found |= settings_of(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = str(value)
    return found


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts resnet8 before resnet20."""
    return tuple(int(p) if p.isdecimal() else p for p in re.split(r"([0-9]+)", name)), name


_ORDER = (*ALIASES, *METHODS)


def _place(trial: Trial, baseline: str) -> tuple[Any, ...]:
    base = trial.method.partition(" ")[0]
    order = _ORDER.index(base) if base in _ORDER else len(_ORDER)
    method = trial.method != baseline, order, _natural(trial.method)
    return _natural(trial.data), _natural(trial.network), method, trial.seed


def _grouped(pairs: Iterable[_Pair], key: Callable[[Trial], Any]) -> list[list[_Pair]]:
    groups: dict[Any, list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    return list(groups.values())


def _mean(values: Iterable[float]) -> float:
    """Rounded once: it does not depend on the order, and the mean of equal values is their value."""
    return float(statistics.mean(map(float, values)))


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return _mean(known) if len(known) == len(values) else None


def _row(trials: Sequence[Trial], seed: int, confidence: float) -> Row:
    first, several = trials[0], len(trials) > 1
    accuracies = tuple(t.accuracy for t in trials)
    return Row(
        data=first.data,
        network=first.network,
        method=first.method,
        seeds=tuple(t.seed for t in trials),
        accuracies=accuracies,
        mean=_mean(accuracies),
        std=statistics.stdev(accuracies) if several else None,
        interval=t_interval(accuracies, confidence) if several else None,
        bootstrap=bootstrap_interval(accuracies, confidence, seed) if several else None,
        dead=sum(t.dead is True for t in trials),
        unknown=sum(t.dead is None for t in trials),
        params=_mean(t.params for t in trials),
        madds=_mean(t.madds for t in trials),
        params_change=_mean(100 * (t.params - t.params_before) / t.params_before for t in trials),
        madds_change=_mean(100 * (t.madds - t.madds_before) / t.madds_before for t in trials),
        latency_before=_mean_if_all([t.latency_before for t in trials]),
        latency_after=_mean_if_all([t.latency_after for t in trials]),
        search_hours=_mean(t.search_seconds for t in trials) / 3600,
        training_hours=_mean(t.training_seconds for t in trials) / 3600,
        total_hours=math.fsum(t.search_seconds + t.training_seconds for t in trials) / 3600,
        devices=tuple(sorted({t.device for t in trials if t.device})),
    )


def _compared(rows: Sequence[Row], baseline: str, confidence: float) -> list[Comparison]:
    """All methods of a network and data set with the baseline, where they have seeds in common."""
    base = next((row for row in rows if row.method == baseline), None)
    if base is None:
        return []
    others = [row for row in rows if row is not base and set(row.seeds) & set(base.seeds)]
    found = [_comparison(row, base, confidence) for row in others]
    family = [c for c in found if c.p is not None and c.least_p is not None]
    corrected = holm([c.p for c in family if c.p is not None])
    least = holm([c.least_p for c in family if c.least_p is not None])
    values = {c.method: pair for c, pair in zip(family, zip(corrected, least, strict=True), strict=True)}
    return [
        replace(c, p_holm=values[c.method][0], least_p_holm=values[c.method][1]) if c.method in values else c
        for c in found
    ]


def _comparison(row: Row, base: Row, confidence: float) -> Comparison:
    ours, theirs = (dict(zip(r.seeds, r.accuracies, strict=True)) for r in (row, base))
    seeds = tuple(sorted(set(ours) & set(theirs)))
    differences = tuple(round(ours[s] - theirs[s], _DECIMALS) for s in seeds)
    n, mean = len(seeds), _mean(differences)
    std = statistics.stdev(differences) if n > 1 else None
    p_flip = sign_flip(differences) if 1 < n <= MOST_FLIPS else None
    p_t = 2 * float(stdtr(n - 1, -abs(mean) / (std / math.sqrt(n)))) if std else None
    p_wilcoxon = wilcoxon(differences) if n > 1 else None
    why = []
    if n == 1:
        why.append("one seed in common: no test")
    elif p_t is None:
        why.append("all differences are equal: no t test")
    if n > MOST_FLIPS:
        why.append(f"more than {MOST_FLIPS} seeds: no sign-flip test")
    tests: dict[str, tuple[float | None, float | None]] = {
        "sign-flip": (p_flip, 2.0 ** (1 - n)),
        "t": (p_t, 0.0),
        "wilcoxon": (p_wilcoxon, 2.0 ** (1 - n)),
    }
    test = next((name for name, (p, _) in tests.items() if p is not None), "")
    p, least = tests.get(test, (None, None))
    return Comparison(
        data=row.data,
        network=row.network,
        method=row.method,
        baseline=base.method,
        seeds=seeds,
        differences=differences,
        mean=mean,
        std=std,
        interval=t_interval(differences, confidence) if n > 1 else None,
        d_z=mean / std if std else None,
        p_flip=p_flip,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        why="; ".join(why),
        test=test,
        p=p,
        least_p=least,
    )


def _notes(
    rows: Sequence[Row], compared: Sequence[Comparison], group: Sequence[_Pair], baseline: str, confidence: float
) -> list[str]:
    """What has to be known of one network on one data set."""
    where = f"{rows[0].network} on {rows[0].data}"
    notes = [*_seed_notes(rows, compared, baseline), *_power_notes(compared, round(1 - confidence, 12))]
    notes += [*_setting_notes(group), *_place_notes(rows)]
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
        notes.append(f"there are no runs of {baseline}, so that nothing is compared")
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


def _setting_notes(group: Sequence[_Pair]) -> list[str]:
    """Settings that should be the same and are not: of training for all methods, all others for each."""
    notes = []
    settings = [(trial.method, settings_of(record["job"])) for trial, record in group]
    for key in sorted({k for _, s in settings for k in s if k.partition(".")[0] in _RECIPE}):
        holders = _holders(settings, key)
        if len(holders) > 1:
            notes.append(f"not all were trained alike: {key} is {_listed(holders)}")
    for method in dict.fromkeys(m for m, _ in settings):
        mine = [(m, s) for m, s in settings if m == method]
        for key in sorted({k for _, s in mine for k in s if k.partition(".")[0] not in (*_RECIPE, *_NO_MATTER)}):
            holders = _holders(mine, key)
            if len(holders) > 1:
                notes.append(f"the runs of {method} differ in {key}: {', '.join(sorted(holders))}")
    sizes = [(t.method, {"": f"{t.params_before:,} params, {t.madds_before:,} MAdds"}) for t, _ in group]
    given = _holders(sizes, "")
    if len(given) > 1:
        notes.append(f"not all began with the same network: {_listed(given, '; ')}")
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


def _listed(holders: Mapping[str, Sequence[str]], between: str = ", ") -> str:
    return between.join(f"{value} ({', '.join(methods)})" for value, methods in sorted(holders.items()))


def _place_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    devices = sorted({device for row in rows for device in row.devices})
    if len(devices) > 1:
        notes.append(f"hours and latencies were taken on different devices: {', '.join(devices)}")
    unknown_of = [f"{row.unknown} of {row.method}" for row in rows if row.unknown]
    if unknown_of:
        notes.append(f"whether results are dead is not known of older runs: {', '.join(unknown_of)}")
    return notes


HEADERS = (
    "network",
    "method",
    "n",
    "accuracy, %",
    "difference",
    "p (Holm)",
    "params",
    "MAdds",
    "latency, ms",
    "hours",
    "dead",
)
"""The columns of a table: the network, and what `cells` gives."""


def markdown(summary: Summary) -> str:
    """A table for each data set in Markdown, with a legend and the notes.

    As in the tables of the DNAT paper each network has for each method mean, deviation and hours; the methods
    stand below one another, since there are more of them, with more columns. One trial has no deviation. `*` marks
    what is significant, `?` what cannot be with so few seeds.
    """
    parts = []
    for data in dict.fromkeys(row.data for row in summary.rows):
        rows = [row for row in summary.rows if row.data == data]
        lines = [HEADERS, ("---", "---", *["---:"] * (len(HEADERS) - 2))]
        last = None
        for row in rows:
            found = cells(row, summary.comparison(row), summary.significance)
            lines.append((row.network if row.network != last else "", *found))
            last = row.network
        table = "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)
        hours = math.fsum(row.total_hours for row in rows)
        runs = sum(row.n for row in rows)
        devices = ", ".join(sorted({device for row in rows for device in row.devices}))
        spent = f"{runs} run{'s' * (runs > 1)}, {digits(hours)} hours in all{f' ({devices})' * bool(devices)}."
        parts.append(f"## {escaped(data)}\n\n{table}\n\n{escaped(spent)}")
    parts.append(escaped(legend(summary)).replace("*", r"\*"))
    if summary.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in summary.notes))
    return "\n\n".join(parts) + "\n"


def cells(row: Row, compared: Comparison | None, level: float) -> tuple[str, ...]:
    """A row of the table as text, from the method on; `HEADERS` names the columns.

    Args:
        row: of one method.
        compared: its comparison with the baseline; None of the baseline.
        level: the largest corrected p that is called significant.
    """
    dead = str(row.dead) + (f" ({row.unknown} unknown)" if row.unknown else "")
    return (
        row.method,
        str(row.n),
        spread(row.mean, row.std),
        _difference(compared, row.n),
        _verdict(compared, level),
        f"{count(row.params)} ({row.params_change:+z.1f} %)",
        f"{count(row.madds)} ({row.madds_change:+z.1f} %)",
        "-" if row.latency_after is None else digits(1e3 * row.latency_after),
        f"{digits(row.search_hours)} + {digits(row.training_hours)}",
        "-" if row.unknown == row.n else dead,
    )


def _difference(compared: Comparison | None, n: int) -> str:
    if compared is None:
        return "-"
    text = signed_interval(compared.mean, compared.interval, digits_after=2)
    return text if compared.n == n else f"{text} (n = {compared.n})"


def _verdict(compared: Comparison | None, level: float) -> str:
    if compared is None or compared.p_holm is None or compared.least_p_holm is None:
        return "-"
    mark = " *" if compared.p_holm <= level else " ?" if compared.least_p_holm > level else ""
    return p_text(compared.p_holm) + mark


def spread(mean: float, std: float | None) -> str:
    """A mean with its deviation, where it has one.

    >>> spread(93.0, None), spread(93.0, 0.25)
    ('93.00', '93.00 ± 0.25')
    """
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")


def signed_interval(mean: float, interval: Interval | None, digits_after: int) -> str:
    """A change with its interval, where it has one; never "-0.0"."""
    form = f"+z.{digits_after}f"
    text = format(mean, form)
    return text if interval is None else f"{text} [{format(interval[0], form)}, {format(interval[1], form)}]"


def legend(summary: Summary) -> str:
    """How to read the table, as plain text."""
    share = f"{100 * summary.confidence:g} %"
    return (
        "Accuracy: on the test images, mean ± sample standard deviation over n seeds. Difference: to "
        f"{summary.baseline}, in points, paired by seed, with its {share} t interval, each for itself. p: of the "
        f"exact sign-flip test of the mean difference (of the paired t test with more than {MOST_FLIPS} seeds), "
        f"two-sided, Holm-corrected over the methods of a network; *: at most {summary.significance:g}; ?: cannot "
        "be, with so few seeds, whatever the method does. Params, MAdds: of the result, with the change to "
        "before. Hours: search + training of one run."
    )


def escaped(text: str) -> str:
    """Text that stays in its cell of a Markdown table and makes neither tags nor links.

    >>> print(escaped("a|b <i>c</i> p < 0.1"))
    a\\|b &lt;i>c&lt;/i> p < 0.1
    """
    text = re.sub(r"\s+", " ", text).replace("\\", r"\\").replace("|", r"\|").replace("](", r"]\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    return np.format_float_positional(float(f"{value:.3g}"), trim="-")


def count(value: float) -> str:
    """Three significant digits with a unit: k, M or G."""
    value = float(f"{value:.3g}")
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{digits(value / size)} {unit}"
    return digits(value)


def p_text(value: float) -> str:
    """A p value as tables have it."""
    return "< 0.001" if value < 0.001 else f"{value:.3g}"
