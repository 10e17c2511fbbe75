"""What a convolution may become: shapes, costs, and how close to the original it begins."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import dnat
from dnat.candidates import _composed_kernel, begin, candidate, cropped, moves, separable
from dnat.moves import cost_of, read_transitions, transitions
from dnat.networks.cells import operation
from dnat.operations import Geometry, geometry, operation_name

TABLE = transitions("nat++")
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def convolution(channels_in=4, channels_out=4, size=3, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return nn.Conv2d(channels_in, channels_out, size, **options).to(dtype)


def image(channels, height=11, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator).to(dtype)


def moves_of(conv, x, table=TABLE):
    height, width = conv(x).shape[-2:]
    return dict(moves(operation_name(conv), geometry(conv), table, height * width))


def dense(first, second, groups, rank):
    """The kernel that a depthwise and a 1x1 convolution make together, weight by weight."""
    (outputs, seen), inputs = second.shape[:2], second.shape[1] // rank
    kernel = torch.zeros(outputs, inputs, *first.shape[-2:], dtype=first.dtype)
    for o, i, r in itertools.product(range(outputs), range(inputs), range(rank)):
        group = o // (outputs // groups)
        kernel[o, i] += second[o, i * rank + r, 0, 0] * first[group * seen + i * rank + r, 0]
    return kernel.detach()


def of_rank(rank, channels_in, channels_out, size, groups=1):
    """A random kernel whose weights that read one input channel are a matrix of a given rank."""
    draw = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(2)}
    each, inputs = channels_out // groups, channels_in // groups
    matrices = torch.randn(groups, inputs, each, rank, **draw) @ torch.randn(groups, inputs, rank, size**2, **draw)
    return matrices.transpose(1, 2).reshape(channels_out, inputs, size, size)


# C, D, groups: dense, grouped, depthwise, depthwise with more outputs than inputs.
WAYS = [(4, 4, 1), (6, 4, 1), (8, 8, 2), (4, 8, 2), (6, 6, 6), (3, 6, 3)]
paddings = st.one_of(
    st.integers(0, 4), st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from(["same", "valid"])
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(WAYS),
    st.sampled_from([3, 5, 7]),
    st.sampled_from([1, 2, (2, 1)]),
    paddings,
    st.booleans(),
    st.tuples(st.integers(7, 12), st.integers(7, 12)),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_shapes_types_and_costs(ways, size, stride, padding, bias, pixels, dtype, warm_start):
    assume(padding != "same" or stride == 1)
    c, d, groups = ways
    conv = convolution(c, d, size, dtype, stride=stride, padding=padding, groups=groups, bias=bias)
    x = image(c, *pixels, dtype)
    wanted, own = conv(x), dnat.cost(conv, x).madds
    for name, madds in moves_of(conv, x).items():
        made = candidate(name, conv, warm_start=warm_start)
        found = made(x)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert dnat.cost(made, x).madds == madds < own


@pytest.mark.parametrize("size", [3, 5, 7])
def test_costs_are_those_of_transitions(size):
    """docs/methods.md B3; pools are free, as in `dnat.cost`."""
    found = moves_of(convolution(32, 32, size, padding=size // 2), image(32, 9, 7))
    assert set(found) == set(TABLE[f"conv_{size}x{size}"][1:]) - {"skip_connect", "null"}
    for name, madds in found.items():
        assert madds == (0 if "pool" in name else cost_of(name, 32, 9, 7).madds)


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 2), ((2, 1), (3, 2)), (2, 4)])
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 3)])
def test_a_crop_is_exact_where_the_rest_is_zero(groups, size, stride, padding):
    conv, x = convolution(size=5, stride=stride, padding=padding, groups=groups), image(4)
    rest = (5 - size) // 2
    with torch.no_grad():
        conv.weight.copy_(nn.functional.pad(conv.weight[..., rest : 5 - rest, rest : 5 - rest], (rest,) * 4))
    name = f"{'dwconv' if groups == 4 else 'conv'}_{size}x{size}"
    assert name in moves_of(conv, x)
    assert torch.allclose(candidate(name, conv)(x), conv(x), **EXACT)


def test_windows_have_the_same_middle():
    """Pools, too: one pixel far from the border is seen around the same place."""
    x = torch.zeros(1, 4, 9, 9, dtype=torch.float64)
    x[..., 4, 5] = 1
    for name in ("sep_conv_3x3", "dil_conv_3x3", "conv_1x1", "max_pool_3x3", "avg_pool_3x3"):
        for padding in (1,) if "pool" in name else (1, 2):
            made = candidate(name, convolution(padding=padding, bias=False))
            seen = made(x)[0].abs().sum(0).nonzero().double()
            assert seen.mean(0).tolist() == [3 + padding, 4 + padding]


def test_the_mean_leaves_the_border_out():
    ones, conv = torch.ones(1, 4, 5, 6, dtype=torch.float64), convolution(padding=1)
    assert torch.equal(candidate("avg_pool_3x3", conv)(ones), ones)
    assert torch.equal(candidate("max_pool_3x3", conv)(-ones), -ones)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2])
def test_kernels_of_that_rank_are_kept(rank, groups):
    kernel = of_rank(rank, 8, 12, 3, groups)
    first, second = separable(kernel, groups, rank)
    assert (first.shape, second.shape) == ((rank * 8, 1, 3, 3), (12, rank * 8 // groups, 1, 1))
    assert torch.allclose(dense(first, second, groups, rank), kernel, **EXACT)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2])
def test_of_other_kernels_the_nearest(rank, groups):
    """What is lost is the sum of the squares of the singular values left out (Eckart and Young)."""
    kernel, each = of_rank(9, 8, 12, 3, groups), 12 // groups
    lost = 0.0
    for group, i in itertools.product(range(groups), range(8 // groups)):
        matrix = kernel[group * each : (group + 1) * each, i].reshape(each, 9).numpy()
        lost += np.square(np.linalg.svd(matrix, compute_uv=False)[rank:]).sum()
    found = dense(*separable(kernel, groups, rank), groups, rank)
    assert lost > 1
    assert (found - kernel).square().sum().item() == pytest.approx(lost)


@pytest.mark.parametrize(("outputs", "size"), [(4, 1), (1, 3)])
def test_more_room_than_rank(outputs, size):
    kernel = of_rank(1, 3, outputs, size)
    first, second = separable(kernel, 1, 2)
    assert (first.shape, second.shape) == ((6, 1, size, size), (outputs, 6, 1, 1))
    assert torch.allclose(dense(first, second, 1, 2), kernel, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_other_types(dtype):
    kernel = of_rank(2, 4, 6, 3)
    first, second = separable(kernel.to(dtype), 1, 2)
    assert first.dtype == second.dtype == dtype
    error = (dense(first.double(), second.double(), 1, 2) - kernel).abs().max()
    assert error < 8 * torch.finfo(dtype).eps * kernel.abs().max()


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 2)])
def test_sep_conv_computes_what_a_kernel_of_rank_2_does(groups, stride):
    conv, x = convolution(8, 12, groups=groups, stride=stride, padding=1), image(8)
    with torch.no_grad():
        conv.weight.copy_(of_rank(2, 8, 12, 3, groups))
    assert torch.allclose(candidate("sep_conv_3x3", conv)(x), conv(x), **EXACT)


@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 2), (1, 0), ((1, 2), (4, 3))])
@pytest.mark.parametrize("groups", [1, 2])
def test_dil_conv_computes_what_a_kernel_on_its_grid_does(groups, stride, padding):
    conv, x = convolution(8, 12, 5, groups=groups, stride=stride, padding=padding), image(8)
    with torch.no_grad():
        conv.weight.zero_()[..., ::2, ::2] = of_rank(1, 8, 12, 3, groups)
    assert torch.allclose(candidate("dil_conv_3x3", conv)(x), conv(x), **EXACT)


@pytest.mark.parametrize(("size", "name"), [(3, "dil_conv_3x3"), (5, "dil_conv_5x5"), (7, "dil_conv_3x3")])
def test_on_even_images_dil_conv_computes_the_same(size, name):
    """Whatever goes to which point of the grid, nothing is lost; far from the border, which no window sees."""
    conv = convolution(4, 6, size, padding=size // 2)
    with torch.no_grad():
        conv.weight.copy_(of_rank(1, 4, 6, size))
    x = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()[:, None, None].expand(1, 4, 15, 15)
    assert torch.allclose(candidate(name, conv)(x)[..., 7, 7], conv(x)[..., 7, 7], **EXACT)


def test_weights_between_points_of_the_grid_are_shared():
    """Written out: a kernel of one weight, right of the middle and below it."""
    conv = convolution(1, 1, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 2, 2] = 1
    made = candidate("dil_conv_3x3", conv)
    found = dense(made.depthwise.weight, made.pointwise.weight, 1, 1)[0, 0]
    assert torch.allclose(found, torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 1]]).double() / 4, **EXACT)


def test_what_does_not_fit():
    def names(c, d, size, padding, groups=1, name=None):
        shape = Geometry(c, d, size, (1, 1), padding, groups)
        return {target for target, _ in moves(name or f"conv_{size}x{size}", shape, TABLE, 64)}

    pools = {"max_pool_3x3", "avg_pool_3x3"}
    everything = {"sep_conv_3x3", "dil_conv_3x3", "conv_1x1", *pools}
    assert names(32, 32, 3, (1, 1)) == everything
    # Without padding the windows of 1x1 and pools would begin inside of the image.
    assert names(32, 32, 3, (0, 1)) == everything - {"conv_1x1"}
    assert names(32, 32, 7, (0, 0)) == {"dil_conv_5x5"}
    # Pools keep the channels, and have at most half a kernel of padding.
    assert names(32, 64, 3, (1, 1)) == names(32, 32, 3, (1, 2)) == everything - pools
    # Nothing dearer: for each channel the convolution has 9 D, sep_conv_3x3 18 + 2 D, dil_conv_3x3 9 + D.
    assert names(32, 2, 3, (1, 1)) == {"dil_conv_3x3", "conv_1x1"}
    assert names(32, 1, 3, (1, 1)) == {"conv_1x1"}
    assert names(64, 64, 3, (1, 1), 4, "gconv_3x3") == everything
    assert names(32, 32, 5, (2, 2), 32, "dwconv_5x5") == {"dwconv_3x3", "max_pool_5x5", "avg_pool_5x5", *pools}
    assert names(32, 32, 1, (0, 0)) == names(32, 32, 13, (6, 6)) == set()


def test_tables_of_ones_own():
    """A kernel that grows begins with zeros around it; what is no square of odd size is left out."""
    targets = ["sep_conv_5x5", "conv_1x3_3x1", "avg_pool_2x2", "dwconv_3x3", "conv_5x5"]
    table = read_transitions({"conv_3x3": targets, "conv_5x5": ["dwconv_3x3"]})
    conv, x = convolution(32, 32, padding=1), image(32)
    with torch.no_grad():
        conv.weight.copy_(of_rank(2, 32, 32, 3))
    assert set(moves_of(conv, x, table)) == {"sep_conv_5x5"}
    assert torch.allclose(candidate("sep_conv_5x5", conv)(x), conv(x), **EXACT)
    assert not moves_of(convolution(32, 32, 5, padding=2), x, table)


class Own(nn.Conv2d):
    """Pads by the size of the image, as timm's do."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Conv2d):
    pass


