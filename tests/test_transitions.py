import itertools
import json
import math
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import dnat
from dnat.moves import (
    LAYERS,
    PRIMITIVES,
    OperationCost,
    Violation,
    cost_of,
    legal,
    mask_of,
    masked_softmax,
    read_transitions,
    transitions,
)
from dnat.networks.cells import operation
from dnat.networks.genotypes import OPERATIONS, CellEdge, CellGenotype, Genotype, published

# docs/methods.md B2, written out.
NAT2 = {
    "conv_5x5": "conv_5x5 conv_3x3 conv_1x1 sep_conv_5x5 sep_conv_3x3 dil_conv_5x5 dil_conv_3x3 max_pool_5x5 "
    "max_pool_3x3 avg_pool_5x5 avg_pool_3x3 skip_connect null",
    "conv_3x3": "conv_3x3 conv_1x1 sep_conv_3x3 dil_conv_3x3 max_pool_3x3 avg_pool_3x3 skip_connect null",
    "conv_1x1": "conv_1x1 skip_connect null",
    "sep_conv_5x5": "sep_conv_5x5 sep_conv_3x3 dil_conv_5x5 dil_conv_3x3 max_pool_5x5 max_pool_3x3 avg_pool_5x5 "
    "avg_pool_3x3 skip_connect null",
    "sep_conv_3x3": "sep_conv_3x3 dil_conv_3x3 max_pool_3x3 avg_pool_3x3 skip_connect null",
    "dil_conv_5x5": "dil_conv_5x5 dil_conv_3x3 max_pool_5x5 max_pool_3x3 avg_pool_5x5 avg_pool_3x3 "
    "skip_connect null",
    "dil_conv_3x3": "dil_conv_3x3 max_pool_3x3 avg_pool_3x3 skip_connect null",
    "avg_pool_5x5": "avg_pool_5x5 avg_pool_3x3 max_pool_5x5 max_pool_3x3 skip_connect null",
    "avg_pool_3x3": "avg_pool_3x3 max_pool_3x3 skip_connect null",
    "max_pool_5x5": "max_pool_5x5 max_pool_3x3 avg_pool_5x5 avg_pool_3x3 skip_connect null",
    "max_pool_3x3": "max_pool_3x3 avg_pool_3x3 skip_connect null",
    "skip_connect": "skip_connect null",
    "null": "null skip_connect",
}
# What is ours.
SEVEN = (
    "sep_conv_5x5 sep_conv_3x3 dil_conv_5x5 dil_conv_3x3 max_pool_5x5 avg_pool_5x5 max_pool_3x3 avg_pool_3x3 "
    "skip_connect null"
)
OURS = {
    "sep_conv_7x7": SEVEN,
    "conv_1x7_7x1": SEVEN,
    "conv_7x1_1x7": SEVEN,
    "conv_1x3_3x1": "sep_conv_3x3 dil_conv_3x3 max_pool_3x3 avg_pool_3x3 skip_connect null",
    "sep_conv_1x1": "skip_connect null",
    "dil_conv_1x1": "skip_connect null",
    "max_pool_2x2": "skip_connect null",
    "avg_pool_2x2": "skip_connect null",
}
# Of convolutions that no genotype names: the same rule.
LARGE = (
    "conv_5x5 conv_3x3 sep_conv_5x5 sep_conv_3x3 dil_conv_5x5 dil_conv_3x3 conv_1x1 max_pool_5x5 avg_pool_5x5 "
    "max_pool_3x3 avg_pool_3x3 skip_connect null"
)
POOLS5 = "max_pool_5x5 avg_pool_5x5 max_pool_3x3 avg_pool_3x3 skip_connect null"
OTHERS = {
    "conv_7x7": LARGE,
    "conv_9x9": LARGE,
    "conv_11x11": LARGE,
    "dwconv_11x11": f"dwconv_9x9 dwconv_7x7 dwconv_5x5 dwconv_3x3 {POOLS5}",
    "dwconv_9x9": f"dwconv_7x7 dwconv_5x5 dwconv_3x3 {POOLS5}",
    "dwconv_7x7": f"dwconv_5x5 dwconv_3x3 {POOLS5}",
    "dwconv_5x5": f"dwconv_3x3 {POOLS5}",
    "dwconv_3x3": "max_pool_3x3 avg_pool_3x3 skip_connect null",
}
# docs/methods.md B3: 128 channels, 32 x 32 pixels; millions of multiply-adds, thousands of weights.
FIGURE = {
    "conv_5x5": ("419.4", "409.6"),
    "conv_3x3": ("151.0", "147.5"),
    "sep_conv_5x5": ("40.1", "39.2"),
    "sep_conv_3x3": ("35.9", "35.1"),
    "dil_conv_5x5": ("20.1", "19.6"),
    "dil_conv_3x3": ("18.0", "17.5"),
    "conv_1x1": ("16.8", "16.4"),
    "max_pool_5x5": ("3.3", "0.0"),
    "avg_pool_5x5": ("3.3", "0.0"),
    "max_pool_3x3": ("1.2", "0.0"),
    "avg_pool_3x3": ("1.2", "0.0"),
    "skip_connect": ("0.1", "0.0"),
    "null": ("0.0", "0.0"),
}
NAT2_TABLE = transitions("nat++")

