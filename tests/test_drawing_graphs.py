"""The graph in a picture against the network itself, as a black box: what changes what, and what is added up."""

from collections import Counter

import pytest
import torch
from reference import SMALL, images, legal_sets, small
from torch import nn
from torch.overrides import TorchFunctionMode

import dnat
from dnat.edges import in_order, problems, units
from dnat.lab.drawing import Graph, graph_of, graphs_of
from dnat.lab.drawing.modules import condensed, runs_of
from dnat.planning import find_edges


class UNet(nn.Module):
    """Two levels, connected across by concatenation."""

    def __init__(self, width=4):
        super().__init__()

        def twice(given, gives):
            layers = [nn.Conv2d(given, gives, 3, padding=1), nn.BatchNorm2d(gives), nn.ReLU()]
            return nn.Sequential(*layers, nn.Conv2d(gives, gives, 3, padding=1), nn.ReLU())

        self.down = nn.ModuleList([twice(3, width), twice(width, 2 * width)])
        self.bottom = twice(2 * width, 4 * width)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.merge = nn.ModuleList([twice(4 * width, 2 * width), twice(2 * width, width)])
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        kept = []
        for level in self.down:
            kept.append(level(x))
            x = torch.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for up, merge, across in zip(self.up, self.merge, reversed(kept), strict=True):
            x = merge(torch.cat([across, up(x)], 1))
        return self.head(x)


def vit():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    # A mean of all tokens: the first alone would not change with the others.
    return timm.models.VisionTransformer(**sizes, global_pool="avg")


NETWORKS = {
    **{name: (lambda name=name: small(name), 8) for name in SMALL},
    "resnet20": (lambda: dnat.build("resnet20", width=4, seed=0), 16),
    "resnet50": (lambda: dnat.build("torchvision:resnet50", seed=0), 32),
    "mobilenet": (lambda: dnat.build("torchvision:mobilenet_v2", seed=0), 32),
    "unet": (UNet, 16),
    "vit": (vit, 32),
}
"""{name: (what makes it, side of its images)}"""


def network_of(name):
    make, side = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval()
    return network, images(2, side)


def operations_of(program, space="dnat"):
    edges = {e.key: e for e in find_edges(program, space)}
    return in_order(({e.key: e for e in units(program)} | edges).values())


class Seen:
    """Runs a network and puts other things in place of what its operations give."""

    def __init__(self, network, x, edges):
        self.network, self.x, self.modules = network, x, dict(network.named_modules())
        self.edges = {e.key: e for e in edges if {e.entry, e.exit} <= set(self.modules)}
        self.given, self.gives, self.out = self.run({})

    def run(self, instead):
        """What each call of an operation is given and gives, and the outputs."""
        given, gives, hooks = {}, {}, []
        for key, edge in self.edges.items():

            def before(module, args, key=key):
                given[key, sum(k == key for k, _ in given)] = args[0].clone()

            def after(module, args, output, key=key):
                place = key, sum(k == key for k, _ in gives)
                gives[place] = output.clone()
                return instead[place].clone() if place in instead else output

            hooks.append(self.modules[edge.entry].register_forward_pre_hook(before))
            hooks.append(self.modules[edge.exit].register_forward_hook(after))
        with torch.no_grad():
            out = self.network(self.x.clone())
        for hook in hooks:
            hook.remove()
        leaves = [v for v in (out if isinstance(out, (tuple, list)) else [out])]
        return given, gives, torch.cat([v.flatten() for v in leaves])

    def follows(self):
        """{(operation's call or the input, operation's call or the output)}: what reads the one with no operation
        between: it changes with it when all other operations give what they gave."""
        found = set()
        noise = torch.Generator().manual_seed(5)
        for place in self.gives:
            other = self.gives[place] + 3 * torch.randn(self.gives[place].shape, generator=noise)
            given, _, out = self.run(self.gives | {place: other})
            found |= {(place, p) for p in given if p != place and not torch.equal(given[p], self.given[p])}
            found |= {(place, "output")} if not torch.equal(out, self.out) else set()
        x, self.x = self.x, self.x + 3 * torch.randn(self.x.shape, generator=noise)
        given, _, out = self.run(self.gives)
        found |= {("input", p) for p in given if not torch.equal(given[p], self.given[p])}
        found |= {("input", "output")} if not torch.equal(out, self.out) else set()
        self.x = x
        return found


