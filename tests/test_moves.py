"""The larger space of choices: operations of searched cells, and convolutions, become others, by name."""

import contextlib
import copy
import itertools
import json

import pytest
import torch
from reference import SMALL, images, small
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import dnat
from dnat.budget import Costs, InfeasibleError, best
from dnat.candidates import separable
from dnat.discretization import discretization
from dnat.edges import problems
from dnat.lab.runs import redraw, restore, run
from dnat.networks.cells import CellNetwork
from dnat.networks.genotypes import CellEdge, CellGenotype, Genotype
from dnat.operations import SeparableConv
from dnat.planning import make_plan
from dnat.relaxation import CHOICES, FORGETTING
from dnat.relaxation.modes import Open
from dnat.selection import decide
from dnat.settings import Config, Job, parse_amount, read_toml
from dnat.training import ArchitectureLoss, Interrupted, Progress, Trainer, burden, effects

CELL = CellGenotype(
    (
        (CellEdge("conv_3x3", 0), CellEdge("sep_conv_3x3", 1)),
        (CellEdge("max_pool_3x3", 1), CellEdge("skip_connect", 2)),
    ),
    (2, 3),
)
NULL = CellGenotype(((CellEdge("dil_conv_3x3", 0), CellEdge("null", 1)),), (2,))
REDUCE = CellGenotype(((CellEdge("dil_conv_3x3", 0), CellEdge("conv_5x5", 1)),), (2,))


def network(normal=CELL, reduce=NULL, layers=3, **options):
    torch.manual_seed(0)
    return CellNetwork(Genotype(normal, reduce), channels=4, layers=layers, num_classes=5, **options)


def one_cell():
    """A network of one cell, which reduces."""
    return network(NULL, CELL, layers=1)


def edges_of(made, size=8):
    dtype = next(made.parameters()).dtype
    return dnat.find_edges(dnat.trace(made, images(2, size, dtype)), "nat++")


def test_the_choices_are_those_of_the_table():
    edges = {e.key: e for e in edges_of(network())}
    conv = edges["cells.0.nodes.0.0"]
    assert conv.choices == (
        *("original", "sep_conv_3x3", "dil_conv_3x3", "conv_1x1"),
        *("max_pool_3x3", "avg_pool_3x3", "identity", "none"),
    )
    assert set(conv.choices[1:-2]) == set(dnat.transitions("nat++")["conv_3x3"]) - {
        *("conv_3x3", "skip_connect", "null")
    }
    assert edges["cells.0.nodes.1.1"].choices == ("original", "none")
    assert edges["cells.1.nodes.0.1"].choices == ("original", "identity")  # a null edge
    mine = {"conv_3x3": ("conv_3x3", "conv_1x1"), "sep_conv_3x3": ("sep_conv_3x3",)}
    found = {e.key: e.choices for e in dnat.find_edges(conv.program, mine)}
    assert found["cells.0.nodes.0.0"] == ("original", "conv_1x1", "identity", "none")
    with pytest.raises(ValueError, match=r"unknown space 'nat\+'; did you mean 'nat\+\+'"):
        dnat.find_edges(conv.program, "nat+")


def test_convolutions_have_those_of_their_shape():
    edges = {e.key.split(">")[0]: e for e in edges_of(dnat.build("resnet8", width=8))}
    plain, reducing = edges["layer1.0.conv2"], edges["layer2.0.conv1"]
    assert plain.choices[1:] == (
        *("sep_conv_3x3", "dil_conv_3x3", "conv_1x1", "max_pool_3x3", "avg_pool_3x3", "identity", "none"),
    )
    assert reducing.choices == ("original", "sep_conv_3x3", "dil_conv_3x3", "conv_1x1")  # 8 to 16 channels
    assert edges["conv1"].choices == ("original", "sep_conv_3x3", "dil_conv_3x3", "conv_1x1")
    depthwise = {e.operation: e for e in edges_of(dnat.build("proxyless_mobile", width=0.25), 32)}
    assert "dwconv_3x3" in depthwise["dwconv_5x5"].choices
    assert {"dwconv_3x3", "dwconv_5x5"} < set(depthwise["dwconv_7x7"].choices)
    assert not any("sep" in c or "dil" in c for c in depthwise["dwconv_7x7"].choices)
    program = plain.program
    mine = {e.key: e.choices for e in dnat.find_edges(program, {"conv_3x3": ("conv_3x3", "conv_1x1")})}
    assert mine[plain.key] == ("original", "conv_1x1", "identity", "none")
    assert not any(e.others for e in dnat.find_edges(program))


