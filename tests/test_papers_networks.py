import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dnat
from dnat.networks.mobilenet import MobileNetV2
from dnat.networks.nasbench import NASBench201, NASBenchMacro, parse_cell
from dnat.networks.proxyless import Proxyless
from dnat.networks.vgg import VGG

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


@pytest.mark.parametrize(
    ("make", "options"),
    [
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
    ],
)
def test_the_whole_way(make, options):
    """Bit-equal at the start; a random legal set of choices computes what its relaxed form does."""
    torch.manual_seed(0)
    network, x = make(**options).eval(), torch.randn(2, 3, 32, 32)
    edges = dnat.find_edges(dnat.trace(network, x))
    relaxed = dnat.relax(network, edges)
    assert torch.equal(network(x), relaxed.eval()(x))
    relaxed.architecture.theta.data.normal_(0.2, 1)
    choices = dnat.select(relaxed)
    assert set(choices.values()) > {"original"}
    relaxed.set_one_hot(choices)
    compact = dnat.discretize(network, choices, x)
    assert compact.eval()(x).shape == (2, 10)
    if not options.get("skips"):  # a connected null edge has fresh weights on either side
        assert torch.allclose(compact.eval()(x), relaxed(x), rtol=1e-3, atol=1e-5)
