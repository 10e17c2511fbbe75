"""Which channels belong together: counted by hand on small networks, and tried by cutting."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import dnat
from dnat.channels import places
from dnat.tracing import trace


class Net(nn.Module):
    """Layers by name, and a forward."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.way = forward

    def forward(self, *x):
        return self.way(self, *x)


def found(forward, example=(2, 3, 8, 8), **layers):
    """Of each place how many classes, its makers and readers, without `.weight`."""
    torch.manual_seed(0)
    network = Net(forward, **layers)
    program = trace(network, torch.randn(*example), batch=example[0])
    return [(p.classes, short(p.makers), short(p.readers)) for p in places(program)]


def short(names):
    return [name.removesuffix(".weight") for name in names]


def conv(a, b, k=3, **options):
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def test_a_residual_block_has_its_inner_width_and_a_chain_has_all():
    def block(m, x):
        x = m.stem(x)
        return m.head((x + m.b(m.n(m.a(x)).relu())).mean((2, 3)))

    layers = {
        "stem": conv(3, 8),
        "a": conv(8, 6),
        "n": nn.BatchNorm2d(6),
        "b": conv(6, 8),
        "head": nn.Linear(8, 5),
    }
    assert found(block, **layers) == [(6, ["a"], ["b"])]

    def chain(m, x):
        return m.head(m.b(m.n(m.a(m.stem(x))).relu()).mean((2, 3)))

    assert found(chain, **layers) == [(8, ["stem"], ["a"]), (6, ["a"], ["b"]), (8, ["b"], ["head"])]


def test_all_that_works_on_channels_is_cut_along():
    def way(m, x):
        x = m.drop(functional.avg_pool2d(m.act(m.norm(m.a(x))), 2))
        return m.b(m.depth(x)).mean((2, 3))

    torch.manual_seed(0)
    layers = {"a": conv(3, 6), "norm": nn.BatchNorm2d(6), "act": nn.PReLU(6), "drop": nn.Dropout2d(0.5)}
    network = Net(way, **layers, depth=conv(6, 12, groups=6), b=conv(12, 5))
    (place,) = places(trace(network, torch.randn(2, 3, 8, 8)))
    once, twice = tuple(range(6)), tuple(i // 2 for i in range(12))
    assert sorted(place.cuts) == sorted(
        [("a.weight", 0, once), ("a.bias", 0, once), ("act.weight", 0, once), ("b.weight", 1, twice)]
        + [(f"norm.{name}", 0, once) for name in ("weight", "bias", "running_mean", "running_var")]
        + [(f"depth.{name}", 0, twice) for name in ("weight", "bias")]
    )
    assert place.axes == (-3,)


def test_the_operations_are_those_that_work_on_the_channels():
    def way(m, x):
        x = m.stem(x).relu()
        return m.out(m.b(m.n(m.a(x)).relu()) + x).mean((2, 3))

    torch.manual_seed(0)
    network = Net(way, stem=conv(3, 4), a=conv(4, 6), n=nn.BatchNorm2d(6), b=conv(6, 4), out=conv(4, 5, 1))
    program = trace(network, torch.randn(2, 3, 8, 8))
    (place,) = places(program)
    names = [op.name for i, op in enumerate(program.traces[0].operations) if i in place.operations]
    assert names == ["conv2d", "batch_norm", "relu", "conv2d"]
    madds = sum(program.traces[0].operations[i].madds for i in place.operations)
    assert madds == 2 * 64 * 9 * (4 * 6 + 6 * 4)


def test_a_gate_goes_with_what_it_gates():
    def excited(m, x):
        x = m.expand(x)
        gate = m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.project(x * gate).mean((2, 3))

    layers = {"expand": conv(3, 8), "down": conv(8, 2, 1), "up": conv(2, 8, 1), "project": conv(8, 5)}
    assert found(excited, **layers) == [(8, ["expand", "up"], ["down", "project"]), (2, ["down"], ["up"])]

    def halves(m, x):
        a, b = m.both(x).chunk(2, -1)
        return m.out(a * functional.silu(b))

    layers = {"both": nn.Linear(6, 16), "out": nn.Linear(8, 5)}
    assert found(halves, (2, 6), **layers) == [(8, ["both"], ["out"])]

    def two(m, x):
        return m.out(m.a(x) * functional.silu(m.b(x)))

    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "out": nn.Linear(8, 5)}
    assert found(two, (2, 6), **layers) == [(8, ["a", "b"], ["out"])]