NETWORKS = {"cells": lambda: network(CELL, REDUCE), **{name: lambda name=name: small(name) for name in SMALL}}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
def test_the_start_changes_nothing(name, mode, gate):
    made, x = NETWORKS[name](), images(2, 8)
    edges = edges_of(made)
    relaxed = dnat.relax(made, edges, mode, gate)
    assert relaxed.architecture.columns[:3] == CHOICES
    assert relaxed.architecture.theta.shape == (len(relaxed.groups), len(relaxed.architecture.columns))
    for training in (True, False):
        for sampled in (True, False):
            twin = copy.deepcopy(made)
            relaxed.sample(0, 0) if sampled else relaxed.sample_all()
            assert torch.equal(twin.train(training)(x), relaxed.train(training)(x))
            relaxed.load_state_dict(dnat.relax(made, edges, mode, gate).state_dict())
    keys = made.state_dict().keys()
    assert keys < relaxed.state_dict().keys()
    assert relaxed.detached().state_dict().keys() == keys


LARGE = ("cells", "resnet8 with skips")


@pytest.mark.parametrize(
    ("name", "each"),
    [
        *((name, True) for name in NETWORKS if name not in (*LARGE, "resnet8")),  # which is in the one with skips
        *((name, False) for name in LARGE),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in LARGE),
    ],
)
def test_every_operation_of_every_edge_alone(name, each):
    """Discretized = one-hot relaxed, in both modes, and its multiply-adds are those that were promised.

    Of each edge, or of one edge for each operation.
    """
    made, x = NETWORKS[name](), images(2, 8)
    edges = edges_of(made)
    relaxed = dnat.relax(made, edges, warm_start=False)
    relaxed.train()(x)  # so that the norms of other operations have seen something
    whole, seen = Costs(edges), set()
    moves = {(e.key if each else "", c): (e, c) for e in edges for c in e.choices[1:]}
    for edge, choice in moves.values():
        done = discretization(relaxed, {edge.key: choice}, x)
        assert not done.undone
        assert dnat.cost(done.network, x).madds == whole.of({edge: choice})
        relaxed.set_one_hot({e.key: choice if e is edge else "original" for e in edges})
        for training in (False, True):
            wanted = relaxed.train(training)(x)
            assert torch.allclose(done.network.train(training)(x), wanted, rtol=1e-4, atol=1e-5)
        assert choice == "identity" or not torch.allclose(wanted, made.train()(x), rtol=1e-3)
        seen.add(choice)
    pools = (
        {"max_pool_3x3", "avg_pool_3x3"} if any(e.shape_in == e.shape_out for e in edges if e.others) else set()
    )
    assert seen >= {"sep_conv_3x3", "dil_conv_3x3", "conv_1x1"} | pools


def test_what_was_trained_is_what_is_kept():
    """An operation that takes another's place comes with the weights that it had beside it, under their names."""
    made, x = network(drop_path=0.3), images(2, 8)
    relaxed = dnat.relax(made, edges_of(made))
    compact = dnat.discretize(relaxed, {"cells.0.nodes.0.0": "sep_conv_3x3"}, x)
    found = compact.get_submodule("cells.0.nodes.0.0.sep_conv_3x3")
    trained = relaxed.network.get_submodule("cells.0.nodes.0.0.sep_conv_3x3")
    assert isinstance(found, SeparableConv)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), trained.parameters(), strict=True))
    names = {n for n, _ in relaxed.network.named_parameters()}
    assert {n for n, _ in compact.named_parameters()} <= names
    assert compact.get_submodule("cells.0.nodes.0.0.drop_path").p == 0.3


def test_gates_of_operations_are_trained_with_their_weights():
    """The gradient of a gate, by finite differences; and of the operation's weights once the gate is open."""
    made, x = one_cell().double(), images(2, 8).double()
    relaxed = dnat.relax(made, dnat.find_edges(dnat.trace(made, x), "nat++")).train()
    theta = relaxed.architecture.theta
    assert theta.dtype == torch.float64
    column = relaxed.architecture.columns.index("sep_conv_3x3")
    weight = relaxed.network.get_submodule("cells.0.nodes.0.0.sep_conv_3x3")[1].weight

    def loss():
        return relaxed(x).square().sum()

    loss().backward()
    assert weight.grad is None or not weight.grad.any()  # a closed gate passes nothing on (docs/methods.md C3)
    slope = theta.grad[0, column].item()
    with torch.no_grad():
        values = []
        for step in (1e-6, -1e-6):
            theta[0, column] = step
            values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    with torch.no_grad():
        theta[0, column] = 0.5
    relaxed.zero_grad()
    loss().backward()
    assert weight.grad.any()