names = st.sampled_from(OPERATIONS)
with_layers = st.sampled_from([*OPERATIONS, *LAYERS])


def test_the_thirteen():
    assert set(PRIMITIVES) == set(NAT2)
    assert [PRIMITIVES.index(name) for name in ("max_pool_3x3", "skip_connect", "conv_1x1", "null")] == [
        0,
        4,
        9,
        12,
    ]
    assert len(PRIMITIVES) == len(set(PRIMITIVES)) == 13


@pytest.mark.parametrize("name", NAT2)
def test_the_table_of_nat2(name):
    found = NAT2_TABLE[name]
    assert set(found) == set(NAT2[name].split())
    assert len(found) == len(NAT2[name].split())


@pytest.mark.parametrize("name", OURS)
def test_what_the_table_of_nat2_says_of_other_operations(name):
    assert NAT2_TABLE[name] == (name, *OURS[name].split())


def test_every_operation_has_a_row():
    assert set(NAT2) | set(OURS) == set(OPERATIONS)
    assert set(OTHERS) == set(LAYERS)
    assert set(NAT2_TABLE) == set(transitions("nat")) == {*OPERATIONS, *LAYERS}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_table_of_nat2_says_of_layers(name):
    """A pool and a depthwise convolution of one size cost the same, so that nothing is said of their order."""
    found = NAT2_TABLE[name]
    assert found[0] == name
    assert set(found[1:]) == set(OTHERS[name].split())
    assert len(found) == 1 + len(OTHERS[name].split())


def test_only_depthwise_convolutions_become_depthwise_ones():
    for name, row in NAT2_TABLE.items():
        depthwise = {target for target in row[1:] if target.startswith("dwconv")}
        assert not depthwise or name.startswith("dwconv")


def test_the_order_is_itself_then_falling_cost():
    assert NAT2_TABLE["conv_5x5"] == (
        *("conv_5x5", "conv_3x3", "sep_conv_5x5", "sep_conv_3x3", "dil_conv_5x5", "dil_conv_3x3", "conv_1x1"),
        *("max_pool_5x5", "avg_pool_5x5", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "null"),
    )
    assert NAT2_TABLE["avg_pool_3x3"] == ("avg_pool_3x3", "max_pool_3x3", "skip_connect", "null")
    for name, row in NAT2_TABLE.items():
        costs = [cost_of(other, 128, 32, 32).madds for other in row[1:]]
        assert row[0] == name
        assert costs == sorted(costs, reverse=True)


def test_the_table_of_nat():
    table = transitions("nat")
    for name in set(OPERATIONS) - {"skip_connect", "null"}:
        assert table[name] == (name, "skip_connect", "null")
    assert table["skip_connect"] == ("skip_connect", "null")
    assert table["null"] == ("null", "skip_connect")
    assert transitions("dnat") == table


def test_tables_are_frozen_and_unknown_ones_named():
    with pytest.raises(TypeError):
        NAT2_TABLE["null"] = ("conv_3x3",)
    with pytest.raises(
        ValueError, match=r"unknown space 'nat\+'; did you mean 'nat\+\+'\? Known: dnat, nat, nat\+\+"
    ):
        transitions("nat+")


@given(with_layers, st.sampled_from(["nat", "nat++"]), st.data())
def test_what_can_be_reached_in_two_steps_can_be_in_one(name, space, data):
    table = transitions(space)
    first = data.draw(st.sampled_from(table[name]))
    assume("null" not in (name, first))
    second = data.draw(st.sampled_from(table[first]))
    assert second in table[name]


