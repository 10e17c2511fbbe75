import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import images, small
from test_policies import space
from test_training import config, tiny_data

import dnat
from dnat.lab.baselines.judging import judge, recalibrated
from dnat.lab.baselines.search import divided
from dnat.lab.baselines.spaces import EdgeSpace, GenotypeSpace
from dnat.lab.baselines.supernet import Supernet
from dnat.moves import legal, transitions
from dnat.networks.cells import CellNetwork, regrown
from dnat.networks.genotypes import (
    GENOTYPES,
    OPERATIONS,
    CellEdge,
    CellGenotype,
    Genotype,
    is_alive,
    pruned,
    published,
    transformed,
)
from dnat.operations import NullEdge
from dnat.planning import make_plan
from dnat.settings import Search
from dnat.training import Evaluation, evaluate

NAMES = ["sep_conv_3x3", "conv_1x1", "skip_connect", "null", "null", "max_pool_3x3"]


@st.composite
def cells(draw, concat=None):
    """A random cell of up to three nodes; null edges are frequent, so that some are dead."""
    nodes = []
    for number in range(2, draw(st.integers(3, 5))):
        edges = st.tuples(st.sampled_from(NAMES), st.integers(0, number - 1)).map(lambda e: CellEdge(*e))
        nodes.append((draw(edges), draw(edges)))
    numbers = list(range(2, len(nodes) + 2))
    return CellGenotype(tuple(nodes), tuple(sorted(draw(st.sets(st.sampled_from(numbers), min_size=1)))))


@settings(max_examples=20, deadline=None)
@given(cells(), st.integers(0, 99))
def test_pruned_cells_compute_the_same_and_cells_that_are_not_alive_are_dead(cell, seed):
    genotype = Genotype(cell, cell)
    torch.manual_seed(seed)
    network = CellNetwork(genotype, channels=4, layers=3, num_classes=3).eval()
    x = torch.randn(4, 3, 8, 8)
    small_ = regrown(network, genotype, 0)
    assert torch.allclose(small_(x), network(x), atol=1e-6)
    assert dnat.cost(small_, x).madds <= dnat.cost(network, x).madds
    # All paths from the output back, one by one.
    paths = [[node] for node in cell.concat]
    while any(path[-1] > 1 for path in paths):
        paths = [
            [*path, edge.input]
            for path in paths
            for edge in (cell.nodes[path[-1] - 2] if path[-1] > 1 else ())
            if edge.operation != "null"
        ] + [path for path in paths if path[-1] < 2]
    assert is_alive(genotype) == bool(paths)
    if not paths:
        assert torch.equal(network(x), network(x)[:1].expand(4, -1))
    assert pruned(pruned(cell)) == pruned(cell)
    left = [m for m in small_.modules() if isinstance(m, NullEdge)]
    assert len(left) <= 3 * (len(cell.nodes) + 2)


def test_changed_cells_are_what_discretization_makes_of_them():
    """Two ways to one network: choices on edges, and another genotype."""
    torch.manual_seed(1)
    network = CellNetwork("darts_v2", channels=2, layers=4).eval()
    x = torch.randn(2, 3, 16, 16)
    moves = {("normal", 0, 0): "identity", ("normal", 1, 1): "none", ("reduce", 3, 0): "none"}
    edges = dnat.find_edges(dnat.trace(network, x))
    wanted = {f"{kind}:{i}.{j}": choice for (kind, i, j), choice in moves.items()}
    choices = {e.key: wanted.get(e.group, "original") for e in edges}
    by_edges = dnat.discretize(network, choices, x).eval()
    by_genotype = regrown(network, transformed(network.genotype, moves), 0)
    assert torch.allclose(by_edges(x), by_genotype(x), atol=1e-6)
    assert dnat.cost(by_edges, x) == dnat.cost(by_genotype, x)
    assert by_genotype.training is False
    with pytest.raises(ValueError, match="the genotype must have 4 nodes"):
        regrown(network, published("enas"), 0)


def test_new_operations_of_a_cell_have_their_own_weights_whatever_else_changes():
    network = CellNetwork("darts_v2", channels=2, layers=4)
    one = transformed(network.genotype, {("normal", 0, 0): "dil_conv_3x3"})
    two = transformed(one, {("normal", 1, 0): "conv_1x1", ("reduce", 0, 0): "none"})
    a, b, c = regrown(network, one, 5), regrown(network, two, 5), regrown(network, one, 6)
    key = "cells.0.nodes.0.0.op.1.weight"
    assert torch.equal(a.state_dict()[key], b.state_dict()[key])
    assert not torch.equal(a.state_dict()[key], c.state_dict()[key])
    kept = "cells.0.nodes.0.1.op.1.weight"
    assert torch.equal(a.state_dict()[kept], network.state_dict()[kept])