@pytest.mark.parametrize("mode", ["full", "cell"])
def test_the_best_set_within_a_budget_is_exact(mode):
    """Against all sets of choices, of a network of one cell."""
    made = one_cell()
    edges = edges_of(made)
    relaxed = dnat.relax(made, edges, mode)
    groups, costs = relaxed.by_group(), Costs(edges)
    generator = torch.Generator().manual_seed(0)
    scores = {g: {c: torch.rand((), generator=generator).item() for c in relaxed.choices_of(g)} for g in groups}
    sets = []
    for choices in itertools.product(*(scores[g] for g in groups)):
        by_group = dict(zip(groups, choices, strict=True))
        by_edge = {e: by_group[g] for g, members in groups.items() for e in members}
        if not problems(by_edge):
            sets.append((sum(scores[g][c] for g, c in by_group.items()), costs.of(by_edge)))
    assert len(sets) > 100
    least = min(cost for _, cost in sets)
    assert least > 0.001 * costs.total
    for share in (0.001, 0.3, 0.5, 0.7, 0.9):
        limit = share * costs.total
        if least > limit:
            with pytest.raises(InfeasibleError):
                best(groups, scores, costs, limit)
            continue
        found = best(groups, scores, costs, limit)
        wanted = max(score for score, cost in sets if cost <= limit)
        assert sum(scores[g][c] for g, c in found.items()) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["full", "cell"])
def test_whatever_theta_is(mode, seed):
    """Any theta gives a legal set, a living network, the relaxed network's function, and keeps a budget."""
    made, x = network(), images(2, 8)
    edges = edges_of(made)
    relaxed = dnat.relax(made, edges, mode)
    relaxed.train()(x)
    relaxed.architecture.theta.data.normal_(0.2, 1, generator=torch.Generator().manual_seed(seed))
    choices = dnat.select(relaxed, budget=0.7)
    done = discretization(relaxed, choices, x)
    assert not done.undone
    assert dnat.cost(done.network, x).madds <= 0.7 * dnat.cost(made, x).madds
    relaxed.set_one_hot(choices)
    for training in (False, True):
        assert torch.allclose(done.network.train(training)(x), relaxed.train(training)(x), rtol=1e-4, atol=1e-5)


def test_an_operation_of_nothing_is_refused():
    """A convolution with a norm makes something of zeros, so that they cannot be dropped."""
    edges = {e.key: e for e in edges_of(network())}
    conv, sep = edges["cells.0.nodes.0.0"], edges["cells.0.nodes.0.1"]
    assert problems({conv: "none", sep: "none"})
    assert not problems({conv: "none", sep: "dil_conv_3x3"})


@pytest.mark.parametrize("name", ["cells", "resnet8"])
def test_operations_learn_what_the_original_computes(name):
    """While gates are closed: by the definition, and without touching anything else."""
    made, x = NETWORKS[name](), images(4, 8)
    relaxed = dnat.relax(made, edges_of(made)).train()
    with relaxed.taught() as distances:
        relaxed(x)
    edge = next(e for e in relaxed.edges if len(e.others) > 2)
    entry, exit = (relaxed.network.get_submodule(p) for p in (edge.entry, edge.exit))
    seen = []
    handle = entry.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    relaxed(x)
    handle.remove()
    target = (entry.op if edge.kind == "operation" else nn.Sequential(entry, exit))(seen[0])

    def size(y):
        return y.var((0, 2, 3), correction=0).mean()

    for choice, _ in edge.others:
        found = entry.get_submodule(choice)(seen[0])
        wanted = ((found - target) ** 2).mean() / (size(found) + size(target) + 1e-6)
        column = relaxed.architecture.columns.index(choice)
        assert torch.allclose(distances[relaxed.row(edge), column][0], wanted, rtol=1e-4)
    relaxed.zero_grad()
    torch.stack([d for found in distances.values() for d in found]).sum().backward()
    moved = {n for n, p in relaxed.network.named_parameters() if p.grad is not None and p.grad.any()}
    names = {
        n for n, p in relaxed.network.named_parameters() if any(p is other for other in relaxed.added_parameters())
    }
    assert moved == names != set()
    assert relaxed.architecture.theta.grad is None or not relaxed.architecture.theta.grad.any()
    with torch.no_grad():
        relaxed(x)
    assert relaxed.passes.distances is None  # and nothing is collected outside