def test_geometries():
    for module in (
        *(nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, dilation=(1, 2)), nn.Conv2d(4, 4, 2)),
        *(nn.Conv2d(4, 4, (3, 5)), nn.Conv2d(4, 4, (1, 3)), Own(4, 4, 3), Standardized(4, 4, 3)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        *(nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Linear(4, 4), nn.MaxPool2d(3)),
    ):
        assert geometry(module) is None
    assert geometry(Named(4, 6, 5, (2, 1), (0, 3), groups=2)) == Geometry(4, 6, 5, (2, 1), (0, 3), 2)
    assert geometry(nn.Conv2d(4, 4, 5, padding="same")).padding == (2, 2)
    assert geometry(nn.Conv2d(4, 4, 5, padding="valid")).padding == (0, 0)


NORMS = {
    "batch": lambda: nn.BatchNorm2d(6),
    "plain": lambda: nn.BatchNorm2d(6, affine=False),
    "group": lambda: nn.GroupNorm(2, 6),
}


@pytest.mark.parametrize("kind", NORMS)
def test_the_norm_behind_is_a_copy(kind):
    norm, conv, x = NORMS[kind]().double(), convolution(4, 6, padding=1), image(4)
    with torch.no_grad():
        norm(conv(x))  # so that running statistics are not those of the start
        for p in norm.parameters():
            p.normal_()
    kept = {n: t.clone() for n, t in norm.state_dict().items()}
    made = candidate("conv_1x1", conv, norm)
    assert type(made.norm) is type(norm)
    assert all(torch.equal(kept[n], t) for n, t in made.norm.state_dict().items())
    assert torch.allclose(made.eval()(x), norm.eval()(made.conv(x)), **EXACT)
    made.train()(x).sum().backward()
    assert all(torch.equal(kept[n], t) for n, t in norm.state_dict().items())
    assert all(p.grad is None for p in [*norm.parameters(), *conv.parameters()])
    assert {id(p) for p in made.parameters()}.isdisjoint(map(id, [*norm.parameters(), *conv.parameters()]))


