"""What a run comes to: what became of each edge, the moment of the choices, and the trained network."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .budget import Costs
from .costs import Cost, Latency
from .discretization import Discretization
from .edges import ORIGINAL, Tally
from .networks import Genotype
from .planning import Plan
from .selection import Decision
from .session import weights_digest
from .training import NOTHING, Evaluation


@dataclass(frozen=True)
class EdgeReport:
    """What became of one edge.

    Attributes:
        gates: what none, identity and original were worth: g(theta), for none a threshold; beside other operations
            and by another judge see `selection.Decision`.
        margin: how far the choice's gate was ahead of the next legal one.
        saved: multiply-adds of one image that this change alone saves, with all that it makes unnecessary.
        refused: (choice, why not) for choices that the edge did not have.
        reason: why the choice is not the one with the largest gate, or could not be carried out.
        others: (name, what it was worth) of the other operations that it could become.
        by: what decided, as `selection.Decision` says; empty where a method without theta did.
    """

    key: str
    kind: str
    operation: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    group: str
    choice: str
    gates: tuple[float, float, float]
    margin: float
    saved: int
    refused: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    others: tuple[tuple[str, float], ...] = ()
    by: str = ""


@dataclass(frozen=True)
class FixedReport:
    """An operation or block that could not have changed: (choice, why not) for each choice."""

    key: str
    kind: str
    operation: str
    madds: int
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a network.

    Attributes:
        edges: what became of each edge.
        removed: paths of the modules that are gone.
        notes: what else is worth knowing.
        fixed: what could not have changed, and why.
        widths: of a network with fewer channels: (channels in, channels out) of each layer that has fewer, by its
            path; or the argument of the network's constructor that makes it narrow, and its value.
    """

    edges: tuple[EdgeReport, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fixed: tuple[FixedReport, ...] = ()
    widths: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, str]:
        """{edge key: choice}."""
        return {edge.key: edge.choice for edge in self.edges}

    def __str__(self) -> str:
        changed = [edge for edge in self.edges if edge.choice != ORIGINAL]
        lines = [f"{len(changed)} of {len(self.edges)} edges change"]
        longest = max((len(edge.key) for edge in changed), default=0)
        for e in changed:
            lines.append(f"  {e.key:<{longest}}  {e.choice}, saves {e.saved:,} multiply-adds{_why(e)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _why(edge: EdgeReport) -> str:
    return f" ({edge.reason})" if edge.reason else ""


@dataclass(frozen=True, kw_only=True)
class Commitment(Report):
    """The moment at which a run made its choices.

    Attributes:
        epoch: epochs that were done by then.
        relaxed: the relaxed network on the test examples, just before.
        compact: the plain network, just after.
    """

    epoch: int = 0
    relaxed: Evaluation = NOTHING
    compact: Evaluation = NOTHING

    def table(self) -> dict[str, Any]:
        """For JSON, or a checkpoint."""
        return {**asdict(self), "relaxed": self.relaxed.table(), "compact": self.compact.table()}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Commitment":
        """The inverse of `table`."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

        def rows(name: str) -> list[dict[str, Any]]:
            return [{k: frozen(v) for k, v in row.items()} for row in table.get(name, ())]

        return cls(
            epoch=table["epoch"],
            relaxed=Evaluation.from_table(table["relaxed"]),
            compact=Evaluation.from_table(table["compact"]),
            edges=tuple(EdgeReport(**row) for row in rows("edges")),
            removed=tuple(table["removed"]),
            notes=tuple(table["notes"]),
            fixed=tuple(FixedReport(**row) for row in rows("fixed")),
            widths={path: frozen(value) for path, value in table.get("widths", {}).items()},
        )


def report_of(
    decisions: Iterable[Decision], made: Discretization, plan: Plan, notes: Iterable[str] = ()
) -> Report:
    """What became of each edge of a plan.

    Args:
        decisions: of each edge.
        made: the network that they made.
        plan: with what could have changed, and what could not.
        notes: what else is worth knowing.
    """
    price = Costs(plan.edges)
    edges = tuple(
        EdgeReport(
            key=d.edge.key,
            kind=d.edge.kind,
            operation=d.edge.operation,
            shape_in=d.edge.shape_in,
            shape_out=d.edge.shape_out,
            madds=d.edge.madds,
            group=d.edge.group,
            choice=made.choices[d.edge.key],
            gates=d.gates,
            margin=d.margin,
            saved=round(price.total - price.of({d.edge: made.choices[d.edge.key]})),
            refused=d.edge.refused,
            reason=made.undone.get(d.edge.key, d.reason),
            others=d.others,
            by="rewriting" if d.edge.key in made.undone else d.by,
        )
        for d in decisions
    )
    return Report(edges=edges, removed=made.removed, notes=tuple(notes), fixed=fixed_of(plan))


def fixed_of(plan: Plan) -> tuple[FixedReport, ...]:
    """What could not have changed."""
    return tuple(FixedReport(e.key, e.kind, e.operation, e.madds, e.refused) for e in plan.fixed)


@dataclass(frozen=True, repr=False)
class Transformation:
    """The result of a run; printed, or shown by a notebook, it is a small table.

    Attributes:
        network: the trained, plain network, on the device of the run, in eval mode.
        commitment: what became of each edge; None where the network was only trained.
        history: one row an epoch: losses, accuracies, learning rate, gates, seconds.
        cost_before, cost_after: parameters and multiply-adds.
        before: loss and metrics of the network as it was given, on the test examples.
        test: the same of the result.
        dead: whether the result gives every image the same answer.
        watched: what epochs and choices were measured on: "test" examples, or a "validation" part of the others.
        directions: {metric: "max" or "min", which is better}, the one that counts first.
        genotype: of the result, where the method changed the genotype of a network of cells as a whole.
        latency_before, latency_after: time for a batch of `config.limit.latency_batch` images, as measured.
        seconds: time spent in each stage.
    """

    network: nn.Module
    commitment: Commitment | None
    history: list[dict[str, Any]]
    cost_before: Cost
    cost_after: Cost
    before: Evaluation
    test: Evaluation
    latency_before: Latency
    latency_after: Latency
    seconds: dict[str, float]
    dead: bool = False
    genotype: Genotype | None = None
    watched: str = "test"
    directions: Mapping[str, str] = field(default_factory=lambda: {"accuracy": "max"})

    @property
    def choices(self) -> dict[str, str]:
        """{edge key: choice}; empty where the network was only trained."""
        return self.commitment.choices if self.commitment else {}

    def record(self) -> dict[str, Any]:
        """What record.json has of it, beside what was to be done: results, seconds, latency, metrics."""
        return {
            "results": self.results(),
            "seconds": {stage: round(taken, 3) for stage, taken in self.seconds.items()},
            "latency": {"before": asdict(self.latency_before), "after": asdict(self.latency_after)},
            "metrics": dict(self.directions),
            "watched": self.watched,
        }

    def results(self) -> dict[str, Any]:
        """Everything that the same seed must give again, bit for bit: no time, no place."""
        last = self.history[-1] if self.history else {}
        moment = self.commitment
        measured: dict[str, Any] = {"test_loss": self.test.loss, "train_loss": last.get("train_loss")}
        for name, value in self.test.metrics.items():
            measured |= {
                f"test_{name}": value,
                f"test_{name}_before": self.before.metrics[name],
                f"train_{name}": last.get(f"train_{name}"),
                f"relaxed_{self.watched}_{name}": moment.relaxed.metrics.get(name) if moment else None,
                f"committed_{self.watched}_{name}": moment.compact.metrics.get(name) if moment else None,
            }
        return measured | {
            "dead": self.dead,
            "cost_before": self.cost_before.table(),
            "cost_after": self.cost_after.table(),
            "choices": self.choices,
            "weights_sha256": weights_digest(self.network),
        }

    def _lines(self) -> list[tuple[str, str, str, str]]:
        """The table: (what, before, after, change), the task's metrics first."""
        old, new = self.before.table(), self.test.table()
        names = [*self.test.metrics, "loss"]
        lines = [(f"test {n}", f"{old[n]:.4g}", f"{new[n]:.4g}", f"{new[n] - old[n]:+.4g}") for n in names]
        for name, after, before in (
            ("multiply-adds", self.cost_after.madds, self.cost_before.madds),
            ("parameters", self.cost_after.params, self.cost_before.params),
        ):
            lines.append((name, f"{before:,}", f"{after:,}", _share(before, after)))
        where = f"time for {self.latency_before.batch} on {self.latency_before.device}"
        a, b = self.latency_before.seconds, self.latency_after.seconds
        return [*lines, (where, f"{1e3 * a:.2f} ms", f"{1e3 * b:.2f} ms", _share(a, b))]

    def _went(self) -> tuple[str, list[str]]:
        """How much changed; and each edge that did, where they are few."""
        if not self.commitment:
            return "trained as it is" if self.genotype is None else "another genotype", []
        edges = self.commitment.edges
        changed = [f"{e.key} {e.choice}" for e in edges if e.choice != ORIGINAL]
        more = [f"and {len(changed) - _FEW} more"] if len(changed) > _FEW else []
        return str(Tally.of((e.kind, e.choice) for e in edges)), changed[:_FEW] + more

    def __repr__(self) -> str:
        rows = [("", "before", "after", "change"), *self._lines()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        dead = ["dead: it gives every example the same answer"] if self.dead else []
        went, edges = self._went()
        return "\n".join([*lines, went, *(f"  {edge}" for edge in edges), *dead])

    def _repr_html_(self) -> str:
        """The table for a notebook, with a picture of what each edge's choice leaves of its multiply-adds."""
        head = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "change"))
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(row[0])}</th>"
            + "".join(f"<td style='text-align:right'>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self._lines()
        )
        dead = "<p>Dead: it gives every example the same answer.</p>" if self.dead else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        went, edges = self._went()
        told = html.escape(f"{went}{': ' * bool(edges)}{', '.join(edges)}")
        return f"{table}<p>{told}</p>{_bars(self.commitment)}{dead}"


