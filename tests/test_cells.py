import functools
import json
import math

import pytest
import torch
from reference import images
from torch import nn

import dnat
from dnat.answers import scores
from dnat.budget import Costs
from dnat.discretization import discretization
from dnat.edges import problems
from dnat.networks.cells import IMAGENET, CellNetwork, DropPath, operation
from dnat.networks.genotypes import (
    GENOTYPES,
    OPERATIONS,
    CellEdge,
    CellGenotype,
    Genotype,
    concat_nodes,
    published,
)
from dnat.operations import FactorizedReduce, NullEdge, set_drop_path
from dnat.relaxation import IDENTITY_NAME


@functools.cache
def counted(name, channels=36, layers=20):
    with torch.device("meta"):
        return dnat.cost(CellNetwork(name, channels=channels, layers=layers), torch.zeros(1, 3, 32, 32))


def printed(value, text):
    """A number as precise as it is printed: "528.4" in millions, "21.1G" in thousands of them."""
    unit = 1e9 if text.endswith("G") else 1e6
    digits = text.removesuffix("G").partition(".")[2]
    return f"{value / unit:.{len(digits)}f}" + "G" * text.endswith("G")


@pytest.mark.parametrize(
    ("name", "channels", "params", "madds"),
    [
        # Reference: networks, part D.
        ("darts_v2", 36, "3.349", "528.4"),
        ("darts_v1", 36, "3.169", "501.0"),
        ("amoebanet", 36, "3.145", "488.9"),
        ("nasnet", 36, "3.831", "603.5"),
        ("pnasnet", 36, "4.481", "706.0"),
        ("snas_mild", 36, "2.661", "422"),
        ("snas_moderate", 36, "2.847", "441"),
        ("snas_aggressive", 36, "2.314", "375"),
        ("enas", 36, "3.860", "605.7"),
        ("naonet", 36, "11.46", "1674"),
        ("naonet", 128, "144.6", "21.1G"),
        # docs/methods.md A9 and B6.
        ("nat_darts", 36, "2.68", "424"),
        ("nat_enas", 36, "3.86", "606"),
        ("natv2_darts", 36, "2.48", "394"),
        ("natv2_enas", 36, "3.69", "581"),
    ],
)
def test_sizes(name, channels, params, madds):
    found = counted(name, channels)
    assert (printed(found.params, params), printed(found.madds, madds)) == (params, madds)


@pytest.mark.parametrize(
    ("name", "channels", "ours", "theirs"),
    [
        # The papers' own rows. These are of the sizes above,
        ("darts_v2", 36, "3.3", "3.3"),
        # and these are not: the genotype that was published is another, or the size is not said.
        ("pnasnet", 36, "4.5", "3.2"),
        ("enas", 36, "3.9", "4.6"),
        ("naonet", 128, "144.6", "128.0"),
        ("nat_darts", 36, "2.7", "3.0"),
        ("nat_enas", 36, "3.9", "4.6"),
    ],
)
def test_which_rows_of_the_papers_are_reproduced(name, channels, ours, theirs):
    assert printed(counted(name, channels).params, ours) == ours
    assert (ours == theirs) == (name == "darts_v2")


def test_the_size_on_imagenet():
    """DARTS's paper gives 4.7 M parameters (its 574 M operations are counted otherwise: ours are 530 M MAdds)."""
    with torch.device("meta"):
        found = dnat.cost(CellNetwork("darts_v2", **IMAGENET), torch.zeros(1, 3, 224, 224))
    assert (printed(found.params, "4.7"), printed(found.madds, "530")) == ("4.7", "530")


@pytest.mark.parametrize(
    ("name", "madds", "weights"),
    [
        # docs/methods.md B3, 128 channels and 32 x 32 pixels: millions and thousands.
        ("conv_5x5", "419.4", "409.6"),
        ("conv_3x3", "151.0", "147.5"),
        ("sep_conv_5x5", "40.1", "39.2"),
        ("sep_conv_3x3", "35.9", "35.1"),
        ("dil_conv_5x5", "20.1", "19.6"),
        ("dil_conv_3x3", "18.0", "17.5"),
        ("conv_1x1", "16.8", "16.4"),
    ],
)
def test_costs_of_operations(name, madds, weights):
    with torch.device("meta"):
        module = operation(name, 128)
        found = dnat.cost(module, torch.zeros(1, 128, 32, 32))
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert f"{found.madds / 1e6:.1f}" == madds
    assert f"{sum(m.weight.numel() for m in convolutions) / 1e3:.1f}" == weights


