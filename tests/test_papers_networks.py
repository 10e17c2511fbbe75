import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dnat
from dnat.discretization import discretization
from dnat.networks.mobilenet import MobileNetV2
from dnat.networks.nasbench import EDGES, NAMES, NASBench201, NASBenchMacro, parse_cell
from dnat.networks.proxyless import Proxyless
from dnat.networks.resnet import ResNet
from dnat.networks.vgg import VGG
from dnat.operations import CellOperation, NullEdge

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def size(make, pixels, **options):
    """Parameters and multiply-adds, counted without computing anything."""
    with torch.device("meta"):
        network, x = make(**options).eval(), torch.zeros(1, 3, pixels, pixels)
    with FlopCounterMode(display=False) as counter:
        network(x)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("make", "options", "params", "madds"),
    [
        (VGG, {}, "15.254", "313.73"),
        (VGG, {"skips": True}, "15.254", "313.73"),
        (MobileNetV2, {}, "2.297", "91.15"),
        (MobileNetV2, {"skips": True}, "2.297", "91.15"),
        (MobileNetV2, {"small": False, "num_classes": 1000}, "3.505", "300.8"),
        (MobileNetV2, {"small": False, "num_classes": 1000, "skips": True}, "3.505", "300.8"),
        (Proxyless, {"layout": "mobile", "small": False, "num_classes": 1000}, "4.081", "320.4"),
        (Proxyless, {"layout": "cpu", "small": False, "num_classes": 1000}, "4.362", "439.2"),
        (Proxyless, {"layout": "gpu", "small": False, "num_classes": 1000}, "7.120", "465.3"),
        (Proxyless, {"layout": "mobile"}, "2.812", "96.8"),
        (Proxyless, {"layout": "gpu"}, "5.408", "138.7"),
        (Proxyless, {"layout": "cpu"}, "2.943", "125.0"),
    ],
)
def test_sizes_in_millions(make, options, params, madds):
    found = size(make, 32 if options.get("small", True) else 224, **options)
    for number, wanted in zip(found, (params, madds), strict=True):
        assert f"{number / 1e6:.{len(wanted.partition('.')[2])}f}" == wanted


@pytest.mark.parametrize("cell", ["000000", "333333", "222222", "301420"])
def test_sizes_of_nasbench_201(cell):
    three, one = cell.count("3"), cell.count("2")
    wanted = (73306 + 243040 * three + 28000 * one, 7_783_050 + 35_389_440 * three + 3_932_160 * one)
    # The benchmark's count is larger by 10, the number of the classifier's biases; additions are not counted here.
    assert size(NASBench201, 32, cell=cell) == (wanted[0], wanted[1] - 10)


@pytest.mark.parametrize("code", ["00000000", "11111111", "22222222", "01201210"])
def test_sizes_of_nasbench_macro(code):
    """By the formulas of the published train/model.py, written out: no biases but the classifier's."""
    channels, side = 32, 32
    params, madds = 3 * 9 * 32 + 2 * 32, 3 * 9 * 32 * side**2
    for i, digit in enumerate(code):
        first = i in (0, 2, 5)
        out, hidden, k = channels * (2 if first else 1), channels * 3 * int(digit), 1 + 2 * int(digit)
        later = side // 2 if first else side
        if digit != "0":
            params += channels * hidden + 2 * hidden + hidden * k**2 + 2 * hidden + hidden * out + 2 * out
            madds += channels * hidden * side**2 + (hidden * k**2 + hidden * out) * later**2
        elif first:
            params, madds = params + channels * out + 2 * out, madds + channels * out * later**2
        channels, side = out, later
    params += channels * 1280 + 2 * 1280 + 1280 * 10 + 10
    madds += channels * 1280 * side**2 + 1280 * 10
    assert size(NASBenchMacro, 32, code=code) == (params, madds)
    assert not any(isinstance(m, nn.ReLU6) for m in NASBenchMacro(code, width=0.1).modules())


def bare_operation(name, channels):
    """NAS-Bench-201's operations written out, as its ops.py has them."""
    if name == "none":
        return NullEdge(channels, channels, 1)
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    size = 1 if name == "nor_conv_1x1" else 3
    conv = nn.Conv2d(channels, channels, size, 1, size // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels))


class BareCell(nn.Module):
    """A cell whose edges are the bare modules."""

    def __init__(self, operations, channels):
        super().__init__()
        self.edges = nn.ModuleList(bare_operation(name, channels) for name in operations)

    def forward(self, x):
        e = self.edges
        first = e[0](x)
        second = e[1](x) + e[2](first)
        return e[3](x) + e[4](first) + e[5](second)


@pytest.mark.parametrize("cell", [CELL, "333333", "123401", "444211"])
def test_cells_of_nasbench_201_compute_what_bare_modules_do(cell, monkeypatch):
    """The same weights are drawn; outputs, statistics and sizes are equal to the bit."""
    torch.manual_seed(0)
    network, x = NASBench201(cell, width=4, cells=2, num_classes=5), torch.randn(3, 3, 8, 8)
    monkeypatch.setattr("dnat.networks.nasbench.Cell201", BareCell)
    torch.manual_seed(0)
    twin = NASBench201(cell, width=4, cells=2, num_classes=5)
    ours, theirs = network.state_dict(), twin.state_dict()
    assert [k.replace(".op.", ".") for k in ours] == list(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    for training in (True, False):
        outputs = [n.train(training)(x) for n in (network, twin)]
        assert torch.equal(*outputs)
        for n, output in zip((network, twin), outputs, strict=True):
            n.zero_grad()
            output.square().sum().backward()
        for a, b in zip(network.parameters(), twin.parameters(), strict=True):
            # Autograd adds the same terms up in another order.
            assert (a.grad is None and b.grad is None) or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))
    assert dnat.cost(network, x) == dnat.cost(twin, x)