def ways(graph, keys):
    """The same of a graph: which nodes of `keys`, or output, are reached with none of them between."""
    calls, names = Counter(), []
    for node in graph.nodes:
        if node.key in keys:
            names.append((node.key, calls[node.key]))
            calls[node.key] += 1
        else:
            names.append(node.kind if node.kind in ("input", "output") else None)
    found = set()
    for start, name in enumerate(names):
        waiting, seen = [start] if name and name != "output" else [], set()
        while waiting:
            here = waiting.pop()
            for b in [b for a, b in graph.arrows if a == here]:
                if names[b]:
                    found.add((name, names[b]))
                elif b not in seen:
                    seen.add(b)
                    waiting.append(b)
    return found


class Joins(TorchFunctionMode):
    """Counts additions and concatenations of tensors that depend on the input: those that need its gradient."""

    def __init__(self):
        super().__init__()
        self.terms = self.gathered = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "").strip("_")
        if name in ("add", "iadd", "radd"):
            self.terms += all(isinstance(a, torch.Tensor) and a.requires_grad for a in args[:2])
        if name in ("cat", "concat", "stack"):
            self.gathered += sum(a.requires_grad for a in args[0]) > 1
        return func(*args, **(kwargs or {}))


def joins_of(network, x):
    network = dnat.tracing.copied(network).requires_grad_(False)
    with Joins() as joins:
        network(x.clone().requires_grad_())
    return joins.terms, joins.gathered


def joins_in(graph):
    arrivals = Counter(b for _, b in graph.arrows)
    signs = {i: node.label for i, node in enumerate(graph.nodes) if node.kind == "join"}
    return sum(arrivals[i] - 1 for i, s in signs.items() if s == "+"), sum(s == "‖" for s in signs.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_arrow_and_join_is_one_of_the_network(name):
    network, x = network_of(name)
    program = dnat.trace(network, x)
    graph = graph_of(program, operations_of(program))
    seen = Seen(network, x, units(program))
    assert ways(graph, seen.edges) == seen.follows()
    heavy = {
        call.path
        for call in program.traces[0].calls
        if program.modules[call.path].kind in ("convolution", "linear")
    }
    assert heavy <= {node.path for node in graph.nodes if node.kind == "operation"} | {""}
    if name not in ("masked", "data dependent"):
        assert joins_in(graph) == joins_of(network, x)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("resnet50", "vit")])
def test_what_is_left_is_what_discretization_leaves(name):
    network, x = network_of(name)
    program = dnat.trace(network, x)
    every = operations_of(program)
    edges = [e for e in every if len(e.choices) > 1]
    if len(edges) < 5:
        sets = [c for c in legal_sets(tuple(edges)) if set(c.values()) != {"original"}] if edges else []
    else:
        draws = torch.Generator().manual_seed(3)
        sets = [drawn(edges, draws) for _ in range(3)]
    for choices in sets[:6]:
        made = dnat.discretize(network, choices, x)
        _, after = graphs_of(program, every, choices)
        kept = [e for e in units(program) if {e.key} <= {node.key for node in after.nodes}]
        seen = Seen(made, x, kept)
        assert set(seen.edges) == {node.key for node in after.nodes} & {e.key for e in units(program)}
        assert ways(after, seen.edges) == seen.follows()
        reductions = sum(node.label == "reduction" for node in after.nodes)  # each has a concatenation inside
        terms, gathered = joins_in(after)
        assert joins_of(made, x) == (terms, gathered + reductions)