@pytest.mark.parametrize("name", ["conv_1x1", "sep_conv_3x3", "dil_conv_3x3"])
def test_warm_and_random_beginnings(name):
    conv = convolution(32, 32, padding=1)
    warm, again = candidate(name, conv), candidate(name, conv)
    assert torch.equal(warm[-1].bias, conv.bias)
    assert all(torch.equal(a, b) for a, b in zip(warm.parameters(), again.parameters(), strict=True))
    cold = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        cold.append(list(candidate(name, conv, warm_start=False).parameters()))
    for a, b, c, d in zip(warm.parameters(), *cold, strict=True):
        assert torch.equal(b, c)
        assert not torch.equal(c, d)
        assert not torch.equal(a, b)
    plain = candidate(name, convolution(32, 32, padding=1, bias=False))
    assert {n.rpartition(".")[2] for n, _ in plain.named_parameters()} == {"weight"}


def named(name, seed=0):
    """An operation of a cell, with weights and statistics that are not those of the start."""
    torch.manual_seed(seed)
    made = operation(name, 4).double()
    with torch.no_grad():
        made(torch.randn(2, 4, 8, 8).double())
        for p in made.parameters():
            p.normal_()
    return made


def test_operations_of_one_kind_hand_their_weights_on():
    source, target = named("sep_conv_5x5"), named("sep_conv_3x3", 1)
    assert cropped(source, target)
    after = target.state_dict()
    for name, old in source.state_dict().items():
        assert torch.equal(after[name], old[..., 1:4, 1:4] if old.shape[-1:] == (5,) else old)
        assert after[name].data_ptr() != old.data_ptr()