def test_while_they_learn_the_rest_learns_as_from_the_original():
    """A share that is open: the output is the mixture's, but what lies before sees the original's slope."""
    made, x = small("resnet8").double(), images(4, 8, torch.float64)
    relaxed = dnat.relax(made, edges_of(made), gate="raw").train()
    edge = next(e for e in relaxed.edges if e.entry == "layer1.0.conv2")
    column = relaxed.architecture.columns.index("sep_conv_3x3")
    with torch.no_grad():
        relaxed.architecture.theta[relaxed.row(edge), column] = 0.3
    entry = relaxed.network.get_submodule(edge.entry)
    twin = relaxed.detached()
    twin.layer1[0].conv2.add_module("sep_conv_3x3", copy.deepcopy(entry.sep_conv_3x3))
    conv, norm = twin.layer1[0].conv2, twin.layer1[0].bn2
    stashed = []
    conv.register_forward_pre_hook(lambda module, args: stashed.append(args[0]))
    norm.register_forward_hook(
        lambda module, args, y: y + 0.3 * (conv.sep_conv_3x3(stashed[-1].detach()) - y.detach())
    )
    with relaxed.taught():
        ours = relaxed(x)
    theirs = twin(x)
    assert torch.allclose(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = dict(relaxed.network.named_parameters())
    for key, parameter in twin.named_parameters():
        assert torch.allclose(gradients[key].grad, parameter.grad), key
    assert conv.sep_conv_3x3.depthwise.weight.grad.any()


@pytest.mark.parametrize("name", ["cells", "resnet8", "in place"])
@pytest.mark.parametrize("taught", [False, True])
def test_computing_again_changes_nothing(name, taught, monkeypatch):
    """Gradients and norms' statistics are those that they would be if everything were kept."""
    made, x = NETWORKS[name](), images(4, 8)

    def run():
        relaxed = dnat.relax(made, edges_of(made)).train()
        relaxed.architecture.theta.data += 0.1
        with relaxed.taught() if taught else contextlib.nullcontext({}) as found:
            loss = relaxed(x).square().sum()
        (loss + sum(d for ds in found.values() for d in ds)).backward()
        gradients = {n: p.grad for n, p in relaxed.named_parameters() if p.grad is not None}
        return gradients | dict(relaxed.named_buffers())

    again = run()
    monkeypatch.setattr("dnat.relaxation.hooks.checkpoint", lambda f, *args, **kwargs: f(*args))
    kept = run()
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[key], kept[key]) for key in kept)
    counted = [b for key, b in kept.items() if key.endswith("num_batches_tracked")]
    assert {int(b) for b in counted} <= {1}


class Again(nn.Module):
    """A network that computes its middle again for the backward pass, if it is told to."""

    def __init__(self, checkpoints):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = small("resnet8"), nn.Linear(10, 3)
        self.checkpoints = checkpoints

    def forward(self, x):
        y = checkpoint(self.body, x, use_reentrant=False) if self.checkpoints else self.body(x)
        return self.head(y)


@pytest.mark.parametrize("space", ["dnat", "nat++"])
@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
@pytest.mark.parametrize("how", ["plain", "taught", "settling"])
def test_a_network_with_activation_checkpoints(space, gate, how):
    """The user's own: gradients are those without, and nothing is collected twice."""
    found = []
    for checkpoints in (False, True):
        made, x = Again(checkpoints).train(), images(4, 8)
        relaxed = dnat.relax(made, dnat.find_edges(dnat.trace(made, x), space), gate=gate)
        relaxed.architecture.theta.data += 0.1
        relaxed.sample(0, 0)
        if how == "settling":
            relaxed.settle({e.key: e.choices[1] for e in relaxed.edges})
            relaxed.settle_to(0.3)
        with relaxed.taught() if how == "taught" else contextlib.nullcontext({}) as distances:
            loss = relaxed(x).square().sum()
        (loss + sum(d for ds in distances.values() for d in ds)).backward()
        assert all(len(ds) == 1 for ds in distances.values())
        found.append({n: p.grad for n, p in relaxed.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


class Rows(nn.Module):
    """A network that gives its convolution other rows than it was given: the parts of images, or half a batch."""

    def __init__(self, how):
        super().__init__()
        self.head, self.conv, self.how = nn.Linear(4, 3), nn.Conv2d(4, 4, 3, padding=1), how

    def forward(self, x):
        parts = [x.unflatten(1, (2, 4)).flatten(0, 1)] if self.how == "more" else x[:, :4].chunk(2)
        y = torch.cat([self.conv(part) for part in parts])
        return self.head(y.mean((2, 3)).reshape(len(x), -1, 4).mean(1))


@pytest.mark.parametrize("how", ["more", "fewer"])
def test_multiply_adds_of_all_rows(how):
    """Of other operations they are those of one image of the network's, as the original's are."""
    made, x = Rows(how), torch.randn(4, 8, 8, 8)
    edges = dnat.find_edges(dnat.trace(made, x), "nat++")
    costs = Costs(edges)
    for choice, _ in edges[0].others:
        compact = dnat.discretize(made, {"conv": choice}, x)
        assert dnat.cost(compact, x).madds == costs.of({edges[0]: choice})


def test_looking_at_a_weight_does_not_change_it():
    """Torch's spectral norm takes a step whenever its weight is read in train mode."""
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1))
    made, x = nn.Sequential(conv, nn.BatchNorm2d(4)).train(), images(2, 8)
    relaxed = dnat.relax(made, edges_of(made))
    assert all(torch.equal(relaxed.state_dict()[k], v) for k, v in made.state_dict().items())
    assert torch.equal(relaxed(x), copy.deepcopy(made)(x))


