"""NAT and the methods that it was compared to: a search, and the training of what it found."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...answers import count_of
from ...budget import Costs
from ...data import Data, Source
from ...discretization import discretization
from ...edges import IDENTITY, NONE, ORIGINAL, Edge, Tally
from ...errors import UsageError
from ...loop import Listeners, Stop
from ...moves import cost_of, read_transitions, transitions
from ...networks import Genotype
from ...networks.cells import Cell, CellNetwork, regrown
from ...networks.genotypes import CellEdge
from ...planning import find_edges, make_plan
from ...records import Records
from ...relaxation import relax
from ...results import Commitment, EdgeReport, FixedReport, Transformation, fixed_of
from ...rundir import SEARCH_RESULT, SEARCH_ROWS
from ...session import Session, check_training, choose_device, images_of, named, reproducible, session
from ...settings import Config, Search
from ...tracing import trace
from ...tracking import Tracker
from ...training import Evaluation, check_finite, check_usable, evaluate
from ...transformation import measured_before, timed, train
from .reporting import edge_report
from .search import Learner, SearchRun, check_identity, divided
from .spaces import EdgeSpace, GenotypeSpace

LEARNERS = {
    # Guo et al. 2019: graph convolutions learn by REINFORCE to replace operations by skip or null.
    "nat": Learner("gcn"),
    # Guo et al. 2021: the same with the moves of `dnat.transitions("nat++")`, by a binary-masked softmax.
    "nat++": Learner("gcn", leaks=True),
    # The best of so many uniform random legal transformations.
    "random": Learner("random"),
    # NAT with an LSTM for a policy, which reads the edges one after the other.
    "lstm": Learner("lstm"),
    # NAT, but the most probable moves are made; nothing is drawn and compared in the end.
    "max-gcn": Learner("gcn", "maximum"),
    # Luo et al. 2018: gradient steps in an embedding of architectures, learned from random ones. Of a network of
    # cells it may change every operation to any other and every edge's input, so that the result may cost more.
    "nao": Learner("random", "nao"),
}
"""How each method searches."""


def works_on_genotype(network: nn.Module, search: Search) -> bool:
    """Whether the genotype of a network is what is transformed, and not its edges.

    Raises:
        ValueError: the genotype is asked for, and there is none.
    """
    has = isinstance(network, CellNetwork)
    if search.graph == "genotype" and not has:
        raise UsageError(
            f"search.graph 'genotype' needs a network of cells, not {type(network).__name__}: leave it on 'auto'"
        )
    return has and search.graph != "edges"


def check_search(method: str, network: nn.Module, data: Data, config: Config) -> None:
    """Find out what can be known to fail, before anything is searched, trained or written.

    Raises:
        ValueError, TypeError: see `search_and_train`.
    """
    choose_device(config.machine.device)
    check_usable(network, data)
    check_finite(network)
    config = configured(method, config)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    example = data.example(2).to(device)
    check_training(network, data, config, example)
    divided(data, config)
    _space(network, example, images_of(data), config)


def configured(method: str, config: Config) -> Config:
    """The settings as a method takes them: NAT++ has moves of its own, and as released its own epochs."""
    config = config.for_method(method)
    if method == "nat++" or config.relaxation.names_operations:
        return config.but(space="nat++")
    return config.but(space="dnat")  # they know no widths


def _space(network: nn.Module, example: Tensor, data: Data, config: Config) -> GenotypeSpace | EdgeSpace:
    if not works_on_genotype(network, config.search):
        return EdgeSpace(
            network, make_plan(network, trace(network, example, batch=count_of(example)), example, config), config
        )
    assert isinstance(network, CellNetwork)
    if config.limit.is_limited:
        raise UsageError(
            "NAT and the methods beside it know no budget on genotypes: leave it out, or take search.graph='edges'"
        )
    if config.relaxation.edges is not None:
        raise UsageError("a search on genotypes changes any edge: leave 'edges' out, or take search.graph='edges'")
    table = None
    if config.relaxation.names_operations:
        table = (
            transitions("nat++")
            if config.relaxation.transitions is None
            else read_transitions(config.relaxation.transitions)
        )
    return GenotypeSpace(network, table, config, example.shape[1:], data.num_classes)


def search_and_train(
    method: str,
    network: nn.Module | str,
    data: Source | str,
    config: Config | None = None,
    *,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Stop | None = None,
) -> Transformation:
    """Search for a transformation, and train its result from the beginning.

    Of a network of cells the genotype is transformed, on a supernet, as in the papers; of any other network the
    choices on its edges, on its own weights, which is our extension (`config.search.graph`).

    Args:
        method: a name of `LEARNERS`.
        network, data, config, records, tracker, stop: as for `dnat.transform`. A budget can only be kept on edges.

    Raises:
        ValueError, NonFiniteError, Interrupted: as `dnat.transform`.
    """
    listeners = Listeners.of(records, tracker, stop)
    network, data, config = named(network, data, config)
    with session(network, data, configured(method, config)) as given:
        space = _space(given.original, given.example, images_of(given.data), given.config)
        result = _result_of_search(method, space, given, listeners)
        begun = time.monotonic()
        genotype = None
        if isinstance(space, GenotypeSpace):
            genotype = space.from_json(result["architecture"])
            derived, commitment = _of_genotype(space, given, genotype, result)
        else:
            derived, commitment = _of_edges(space, given, space.from_json(result["architecture"]), result)
        commitment = replace(commitment, compact=evaluate(derived, given.data, given.config))
        taken = time.monotonic() - begun
        before = measured_before(given)
    listeners.tracker.committed(Tally.of((edge.kind, edge.choice) for edge in commitment.edges))
    trained = train(derived, data, given.config, records=records, tracker=tracker, stop=stop)
    with reproducible(config):
        times = timed(given, trained.network)
    return replace(
        trained,
        commitment=commitment,
        history=[*result["history"], *trained.history],
        seconds={"search": result["seconds"] + taken, **trained.seconds},
        genotype=genotype,
        **before,
        **times,
    )


def _result_of_search(
    method: str, space: GenotypeSpace | EdgeSpace, given: Session, listeners: Listeners
) -> dict[str, Any]:
    """What the search finds, as JSON; read back where it is done already."""
    records = listeners.records
    identity = f"{given.digest} {given.data.identity()}"
    known = records.kept(SEARCH_RESULT) if records else None
    if known:
        check_identity(known, identity)
        if records and "rows" in known:  # of an older dnat in their own file alone
            records.of_search().put_back(known.pop("rows"))
        return {**known, "history": records.of_search().metrics() if records else []}
    search: SearchRun[Any] = SearchRun(
        space, LEARNERS[method], images_of(given.data), given.config, identity, listeners
    )
    best = search.to_end()
    result = {
        "identity": identity,
        "architecture": space.to_json(best.architecture),
        "judged": [{"architecture": a, "accuracy": accuracy} for a, accuracy in best.judged],
        "shared": best.shared.table(),
        "tested": best.tested.table(),
        "probabilities": None if best.probabilities is None else best.probabilities.tolist(),
        "seconds": best.seconds,
        "notes": list(best.notes),
    }
    if records:
        records.keep(SEARCH_RESULT, {**result, "rows": records.text(SEARCH_ROWS)})
        records.of_search().forget()
    return {**result, "history": list(best.history)}


def _commitment(
    found: dict[str, Any], edges: Iterable[EdgeReport], fixed: Iterable[FixedReport] = ()
) -> Commitment:
    """The moment at which the search ends; what the derived network computes is evaluated later."""
    shared = found["shared"]["accuracy"]
    note = f"with shared weights {shared:.2%} on the images that it was judged on, best of {len(found['judged'])}"
    return Commitment(
        epoch=0,
        relaxed=Evaluation.from_table(found["tested"]),
        edges=tuple(edges),
        notes=(note, *found["notes"]),
        fixed=tuple(fixed),
    )


def _of_edges(
    space: EdgeSpace, given: Session, architecture: tuple[str, ...], found: dict[str, Any]
) -> tuple[nn.Module, Commitment]:
    """The network with these choices, and the report on them."""
    choices = space.choices(architecture)
    # The weights that were given, and fresh ones for operations that are new: not those of the search.
    relaxed = relax(
        given.original, space.plan.edges, given.config.relaxation.mode, "raw", given.config.seed, warm_start=False
    )
    relaxed.set_one_hot(choices)
    made = discretization(relaxed, choices, given.example)
    price = Costs(space.plan.edges)
    rows = dict(zip(space.groups, _rows(space, architecture, found), strict=True))
    reports = []
    for edge in space.plan.edges:
        row = dict(zip(space.columns, rows[space.network.groups[space.network.row(edge)]], strict=True))
        choice = made.choices[edge.key]
        reports.append(
            edge_report(
                edge,
                edge.group,
                choice,
                {c: row[c] for c in edge.choices},
                saved=round(price.total - price.of({edge: choice})),
                reason=made.undone.get(edge.key, ""),
            )
        )
    return made.network, _commitment(found, reports, fixed_of(space.plan))


def _rows(space: EdgeSpace, architecture: tuple[str, ...], found: dict[str, Any]) -> list[list[float]]:
    """What each choice was worth to the policy; without one, 1 of what was chosen."""
    if found["probabilities"] is not None:
        rows: list[list[float]] = found["probabilities"][0]
        return rows
    return [[float(c == choice) for c in space.columns] for choice in architecture]


def _of_genotype(
    space: GenotypeSpace, given: Session, genotype: Genotype, found: dict[str, Any]
) -> tuple[nn.Module, Commitment]:
    """The network of the genotype, and the report on its edges."""
    original, config = given.original, given.config
    assert isinstance(original, CellNetwork)
    reports = []
    for edge in find_edges(given.program, config.relaxation.moves, everything=True):
        if edge.kind not in ("operation", "skip"):
            continue
        cell = original.get_submodule(edge.entry.rpartition(".nodes.")[0])
        assert isinstance(cell, Cell)
        kind, (node, place) = int(cell.reduces), _place(original.get_submodule(edge.entry))
        old, new = (g.cells[kind].nodes[node][place] for g in (original.genotype, genotype))
        worth = {_choice(old, new): 1.0}
        if found["probabilities"] is not None:
            worth = _worth(space, old, found["probabilities"][kind][2 * node + place])
        reads = f"reads node {new.input} instead of node {old.input}" if new.input != old.input else ""
        reports.append(
            edge_report(
                edge,
                f"{'reduce' if kind else 'normal'}:{node}.{place}",
                _choice(old, new),
                worth,
                saved=edge.madds - _madds(new.operation, edge),
                reason=reads,
            )
        )
    return regrown(original, genotype, config.seed), _commitment(found, reports)


def _place(module: nn.Module) -> tuple[int, int]:
    node, place = str(module.place).rpartition(":")[2].split(".")
    return int(node), int(place)


def _choice(old: CellEdge, new: CellEdge) -> str:
    if old == new:
        return ORIGINAL
    return {"skip_connect": IDENTITY, "null": NONE}.get(new.operation, new.operation)


def _worth(space: GenotypeSpace, old: CellEdge, row: list[float]) -> dict[str, float]:
    """{choice: probability}, of names that mean the same together."""
    found: dict[str, float] = {}
    for move, probability in zip(space.moves, row, strict=True):
        choice = ORIGINAL if move == "same" else _choice(old, CellEdge(move, old.input))
        found[choice] = found.get(choice, 0.0) + probability
    return {choice: p for choice, p in found.items() if p}


def _madds(operation: str, edge: Edge) -> int:
    """Multiply-adds of an operation on an edge, as `dnat.cost` counts them: pools and copies are free."""
    channels, height, width = edge.shape_out
    stride = -(-edge.shape_in[1] // height)
    if "_pool_" in operation or (operation == "skip_connect" and stride == 1):
        return 0
    return cost_of(operation, channels, height, width, stride=stride).madds
