"""The graph of a network as a picture shows it, read from its recorded program.

A node is an operation that multiplies or has weights, a join (an addition, a concatenation, a product of two
values), or a change of the image's size. What is done to one value alone between them (activations, reshapes,
dropout) is no node: an arrow passes it. So every way from the input to an output is there, and none more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...edges import IDENTITY, NONE, ORIGINAL, Edge, replacements
from ...tracing import Operation, Program, State, Trace

SIGNS = {"add": "+", "gather": "‖", "multiply": "×"}
"""How joins are drawn; another has the name of its function."""

_RESIZING = ("pool", "interpolate", "upsample", "pixel_", "boolean_dispatch", "subsample", "grid_sample")


@dataclass(frozen=True)
class Node:
    """What one box or circle stands for.

    Attributes:
        kind: operation, mark (a norm by itself, a pooling), join, added (a connection that grew), input, output;
            module, a large one that a picture shows apart.
        label: the operation's name, or a join's sign.
        key: of its row; empty where it has none.
        path: the module in which it ran.
        value: the value of the trace that it makes: the same before and after.
        shape: of that, without the batch.
        madds: multiply-adds of one image.
        fate: what the choices do to it: it "stays", "goes" (nothing is computed there), or one thing alone
            "passes" (an identity; a sum of which one term is left).
    """

    kind: Literal["operation", "mark", "join", "added", "input", "output", "module"]
    label: str
    key: str
    path: str
    value: int
    shape: tuple[int, ...]
    madds: int = 0
    fate: Literal["stays", "passes", "goes"] = "stays"


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, and arrows between them, by their places; what is added twice has two."""

    nodes: tuple[Node, ...]
    arrows: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Graph":
        """The inverse of `dataclasses.asdict`, also after it was JSON."""
        nodes = (Node(**{**node, "shape": tuple(node["shape"])}) for node in table["nodes"])
        return cls(tuple(nodes), tuple((a, b) for a, b in table["arrows"]))


def graph_of(program: Program, edges: Iterable[Edge]) -> Graph:
    """The graph of a network's first trace; `edges` are the operations that are one node each."""
    return _Reader(program, dict.fromkeys(edges, ORIGINAL)).graph()


def graphs_of(program: Program, edges: Sequence[Edge], choices: Mapping[str, str]) -> tuple[Graph, Graph]:
    """The graph of a network, and what is left of it.

    Args:
        program: the network's.
        edges: the operations that are one node each, and all that `choices` names.
        choices: {edge key: choice} that were made; what is missing stays.
    """
    before = graph_of(program, edges)
    reader = _Reader(program, {edge: choices.get(edge.key, ORIGINAL) for edge in edges})
    after = reader.graph()
    stays = {node.value for node in after.nodes}
    nodes = [
        node if node.value in stays else replace(node, fate="passes" if reader.carries(node.value) else "goes")
        for node in before.nodes
    ]
    return replace(before, nodes=tuple(nodes)), after