def test_complex_numbers_are_left_alone():
    """They have no largest one."""
    made, x = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, dtype=torch.complex64)), images(2, 8, torch.complex64)
    assert [e.choices for e in dnat.find_edges(dnat.trace(made, x), "nat++")] == [("original", "identity")]


def test_an_edge_keeps_its_own_type():
    """Networks may compute a part in another type than the rest."""

    class TwoTypes(Rows):
        def forward(self, x):
            return self.head(self.conv(x.double()).mean((2, 3)).float())

    made, x = TwoTypes(""), torch.randn(2, 4, 8, 8)
    made.conv.double()
    relaxed = dnat.relax(made, dnat.find_edges(dnat.trace(made, x), "nat++"))
    assert torch.equal(relaxed(x), made(x))
    assert (
        dnat.discretize(relaxed, {"conv": "sep_conv_3x3"}, x).conv.sep_conv_3x3.pointwise.weight.dtype
        == torch.float64
    )


def test_distances_are_kept_as_running_means():
    made = small("resnet8")
    architecture = dnat.relax(made, edges_of(made)).architecture
    assert not architecture.measured.any()
    assert (architecture.distance == 1).all()
    one, two = torch.tensor(0.2), torch.tensor(0.6)
    architecture.learned({(1, 3): [one, two], (2, 5): [two]})
    architecture.learned({(1, 3): [two]})
    assert architecture.distance[1, 0].item() == pytest.approx(0.4 + FORGETTING * 0.2)
    assert architecture.distance[2, 2].item() == pytest.approx(0.6)
    assert architecture.measured.sum() == 2
    architecture.learned({(3, 3): [torch.tensor(torch.nan)]})
    assert architecture.distance.isfinite().all()


def test_the_score_is_what_choosing_would_change():
    """Against outputs whose errors are orthogonal, by hand."""
    made = small("resnet8")
    relaxed = dnat.relax(made, edges_of(made), gate="raw")
    architecture, n = relaxed.architecture, len(relaxed.architecture.columns) - 3
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        architecture.theta[:] = torch.rand(architecture.theta.shape, generator=generator) * 0.3 + 0.1
        architecture.distance[:] = torch.rand(architecture.distance.shape, generator=generator)
    shares = architecture.theta[:, 3:] * architecture.offered
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    scores, gates = architecture.worths(), architecture.gates()
    for row, group in enumerate(relaxed.groups):
        # The original computes 0; each operation errs along an axis of its own.
        operations = torch.diag(architecture.distance[row].sqrt())
        now = shares[row] @ operations
        for choice in relaxed.choices_of(group):
            column = architecture.columns.index(choice)
            if choice in ("identity", "none"):
                assert scores[row, column] == gates[row, column]
                continue
            made_of = torch.zeros(n) if choice == "original" else operations[column - 3]
            wanted = architecture.theta[row, 2] * (1 - (now - made_of).square().sum())
            assert scores[row, column].item() == pytest.approx(wanted.item(), abs=1e-6)
        assert gates[row, 2:].sum().item() == pytest.approx(architecture.theta[row, 2].item(), abs=1e-6)


