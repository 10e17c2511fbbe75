import time

import pytest
import torch
from reference import images, small
from torch import nn

import dnat
from dnat.costs import latencies, latency, operation_seconds, seconds_beside
from dnat.networks import accepts
from dnat.operations import FactorizedReduce, NullEdge


@pytest.mark.parametrize(
    ("name", "options", "params", "madds"),
    [
        # He et al.'s networks as the papers print them, in millions.
        ("resnet20", {}, "0.2697", "40.55"),
        ("resnet20", {"skips": True}, "0.2697", "40.55"),
        ("resnet32", {}, "0.46", "68.86"),
        ("resnet44", {}, "0.66", "97.17"),
        ("resnet56", {}, "0.853", "125.5"),
    ],
)
def test_the_papers_sizes(name, options, params, madds):
    found = dnat.cost(dnat.build(name, **options), torch.zeros(1, 3, 32, 32))
    assert f"{found.params / 1e6:.{len(params) - 2}f}" == params
    assert f"{found.madds / 1e6:.{len(madds.partition('.')[2])}f}" == madds


def test_sizes_by_formula():
    def by_hand(blocks, width):
        params, madds, size, c = 3 * width * 9 + 2 * width, 3 * width * 9 * 32 * 32, 32, width
        for stage in range(3):
            for i in range(blocks):
                out = width * 2**stage
                size = size // 2 if stage and not i else size
                for channels in (c, out):
                    params += channels * out * 9 + 2 * out
                    madds += channels * out * 9 * size * size
                c = out
        return params + c * 10 + 10, madds + c * 10

    for name, blocks in (("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet44", 7), ("resnet56", 9)):
        for width in (4, 16):
            found = dnat.cost(dnat.build(name, width=width), torch.zeros(2, 3, 32, 32))
            assert (found.params, found.madds) == by_hand(blocks, width)


def test_all_kinds_of_layers_by_hand():
    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, 3, groups=4, padding=1)
            self.transposed = nn.ConvTranspose2d(8, 2, 2, stride=2)
            self.attention = nn.Linear(3, 5)

        def forward(self, x, tokens):
            y = self.transposed(self.grouped(x))
            q = self.attention(tokens)
            return y.sum() + nn.functional.scaled_dot_product_attention(q, q, q).sum()

    x, tokens = torch.zeros(2, 4, 6, 6), torch.zeros(2, 7, 3)
    by_hand = 8 * 9 * 36 + 8 * 2 * 4 * 36 + 7 * 3 * 5 + 2 * 7 * 7 * 5
    assert dnat.cost(Zoo(), (x, tokens)).madds == by_hand


def test_counting_leaves_the_network_alone():
    network = dnat.build("resnet8").train()
    network.layer1[0].bn1.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    dnat.cost(network, torch.randn(2, 3, 32, 32))
    assert network.training
    assert not network.layer1[0].bn1.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_shared_weights_count_once():
    layer = nn.Linear(4, 4)
    assert dnat.cost(nn.Sequential(layer, layer), torch.zeros(1, 4)) == dnat.Cost(params=20, madds=32)