_FEW = 6
"""So many edges are named in a table; `Commitment` prints all."""


def _share(before: float, after: float) -> str:
    """The change in percent; nothing where there was nothing."""
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def _bars(commitment: Commitment | None) -> str:
    """A drawing in SVG: a bar for each edge that has multiply-adds, as high as they are, empty where it changed.

    It is no picture of the network, whose branches and sums it does not show: those `dnat draw` draws.
    """
    edges = [e for e in commitment.edges if e.madds and e.kind != "width"] if commitment else []
    if not edges:
        return ""
    most = max(e.madds for e in edges)
    bars = []
    for place, e in enumerate(edges):
        height = max(60 * e.madds / most, 2)
        style = "fill:currentColor" if e.choice == ORIGINAL else "fill:none;stroke-dasharray:2"
        title = html.escape(f"{e.key}: {e.operation}, {e.madds:,} multiply-adds, {e.choice}")
        bars.append(
            f"<rect x='{12 * place + 1}' y='{62 - height:.1f}' width='9' height='{height:.1f}' "
            f"style='{style};stroke:currentColor'><title>{title}</title></rect>"
        )
    told = "multiply-adds of the edges, in their order; dashed: changed"
    size = 12 * len(edges)
    return (
        f"<svg role='img' aria-label='{told}' viewBox='0 0 {size} 64' width='{size}' height='64' "
        f"style='max-width:100%'>{''.join(bars)}</svg><p><small>{told}</small></p>"
    )