def test_a_step_takes_one_operation_of_each_group():
    """Drawn from seed and step alone; all alike likely; the others neither compute nor learn."""
    made, x = small("resnet8"), images(4, 8)
    relaxed = dnat.relax(made, edges_of(made)).train()
    drawn = []
    for step in range(300):
        relaxed.sample(5, step)
        drawn.append(relaxed.architecture.mode.places)
    relaxed.sample(5, 7)
    assert relaxed.architecture.mode.places == drawn[7]
    assert drawn != sorted(drawn)
    for row, group in enumerate(relaxed.groups):
        names = [relaxed.architecture.columns[3 + d[row]] for d in drawn]
        counts = {name: names.count(name) for name in dict(relaxed.members(group)[0].others)}
        assert sum(counts.values()) == 300
        assert all(abs(c - 300 / len(counts)) < 50 for c in counts.values())
    with relaxed.taught() as found:
        relaxed(x).sum().backward()
    assert {row: column - 3 for row, column in found} == dict(enumerate(relaxed.architecture.mode.places))
    computed = set()
    for edge in relaxed.edges:
        for choice, _ in edge.others:
            module = relaxed.network.get_submodule(f"{edge.entry}.{choice}")
            counted = [b for n, b in module.named_buffers() if n.endswith("num_batches_tracked")]
            if any(int(b) for b in counted):
                computed.add((relaxed.row(edge), relaxed.architecture.columns.index(choice)))
    assert computed == {
        (r, c) for r, c in found if relaxed.architecture.columns[c] in dict(relaxed.edges[r].others)
    }


def saved_bytes(network, x, loss):
    """The size of what the forward pass keeps for the backward pass, each tensor's memory counted once."""
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(network(x))
    return sum(size for place, size in found.items() if place not in weights)


def test_memory_is_bounded():
    """With the default, less than twice that of plain training, and what all paths would take without care."""
    made, x = dnat.build("resnet20", seed=0), torch.randn(16, 3, 32, 32)
    plain = saved_bytes(made.train(), x, lambda y: y.sum())
    relaxed = dnat.relax(made, edges_of(made, 32)).train()
    relaxed.sample(0, 0)
    with relaxed.taught():
        teaching = saved_bytes(relaxed, x, lambda y: y.sum())
    assert plain < teaching < 2 * plain
    for parameter in relaxed.weights():
        parameter.requires_grad_(False)
    assert saved_bytes(relaxed, x, lambda y: y.sum()) < 2 * plain  # theta's step


@pytest.mark.filterwarnings("ignore:lr_theta")
@pytest.mark.slow
def test_the_command_and_its_record(tmp_path):
    """A run with the larger space: stopped and taken up with the same bits, drawn, restored, exported by name."""
    job = Job(
        network="darts",
        network_options={"channels": 4, "layers": 3},
        image_size=16,
        train_limit=96,
        test_limit=40,
        config=Config(
            space="nat++",
            mode="cell",
            epochs=3,
            architecture_epochs=2,
            batch_size=32,
            lr_theta=0.3,
            preset="paper",
            cost_weight=0.0,
            threads=1,
        ),
    )
    whole = run(job, tmp_path / "whole")

    def stop(progress):
        return progress.step == 4

    with pytest.raises(Interrupted):
        run(job, tmp_path / "parts", stop=stop)
    parts = run(job, tmp_path / "parts")
    assert parts["results"] == whole["results"]
    architecture = json.loads((tmp_path / "whole" / "architecture.json").read_text())
    named = [e for e in architecture["commitment"]["edges"] if e["others"]]
    assert {tuple(n for n, _ in e["others"]) for e in named} == {
        ("dil_conv_3x3", "max_pool_3x3", "avg_pool_3x3"),
        ("max_pool_3x3", "avg_pool_3x3"),
        ("avg_pool_3x3",),
    }
    made, _, example = restore(tmp_path / "whole")
    assert made(example).shape == (2, 10)
    assert len(redraw(tmp_path / "whole")) == 4


@pytest.mark.filterwarnings("ignore:lr_theta")
@pytest.mark.parametrize(
    ("paths", "network"), [("two", "resnet8"), pytest.param("all", "vgg16", marks=pytest.mark.slow)]
)
def test_runs_with_convolutions(tmp_path, paths, network):
    """Any network: within its budget, stopped and taken up with the same bits (two paths), drawn, restored."""
    config = {"space": "nat++", "budget": 0.5, "epochs": 5, "architecture_epochs": 4, "batch_size": 8}
    job = Job(
        network=network,
        network_options={"width": 4},
        image_size=32,
        train_limit=32,
        test_limit=40,
        config=Config(**config, paths=paths, threads=1, lr_theta=0.1),
    )
    whole = run(job, tmp_path / "whole")
    for step in (6, 13) if paths == "two" else ():
        with contextlib.suppress(Interrupted):
            run(job, tmp_path / "parts", stop=lambda progress, step=step: progress.step == step)
    if paths == "two":
        assert run(job, tmp_path / "parts")["results"] == whole["results"]
    results = whole["results"]
    assert results["cost_after"]["madds"] <= 0.5 * results["cost_before"]["madds"]
    assert set(results["choices"].values()) - {"original", "identity", "none"}
    made, _, example = restore(tmp_path / "whole")
    assert made(example).shape == (2, 10)
    assert redraw(tmp_path / "whole")