@pytest.mark.parametrize(
    ("channels", "stride", "size"), [((4, 8), 2, 8), ((4, 7), 2, 7), ((4, 8), 1, 6), ((4, 4), 4, 9)]
)
def test_reductions_and_null_edges_have_the_same_shape(channels, stride, size):
    x = torch.randn(2, channels[0], size, size)
    null = NullEdge(*channels, stride)
    wanted = (2, channels[1], -(-size // stride), -(-size // stride))
    assert null(x).shape == null.identity()(x).shape == wanted
    assert not null(x).any()
    assert not list(null.parameters())


def test_the_reduction_reads_every_pixel_and_costs_what_it_says():
    reduce = FactorizedReduce(4, 6, 2).eval()
    x = torch.rand(1, 4, 6, 6).requires_grad_()
    reduce(x).sum().backward()
    read = x.grad.abs().sum(1)[0] > 0
    # Even rows with even columns by the first convolution, odd with odd by the second.
    assert read[::2, ::2].all()
    assert read[1::2, 1::2].all()
    assert dnat.cost(reduce, x.detach()).madds == 4 * 6 * 9


def test_null_edges_change_nothing():
    plain, skips = (dnat.build("resnet20", width=4, seed=1, skips=s) for s in (False, True))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain(x), skips(x))
    assert plain.state_dict().keys() == skips.state_dict().keys()


def test_weights_belong_to_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = dnat.build("resnet8", seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    b, c = dnat.build("resnet8", seed=3), dnat.build("resnet8", seed=4)
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_options():
    assert accepts("resnet20", "width")
    assert not accepts("resnet20", "depth")
    assert accepts("torchvision:resnet18", "num_classes")
    assert dnat.build("torchvision:resnet18", num_classes=7).fc.out_features == 7


def test_latency_is_a_median_of_many_runs():
    network = nn.Linear(512, 512)
    found = latency(network, torch.zeros(64, 512), least_runs=25, least_seconds=0)
    assert found.runs == 25
    assert (found.batch, found.device) == (64, "cpu")
    assert 0 < found.seconds < 1
    assert found.spread >= 0


def test_a_fast_network_is_measured_for_long_enough():
    begun = time.perf_counter()
    found = latency(nn.Linear(2, 2), torch.zeros(1, 2), least_runs=5, least_seconds=0.05)
    assert found.runs > 20
    assert time.perf_counter() - begun >= 0.05


def test_operations_that_only_training_does_take_no_seconds():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x):
            x = self.one(x)
            return self.two(nn.functional.dropout(x * 2) if self.training else x)

    network, x = Dropping(), torch.randn(3, 4)
    program = dnat.trace(network, x)
    assert [len(t.operations) for t in program.traces] == [2, 4]
    assert len(operation_seconds(network.train(), x, program, repeats=3)) == 2


def test_a_network_that_does_more_takes_longer():
    size = 256
    one = nn.Linear(size, size)
    many = nn.Sequential(*(nn.Linear(size, size) for _ in range(12)))
    x = torch.zeros(64, size)
    assert latency(many, x, least_seconds=0.05).seconds > 3 * latency(one, x, least_seconds=0.05).seconds


def test_a_machine_that_slows_down_does_so_for_all_that_run_in_turns(monkeypatch):
    """A clock on which each call takes its network's share of a second, and all of them more with every call."""
    now = calls = 0.0

    class Slow(nn.Module):
        def __init__(self, share):
            super().__init__()
            self.share = share

        def forward(self, x):
            nonlocal now, calls
            calls += 1
            now += self.share * (1 + calls / 100)
            return x

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    half, whole, x = Slow(0.5), Slow(1.0), torch.zeros(3, 1)
    apart = [latency(network, x, least_seconds=0).seconds for network in (whole, half)]
    assert apart[1] / apart[0] > 0.6  # the second came when all were slower
    first, second = latencies([whole, half], x, least_seconds=0)
    assert second.seconds / first.seconds == pytest.approx(0.5, rel=0.01)
    assert (first.runs, second.runs, first.batch) == (20, 20, 3)
    assert seconds_beside(half, whole, 3.0, x) == pytest.approx(1.5, rel=0.01)


def test_latency_leaves_the_network_alone():
    network = small("residual").train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    latency(network, images(), least_runs=5, least_seconds=0)
    operation_seconds(network, images(), dnat.trace(network, images()), repeats=2)
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_seconds_of_operations_go_to_those_that_work():
    """Two linear layers, one of them with a hundred times the work."""
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 6400), nn.ReLU())
    x = torch.randn(256, 64)
    program = dnat.trace(network, x)
    seconds = operation_seconds(network, x[:128], program, repeats=9)
    assert [op.name for op in program.traces[0].operations] == ["linear", "linear", "relu"]
    assert seconds[1] > 5 * seconds[0]
    assert all(s >= 0 for s in seconds)


def test_another_way_through_the_network_is_noticed():
    class Choosing(nn.Module):
        def forward(self, x):
            return x + 1 if len(x) > 1 else x * 2 + 1

    program = dnat.trace(Choosing(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="does other operations than on the example that was traced"):
        operation_seconds(Choosing(), torch.zeros(1, 3), program)
