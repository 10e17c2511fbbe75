import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import SMALL, images, losses_by_hand, nones_by_hand, small
from torch import nn

import dnat
from dnat.edges import legal_edges, nones_once, problems, replacements
from dnat.tracing import losses


def edges_of(name):
    return dnat.find_edges(dnat.trace(small(name), images()))


def test_edges_of_a_residual_network():
    found = {e.key: e for e in edges_of("residual")}
    assert {k: e.choices for k, e in found.items()} == {
        "conv1>norm1": ("original", "identity"),
        "conv2": ("original", "identity", "none"),
    }
    edge = found["conv1>norm1"]
    assert (edge.kind, edge.operation, edge.shape_in, edge.madds) == (
        "unit",
        "conv_3x3",
        (4, 8, 8),
        64 * 4 * 4 * 9,
    )


def test_either_branch_may_go_but_not_both():
    left, right = edges_of("two branches")
    assert "none" in left.choices
    assert "none" in right.choices
    assert not problems({left: "none", right: "original"})
    assert problems({left: "none", right: "none"})


def test_a_shared_module_is_one_edge():
    network = small("shared")
    assert [e.key for e in edges_of("shared")] == ["conv"]
    assert network.get_submodule("alias") is network.get_submodule("conv")


def test_an_output_that_is_written_in_place_asks_for_a_copy():
    assert {e.key: e.copies for e in edges_of("in place")} == {"conv1>norm1": False, "conv2>norm2": True}


def test_no_choice_means_no_edge():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
    assert dnat.find_edges(dnat.trace(network, images())) == ()


@pytest.mark.parametrize(
    ("name", "skips", "edges", "groups"),
    [("resnet20", False, 16, 3), ("resnet20", True, 43, 9), ("resnet56", False, 52, 3), ("resnet8", False, 4, 3)],
)
def test_edges_of_the_papers_networks(name, skips, edges, groups):
    network = dnat.build(name, skips=skips, seed=0)
    found = dnat.find_edges(dnat.trace(network, images(2, 32)))
    assert len(found) == edges
    assert len({e.group for e in found}) == groups
    assert sum(e.kind == "skip" for e in found) == (27 if skips else 0)


def test_branches_and_blocks_of_torchvision():
    network = dnat.build("torchvision:mobilenet_v2")
    found = {e.key: e for e in dnat.find_edges(dnat.trace(network, images(2, 32)))}
    branch = found["features.3.conv"]
    assert (branch.kind, branch.choices) == ("branch", ("original", "identity", "none"))
    # The last unit ends where the branch ends: none is offered once.
    assert "features.3.conv.2>features.3.conv.3" not in found


def test_a_block_without_a_shortcut_is_an_edge():
    found = {e.key: e for e in edges_of("sequential")}
    assert found["1"].kind == "block"
    assert found["1"].choices == ("original", "identity")
    assert {"1.0", "1.2"} <= found.keys()


def test_keys_groups_and_choices_are_the_same_in_every_process():
    """In two others, in which Python hashes text in other ways and sets of it have other orders."""
    code = """if True:
        from reference import SMALL, images, small
        import dnat
        for name in SMALL:
            for edge in dnat.find_edges(dnat.trace(small(name), images())):
                print(name, edge.key, edge.group, *edge.choices)
    """
    found = []
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        here = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        found.append(subprocess.run(command, env=here, check=True, capture_output=True, text=True).stdout)
    lines = [f"{n} {e.key} {e.group} {' '.join(e.choices)}" for n in SMALL for e in edges_of(n)]
    assert found[0].splitlines() == found[1].splitlines() == lines
    assert len({(name, key) for name, key, *_ in (line.rsplit(" ", 2) for line in lines)}) == len(lines)


def test_groups_are_named_by_their_block_and_the_place_in_it():
    """They are written into records and read by people."""
    found = {e.key: e.group for e in edges_of("resnet8 with skips")}
    assert found["layer1.0.skip2"] == "layer1.0.skip2"  # of no other kind: its block keeps the size
    block = found["layer2.0.skip2"].removesuffix(":skip2")
    assert re.fullmatch("SkipBlock-[0-9a-f]{12}", block)
    assert found["layer3.0.conv2>layer3.0.bn2"] == f"{block}:conv2>bn2"


def test_cell_mode_groups_repeated_blocks():
    network = dnat.build("resnet20", seed=0)
    groups = {}
    for edge in dnat.find_edges(dnat.trace(network, images(2, 32))):
        groups.setdefault(edge.group, []).append(edge.key)
    sizes = sorted(map(len, groups.values()))
    assert sizes == [2, 7, 7]  # second convolutions of the two reducing blocks, and both of the seven others


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="unknown space 'dnta'; did you mean 'dnat'"):
        dnat.find_edges(dnat.trace(small("residual"), images()), "dnta")


