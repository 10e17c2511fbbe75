"""Pictures of a run: its network before and after, its cells, and genotypes by name."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from ...costs import Cost
from ...data import Source
from ...edges import ORIGINAL, Edge, Space, in_order, units
from ...errors import DataError, UsageError
from ...networks import GENOTYPES, Genotype, definition, genotype_of
from ...networks.genotypes import published, transformed
from ...planning import find_edges
from ...results import Commitment, EdgeReport, Transformation
from ...rundir import ARCHITECTURE, RECORD, RunFiles, read_job
from ...settings import Job
from ...tracing import Program, trace
from .. import drawing

_SHARED = ("kind", "operation", "shape_in", "shape_out", "madds", "choice")


def architecture_of(network: nn.Module, data: Source, job: Job, result: Transformation) -> dict[str, Any]:
    """A run's choices, its genotypes, and the picture's rows, in which an edge has only what its report lacks, and
    graphs."""
    commitment = result.commitment.table() if result.commitment else None
    known, example = _of_reports(commitment), data.example(2)
    program = trace(network, example)
    everything = _operations(program, job.config.relaxation.moves)
    rows = drawing.rows_to_json(_rows(everything, result.commitment))
    graphs = drawing.graphs_of(program, everything, result.choices)
    if not result.commitment:  # trained alone, or another network
        other = trace(result.network, example)
        graphs = graphs[0], drawing.graph_of(other, _operations(other, job.config.relaxation.moves))
    own = [{k: v for k, v in row.items() if k == "key" or (k, v) not in known.get(row["key"], ())} for row in rows]
    genotypes = [asdict(genotype) for genotype in genotypes_of(network, job, result)]
    drawn = [asdict(graph) for graph in graphs]
    return {"commitment": commitment, "rows": own, "graphs": drawn, "genotypes": genotypes}


def rows_of(architecture: Mapping[str, Any]) -> list[drawing.OperationRow]:
    """The picture's rows of `architecture_of`."""
    known = _of_reports(architecture["commitment"])
    return drawing.rows_from_json(dict(known.get(row["key"], ())) | row for row in architecture["rows"])


def _of_reports(commitment: Mapping[str, Any] | None) -> dict[str, list[tuple[str, Any]]]:
    """{key: what a row of the picture has of the edge's report}."""
    edges = commitment["edges"] if commitment else ()
    return {e["key"]: [*((k, e[k]) for k in _SHARED if k in e), ("theta", e["gates"])] for e in edges}


def picture_rows(
    network: nn.Module, data: Source, commitment: Commitment | None, space: Space = "dnat"
) -> list[drawing.OperationRow]:
    """Every operation of a network, in order, and what became of it, for the picture."""
    return _rows(_operations(trace(network, data.example(2)), space), commitment)


def _operations(program: Program, space: Space) -> tuple[Edge, ...]:
    """Every edge of a network in a space, and every operation that is none, in order."""
    edges = {e.key: e for e in find_edges(program, space)}
    cells = tuple(f"{e.entry}." for e in edges.values() if e.kind == "operation")
    others = (e for e in units(program) if not e.entry.startswith(cells))
    return in_order(({e.key: e for e in others} | edges).values())


def _rows(everything: Sequence[Edge], commitment: Commitment | None) -> list[drawing.OperationRow]:
    reports = {e.key: e for e in commitment.edges} if commitment else {}
    removed = set(commitment.removed) if commitment else set()
    left = _left({edge: _choice(reports, edge) for edge in everything if edge.place})

    def row(edge: Edge) -> drawing.OperationRow:
        report, choice = reports.get(edge.key), _choice(reports, edge)
        found = drawing.OperationRow(
            key=edge.key,
            kind=edge.kind if len(edge.choices) > 1 else "fixed",
            operation=edge.operation,
            shape_in=edge.shape_in,
            shape_out=edge.shape_out,
            madds=edge.madds,
            choice=choice,
            theta=report.gates if report else None,
            removed=choice == ORIGINAL and edge.kind not in ("skip", "width") and edge.entry in removed,
        )
        if edge.place or edge.entry not in left:
            return found
        before, after = (round(n * share) for n, share in zip(found.channels, left[edge.entry], strict=True))
        return replace(found, left=(before, after))

    return [row(edge) for edge in everything]


def _choice(reports: Mapping[str, EdgeReport], edge: Edge) -> str:
    return reports[edge.key].choice if edge.key in reports else ORIGINAL


def _left(choices: Mapping[Edge, str]) -> dict[str, tuple[Fraction, Fraction]]:
    """{path of a layer: the shares of what it is given and of what it gives that stay}, of narrowed widths."""
    found: dict[str, tuple[Fraction, Fraction]] = {}
    for edge, choice in choices.items():
        assert edge.place
        share = Fraction(edge.kept(choice), edge.place.classes)
        for name in dict.fromkeys(name for name, _, _ in edge.place.cuts) if share < 1 else ():
            path = name.rpartition(".")[0]
            given, gives = found.get(path, (Fraction(1), Fraction(1)))
            # What neither makes nor reads the channels, such as a depthwise convolution, hands them on.
            found[path] = (
                given if name in edge.place.makers or name.endswith(".bias") else share,
                gives if name in edge.place.readers else share,
            )
    return found