@pytest.mark.parametrize("name", OPERATIONS)
def test_shapes_of_operations(name):
    with torch.device("meta"):
        for stride, height, width in ((1, 8, 8), (1, 7, 9), (2, 8, 8), (2, 7, 9), (2, 8, 7)):
            y = operation(name, 4, stride)(torch.zeros(2, 4, height, width))
            assert y.shape == (2, 4, -(-height // stride), -(-width // stride))


def test_skips_and_nulls():
    assert isinstance(operation("skip_connect", 4), nn.Identity)
    assert isinstance(operation("skip_connect", 4, 2), FactorizedReduce)
    assert isinstance(operation("null", 4, 2), NullEdge)
    with pytest.raises(ValueError, match="unknown operation 'sep_conv_3x4'; did you mean 'sep_conv_3x3'"):
        operation("sep_conv_3x4", 4)


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_of_two_by_two(stride):
    """By hand: the window reaches right and down, and pixels outside are not there."""
    x = torch.randn(1, 2, 5, 6)
    for kind, of in (("max", torch.amax), ("avg", torch.mean)):
        y = operation(f"{kind}_pool_2x2", 2, stride)(x)
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                a, b = i * stride, j * stride
                # Four numbers that nearly cancel are as exact as the largest of them.
                assert torch.allclose(y[:, :, i, j], of(x[:, :, a : a + 2, b : b + 2], (2, 3)), atol=1e-6)


@pytest.mark.parametrize("name", GENOTYPES)
def test_genotypes_are_what_nat_takes_and_survive_json(name):
    genotype, source = published(name), GENOTYPES[name].source
    assert source
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert hash(genotype) == hash(Genotype.from_json(json.dumps(json.loads(genotype.to_json()), indent=1)))
    sizes = {len(cell.nodes) for cell in (genotype.normal, genotype.reduce)}
    assert len(sizes) == 1
    assert sizes <= {4, 5}
    assert all(len(node) == 2 for cell in (genotype.normal, genotype.reduce) for node in cell.nodes)


@pytest.mark.parametrize(("name", "changed"), [("darts", 6), ("enas", 6), ("resblock", 7), ("vgg_cell", 8)])
def test_as_many_edges_of_nat2_differ_as_counted(name, changed):
    """docs/methods.md B6."""
    before, after = published("darts_v2" if name == "darts" else name), published(f"natv2_{name}")
    pairs = [
        (a, b)
        for x, y in ((before.normal, after.normal), (before.reduce, after.reduce))
        for p, q in zip(x.nodes, y.nodes, strict=True)
        for a, b in zip(p, q, strict=True)
    ]
    assert all(a.input == b.input for a, b in pairs)
    assert sum(a != b for a, b in pairs) == changed


def test_rules_for_the_output():
    nodes = published("darts_v2").normal.nodes
    assert concat_nodes(nodes, "all") == (2, 3, 4, 5)
    assert concat_nodes(nodes, "loose-end") == (3, 4, 5)
    data = json.loads(published("enas").to_json())
    data["normal"]["concat"], data["reduce"]["concat"] = "all", "loose-end"
    genotype = Genotype.from_json(json.dumps(data))
    assert (genotype.normal.concat, genotype.reduce.concat) == ((2, 3, 4, 5, 6), (2, 3, 6))
    assert Genotype.from_json(genotype.to_json()) == genotype


def broken(path, value):
    """darts_v2 as JSON, with something else at a path of keys; `...` takes the last key away."""
    data = json.loads(published("darts_v2").to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data)


EDGE = ("normal", "nodes", 2, 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            (*EDGE, "operation"),
            "sep_conv_3x4",
            "normal.nodes[2][0].operation: unknown operation 'sep_conv_3x4'; did",
        ),
        ((*EDGE, "operation"), 3, "normal.nodes[2][0].operation must be a string, not int (3)"),
        ((*EDGE, "operation"), ["x"], "normal.nodes[2][0].operation must be a string, not list (['x'])"),
        ((*EDGE, "input"), 4, "normal.nodes[2][0].input: node 4 cannot read node 4"),
        (
            (*EDGE, "input"),
            5,
            "normal.nodes[2][0].input: node 4 cannot read node 5: only earlier nodes, or a cycle",
        ),
        ((*EDGE, "input"), -1, "normal.nodes[2][0].input: there is no node -1 here, only 0 to 3"),
        ((*EDGE, "input"), True, "normal.nodes[2][0].input must be a node's number, not bool (True)"),
        ((*EDGE, "input"), 1.5, "normal.nodes[2][0].input must be a node's number, not float (1.5)"),
        ((*EDGE, "input"), ..., "normal.nodes[2][0].input is missing"),
        ((*EDGE, "inptu"), 1, "normal.nodes[2][0].inptu: unknown key 'inptu'; did you mean 'input'?"),
        (EDGE, ["null", 0], "normal.nodes[2][0] must be an object with operation and input, not list"),
        (("reduce", "nodes", 1), [], "reduce.nodes[1]: node 3 has no edges"),
        (("reduce", "nodes", 1), None, "reduce.nodes[1] must be a list, not NoneType"),
        (("reduce", "nodes"), {}, "reduce.nodes must be a list, not dict"),
        (("reduce", "concat"), [], "reduce.concat: a cell's output needs at least one node"),
        (("reduce", "concat"), "some", "reduce.concat: unknown rule 'some'; Known: all, loose-end"),
        (("reduce", "concat", 3), 6, "reduce.concat[3]: there is no node 6 here, only 2 to 5"),
        (("reduce", "concat", 3), 1, "reduce.concat[3]: there is no node 1 here, only 2 to 5"),
        (("reduce", "concat", 3), 2, "reduce.concat[3]: node 2 is there already"),
        (("reduce", "concat", 3), "5", "reduce.concat[3] must be a node's number, not str ('5')"),
        (("reduce",), ..., "reduce is missing"),
        (("reduce",), 3, "reduce must be an object with nodes and concat, not int (3)"),
        (("reduced",), 3, "reduced: unknown key 'reduced'; did you mean 'reduce'?"),
    ],
)
def test_errors_name_the_place(path, value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is compared below
        Genotype.from_json(broken(path, value))
    assert str(caught.value).startswith(message)


def test_what_is_no_genotype_at_all():
    for text, message in (("{", "must be JSON"), ("[]", "the genotype must be an object"), ("__import__", "JSON")):
        with pytest.raises(ValueError, match=message):
            Genotype.from_json(text)
    cell = published("darts_v2").normal
    with pytest.raises(ValueError, match="reduce must be a CellGenotype, not tuple"):
        Genotype(cell, ())
    with pytest.raises(ValueError, match=r"normal\.concat must be a tuple, not list"):
        Genotype(CellGenotype(cell.nodes, [2]), cell)
    with pytest.raises(ValueError, match=r"normal.nodes\[0\]\[0\] must be a CellEdge, not tuple"):
        Genotype(CellGenotype(((("null", 0),),), (2,)), cell)
    with pytest.raises(ValueError, match=r"reduce.nodes\[0\]\[0\].operation: unknown operation 'nul'"):
        Genotype(cell, CellGenotype(((CellEdge("nul", 0),),), (2,)))
    with pytest.raises(ValueError, match="unknown genotype 'dart_v2'; did you mean 'darts_v2'"):
        CellNetwork("dart_v2")
    for sizes in ({"channels": 0}, {"layers": 0}, {"drop_path": 1.0}):
        with pytest.raises(ValueError, match="not"):
            CellNetwork("darts_v2", **sizes)


def small(name, **options):
    torch.manual_seed(0)
    return CellNetwork(name, **{"channels": 4, "layers": 3, "num_classes": 5, **options})


def outputs(network, x, training):
    network.train(training)
    torch.manual_seed(0)
    found = network(x)
    return found if isinstance(found, tuple) else (found,)


def transformed(network, x, mode="full"):
    """Through the whole story with random theta: the choices that could be carried out, and the plain network."""
    relaxed = dnat.relax(network, dnat.find_edges(dnat.trace(network, x)), mode)
    for training in (False, True):
        pairs = zip(outputs(network, x, training), outputs(relaxed, x, training), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    relaxed.architecture.theta.data.normal_(0.2, 1, generator=torch.Generator().manual_seed(1))
    choices = dnat.select(relaxed)
    assert set(choices.values()) > {"original"}
    made = discretization(relaxed, choices, x)
    relaxed.set_one_hot(made.choices)
    assert torch.allclose(outputs(made.network, x, False)[0], outputs(relaxed, x, False)[0], rtol=1e-4, atol=1e-6)
    return made


WITH_NULL_EDGES = {
    *("snas_aggressive", "resblock", "vgg_cell", "mobilenetv2_cell"),
    *("nat_darts", "nat_enas", "nat_naonet", "nat_resblock", "nat_vgg_cell", "nat_mobilenetv2_cell"),
    *("natv2_darts", "natv2_enas", "natv2_vgg_cell"),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "full") for name in GENOTYPES if name != "natv2_mobilenetv2_cell"),
        *((name, "cell") for name in ("darts_v2", "resblock", "nat_enas", "natv2_vgg_cell")),
    ],
)
def test_every_genotype_is_transformed(name, mode):
    network, x = small(name), images(2, 16)
    made = transformed(network, x, mode)
    assert not made.undone
    assert any(isinstance(module, NullEdge) for module in network.modules()) is (name in WITH_NULL_EDGES)
    assert not any(isinstance(module, NullEdge) for module in made.network.modules())
    if name not in WITH_NULL_EDGES:  # an identity on one of those may cost something
        assert dnat.cost(made.network, x).madds < dnat.cost(network, x).madds