def test_edges_of_nasbench_201_are_those_of_its_cell_and_shared_by_all_stages():
    network = NASBench201("342313", width=4, cells=2)
    everything = dnat.find_edges(dnat.trace(network, torch.zeros(2, 3, 8, 8)), everything=True)
    edges = [e for e in everything if e.kind == "operation"]
    assert all(e.kind == "other" and e.choices == ("original",) for e in everything if e not in edges)
    wanted = {f"layers.{i}.edges.{j}" for i in (0, 1, 3, 4, 6, 7) for j in range(6)}  # 2 and 5 are reductions
    assert {e.key for e in edges} == wanted
    names = [NAMES[name] for name in parse_cell("342313")]
    assert [e.operation for e in edges[:6]] == [names[int(e.key[-1])] for e in edges[:6]]
    shared = {e.group: {f.key for f in edges if f.group == e.group} for e in edges}
    assert len(shared) == 6
    for i, (source, target) in enumerate(EDGES):
        assert shared[f"cell:{target - 1}.{source}"] == {k for k in wanted if k.endswith(f".{i}")}
    assert sum(isinstance(m, CellOperation) for m in network.modules()) == 36
    offered = dnat.find_edges(dnat.trace(network, torch.zeros(2, 3, 8, 8)), "nat++")[0].choices
    assert offered[:4] == ("original", "sep_conv_3x3", "dil_conv_3x3", "conv_1x1")


def test_both_forms_of_a_cell():
    assert parse_cell(CELL) == parse_cell("301420")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("30142", "has 5 digits; 6 are needed"),
        ("301450", "position 4: '5' is not a digit from 0 to 4"),
        (CELL.replace("avg_pool", "avg_pol"), "position 42: unknown operation.*did you mean 'avg_pool_3x3'"),
        (CELL.replace("skip_connect~1", "skip_connect~0"), "position 38: expected '1|'".replace("|", r"\|")),
        (CELL + "x", "expected the end, not 'x'"),
        ("|", "position 1: expected an operation"),
    ],
)
def test_cells_that_cannot_be_read(text, words):
    with pytest.raises(ValueError, match=words):
        parse_cell(text)


def test_codes_and_layouts_that_cannot_be_read():
    with pytest.raises(ValueError, match="position 7: '3' is not a digit from 0 to 2"):
        NASBenchMacro("01201213")
    with pytest.raises(ValueError, match="did you mean 'mobile'"):
        Proxyless("mobil")


WAYS = [
    (ResNet, {"blocks": 1, "width": 4, "skips": True}),
    (ResNet, {"blocks": 1, "width": 4, "stem_stride": 2}),
    (VGG, {"width": 2}),
    (VGG, {"width": 2, "skips": True}),
    (MobileNetV2, {"width": 0.1}),
    (MobileNetV2, {"width": 0.1, "skips": True}),
    (MobileNetV2, {"width": 0.1, "small": False, "skips": True}),
    (Proxyless, {"layout": "mobile", "width": 0.1}),
    (Proxyless, {"layout": "gpu", "width": 0.1}),
    (Proxyless, {"layout": "cpu", "width": 0.1, "small": False}),
    (NASBench201, {"cell": CELL, "width": 4, "cells": 1}),
    (NASBenchMacro, {"code": "01201210", "width": 0.1}),
]


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize(("make", "options"), WAYS)
def test_the_whole_way(make, options, mode):
    """Bit-equal at the start; a random legal set of choices computes what its relaxed form does, in both modes."""
    torch.manual_seed(0)
    network, x = make(**options), torch.randn(4, 3, 32, 32)
    edges = dnat.find_edges(dnat.trace(network, x))
    relaxed = dnat.relax(network, edges, mode)
    for training in (True, False):
        torch.manual_seed(1)
        wanted = network.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(wanted, relaxed.train(training)(x))
    relaxed.architecture.theta.data.normal_(0.2, 1)
    made = discretization(relaxed, dnat.select(relaxed), x)
    assert set(made.choices.values()) > {"original"}
    assert not made.undone
    relaxed.set_one_hot(made.choices)
    assert made.network.eval()(x).shape == (4, 10)
    assert torch.allclose(made.network(x), relaxed(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options"), [(m, o) for m, o in WAYS if "skips" in o], ids=lambda v: getattr(v, "__name__", None)
)
def test_null_edges_change_nothing(make, options):
    torch.manual_seed(0)
    with_skips, x = make(**options), torch.randn(4, 3, 32, 32)
    plain = make(**options | {"skips": False})
    assert sum(isinstance(m, NullEdge) for m in with_skips.modules()) >= 7
    # The same weights, though under other names where null edges stand between them.
    assert [tuple(t.shape) for t in plain.state_dict().values()] == [
        tuple(t.shape) for t in with_skips.state_dict().values()
    ]
    plain.load_state_dict(dict(zip(plain.state_dict(), with_skips.state_dict().values(), strict=True)))
    for training in (True, False):
        outputs = []
        for network in (plain, with_skips):
            torch.manual_seed(1)
            outputs.append(network.train(training)(x))
        assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("make", "options"), [w for w in WAYS if "stem_stride" not in w[1] and w[1].get("small", True)]
)
def test_a_stem_with_stride_takes_larger_images(make, options):
    """Of images twice as large everything behind the first convolution has its usual size, and costs the same."""
    with torch.device("meta"):
        usual, large = make(**options).eval(), make(**options, stem_stride=2).eval()
        small, big = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 64, 64)
        assert dnat.cost(usual, small) == dnat.cost(large, big)