@pytest.mark.parametrize("fused", [True, False])
def test_heads_go_as_a_whole(fused):
    """4 heads of 3 channels: queries, keys and values of one are one class."""

    def attention(m, x):
        n, length, _ = x.shape
        q, k, v = m.qkv(x).reshape(n, length, 3, 4, 3).permute(2, 0, 3, 1, 4)
        if fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return m.proj(y.transpose(1, 2).reshape(n, length, 12)).mean(1)

    torch.manual_seed(0)
    network = Net(attention, qkv=nn.Linear(12, 36), proj=nn.Linear(12, 5))
    (place,) = places(trace(network, torch.randn(2, 7, 12), batch=2))
    head = tuple(i // 3 for i in range(12))
    assert place.classes == 4
    assert dict((name, row) for name, _, row in place.cuts)["qkv.weight"] == head * 3
    assert dict((name, row) for name, _, row in place.cuts)["proj.weight"] == head


def test_groups_of_a_convolution_go_as_a_whole():
    def way(m, x):
        return m.b(m.g(m.a(x)).relu()).mean((2, 3))

    layers = {"a": conv(3, 12), "g": conv(12, 8, groups=4), "b": conv(8, 5)}
    assert found(way, **layers) == [(4, ["a"], ["b"])]


NORMED = {
    "over channels": lambda m, x: m.b(functional.layer_norm(m.a(x), (8,))),
    "softmax over channels": lambda m, x: m.b(m.a(x).softmax(-1)),
    "a number for each": lambda m, x: m.b(m.a(x) + torch.arange(8.0)),
    "put beside others": lambda m, x: m.b(torch.cat([m.a(x)[:, :4], x[:, :4]], 1)),
    "a way that is not known": lambda m, x: m.b(m.a(x).cumprod(1)),
    "read by the output": lambda m, x: (m.b(h := m.a(x)), h),
    "written into": lambda m, x: m.b(_written(m.a(x))),
}


def _written(x):
    x = x.clone()
    x[:, 0] = 1.0
    return x


@pytest.mark.parametrize("way", NORMED.values(), ids=NORMED)
def test_what_cannot_be_cut_keeps_its_width(way):
    assert found(way, (2, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 5)) == []


def test_a_weight_that_is_computed_is_not_cut():
    torch.manual_seed(0)
    a = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    network = Net(lambda m, x: m.b(m.a(x)), a=a, b=nn.Linear(8, 5))
    assert places(trace(network, torch.randn(2, 8))) == ()


def test_a_layer_that_is_called_twice_has_one_width():
    def way(m, x):
        return m.b(m.a(x)) + m.b(m.a(x * 2))

    assert found(way, (2, 8), a=nn.Linear(8, 6), b=nn.Linear(6, 5)) == [(6, ["a"], ["b"])]


def test_a_layer_that_reads_what_it_makes_keeps_its_width():
    assert found(lambda m, x: m.b(m.a(m.a(x))), (2, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 5)) == []


COUNTS = {"resnet20": 9, "mobilenet_v2": 19, "vgg16": 15}


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_places_that_can_be_counted(name):
    """ResNet20: one in each block; VGG: between all layers; MobileNetV2: in each of 17 blocks, and two more."""
    program = trace(dnat.build(name), torch.zeros(2, 3, 32, 32))
    assert len(places(program)) == COUNTS[name]
