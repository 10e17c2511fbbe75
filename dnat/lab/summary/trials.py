"""The record of a finished run -> what a comparison needs of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError, WrongTypeError
from ...seeds import check_seed
from .. import fields
from ..labels import label
from ..metrics import Metric, result_of, watched


@dataclass(frozen=True)
class Trial:
    """One finished run.

    Attributes:
        network, data: by name.
        method: as `label` has it.
        seed: of the run.
        metric: what it is judged by.
        value: of the metric on the test examples, as it is shown: accuracy in percent.
        watched: the split of its curves, "test" or "validation".
        params, madds: of the result.
        params_before, madds_before: of the network as it was given.
        latency_before, latency_after: seconds for a batch; None where the record has none.
        search_seconds: what a method took that searches before it trains.
        training_seconds: everything else. dnat chooses while it trains, so that all of its time stands here.
        dead: whether the result gives every example the same answer; None where an older record does not say.
        device: where it ran ("cpu", "cuda:0"); empty where the record does not say.
        latency_spread: distance of the quartiles of `latency_after`, in seconds.
        latency_batch: examples of that batch.
        latency_alone: whether it was measured when no other trial of its sweep ran.
    """

    network: str
    data: str
    method: str
    seed: int
    metric: Metric
    value: float
    watched: str
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
    latency_spread: float | None = None
    latency_batch: int | None = None
    latency_alone: bool = False


def trial_from(record: Mapping[str, Any]) -> Trial:
    """What a comparison needs of a run's record.json.

    Raises:
        ValueError: something is missing or out of range; the message says what and where.
        TypeError: the record is no table.
    """
    if not isinstance(record, Mapping):
        raise WrongTypeError(f"a record must be a table as in record.json, not {type(record).__name__} {record!r}")
    job = fields.subtable(record, "job")
    results = fields.subtable(record, "results")
    before, after = (fields.subtable(results, f"results.{name}") for name in ("cost_before", "cost_after"))
    seconds = fields.subtable(record, "seconds")
    taken = {stage: fields.number(seconds, f"seconds.{stage}") for stage in seconds}
    if results.get("dead") not in (None, True, False):
        raise UsageError(f"results.dead of a record must be true or false, not {results['dead']!r}")
    for when in ("before", "after") if record.get("memory") is not None else ():
        held = fields.subtable(fields.subtable(record, "memory"), f"memory.{when}")
        for kind in ("weights", "activations"):
            fields.integer(held, f"memory.{when}.{kind}", 0)
    times = _latencies(record)
    result = result_of(record)
    return Trial(
        network=fields.name(job, "job.network"),
        data=fields.name(job, "job.data"),
        method=label(job),
        seed=check_seed(fields.entry(job, "job.seed")),
        metric=result.metric,
        value=result.metric.scale * result.value,
        watched=watched(record),
        params=fields.integer(after, "results.cost_after.params", 0),
        madds=fields.integer(after, "results.cost_after.madds", 0),
        params_before=fields.integer(before, "results.cost_before.params", 1),
        madds_before=fields.integer(before, "results.cost_before.madds", 1),
        search_seconds=taken.get("search", 0.0),
        training_seconds=math.fsum(v for stage, v in taken.items() if stage != "search"),
        dead=results.get("dead"),
        **times,
    )


def _latencies(record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Trial`: seconds before and after, how they were measured, and the device."""
    device = str(record["job"].get("device", "auto"))
    device = "" if device == "auto" else device
    if record.get("latency") is None:
        return {"latency_before": None, "latency_after": None, "device": device}
    latency = fields.subtable(record, "latency")
    before, after = (fields.subtable(latency, f"latency.{name}") for name in ("before", "after"))
    return {
        "latency_before": fields.number(before, "latency.before.seconds"),
        "latency_after": fields.number(after, "latency.after.seconds"),
        "latency_spread": fields.number(after, "latency.after.spread") if "spread" in after else None,
        "latency_batch": fields.integer(after, "latency.after.batch", 1) if "batch" in after else None,
        "latency_alone": after.get("alone") is True,
        "device": str(after.get("device", device)),
    }


def settings_of(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, with those of tables inside as `table.name`; without those that are not set."""
    settings: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, Mapping):
            settings |= settings_of(value, f"{prefix}{key}.")
        elif value is not None:
            settings[f"{prefix}{key}"] = str(value)
    return settings