def test_a_trained_network_begins_close_to_itself():
    """`discretize` of a plain network takes the warm start; a kernel of rank 2 loses nothing."""
    made, x = small("resnet8").eval(), images(2, 8)
    conv = made.layer1[0].conv2
    with torch.no_grad():
        first, second = separable(conv.weight, 1, 2)
        conv.weight.copy_(torch.einsum("dcr,crhw->dchw", second.reshape(4, 4, 2), first.reshape(4, 2, 3, 3)))
    compact = dnat.discretize(made, {"layer1.0.conv2>layer1.0.bn2": "sep_conv_3x3"}, x)
    assert dnat.cost(compact, x).madds < dnat.cost(made, x).madds
    assert torch.allclose(compact(x), made(x), rtol=1e-4, atol=1e-5)


def test_other_networks_say_that_they_have_no_such_choices():
    data = dnat.load("digits", train_limit=40, test_limit=40)
    config = Config(space="nat++", epochs=2, architecture_epochs=1, batch_size=20)
    with pytest.raises(ValueError, match=r"space 'nat\+\+' offers Sequential nothing beyond identity and none"):
        dnat.transform(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 10, 16), nn.Flatten()), data, config)
    with pytest.raises(ValueError, match="give a budget, not a latency_budget"):
        Config(space="nat++", latency_budget=0.5)


def tiny():
    """Forty digits, and a network for them in the larger space."""
    data = dnat.load("digits", train_limit=40, test_limit=40)
    made = dnat.build("resnet8", width=4, seed=0)
    return data, made, dnat.find_edges(dnat.trace(made, data.example(2)), "nat++")


@pytest.mark.parametrize("mode", ["full", "cell"])
def test_effects_are_what_a_choice_does_to_the_loss(mode):
    """Against theta that is one-hot in one row; nothing else changes by looking."""
    data, made, edges = tiny()
    relaxed = dnat.relax(made, edges, mode)
    theta = relaxed.architecture.theta
    with torch.no_grad():
        theta += torch.rand(theta.shape, generator=torch.Generator().manual_seed(0)) * 0.2
    config = Config(space="nat++", batch_size=20, epochs=4, architecture_epochs=2, judge="loss", budget=0.5)
    before = {k: v.clone() for k, v in relaxed.state_dict().items()}
    drawn = torch.get_rng_state()
    found = effects(relaxed, data, config, epoch=1)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in relaxed.state_dict().items())
    batches = data.train_batches(config.seed, 1, 20)
    shown = [next(batches) for _ in range(2)]

    def loss(network):
        with torch.no_grad():
            return sum(cross_entropy(network(x), y).item() for x, y in shown) / 2

    now = loss(copy.deepcopy(relaxed).train())
    for row, group in enumerate(relaxed.groups):
        for column, choice in enumerate(relaxed.architecture.columns):
            if choice not in relaxed.choices_of(group):
                assert found[row][column] == 0
                continue
            twin = copy.deepcopy(relaxed).train()
            twin.set_one_hot({e.key: choice for e in relaxed.members(group)})
            assert found[row][column] == pytest.approx(now - loss(twin), abs=1e-5)


def test_choices_by_their_effects():
    """The best set within the budget by the given worths, as brute force finds it."""
    made = one_cell()
    relaxed = dnat.relax(made, edges_of(made))
    costs, generator = Costs(relaxed.edges), torch.Generator().manual_seed(3)
    worths = (-torch.rand(relaxed.architecture.theta.shape, generator=generator)).tolist()
    columns = relaxed.architecture.columns
    decided = decide(relaxed, limit=parse_amount(0.7), worths=worths)
    sets = []
    for choices in itertools.product(*(e.choices for e in relaxed.edges)):
        by_edge = dict(zip(relaxed.edges, choices, strict=True))
        if costs.of(by_edge) <= 0.7 * costs.total and not problems(by_edge):
            sets.append(sum(worths[relaxed.row(e)][columns.index(c)] for e, c in by_edge.items()))
    found = sum(worths[relaxed.row(d.edge)][columns.index(d.choice)] for d in decided)
    assert found == pytest.approx(max(sets))
    with pytest.raises(ValueError, match="judge 'loss' needs a budget"):
        Config(judge="loss")