def test_the_supernet_computes_what_the_genotypes_network_does():
    """With the same weights, without pools (which have norms of their own here), all nodes in the output."""
    cell = CellGenotype(
        (
            (CellEdge("sep_conv_3x3", 0), CellEdge("skip_connect", 1)),
            (CellEdge("conv_3x3", 2), CellEdge("null", 0)),
            (CellEdge("dil_conv_3x3", 1), CellEdge("sep_conv_3x3", 3)),
        ),
        (2, 3, 4),
    )
    genotype = Genotype(cell, cell)
    network = CellNetwork(genotype, channels=3, layers=4, num_classes=5)
    shared = Supernet(genotype, [n for n in OPERATIONS if "2x2" not in n], 3, 4, 5)
    with torch.no_grad():
        for ours, theirs in zip(shared.cells, network.cells, strict=True):
            theirs.input0.load_state_dict(ours.input0.state_dict(), strict=False)
            theirs.input1.load_state_dict(ours.input1.state_dict(), strict=False)
            for number, node in enumerate(cell.nodes, 2):
                for edge, module in zip(node, theirs.nodes[number - 2], strict=True):
                    if edge.operation != "null":
                        source = ours.edges[f"{edge.input}-{number}"][edge.operation]
                        module.op.load_state_dict(source.state_dict(), strict=False)
    network.stem0.load_state_dict(shared.stem.state_dict())
    network.fc.load_state_dict(shared.fc.state_dict())
    x = torch.randn(3, 3, 12, 12)
    for mode in (True, False):
        assert torch.allclose(network.train(mode)(x), shared.train(mode)(x), atol=1e-5)
    assert not any(n.endswith(("bn.weight", "bn.bias")) for n, _ in shared.named_parameters())


def test_only_the_chosen_path_learns():
    network = CellNetwork("darts_v2", channels=2, layers=3)  # with two layers both cells would reduce
    s = GenotypeSpace(network, None, config(search=Search(channels=2, layers=3)), (3, 8, 8), 10)
    s.choose(s.given)
    s.network(torch.randn(2, 3, 8, 8)).sum().backward()
    used = {n for n, p in s.network.named_parameters() if p.grad is not None and "edges" in n}
    normal = {f"edges.{e.input}-{t}.{e.operation}" for t, n in enumerate(s.given.normal.nodes, 2) for e in n}
    reduce = {f"edges.{e.input}-{t}.{e.operation}" for t, n in enumerate(s.given.reduce.nodes, 2) for e in n}
    assert used
    assert all(any(path in name for path in normal | reduce) for name in used)


@pytest.mark.parametrize("official", [False, True])
def test_inputs_are_drawn_uniformly(official):
    s = space("darts_v2", official=official)
    random, n = np.random.default_rng(0), 1500
    operations = dict.fromkeys(s.names, 0)
    inputs = np.zeros(5)
    for _ in range(n):
        cell = s.sample(random).normal
        for edge in cell.nodes[3]:
            inputs[edge.input] += 1
            operations[edge.operation] += 1
    assert (np.abs(inputs - 2 * n / 5) < 5 * np.sqrt(2 * n / 5)).all()
    # The released code never shows a policy null edges (docs/methods.md A5).
    assert (operations["null"] == 0) == official
    seen = [c for name, c in operations.items() if name != "null" or not official]
    assert all(abs(c - 2 * n / len(seen)) < 5 * np.sqrt(2 * n / len(seen)) for c in seen)


ALL_NODES = {"darts_v1", "darts_v2", "pnasnet", "snas_mild", "snas_moderate", "snas_aggressive",
             "nat_darts", "natv2_darts"}  # fmt: skip
"""The genotypes whose cells' output is every node; that of the others is the nodes that no other reads."""


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("name", GENOTYPES)
def test_both_cells_have_the_output_that_the_genotypes_rule_gives_them(name, official):
    """ENAS's and NASNet's normal cells have all nodes in their output, but by the rule of loose ends."""
    s = space(name, official=official)
    random, nodes = np.random.default_rng(1), len(s.given.normal.nodes)
    counts = []
    for genotype in (s.sample(random) for _ in range(60)):
        for cell in genotype.cells:
            last = range(2, nodes + 2)
            loose = [i for i in last if all(e.input != i for node in cell.nodes for e in node)]
            assert list(cell.concat) == (list(last) if name in ALL_NODES else loose)
            counts.append(len(cell.concat))
    # Node i is read by none of the later nodes j with probability prod (1 - 1/j)^2 = (i / (nodes + 1))^2.
    wanted = nodes if name in ALL_NODES else sum((i / (nodes + 1)) ** 2 for i in range(2, nodes + 2))
    assert np.mean(counts) == pytest.approx(wanted, abs=5 * np.std(counts) / len(counts) ** 0.5 + 1e-9)