def test_dtype_matters_for_identity():
    class Widen(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

        def forward(self, x):
            return self.block(x).double()

    found = dnat.find_edges(dnat.trace(Widen(), torch.ones(2, 3)))
    assert all("none" not in e.choices for e in found)


def test_a_branch_of_a_concatenation_may_go_but_not_all():
    edges = {e.key: e for e in edges_of("concatenating")}
    assert edges["right"].kind == "branch"
    assert "none" in edges["right"].choices
    assert "none" in edges["left"].choices  # it is called twice, and both calls stand beside something
    assert not problems({edges["left"]: "none", edges["right"]: "none"})  # the input stands there, too


def test_a_gate_is_an_edge_and_its_product_no_shortcut():
    edges = {e.key: e for e in edges_of("gated")}
    assert edges["gate"].choices == ("original", "identity")


def test_every_operation_says_why_it_may_not_change():
    found = dnat.find_edges(dnat.trace(small("residual"), images()), everything=True)
    for edge in found:
        assert {c for c, _ in edge.refused} | set(edge.choices) == {"original", "identity", "none"}
        assert all(why for _, why in edge.refused)
    reasons = {e.key: dict(e.refused) for e in found}
    assert reasons["head"]["identity"] == "its input is 4, its output 5"
    assert reasons["head"]["none"] == "an output would no longer depend on the input"
    assert reasons["conv1>norm1"]["none"] == "the network: add would join data with a constant"


def test_of_a_series_the_last_offers_none():
    """Both zeros would reach the addition; the last one's takes everything before it along."""

    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)

        def forward(self, x):
            x = self.stem(x)
            return x + self.two(torch.relu(self.one(x)))

    one, two = dnat.find_edges(dnat.trace(Series(), images()))
    assert (one.choices, two.choices) == (("original", "identity"), ("original", "identity", "none"))
    assert dict(one.refused) == {"none": "the same as none at two"}


def test_modules_that_wrap_each_other_are_one_edge():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    network = nn.Sequential(nn.Sequential(inner), nn.Conv2d(3, 5, 1))
    assert [e.key for e in dnat.find_edges(dnat.trace(network, images()))] == ["0", "0.0.0", "0.0.2"]


def test_a_block_around_one_unit_counts_where_it_may_become_more():
    """A convolution whose norm comes after its activation: only the whole gives zeros to the sum (ConvMixer)."""

    class Residual(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.fn = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GELU(), *last)

        def forward(self, x):
            return x + self.fn(x)

    def choices(last):
        network = nn.Sequential(Residual(last), nn.Conv2d(3, 5, 1))
        return {e.key: e.choices for e in dnat.find_edges(dnat.trace(network, images()))}

    assert choices([nn.BatchNorm2d(3)]) == {
        "0.fn": ("original", "identity", "none"),
        "0.fn.0": ("original", "identity"),
    }
    assert choices([]) == {"0.fn.0": ("original", "identity", "none")}


def test_timms_norm_without_an_activation_is_a_norm(timm):
    network = dnat.build("timm:repvgg_a0", num_classes=5)
    edges = dnat.find_edges(dnat.trace(network, images(2, 32)))
    assert any(e.key.endswith("conv_kxk.conv>" + e.entry.removesuffix(".conv") + ".bn") for e in edges)


@pytest.mark.parametrize("name", [*SMALL, "cells", "bottlenecks"])
def test_what_is_legal_is_what_whole_passes_say(name):
    networks = {
        "cells": lambda: dnat.build("darts_v2", layers=2, channels=4),
        "bottlenecks": lambda: dnat.build("torchvision:densenet121", num_classes=3),
    }
    network = networks[name]() if name in networks else small(name)
    program, draw = dnat.trace(network, images(2, 32 if name in networks else 8)), random.Random(name)
    edges = legal_edges(program)
    once = nones_once(edges)
    expected = nones_by_hand(edges)
    for edge, after in zip(edges, once, strict=True):
        assert after.choices == tuple(c for c in edge.choices if c != "none" or edge.key not in expected)
        if edge.key in expected:
            assert after.refused[-1] == ("none", f"the same as none at {expected[edge.key]}")
    sets = [{edge: "none"} for edge in draw.sample(edges, min(len(edges), 40))]
    for share in (0.1, 0.3, 0.7) * 10:
        changing = [edge for edge in edges if draw.random() < share]
        sets.append({edge: draw.choice(("identity", "none")) for edge in changing})
    for choices in sets:
        for trace in program.traces:
            assert_same_losses(trace, *replacements(trace, choices))


def assert_same_losses(trace, zero, same):
    """The reasons of `losses` are those of whole passes, one by one and in their order."""
    reasons, where = losses(trace, zero, same), losses_by_hand(trace, zero, same)
    assert len(reasons) == len(where)
    for reason, place in zip(reasons, where, strict=True):
        words = {"output": "an output would", "every": "every input of", "data": "would join data"}
        assert words[place.split()[0]] in reason
        if place != "output":
            assert reason.startswith(trace.where(trace.operations[int(place.split()[-1])]))