@pytest.mark.parametrize(
    ("small", "large"),
    [("sep_conv_3x3", "sep_conv_5x5"), ("conv_1x1", "conv_5x5"), ("conv_1x3_3x1", "conv_1x7_7x1")],
)
def test_kernels_that_grow_and_shrink_again(small, large):
    """With zeros around it a kernel computes the same; and its middle is what it was."""
    first, grown, again, x = named(small), named(large, 1), named(small, 2), image(4)
    assert cropped(first, grown)
    assert cropped(grown, again)
    for made in (grown, again):
        assert torch.allclose(made.eval()(x), first.eval()(x), **EXACT)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(("sep_conv_3x3", "dil_conv_3x3"), ("conv_3x3", "max_pool_3x3"), ("conv_3x3", "sep_conv_3x3")),
        *(("max_pool_3x3", "avg_pool_3x3"), ("conv_1x3_3x1", "conv_1x1"), ("dil_conv_3x3", "conv_3x3")),
    ],
)
def test_operations_of_different_kinds_do_not(before, after):
    target = named(after, 1)
    kept = {n: t.clone() for n, t in target.state_dict().items()}
    assert not cropped(named(before), target)
    assert all(torch.equal(kept[n], t) for n, t in target.state_dict().items())


def test_layers_that_only_look_alike():
    source = nn.Sequential(convolution(padding=1), nn.ReLU())
    for layers in (
        [convolution(padding=1)],
        [convolution(padding=1), nn.ReLU(), nn.ReLU()],
        *([convolution(**options), nn.ReLU()] for options in ({"dilation": 2}, {"groups": 2})),
    ):
        with torch.no_grad():
            layers[0].weight.zero_()
        assert not cropped(source, nn.Sequential(*layers))
        assert not layers[0].weight.any()