class _Reader:
    """Goes through a trace's values in order, and knows for each the node that it comes from."""

    def __init__(self, program: Program, chosen: Mapping[Edge, str]) -> None:
        self.program, self.trace = program, program.traces[0]
        trace = self.trace
        zero, self.same = replacements(trace, chosen)
        self.states = trace.propagate(zero, self.same)
        self.alive, self.needed = trace.needed(zero, self.same)
        self.copies: dict[int, list[int]] = {}
        for out, start in self.same.items():
            self.copies.setdefault(start, []).append(out)
        self.whole = _whole(program, trace)
        self.passed: dict[int, tuple[Edge, str]] = {}
        for edge, choice in chosen.items():
            for start, out in edge.values(trace):
                if choice == ORIGINAL and edge.kind in ("unit", "operation"):
                    self.whole[out] = (start, edge.operation, edge.key, edge.entry, edge.madds)
                elif choice not in (ORIGINAL, NONE) and self.same.get(out) == start:
                    self.passed[out] = edge, choice
        self.nodes: list[Node] = []
        self.sources: list[tuple[int, ...]] = []
        self.of_value: dict[int, int | None] = {}
        self.of_operation: dict[int, int | None] = {}
        self.gathered: dict[tuple[int, ...], int] = {}

    def graph(self) -> Graph:
        for value in range(len(self.trace.values)):
            self.of_value[value] = self._source(value) if self.states[value] is State.DATA else None
        for value in self.trace.outputs:
            self._add("output", "output", "", "", value, self._known([value]))
        return _pruned(self.nodes, self.sources)

    def carries(self, value: int) -> bool:
        """Whether an output needs a value, and something comes with it."""
        return value in self.alive and self.states[value] is State.DATA

    def _add(
        self, kind: Any, label: str, key: str, path: str, value: int, sources: Iterable[int], madds: int = 0
    ) -> int:
        shape = self.trace.values[value].shape[1:]
        self.nodes.append(Node(kind, label, key, path, value, shape, madds))
        self.sources.append(tuple(sources))
        return len(self.nodes) - 1

    def _known(self, values: Iterable[int]) -> list[int]:
        return [node for value in values if (node := self.of_value[value]) is not None]

    def _source(self, value: int) -> int | None:
        """The node that a value comes from."""
        if value in self.passed:
            edge, choice = self.passed[value]
            start = self._known([self.same[value]])
            if edge.kind == "skip" and not edge.reduces:
                return self._add("added", "skip", edge.key, edge.entry, value, start)
            if choice == IDENTITY and not edge.reduces:
                return start[0]
            label = "reduction" if choice == IDENTITY else choice
            return self._add("operation", label, edge.key, edge.entry, value, start, round(edge.added(choice)))
        if value in self.whole:
            start_value, label, key, path, madds = self.whole[value]
            kind = "operation" if madds or key else "mark"
            return self._add(kind, label, key, path, value, self._known([start_value]), madds)
        producer = self.trace.values[value].producer
        if producer is None:
            return self._add("input", "input", "", "", value, ())
        if producer not in self.of_operation:
            self.of_operation[producer] = self._of_operation(value, self.trace.operations[producer])
        return self.of_operation[producer]

    def _of_operation(self, value: int, operation: Operation) -> int | None:
        data = [i for i in operation.inputs if self.states[i] is State.DATA]
        sources = self._known(data)
        name, path = operation.name.strip("_"), self.trace.where(operation)
        if len(data) > 1 and operation.behaviour == "add":
            terms = [t for i, node in zip(data, sources, strict=True) for t in self._terms(i, node)]
            return self._add("join", SIGNS["add"], "", path, value, terms)
        if len(data) > 1 and operation.behaviour == "gather":
            return self._gathered(tuple(data), path, value)
        if operation.madds:
            madds = operation.madds // self.trace.batch
            return self._add("operation", name, "", path, value, dict.fromkeys(sources), madds)
        if len(set(sources)) > 1:
            return self._add("join", SIGNS.get(operation.behaviour, name), "", path, value, dict.fromkeys(sources))
        if name.endswith("_norm") or self._resizes(name, data, value):
            label = "subsample" if name == "getitem" else name.replace("_", " ")
            return self._add("mark", label, "", path, value, sources[:1])
        return sources[0] if sources else None

    def _terms(self, value: int, node: int) -> tuple[int, ...]:
        """What is added up in a value that an addition alone reads: a + b + c is one sum."""
        producer = self.trace.values[value].producer
        is_sum = self.nodes[node].value == value and self.nodes[node].label == SIGNS["add"]
        users = self._readers(value)
        if producer is None or not is_sum or len(users) != 1 or value in self.trace.outputs:
            return (node,)
        return self.sources[node] if self.trace.operations[users[0]].behaviour == "add" else (node,)

    def _readers(self, value: int) -> list[int]:
        """The needed operations that read a value, also where an identity hands it on."""
        own = [user for user in self.trace.users[value] if user in self.needed]
        return own + [user for copy in self.copies.get(value, ()) for user in self._readers(copy)]

    def _gathered(self, data: tuple[int, ...], path: str, value: int) -> int:
        """A concatenation; of one that only goes on, what is new (a, b, then a, b, c: as DenseNet writes it)."""
        known = (n for n in range(len(data) - 1, 1, -1) if data[:n] in self.gathered)
        n = next(known, 0)
        before = [self.gathered[data[:n]]] if n else []
        sources = [*before, *self._known(data[n:])]
        self.gathered[data] = self._add("join", SIGNS["gather"], "", path, value, sources)
        return self.gathered[data]

    def _resizes(self, name: str, data: list[int], value: int) -> bool:
        before, after = (self.trace.values[v].shape for v in (data[0] if data else value, value))
        if any(part in name for part in _RESIZING):
            return True
        if name in ("mean", "amax", "sum"):
            return len(before) == 4 and before[2:] != after[2:]
        return name == "getitem" and len(before) == len(after) == 4 and before[2:] != after[2:]


def _whole(program: Program, trace: Trace) -> dict[int, tuple[int, str, str, str, int]]:
    """{what it gives: (what it is given, name, "", path, multiply-adds)} of modules with weights and no parts."""
    parents = {call.parent for call in trace.calls}
    found = {}
    for i, call in enumerate(trace.calls):
        info = program.modules[call.path]
        if i not in parents and call.plain and (info.weights or info.kind == "norm"):
            madds = sum(trace.operations[n].madds for n in trace.within(i)) // trace.batch
            found[call.outputs[0]] = (call.inputs[0], info.name, "", call.path, madds)
    return found


def _pruned(nodes: list[Node], sources: list[tuple[int, ...]]) -> Graph:
    """What an output comes from; inputs stand before their first reader, outputs behind what they read."""
    waiting = [i for i, node in enumerate(nodes) if node.kind == "output"]
    alive = set(waiting)
    while waiting:
        more = set(sources[waiting.pop()]) - alive
        alive |= more
        waiting += more
    places = {i: (float(i), 1) for i in alive}
    for i in sorted(alive, reverse=True):
        if nodes[i].kind == "output" and sources[i]:
            places[i] = (float(sources[i][0]), 2)
        if nodes[i].kind == "input":
            places[i] = (min(float(j) for j in alive if i in sources[j]), 0)
    order = sorted(alive, key=lambda i: (*places[i], i))
    place = {i: n for n, i in enumerate(order)}
    arrows = tuple((place[a], place[b]) for b in order for a in sources[b])
    return Graph(tuple(nodes[i] for i in order), arrows)