@given(with_layers, st.data(), st.integers(3, 600), st.integers(1, 64), st.integers(1, 64))
def test_no_transition_costs_more(name, data, channels, height, width):
    """Without a stride, and apart from null, which may become a skip."""
    assume(name != "null" and (channels >= 5 or name in PRIMITIVES))
    target = data.draw(st.sampled_from(NAT2_TABLE[name]))
    before, after = (cost_of(each, channels, height, width) for each in (name, target))
    assert after.params <= before.params
    pools = [each.removeprefix("max").removeprefix("avg") for each in (name, target)]
    if pools[0] == pools[1]:
        assert after == before
    elif name.startswith("dwconv") and "pool" in target:
        assert after.madds <= before.madds  # the same for a pool of its size
    else:
        assert after.madds < before.madds


def test_where_that_ends():
    """With fewer channels, or a stride, the docstring's exceptions are there."""
    assert cost_of("conv_3x3", 2, 8, 8).madds < cost_of("sep_conv_3x3", 2, 8, 8).madds
    assert cost_of("conv_1x3_3x1", 4, 8, 8).madds < cost_of("sep_conv_3x3", 4, 8, 8).madds
    assert cost_of("max_pool_3x3", 16, 8, 8).madds < cost_of("skip_connect", 16, 8, 8, stride=2).madds


@given(with_layers, st.sampled_from(["nat", "nat++"]))
def test_everything_may_stay_and_become_skip_or_null(name, space):
    assert {name, "skip_connect", "null"} <= set(transitions(space)[name])
    assert set(transitions(space)["null"]) == {"null", "skip_connect"}


@pytest.mark.parametrize("name", FIGURE)
def test_costs_are_those_of_the_figure(name):
    found = cost_of(name, 128, 32, 32)
    assert (f"{found.madds / 1e6:.1f}", f"{found.params / 1e3:.1f}") == FIGURE[name]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_costs_are_those_of_the_modules(name, stride):
    """Where `dnat.cost` counts at all: not in pools, skips and nulls."""
    with torch.device("meta"):
        module = operation(name, 12, stride)
        counted = dnat.cost(module, torch.zeros(1, 12, 8, 20)).madds
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))
    found = cost_of(name, 12, 8 // stride, 20 // stride, stride=stride)
    assert found.params == weights
    if weights:
        assert found.madds == counted
    else:
        assert counted == 0
        assert (found.madds == 0) == (name == "null")


def test_costs_with_other_channels_behind():
    assert cost_of("conv_3x3", 4, 5, 6, 8) == OperationCost(4 * 8 * 9 * 30, 4 * 8 * 9)
    assert cost_of("conv_1x3_3x1", 4, 5, 6, 8) == OperationCost((16 + 32) * 3 * 30, (16 + 32) * 3)
    assert cost_of("sep_conv_3x3", 4, 5, 6, 8) == OperationCost((72 + 16 + 32) * 30, 72 + 16 + 32)
    assert cost_of("dil_conv_5x5", 4, 5, 6, 8) == OperationCost((100 + 32) * 30, 100 + 32)
    assert cost_of("skip_connect", 4, 5, 6, 8) == OperationCost(32 * 30, 32)
    assert cost_of("dwconv_7x7", 4, 5, 6) == OperationCost(4 * 49 * 30, 4 * 49)
    assert cost_of("dwconv_11x11", 4, 5, 6, 4) == OperationCost(4 * 121 * 30, 4 * 121)
    assert cost_of("conv_11x11", 4, 5, 6, 8) == OperationCost(4 * 8 * 121 * 30, 4 * 8 * 121)
    assert cost_of("max_pool_2x2", 4, 5, 6, 4) == OperationCost(4 * 4 * 30, 0)
    assert cost_of("null", 4, 5, 6, 8) == OperationCost(0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv_3x4", 4, 5, 6), "unknown operation 'conv_3x4'; did you mean 'conv_3x3'?"),
        (("conv_3x3", 0, 5, 6), r"at least 1, not \(0, 0, 5, 6, 1\)"),
        (("conv_3x3", 4, 5, 6, 0), r"at least 1, not \(4, 0, 5, 6, 1\)"),
        (("null", 4, -1, 6), r"at least 1, not \(4, 4, -1, 6, 1\)"),
        (("dwconv_3x3", 4, 5, 6, 8), "dwconv_3x3 keeps the channels: 4 cannot become 8"),
        (("avg_pool_3x3", 4, 5, 6, 8), "avg_pool_3x3 keeps the channels: 4 cannot become 8"),
    ],
)
def test_sizes_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        cost_of(*arguments)