def spread_out(made):
    """An operation with weights and statistics that are nothing special, in eval mode."""
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.double().eval()


def without_bends(made):
    """The operation's convolutions and norms but the last norm, without the norms' shifts."""
    layers = [m for m in copy.deepcopy(made).modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)][:-1]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.bias)
            layer.running_mean.zero_()
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("name", ["conv_3x3", "conv_1x3_3x1", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3"])
def test_an_operation_of_a_cell_as_one_kernel(name):
    torch.manual_seed(0)
    source = spread_out(operation(name, 4))
    x = torch.randn(2, 4, 21, 21).double()
    kernel = _composed_kernel(source)
    found = nn.functional.conv2d(x, kernel, padding="same")
    rim = kernel.shape[-1] // 2  # half way through, padding is not what the kernel makes of zeros
    inside = (..., slice(rim, -rim), slice(rim, -rim))
    assert torch.allclose(found[inside], without_bends(source)(x)[inside])


def test_operations_of_cells_begin_as_the_same_function_where_they_can():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 12, 12).double()
    source = spread_out(operation("conv_5x5", 4))
    first, second = separable(torch.randn(4, 4, 3, 3).double(), 1, 1)
    with torch.no_grad():
        source[1].weight.zero_()
        source[1].weight[..., ::2, ::2] = second * first.squeeze(1)
    dilated = spread_out(operation("dil_conv_3x3", 4))
    begin(dilated, source)
    assert torch.allclose(dilated(x), source(x))
    larger = spread_out(operation("dil_conv_5x5", 4))
    smaller = spread_out(operation("dil_conv_3x3", 4))
    with torch.no_grad():
        larger[1].weight[..., [0, -1], :] = 0
        larger[1].weight[..., :, [0, -1]] = 0
    begin(smaller, larger)
    assert torch.allclose(smaller(x), larger(x))


@pytest.mark.parametrize("target", ["sep_conv_5x5", "sep_conv_3x3", "dil_conv_5x5", "dil_conv_3x3"])
def test_operations_of_cells_begin_closer_than_by_chance(target):
    x = torch.nn.functional.avg_pool2d(torch.randn(8, 8, 36, 36, generator=torch.Generator().manual_seed(0)), 5, 1)
    for source_name in ("conv_5x5", "sep_conv_5x5"):
        near = []
        for warm in (True, False):
            torch.manual_seed(1)
            source, made = operation(source_name, 8), operation(target, 8)
            if warm:
                begin(made, source)
            near.append(((made(x) - source(x)) ** 2).mean().item())
        assert near[0] < 0.9 * near[1]