def test_the_edges_are_those_of_the_genotype():
    network = small("darts_v2")
    edges = dnat.find_edges(dnat.trace(network, images(2, 16)))
    assert len(edges) == 3 * 8
    genotype = GENOTYPES["darts_v2"].genotype
    named = {e.key: e.operation for e in edges}
    for i, cell in enumerate((genotype.normal, genotype.reduce, genotype.reduce)):
        for j, node in enumerate(cell.nodes):
            for k, edge in enumerate(node):
                assert named[f"cells.{i}.nodes.{j}.{k}"] == edge.operation
    groups = {e.group for e in edges}
    assert groups == {f"{kind}:{j}.{k}" for kind in ("normal", "reduce") for j in range(4) for k in range(2)}
    skips = {e.choices for e in edges if e.operation == "skip_connect"}
    assert skips == {("original", "none")}
    rest = {e.choices for e in edges if e.operation != "skip_connect"}
    assert rest == {("original", "identity", "none")}


def test_one_cell_for_both_places_shares_theta():
    edges = dnat.find_edges(dnat.trace(small("resblock"), images(2, 16)))
    assert {e.group for e in edges if e.key.endswith("nodes.1.1")} == {"cell:1.1"}


def test_an_edge_with_stride_becomes_a_reduction():
    """Its weights are trained in the relaxed network, and cost what the count says."""
    network, x = small("darts_v2"), images(2, 16)
    edges = dnat.find_edges(dnat.trace(network, x))
    (edge,) = (e for e in edges if e.key == "cells.1.nodes.0.0")
    assert edge.operation == "max_pool_3x3"
    assert edge.shape_in != edge.shape_out
    relaxed = dnat.relax(network, edges)
    compact = dnat.discretize(relaxed, {edge.key: "identity"}, x)
    (made,) = (m for n, m in compact.named_modules() if n.startswith(edge.key) and isinstance(m, FactorizedReduce))
    trained = relaxed.network.get_submodule(f"{edge.key}.{IDENTITY_NAME}")
    assert torch.equal(made.conv1.weight, trained.conv1.weight)
    wanted = Costs(edges).of({edge: "identity"})
    assert (
        dnat.cost(compact, x).madds
        == wanted
        == dnat.cost(network, x).madds + edge.shape_in[0] * math.prod(edge.shape_out)
    )