def test_a_table_of_ones_own():
    rows = {
        "conv_3x3": ["null", "conv_5x5", "conv_3x3", "conv_1x1"],
        "null": ["null"],
        "skip_connect": ["conv_1x1"],
    }
    for table in (read_transitions(json.dumps(rows)), read_transitions(rows)):
        assert table["conv_3x3"] == ("conv_3x3", "null", "conv_5x5", "conv_1x1")
        assert table["skip_connect"] == ("skip_connect", "conv_1x1")
        assert all(table[name] == (name,) for name in set(OPERATIONS) - {"conv_3x3", "skip_connect"})
        with pytest.raises(TypeError):
            table["null"] = ()
    rows["conv_3x3"].clear()
    assert table["conv_3x3"][1:] == ("null", "conv_5x5", "conv_1x1")


@pytest.mark.parametrize("space", ["nat", "nat++"])
def test_published_tables_can_be_written_and_read(space):
    assert read_transitions(transitions(space)) == transitions(space)
    assert read_transitions(json.dumps(dict(transitions(space)))) == transitions(space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a table of transitions must be JSON: "),
        ("[" * 100_000, "a table of transitions must be JSON: "),
        ("[]", "a table of transitions must be an object of lists, not list"),
        ('{"conv_3x4": []}', "conv_3x4: unknown operation 'conv_3x4'; did you mean 'conv_3x3'?"),
        ('{"conv_3x3": "null"}', "conv_3x3 must be a list of operations, not str ('null')"),
        ('{"conv_3x3": {"null": 1}}', "conv_3x3 must be a list of operations, not dict ({'null': 1})"),
        (
            '{"conv_3x3": ["null", "skip_conect"]}',
            "conv_3x3[1]: unknown operation 'skip_conect'; did you mean 'skip_",
        ),
        ('{"conv_3x3": [3]}', "conv_3x3[0]: unknown operation 3"),
        ('{"conv_3x3": [["null"]]}', "conv_3x3[0]: unknown operation ['null']"),
        ('{"conv_3x3": ["null", "conv_1x1", "null"]}', "conv_3x3[2]: null is there already"),
        ('{"conv_3x3": [], "conv_3x3": ["null"]}', "conv_3x3 is there already"),
        (
            '{"null": ["skip_connect", "max_pool_3x3"]}',
            "null[1]: null may become skip_connect and nothing else, not max",
        ),
    ],
)
def test_what_is_no_table(text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is compared below
        read_transitions(text)
    assert str(caught.value).startswith(message)
    with pytest.raises(ValueError, match="3: unknown operation 3"):
        read_transitions({3: []})


def test_masks():
    for name in PRIMITIVES:
        mask = mask_of(name, NAT2_TABLE)
        assert mask.dtype == torch.bool
        assert {PRIMITIVES[i] for i in mask.nonzero().flatten().tolist()} == set(NAT2[name].split())
    several = mask_of(["conv_1x1", "null", "conv_1x1"], NAT2_TABLE, OPERATIONS)
    assert several.shape == (3, len(OPERATIONS))
    assert torch.equal(several[1], mask_of("null", NAT2_TABLE, OPERATIONS))
    assert mask_of([], NAT2_TABLE).shape == (0, 13)
    with pytest.raises(ValueError, match="unknown operation 'conv_3x4'"):
        mask_of("conv_3x4", NAT2_TABLE)
    with pytest.raises(ValueError, match="conv_1x3_3x1 could not stay: it is not among max_pool_3x3, "):
        mask_of(["null", "conv_1x3_3x1"], NAT2_TABLE)


def by_hand(z, m):
    """The formula, in Python's floats."""
    terms = [math.exp(x) if legal_one else 0.0 for x, legal_one in zip(z, m, strict=True)]
    return [term / sum(terms) for term in terms]


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=13))
def test_softmax_is_the_formula(pairs):
    z, m = zip(*pairs, strict=True)
    assume(any(m))
    logits, mask = torch.tensor(z, dtype=torch.float64), torch.tensor(m)
    wanted = torch.tensor(by_hand(z, m), dtype=torch.float64)
    assert torch.allclose(masked_softmax(logits, mask), wanted, rtol=1e-12, atol=0)
    official = masked_softmax(logits, mask, official=True)
    assert torch.allclose(official, wanted + 1e-5 * mask.double(), rtol=1e-12, atol=0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = logits.to(dtype)
        found = masked_softmax(rounded, mask)
        exact = torch.tensor(by_hand(rounded.tolist(), m), dtype=torch.float64)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
        assert not found[~mask].any()


@pytest.mark.parametrize("official", [False, True])
def test_gradients_are_those_of_finite_differences(official):
    torch.manual_seed(0)
    logits = torch.randn(4, 13, dtype=torch.float64, requires_grad=True)
    mask = mask_of(["conv_5x5", "null", "dil_conv_3x3", "skip_connect"], NAT2_TABLE)
    assert torch.autograd.gradcheck(lambda z: masked_softmax(z, mask, official=official), logits)
    assert torch.autograd.gradgradcheck(lambda z: masked_softmax(z, mask, official=official), logits)
    weights = torch.randn(4, 13, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((masked_softmax(logits, mask, official=official) * weights).sum(), logits)
    assert not gradient[~mask].any()
    assert gradient[mask].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("official", [False, True])
def test_large_logits(dtype, official):
    extra = 1e-5 if official else 0.0
    for size in (1e4, -1e4):
        logits = torch.tensor([size, size, 0.0, torch.nan, torch.inf, 3e38], dtype=dtype, requires_grad=True)
        mask = torch.tensor([True, True, True, False, False, False])
        p = masked_softmax(logits, mask, official=official)
        wanted = [0.5, 0.5, 0.0] if size > 0 else [0.0, 0.0, 1.0]
        assert torch.equal(p[:3], torch.tensor(wanted, dtype=dtype) + extra)
        assert p[3:].tolist() == [0.0, 0.0, 0.0]
        (gradient,) = torch.autograd.grad(p[3:].sum() + p[:3].square().sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[3:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("official", [False, True])
def test_entropies_have_gradients(official):
    """The slope of -p log p at 0 is infinite, where the mask is."""
    logits = torch.tensor([0.3, -1.0, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True])
    entropy = torch.special.entr(masked_softmax(logits, mask, official=official)).sum()
    alone = logits[mask].softmax(0) + (1e-5 if official else 0)
    assert torch.allclose(entropy, -(alone * alone.log()).sum())
    found, wanted = (torch.autograd.grad(e, logits)[0] for e in (entropy, -(alone * alone.log()).sum()))
    assert torch.allclose(found, wanted)
    assert found[1] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_illegal_operations_have_no_share_however_small_the_others_are(dtype):
    for size in (1e4, 1e30):
        logits = torch.tensor([-size, 0.0, -size], dtype=dtype)
        assert masked_softmax(logits, torch.tensor([True, False, True])).tolist() == [0.5, 0.0, 0.5]


def test_one_legal_operation_is_certain():
    mask = torch.tensor([False, True, False])
    assert masked_softmax(torch.randn(3), mask).tolist() == [0.0, 1.0, 0.0]


def test_masks_are_broadcast_along_any_dimension():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 5), torch.tensor([1, 0, 1])
    found = masked_softmax(logits, mask[:, None], dim=1)
    assert torch.allclose(found, masked_softmax(logits.movedim(1, -1), mask.bool()).movedim(-1, 1))
    assert torch.allclose(found.sum(1), torch.ones(2, 5))
    with pytest.raises(RuntimeError):
        masked_softmax(logits, mask)


def test_a_place_without_a_legal_operation_is_refused():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="a place where no operation is legal"):
        masked_softmax(torch.zeros(2, 2), mask)
    with pytest.raises(ValueError, match="a place where no operation is legal"):
        masked_softmax(torch.zeros(2, 2), mask, dim=0)


def changed(before, after):
    """Pairs of operations that differ, counted by themselves."""
    cells = ((before.normal, after.normal), (before.reduce, after.reduce))
    pairs = [
        (x.operation, y.operation)
        for a, b in cells
        for x, y in zip(itertools.chain(*a.nodes), itertools.chain(*b.nodes), strict=True)
    ]
    return len(pairs), [(x, y) for x, y in pairs if x != y]


@pytest.mark.parametrize(
    ("name", "to", "count", "edges"),
    [
        ("darts_v2", "darts", 6, 16),
        ("enas", "enas", 6, 20),
        ("resblock", "resblock", 7, 16),
        ("vgg_cell", "vgg_cell", 8, 16),
        ("mobilenetv2_cell", "mobilenetv2_cell", 3, 16),
        ("naonet", "naonet", 8, 20),
    ],
)
def test_published_genotypes_of_nat2(name, to, count, edges):
    """docs/methods.md B6."""
    before, after = published(name), published(f"natv2_{to}")
    total, pairs = changed(before, after)
    assert (len(pairs), total) == (count, edges)
    found = legal(before, after, NAT2_TABLE)
    if name != "naonet":
        assert found == ()
        return
    reason = "it may become only skip_connect, null"
    assert found == (
        Violation("normal.nodes[2][0].operation", "conv_1x1", "max_pool_3x3", reason),
        Violation("reduce.nodes[1][0].operation", "conv_1x1", "avg_pool_3x3", reason),
    )
    outside = [pair for pair in pairs if pair[0] not in PRIMITIVES]
    assert outside == [("conv_1x3_3x1", "max_pool_3x3"), ("avg_pool_2x2", "skip_connect")]


@pytest.mark.parametrize("name", ["darts", "enas", "naonet", "resblock", "vgg_cell", "mobilenetv2_cell"])
def test_published_genotypes_of_nat(name):
    found = legal(published("darts_v2" if name == "darts" else name), published(f"nat_{name}"), transitions("nat"))
    illegal = "reduce.nodes[0][1].operation: avg_pool_2x2 -> avg_pool_3x3: it may become only skip_connect, null"
    assert [str(violation) for violation in found] == [illegal] * (name == "naonet")


def test_legal_says_what_differs_beside_the_operations():
    genotype = published("darts_v2")
    cell = genotype.normal
    edges = (cell.nodes[0][0], CellEdge("null", 0))
    other = replace(genotype, normal=CellGenotype((edges, *cell.nodes[1:]), (2, 3)))
    assert [str(violation) for violation in legal(genotype, other, NAT2_TABLE)] == [
        "normal.concat: [2, 3, 4, 5] -> [2, 3]: the nodes of the output must stay",
        "normal.nodes[0][1].input: 1 -> 0: inputs must stay",
    ]
    shorter = replace(
        genotype, reduce=CellGenotype((genotype.reduce.nodes[0][:1], *genotype.reduce.nodes[1:3]), (4,))
    )
    assert [str(violation) for violation in legal(genotype, shorter, NAT2_TABLE)] == [
        "reduce.nodes: [2, 2, 2, 2] -> [1, 2, 2]: the numbers of edges must stay",
        "reduce.concat: [2, 3, 4, 5] -> [4]: the nodes of the output must stay",
    ]


def test_legal_follows_the_table_that_it_is_given():
    before = published("darts_v2")
    assert legal(before, before, read_transitions({})) == ()
    (violation, *rest) = legal(before, published("natv2_darts"), read_transitions({}))
    assert len(rest) == 5
    assert violation.path == "normal.nodes[1][0].operation"
    assert violation.reason == "it must stay"
    assert legal(before, before, {}) == ()
    with pytest.raises(FrozenInstanceError):
        violation.path = ""


@given(st.data(), st.sampled_from(["darts_v2", "enas", "naonet", "vgg_cell"]), st.sampled_from(["nat", "nat++"]))
def test_legal_finds_exactly_what_the_table_does_not_have(data, name, space):
    """Each edge anew, from all operations; the JSON path leads to it."""
    before, table = published(name), transitions(space)
    plain, wanted = asdict(before), set()
    for key, cell in plain.items():
        for i, j in data.draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=3)):
            edge = cell["nodes"][i][j]
            new = data.draw(names)
            if new not in table[edge["operation"]]:
                wanted.add((f"{key}.nodes[{i}][{j}].operation", edge["operation"], new))
            edge["operation"] = new
    after = Genotype.from_json(json.dumps(plain))
    assert {(v.path, v.before, v.after) for v in legal(before, after, table)} == wanted