_PLACE = re.compile(r"(normal|reduce|cell):(\d+)\.(\d+)")


def genotypes_of(network: nn.Module, job: Job, result: Transformation) -> tuple[Genotype, ...]:
    """The genotype of a network of cells before and after its transformation as a whole; else nothing.

    In Full mode the cells differ, so that no genotype says what they are.
    """
    genotype, commitment = getattr(network, "genotype", None), result.commitment
    if isinstance(genotype, Genotype) and result.genotype is not None:
        return genotype, result.genotype
    if not isinstance(genotype, Genotype) or commitment is None or job.config.relaxation.mode != "cell":
        return ()
    choices = {}
    for edge in commitment.edges:
        found = _PLACE.fullmatch(edge.group)
        if found:
            kinds = ("normal", "reduce") if found[1] == "cell" else (found[1],)
            choices.update({(kind, int(found[2]), int(found[3])): edge.choice for kind in kinds})
    return genotype, transformed(genotype, choices)


def draw(
    folder: Path,
    architecture: Mapping[str, Any],
    job: Job,
    before: Cost,
    after: Cost,
    formats: tuple[str, ...] = ("png", "svg"),
) -> list[Path]:
    """Draw a run's before/after picture into a folder; with a genotype also its cells."""
    title = f"{job.network} on {job.data}, {job.method}"
    rows = rows_of(architecture)
    if "graphs" not in architecture:
        raise UsageError(
            f"{folder} is of an older version, which did not keep the network's graph: it cannot be drawn"
        )
    first, last = map(drawing.Graph.from_json, architecture["graphs"])
    costs = {"before": before, "after": after}
    files = drawing.draw_network(
        rows, folder / "architecture", graphs=(first, last), title=title, **costs, formats=formats
    )
    found = [Genotype.from_json(json.dumps(g)) for g in architecture.get("genotypes", ())]
    if found:
        old, new = found
        words = f"{before}  →  {after}"
        if _same_inputs(old, new):
            files += drawing.draw_genotype(
                old, folder / "cells", after=new, title=title, subtitle=words, formats=formats
            )
        else:  # NAO's: the two have different edges, so that they are two pictures
            for name, when, genotype in (("cells-before", "before", old), ("cells", "after", new)):
                files += drawing.draw_genotype(
                    genotype, folder / name, title=f"{title}, {when}", subtitle=words, formats=formats
                )
    return files


def _same_inputs(first: Genotype, last: Genotype) -> bool:
    """Whether two genotypes differ in their operations alone."""
    return all(
        [[e.input for e in node] for node in a.nodes] == [[e.input for e in node] for node in b.nodes]
        for a, b in zip(first.cells, last.cells, strict=True)
    )


def redraw(
    directory: str | Path,
    formats: tuple[str, ...] = ("png", "svg"),
    accept: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw the pictures of a finished run again, from its files; `accept` as `RunFiles` has it."""
    job, files = read_job(directory), RunFiles(directory, accept=accept)
    record, architecture = files.record(), files.architecture()
    try:
        before, after = (Cost(**record["results"][name]) for name in ("cost_before", "cost_after"))
        return draw(files.path(), architecture, job, before, after, formats)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__} {error}"
        raise DataError(
            f"{directory} cannot be drawn: its {RECORD} or {ARCHITECTURE} holds what no run writes there ({what})"
        ) from error


def draw_named(
    before: str, after: str | None, path: str | Path | None, formats: tuple[str, ...] = ("png", "svg")
) -> list[Path]:
    """Draw a genotype, or what one became.

    Args:
        before, after: a published genotype by name, or a JSON file.
        path: where to write, without a suffix; by default the names, here.
        formats: png, svg or pdf.

    Raises:
        ValueError: an unknown name, a file that is no genotype, or two that differ in more than their operations.
    """
    names = [before] if after is None else [before, after]
    found = [_genotype(name) for name in names]
    labels = [Path(name).stem for name in names]
    sources = [GENOTYPES[name].source for name in names if name in GENOTYPES]
    return drawing.draw_genotype(
        found[0],
        path or "-".join(labels),
        after=found[1] if after else None,
        title=" → ".join(labels),
        subtitle=sources[-1] if sources else "",
        formats=formats,
    )


def _genotype(name: str) -> Genotype:
    if Path(name).suffix or Path(name).exists():
        return Genotype.from_json(genotype_of(f"genotype:{name}"))
    known = definition(name)
    return published(known.genotype if known and known.genotype else name)