def test_nodes_that_another_reads_are_zeros_in_the_output_of_a_loose_end_cell():
    s = space("enas")
    chain = tuple((CellEdge("conv_3x3", number - 1), CellEdge("null", 0)) for number in range(2, 7))
    genotype = Genotype(*(CellGenotype(chain, concat) for concat in ((6,), (6,))))
    s.choose(genotype)
    outputs = []
    for cell in s.network.cells:
        cell.register_forward_hook(lambda module, args, out: outputs.append((module.channels, out)))
    s.network(torch.randn(2, 3, 8, 8))
    for channels, out in outputs:
        assert out.shape[1] == 5 * channels
        assert not out[:, : 4 * channels].any()
        assert out[:, 4 * channels :].any()


@pytest.mark.parametrize("table", ["nat", "nat++"])
@pytest.mark.parametrize("name", ["darts_v2", "enas", "resblock", "vgg_cell", "mobilenetv2_cell", "naonet"])
def test_every_move_is_a_legal_transformation(name, table):
    s = space(name, transitions("nat++") if table == "nat++" else None)
    graph = s.graph(s.given)
    random = np.random.default_rng(3)
    for _ in range(20):
        choices = [[random.choice(np.flatnonzero(row)) for row in cell] for cell in graph.mask.numpy()]
        after = s.moved(s.given, torch.tensor(np.array(choices)))
        assert legal(s.given, after, transitions(table)) == ()
        s.choose(after)
        assert s.network(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("name", ["darts_v2", "resblock", "naonet"])
def test_sequences_and_json_hold_the_whole_genotype(name):
    s = space(name)
    for seed in range(5):
        genotype = s.sample(np.random.default_rng(seed))
        tokens = torch.tensor(s.sequence(genotype))
        assert s.tokens[torch.arange(len(tokens)), tokens].all()
        again = s.architecture(tokens.tolist())
        assert (again.normal.nodes, again.reduce.nodes) == (genotype.normal.nodes, genotype.reduce.nodes)
        assert s.from_json(s.to_json(genotype)) == genotype
    assert s.architecture(s.sequence(s.given)) == s.given
    # Every place has all the tokens that it can have: inputs from earlier nodes, then any operation.
    counts = s.tokens.sum(1).tolist()
    assert counts[:4] == [2, len(s.names)] * 2
    assert counts[4:8] == [3, len(s.names)] * 2


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("table", [None, "nat++"])
def test_null_edges_that_were_not_built_stay_but_in_the_released_form(table, official):
    network = CellNetwork("resblock", channels=2, layers=2, skips=False)
    settings = config(search=Search(channels=2, layers=2, official=official))
    s = GenotypeSpace(network, table and transitions(table), settings, (3, 8, 8), 10)
    mask = s.graph(s.given).mask
    may = {None: {"null", "same", "skip_connect"}, "nat++": {"null", "skip_connect"}}[table]
    wanted = may if official else {"same"} if table is None else {"null"}
    edges = [e for node in s.given.normal.nodes for e in node]
    nulls = [row for row, edge in enumerate(edges) if edge.operation == "null"]
    assert len(nulls) == 3
    for cell in range(2):
        for row in nulls:
            assert {move for move, legal in zip(s.moves, mask[cell, row], strict=True) if legal} == wanted
    if official:  # and what it connects is made
        names = [{"null": "skip_connect"}.get(e.operation, e.operation if table else "same") for e in edges]
        moves = [[s.moves.index(name) for name in names]] * 2
        after = s.moved(s.given, torch.tensor(moves))
        grown = regrown(network, after, 0)
        assert (
            dnat.cost(grown, torch.zeros(1, 3, 8, 8)).params > dnat.cost(network, torch.zeros(1, 3, 8, 8)).params
        )
        assert all(len(node) == 2 for node in grown.cells[0].nodes)


def test_nodes_need_two_edges():
    cell = CellGenotype(((CellEdge("conv_3x3", 0),),), (2,))
    network = CellNetwork(Genotype(cell, cell), channels=2, layers=2)
    with pytest.raises(ValueError, match=r"normal cell, node 2: .* two edges a node, not 1"):
        GenotypeSpace(network, None, config(), (3, 8, 8), 10)


def edge_space(name="residual", **options):
    network, c = small(name), config(**options)
    plan = make_plan(network, dnat.trace(network, images()), images(), c)
    return EdgeSpace(network, plan, c), network


@pytest.mark.parametrize("name", ["residual", "two branches", "concatenating"])
@pytest.mark.parametrize("moves", ["dnat", "nat++"])
def test_a_network_with_choices_computes_what_the_plain_one_does(name, moves):
    s, network = edge_space(name, space=moves)
    x = images()
    for seed in range(6):
        architecture = s.legal(s.sample(np.random.default_rng(seed)))
        s.choose(architecture)
        made = dnat.discretize(s.network, s.choices(architecture), x)
        assert torch.allclose(s.network.eval()(x), made.eval()(x), atol=1e-5)
        assert s.architecture(s.sequence(architecture)) == architecture
        assert s.from_json(s.to_json(architecture)) == architecture
    s.choose(s.given)
    assert torch.equal(s.network(x), network.eval()(x))


def test_the_graph_of_a_networks_edges():
    """ResNet8: the first unit of a block reads the images or the blocks before; the second reads the first."""
    network = dnat.build("resnet8", seed=0, width=4)
    x = torch.zeros(2, 3, 16, 16)
    plan = make_plan(network, dnat.trace(network, x), x, config())
    graph = EdgeSpace(network, plan, config()).graph(())
    keys = [e.key.rpartition(">")[2] for e in plan.edges]
    assert keys == ["layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]
    reads = {keys[t - 1]: {"images" if f == 0 else keys[f - 1] for f in range(5) if graph.adjacency[0, t, f]}
             for t in range(1, 5)}  # fmt: skip
    assert reads == {
        "layer1.0.bn1": {"images"},
        "layer1.0.bn2": {"layer1.0.bn1"},
        # layer2.0.conv1 may not change, so that what it reads counts; the shortcut leads past.
        "layer2.0.bn2": {"layer1.0.bn2"},
        "layer3.0.bn2": {"layer1.0.bn2", "layer2.0.bn2"},
    }
    assert graph.features.isfinite().all()


def test_choices_keep_the_budget_and_what_must_not_go_together():
    s, _ = edge_space("two branches")
    limited, _ = edge_space("two branches", budget=0.6)
    for seed in range(20):
        wanted = tuple(
            np.random.default_rng(seed).choice(s.network.choices_of(group)) for group in s.network.groups
        )
        kept = limited.legal(wanted)
        edges = {e: kept[limited.network.row(e)] for e in limited.network.edges}
        assert limited.plan.costs.of(edges) <= 0.6 * limited.plan.costs.total
        network = dnat.discretize(limited.network, limited.choices(kept), images()).eval()
        out = network(images())
        assert (out - out[:1]).abs().max() > 0  # never dead


def test_statistics_are_taken_anew_and_put_back():
    network = small("residual").train()
    x = images()
    network(x)  # something else in the running statistics
    before = copy.deepcopy(network.state_dict())
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    inputs = []
    handle = norms[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    batches = [images(), images() * 2 + 1]
    with recalibrated(network, batches):
        means = torch.stack([i.mean((0, 2, 3)) for i in inputs])
        variances = torch.stack([i.var((0, 2, 3)) for i in inputs])
        assert torch.allclose(norms[0].running_mean, means.mean(0), atol=1e-6)
        assert torch.allclose(norms[0].running_var, variances.mean(0), atol=1e-6)
    handle.remove()
    assert network.training
    assert norms[0].momentum == 0.1
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_what_is_judged_is_the_second_part_in_eval_mode():
    data, c = tiny_data(48), config(search=Search(batch_size=4, calibration=2))
    training, held_out = divided(data, c)
    first, second = (set(d.train_index.tolist()) for d in (training, held_out))
    assert not first & second
    assert first | second == set(range(48))
    assert (len(first), len(second)) == (19, 29)
    assert torch.equal(held_out.test_images, data.train_images[held_out.train_index])
    network = small("residual")
    found = judge(network, training, held_out, c)
    twin = copy.deepcopy(network)
    with recalibrated(twin, [x for x, _ in list(training.train_batches(0, 0, 4))[:2]]):
        assert found == evaluate(twin, held_out, c)
    assert isinstance(found, Evaluation)
    with pytest.raises(ValueError, match=r"search.batch_size 20 is larger than the 19 training images"):
        divided(data, c.but(search=Search(batch_size=20)))


def test_all_published_genotypes_let_something_through():
    assert all(is_alive(p.genotype) for p in GENOTYPES.values())
    dead = transformed(published("resblock"), {("normal", 3, 0): "none", ("normal", 3, 1): "none"})
    assert not is_alive(dead)  # NAT's own: every edge into node 5 is null