def drawn(edges, draws):
    """A legal set of choices."""
    chosen = {}
    for edge in edges:
        choice = edge.choices[int(torch.randint(len(edge.choices), (), generator=draws))]
        if not problems(chosen | {edge: choice}):
            chosen[edge] = choice
    return {edge.key: choice for edge, choice in chosen.items()}


def test_joins_counted_by_hand():
    network, x = network_of("resnet20")
    program = dnat.trace(network, x)
    nodes = graph_of(program, operations_of(program)).nodes
    assert Counter(n.kind for n in nodes) == {"input": 1, "output": 1, "operation": 20, "join": 9, "mark": 3}


def test_the_fate_of_nodes():
    network, x = network_of("resnet20")
    program = dnat.trace(network, x)
    choices = {"layer1.0.conv1>layer1.0.bn1": "identity", "layer2.1.conv2>layer2.1.bn2": "none"}
    before, after = graphs_of(program, operations_of(program), choices)
    fates = {(n.key or n.path, n.kind): n.fate for n in before.nodes if n.fate != "stays"}
    assert fates == {
        ("layer1.0.conv1>layer1.0.bn1", "operation"): "passes",
        ("layer2.1.conv1>layer2.1.bn1", "operation"): "goes",
        ("layer2.1.conv2>layer2.1.bn2", "operation"): "goes",
        ("layer2.1", "join"): "passes",
    }
    assert len(after.nodes) == len(before.nodes) - 4


def test_cells_are_drawn_apart_and_equal_ones_once():
    """Each cell reads the two before it: the whole network is one part."""
    network = dnat.build("darts", layers=6, channels=4, seed=0)
    x = images(2, 32)
    program = dnat.trace(network, x)
    graph = graph_of(program, operations_of(program))
    runs = runs_of(graph)
    assert sorted(runs.values()) == [f"cells.{i}" for i in range(6)]
    whole, came, apart = condensed(graph, runs, lambda i: (graph.nodes[i].label, graph.nodes[i].kind))
    assert sorted(name for names in apart.values() for name in names) == sorted(runs.values())
    modules = [node for node in whole.nodes if node.kind == "module"]
    assert len(modules) == 6
    drawn_ = [i for i in came if i >= 0]
    assert len(drawn_) == len(set(drawn_))
    times = {run: len(apart[name]) for run, name in runs.items() if name in apart}
    assert sum(len(run) * n for run, n in times.items()) + len(graph.nodes) - sum(map(len, runs)) == len(
        graph.nodes
    )
    # Arrows between cells: those of the graph, each of a cell to a cell once.
    of = {node: name for run, name in runs.items() for node in run}
    among = {(of.get(a, a), of.get(b, b)) for a, b in graph.arrows if of.get(a, a) != of.get(b, b)}
    named = [
        node.label.partition(":")[0] if node.kind == "module" else i
        for node, i in zip(whole.nodes, came, strict=True)
    ]
    first = min(i for i, node in enumerate(whole.nodes) if node.label.startswith("input") and i)
    assert {(named[a], named[b]) for a, b in whole.arrows if b < first} == among


def test_a_concatenation_that_goes_on_is_a_chain():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))

        def forward(self, x):
            parts = [x]
            for layer in self.layers:
                parts.append(layer(torch.cat(parts, 1)))
            return torch.cat(parts, 1)

    program = dnat.trace(Dense(), images(2, 8))
    graph = graph_of(program, units(program))
    assert [node.label for node in graph.nodes] == [
        *("input", "conv_3x3", "‖", "conv_3x3", "‖", "conv_3x3", "‖", "output")
    ]
    assert sorted(graph.arrows) == [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4), (4, 5), (4, 6), (5, 6), (6, 7)]


def test_what_is_added_to_itself_has_two_arrows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.layer(x)
            return torch.relu(x) + x

    program = dnat.trace(Twice(), images(2, 8))
    graph = graph_of(program, units(program))
    assert graph.arrows == ((0, 1), (1, 2), (1, 2), (2, 3))
    assert Graph.from_json({"nodes": [vars(n) for n in graph.nodes], "arrows": graph.arrows}) == graph