def test_a_reduction_of_nothing_is_refused():
    """The norm of a reduction makes a constant of zeros, which cannot be dropped."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
            self.pool, self.null = nn.MaxPool2d(2), NullEdge(4, 4, 2)
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            left, right = self.a(x), self.b(x)
            x = self.pool(left + right) + self.null(left)
            return self.fc(x.mean((2, 3)))

    network, x = Network(), images(2, 8)
    edges = {e.key: e for e in dnat.find_edges(dnat.trace(network, x))}
    assert edges["a"].choices == ("original", "none")
    found = problems({edges["a"]: "none", edges["null"]: "identity"})
    assert found == ["null: its reduction would be given nothing"]
    for alone in ({edges["a"]: "none"}, {edges["null"]: "identity"}):
        assert not problems(alone)
    relaxed = dnat.relax(network, edges.values())
    relaxed.architecture.theta.data[:] = torch.tensor([0.0, 2.0, -1.0])
    choices = dnat.select(relaxed)
    assert choices["null"] != "identity" or choices["a"] != "none"
    dnat.discretize(relaxed.train(), choices, x)


def test_null_edges_can_be_left_out():
    network = small("snas_aggressive", skips=False)
    left = [n for n, m in network.named_modules() if isinstance(m, NullEdge)]
    assert left == [f"cells.{i}.nodes.{j}.0" for i in (1, 2) for j in (2, 3)]  # nodes that have nothing else
    plain, x = small("snas_aggressive"), images(2, 16)
    assert sum(isinstance(m, NullEdge) for m in plain.modules()) == 12
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(network, x, False), outputs(plain, x, False), strict=True)
    )


def test_null_edges_are_edges():
    network = small("resblock")
    found = {edge.key: edge for edge in dnat.find_edges(dnat.trace(network, images(2, 16))) if edge.kind == "skip"}
    assert sorted(found) == [f"cells.{cell}.nodes.{node}.0" for cell in range(3) for node in range(3)]
    assert all(edge.choices == ("original", "identity") for edge in found.values())


@pytest.mark.parametrize("options", [{"drop_path": 0.3}, {"auxiliary": True, "in_channels": 1}])
def test_drop_path_and_auxiliary_heads_are_transformed(options):
    size = 32 if "auxiliary" in options else 16
    x = torch.randn(2, options.get("in_channels", 3), size, size)
    assert not transformed(small("darts_v2", **options), x).undone


def test_imagenet_cells_are_transformed():
    torch.manual_seed(0)
    network = CellNetwork("darts_v2", **{**IMAGENET, "channels": 4, "layers": 3, "num_classes": 5})
    assert not transformed(network, images(2, 64)).undone


def test_what_an_auxiliary_head_gives():
    network, x = small("darts_v1", auxiliary=True), images(2, 32)
    found = network.train()(x)
    assert scores(found) is found.logits
    assert found.logits.shape == found.auxiliary.shape == (2, 5)
    found.auxiliary.sum().backward()
    assert network.stem0[0].weight.grad.any()
    assert scores(network.eval()(x)).shape == (2, 5)
    with torch.device("meta"):
        head = CellNetwork("darts_v1", 4, 3, 7, stem_stride=8, auxiliary=True)
        assert head(torch.zeros(2, 3, 224, 224)).auxiliary.shape == (2, 7)


def test_drop_path():
    module, x = DropPath(0.5), torch.ones(400, 2, 3, 3)
    torch.manual_seed(1)
    y = module(x)
    torch.manual_seed(1)
    assert torch.equal(y, module(x))
    whole = y.flatten(1)
    assert torch.equal(whole.amin(1), whole.amax(1))
    assert set(whole[:, 0].tolist()) == {0.0, 2.0}
    assert 150 < (whole[:, 0] == 0).sum() < 250
    assert torch.equal(module.eval()(x), x)
    network, plain, x = small("darts_v1", drop_path=0.2), small("darts_v1"), images(2, 16)
    places = {name.split(".")[-1] for name, m in network.named_modules() if isinstance(m, DropPath)}
    assert places == {"drop_path"}
    assert not any(isinstance(m, DropPath) for m in plain.modules())
    assert torch.equal(network.eval()(x), plain.eval()(x))
    assert not torch.equal(network.train()(x), plain.train()(x))
    set_drop_path(network, 0.0)
    assert torch.equal(network.train()(x), plain.train()(x))