def test_shares_stay_between_0_and_1():
    data, made, edges = tiny()
    relaxed = dnat.relax(made, edges, gate="sigmoid")
    config = Config(space="nat++", batch_size=20, epochs=2, architecture_epochs=1, settle=0, lr_theta=2.0)
    trainer = Trainer(relaxed, data, config, Progress())
    for _ in trainer.epoch():
        named = relaxed.architecture.theta[:, 3:]
        assert named.min() == 0
        assert named.max() <= 1
    assert relaxed.architecture.mode == Open()
    gates = relaxed.architecture.gates()
    assert torch.allclose(gates[:, 2:].sum(1), relaxed.architecture.open_gates()[:, 2], atol=1e-6)


def test_the_charge_does_not_open_shares():
    """It moves the choice between operation, identity and none, and counts what is open already."""
    _, made, edges = tiny()
    relaxed = dnat.relax(made, edges, gate="sigmoid")
    theta = relaxed.architecture.theta
    charge = ArchitectureLoss(relaxed, Config(space="nat++", budget=0.5).relaxation, limit=0.0)
    relaxed.architecture.distance.fill_(0.1)
    closed = charge.expected_cost()
    closed.backward()
    assert theta.grad[:, :3].any()
    assert not theta.grad[:, 3:].any()
    theta.grad = None
    with torch.no_grad():
        theta[:, relaxed.architecture.columns.index("conv_1x1")] = 0.8
        assert charge.expected_cost() < closed


def test_what_a_step_takes():
    data, made, edges = tiny()
    config = Config(space="nat++", batch_size=20, epochs=2, architecture_epochs=1, threads=1)
    relaxed = dnat.relax(made, edges)
    before = {k: v.clone() for k, v in relaxed.state_dict().items()}
    found = burden(made, relaxed, data, config)
    assert found.time > 1
    assert 1 < found.memory < 2
    assert all(torch.equal(v, before[k]) for k, v in relaxed.state_dict().items())
    assert "times as long" in str(found)


def test_a_table_of_ones_own_decides_a_run(tmp_path):
    """From the configuration, through its file and back; what is wrong with it is said before training."""
    own = {"conv_3x3": ["conv_1x1"]}
    config = {"space": "nat++", "transitions": own, "epochs": 2, "architecture_epochs": 1, "batch_size": 20}
    job = Job(network="resnet8", config=Config(**config))
    (tmp_path / "job.toml").write_text(job.to_toml())
    assert Job.from_flat(read_toml(tmp_path / "job.toml")) == job
    data, made, _ = tiny()
    program, example = dnat.trace(made, data.example(2)), data.example(2)
    plan = make_plan(made, program, example, job.config)
    assert {name for edge in plan.edges for name, _ in edge.others} == {"conv_1x1"}
    wrong = Config(**(config | {"transitions": {"conv_3x3": ["conv_1x2"]}}))
    with pytest.raises(ValueError, match=r"conv_3x3\[0\]: unknown operation 'conv_1x2'; did you mean 'conv_1x1'"):
        make_plan(made, program, example, wrong)
    with pytest.raises(ValueError, match=r"a table of transitions needs space 'nat\+\+'"):
        Config(transitions=own)


@pytest.mark.parametrize("space", ["dnat", "nat++"])
def test_what_several_choices_make_useless_together_is_gone(space):
    """A cell that nothing reads any more, each of its readers having gone alone: the budget counted on that."""
    made, x = dnat.build("darts", seed=1, channels=4, layers=3), images(2, 16)
    edges = dnat.find_edges(dnat.trace(made, x), space)
    last = [e for e in edges if e.entry.startswith("cells.2.") and "none" in e.choices]
    reads = {e.entry: made.cells[2].inputs[int(e.entry.split(".")[3])][int(e.entry.split(".")[4])] for e in last}
    choices = dict.fromkeys((e.key for e in last if reads[e.entry] == 1), "none")
    assert not problems({e: choices.get(e.key, "original") for e in edges})
    done = discretization(made, choices, x, edges[0].program)
    assert not done.undone
    promised = Costs(edges).of({e: choices.get(e.key, "original") for e in edges})
    assert dnat.cost(done.network, x).madds == promised < dnat.cost(made, x).madds
    assert not any(name.startswith("cells.1.") for name, _ in done.network.named_parameters())
    relaxed = dnat.relax(made, edges, gate="sigmoid")
    for seed in range(4):
        theta = relaxed.architecture.theta
        theta.data.normal_(0.6, 0.3, generator=torch.Generator().manual_seed(seed))
        decided = {d.edge: d.choice for d in decide(relaxed, limit=parse_amount(0.5))}
        done = discretization(relaxed, {e.key: c for e, c in decided.items()}, x)
        assert dnat.cost(done.network, x).madds == Costs(edges).of(decided)
