"""Rows, choices and results of a run as Weights & Biases takes them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...edges import Tally
from ..metrics import metrics_of

FEW_EDGES = 32
"""With at most so many edges each has numbers of its own in W&B; all stand in the table."""


def of_row(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A row as W&B takes it: gates as a histogram for each choice, of all groups of edges."""
    import wandb

    values: dict[str, Any] = {prefix + k: v for k, v in row.items() if k not in ("gates", "columns")}
    if row.get("gates"):
        for column, gates in zip(row["columns"], zip(*row["gates"], strict=True), strict=True):
            values[f"gates/{_plain(column)}"] = wandb.Histogram(list(gates), num_bins=32)
    return values


def pictures(directory: Path) -> dict[str, Any]:
    """The pictures of a finished run."""
    import wandb

    names = ("architecture", "cells", "cells-before")
    found = {name: directory / f"{name}.png" for name in names}
    return {name: wandb.Image(str(path)) for name, path in found.items() if path.exists()}


def of_choices(edges: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of edges as in architecture.json; where they are few, also what each choice of each was worth."""
    import wandb

    if not edges:
        return {}
    columns = (
        "edge",
        "operation",
        "choice",
        "none",
        "identity",
        "original",
        "others",
        "margin",
        "MAdds",
        "MAdds saved",
    )
    table = wandb.Table(columns=[*columns, "why"])
    values: dict[str, Any] = {"choices": table}
    for edge in edges:
        gates = dict(zip(columns[3:6], edge["gates"], strict=True))
        others = dict(edge["others"])
        listed = ", ".join(f"{name} {gate:.3f}" for name, gate in others.items())
        front = (edge["key"], edge["operation"], edge["choice"], *gates.values(), listed)
        table.add_data(*front, edge["margin"], edge["madds"], edge["saved"], edge["reason"])
        if len(edges) <= FEW_EDGES:
            place = re.sub(r"\W", "_", edge["key"])
            values |= {f"choices/{place}/{_plain(choice)}": gate for choice, gate in (gates | others).items()}
    return values


def _plain(choice: str) -> str:
    """A choice in a name of W&B's, where "/" begins a section.

    >>> _plain("identity"), _plain("5/8")
    ('identity', '5_of_8')
    """
    return choice.replace("/", "_of_")


def of_result(record: Mapping[str, Any], edges: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of record.json under flat names; shares are from 0 to 1, times seconds."""
    results = record["results"]
    before, after = results["cost_before"], results["cost_after"]
    names = [
        name
        for metric in metrics_of(record)
        for name in (f"test_{metric.name}", f"test_{metric.name}_before", f"train_{metric.name}")
    ]
    summary = {name: results[name] for name in dict.fromkeys((*names, "test_loss", "train_loss", "dead"))}
    summary |= {f"{name}_before": value for name, value in before.items()} | dict(after)
    summary |= {f"latency_{when}": found["seconds"] for when, found in record["latency"].items()}
    summary |= {f"seconds_{stage}": taken for stage, taken in record["seconds"].items()}
    if edges:
        tally = Tally.of_reports(edges)
        summary |= {"edges": tally.edges, "edges_changed": tally.changed}
        summary |= {"widths": tally.widths, "widths_narrowed": tally.narrowed} if tally.widths else {}
    return summary
