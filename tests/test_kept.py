"""What a network was, it stays: modes, buffers, extra state, shared modules, checkpoints, odd calls."""

import copy

import pytest
import torch
from reference import images
from torch import nn
from torch.nn.functional import relu
from torch.utils.checkpoint import checkpoint

import dnat
from dnat.discretization import IncompleteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:lr_theta"),  # short stages are enough here
    pytest.mark.filterwarnings("ignore:`torch.jit.script`"),
]


def settings(**own):
    known = {"epochs": 2, "architecture_epochs": 1, "batch_size": 10, "threads": 1, "seed": 0}
    return dnat.Config(**(known | own))


def data(classes=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(40, 3, 8, 8, generator=generator)
    return dnat.Data.from_tensors("made", (x, torch.arange(40) % classes), (x, torch.arange(40) % classes))


def modes(network):
    return {path: module.training for path, module in network.named_modules()}


class Branches(nn.Module):
    """A stem, branches that are added, a head."""

    def __init__(self, *branches):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList(branches)
        self.head = nn.Linear(8, 5)

    def through(self, branch, x):
        return branch(x)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + self.through(branch, x)
        return self.head(x.mean((2, 3)))


def normed():
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))


def test_every_module_keeps_its_own_mode():
    torch.manual_seed(0)
    network = Branches(normed(), normed(), normed()).train()
    network.branches[1][1].eval()
    network.branches[2].eval()
    edges = dnat.find_edges(dnat.trace(network, images()))
    relaxed = dnat.relax(network, edges)
    assert modes(relaxed.network) == modes(network)
    made = dnat.discretize(network, {"branches.0": "none", "branches.1.3": "identity"}, images())
    left = modes(made)
    kept = {k: v for k, v in modes(network).items() if k in left}
    assert kept.items() <= left.items()
    assert not left["branches.1.1"]
    assert not left["branches.2.1"]
    assert not any(modes(dnat.discretize(network.eval(), {"branches.0": "none"}, images())).values())


def test_statistics_of_frozen_norms_stay():
    torch.manual_seed(0)
    network = Branches(normed(), normed()).train()
    frozen = network.branches[1][1].eval()
    nn.init.constant_(frozen.running_mean, 0.3)
    result = dnat.transform(network, data(), settings())
    after = result.network.get_submodule("branches.1.1")
    assert torch.equal(after.running_mean, frozen.running_mean)
    assert int(after.num_batches_tracked) == 0
    assert int(result.network.get_submodule("branches.0.1").num_batches_tracked) == 8  # its twin learned


class Counting(nn.Module):
    """Counts images and calls in buffers of its own, in place and anew."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("images", torch.zeros((), dtype=torch.long))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.images.add_(len(x))
            self.calls = self.calls + 1
        return self.conv(x)


@pytest.mark.parametrize(
    "own", [{}, {"settle": 0.0}, {"single_pass": True, "settle": 0.0}, {"judge": "loss", "budget": 0.95}]
)
def test_buffers_of_a_network_of_yours_advance_once_a_step(own):
    counts = []
    for method in (dnat.train, dnat.transform):
        torch.manual_seed(0)
        trained = method(Branches(Counting(), nn.Conv2d(8, 8, 1)), data(), settings(**own)).network
        counts.append([int(b) for n, b in trained.named_buffers() if n.endswith(("images", "calls"))])
    assert counts == [[80, 8], [80, 8]]


def test_an_evaluation_changes_no_buffer():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(192, 5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.head(x.flatten(1))

    network = Always()
    dnat.evaluate(network, data())
    dnat.trace(network, images())
    assert int(network.calls) == 0


class Extra(nn.Conv2d):
    """A layer that keeps more than tensors."""

    kept = None

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state


def extra(kept):
    layer = Extra(8, 8, 3, padding=1)
    layer.kept = kept
    return layer


def test_extra_state_goes_through_a_run_that_is_stopped(tmp_path):
    from dnat.records import Records
    from dnat.settings import Job

    torch.manual_seed(0)
    network = Branches(extra({"amax": [1.5, 2.0], "name": "x"}), extra(torch.tensor([3.0])))
    whole = dnat.transform(network, data(), settings())
    with (
        Records.open(tmp_path / "run", Job(network="mine:net")) as records,
        pytest.raises(dnat.DnatError, match="stopped"),
    ):
        dnat.transform(network, data(), settings(), records=records, stop=lambda progress: progress.step == 5)
    with Records.open(tmp_path / "run", Job(network="mine:net")) as records:
        again = dnat.transform(network, data(), settings(), records=records)
        records.write_state("network.safetensors", again.network)
    assert again.results() == whole.results()
    assert again.network.branches[0].kept == {"amax": [1.5, 2.0], "name": "x"}
    assert torch.equal(again.network.branches[1].kept, torch.tensor([3.0]))
    from dnat.networks.weights import read_state

    state = read_state(tmp_path / "run" / "network.safetensors")
    assert state["branches.0._extra_state"] == {"amax": [1.5, 2.0], "name": "x"}
    network.branches[0].kept = {"amax": [1.6, 2.0], "name": "x"}
    other = dnat.transform(network, data(), settings()).results()
    assert other["weights_sha256"] != whole.results()["weights_sha256"]


@pytest.mark.parametrize("kept", [object(), {1: 2}, (1, 2), {"a": torch.ones(1)}, float("nan")])
def test_extra_state_that_no_file_can_hold_is_refused_by_name(kept):
    with pytest.raises(ValueError, match=r"get_extra_state of branches.0 gives .*, which no file can hold"):
        dnat.transform(Branches(extra(kept)), data(), settings())


class InTurn(nn.Module):
    """One convolution and one norm, called in turn: the norm's calls come in an order of their own."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = relu(self.stem(x))
        parts = [x, x.flip(-1), 2 * x]
        made = [self.conv(part) for part in parts]
        normed = {i: self.norm(made[i]) for i in self.order}
        return self.head((normed[0] + 2 * normed[1] + 3 * normed[2]).mean((2, 3)))


@pytest.mark.parametrize(("order", "key"), [((0, 1, 2), "conv>norm"), ((2, 0, 1), "conv")])
def test_norms_that_are_called_in_turn_get_the_input_that_is_theirs(order, key):
    torch.manual_seed(0)
    network = InTurn(order).eval()
    nn.init.uniform_(network.norm.running_mean)
    (edge,) = dnat.find_edges(dnat.trace(network, images()))
    assert (edge.key, edge.choices) == (key, ("original", "identity"))
    relaxed = dnat.relax(network, [edge])
    assert torch.equal(relaxed(images()), network(images()))
    next(relaxed.thetas()).data[0] = torch.tensor([0.0, 0.25, 0.5])

    def by_hand(x):
        x = relu(network.stem(x))
        mixed = []
        for part in (x, x.flip(-1), 2 * x):
            made = network.conv(part)
            if key == "conv":
                mixed.append(network.norm(0.5 * made + 0.25 * part))
            else:
                mixed.append(0.5 * network.norm(made) + 0.25 * part)
        return network.head((mixed[0] + 2 * mixed[1] + 3 * mixed[2]).mean((2, 3)))

    assert torch.allclose(relaxed(images()), by_hand(images()), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError):  # a forward that fails in its midst leaves nothing behind
        relaxed(images()[:, :2])
    assert torch.allclose(relaxed(images()), by_hand(images()), rtol=1e-5, atol=1e-6)


class Saving(Branches):
    reentrant = None

    def through(self, branch, x):
        if self.reentrant is None or not self.training:
            return branch(x)
        return checkpoint(branch, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("single", [False, True])
def test_a_network_with_checkpoints_of_either_kind_is_transformed_as_without(single):
    def plain():
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    results = []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        network = Saving(plain(), plain())
        network.reentrant = reentrant
        results.append(dnat.transform(network, data(), settings(settle=0.0, lr_theta=0.05, single_pass=single)))
    gates = [torch.tensor(r.history[0]["gates"]) for r in results]
    assert torch.equal(gates[0], gates[1])
    assert torch.allclose(gates[0], gates[2], atol=1e-3)
    assert results[0].choices == results[2].choices
    assert abs(results[0].test.loss - results[2].test.loss) < 1e-4


class Odd(nn.Module):
    """Branches that are no plain convolutions: recurrent, attention, transposed, with norms of their own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.conv, self.own = nn.Conv2d(8, 8, 3, padding=1), OwnNorm(8)
        self.reading = Reading()
        self.rnn = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.5)
        self.stateful = nn.GRU(8, 8, batch_first=True)
        self.scripted = torch.jit.script(nn.Linear(8, 8))
        self.table = nn.Parameter(torch.randn(8, 8))
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.up(x)
        x = x + self.own(self.conv(x))
        x = x + self.reading(x)
        x = x.flatten(2).transpose(1, 2)
        x = x + self.rnn(x)[0]
        x = x + self.attention(x, x, x)[0]
        y, state = self.stateful(x)
        x = x + y * state.mean()
        x = x + self.scripted(x)
        x = x + x @ self.table
        return self.head(x.mean(1))


class OwnNorm(nn.Module):
    """A norm that torch does not know, with fixed statistics."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, channels)[:, None, None])
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x):
        return (x - self.mean) * self.scale


class Reading(nn.Module):
    """Reads what its layer has beside calling it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) / self.conv.out_channels


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    network = Odd()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network, dnat.find_edges(dnat.trace(network, images()), everything=True)


def test_everything_is_listed_and_says_why_it_cannot_change(odd):
    network, edges = odd
    listed = {e.key: e for e in edges}
    changing = {"up", "conv>own", "reading.conv", "rnn", "attention"}
    assert set(listed) == changing | {"stem", "stateful", "scripted", "matmul", "spare", "head"}
    choices = {key: listed[key].choices[1:] for key in listed}
    assert choices["up"] == choices["conv>own"] == ("identity", "none")
    assert choices["reading.conv"] == choices["rnn"] == choices["attention"] == ("none",)
    assert all(not choices[key] for key in ("stem", "head", "stateful", "scripted", "matmul", "spare"))
    assert all(dict(e.refused).keys() | set(e.choices) >= {"identity", "none"} for e in edges)
    assert "'Identity' object has no attribute 'out_channels'" in dict(listed["reading.conv"].refused)["identity"]
    assert "scripted" in dict(listed["scripted"].refused)["none"]
    assert "not called" in dict(listed["spare"].refused)["none"]
    # 64 pixels: 4 * 2 directions * 4 * (8 + 4) for the LSTM; of attention 4 T D^2 + 2 T^2 D.
    assert listed["rnn"].madds == 64 * 2 * 4 * 4 * (8 + 4)
    assert listed["attention"].madds == 4 * 64 * 8 * 8 + 2 * 64 * 64 * 8
    assert sum(e.madds for e in edges) == dnat.cost(network, images()).madds


@pytest.mark.parametrize("key", ["up", "conv>own", "reading.conv", "rnn", "attention"])
def test_a_branch_of_any_kind_can_go(odd, key):
    network, edges = odd

    class Without(Odd):
        """The same network with its branch struck out by hand."""

        def forward(self, x):
            x = self.stem(x)
            x = x if key == "up" else x + self.up(x)
            x = x if key == "conv>own" else x + self.own(self.conv(x))
            x = x if key == "reading.conv" else x + self.reading(x)
            x = x.flatten(2).transpose(1, 2)
            x = x if key == "rnn" else x + self.rnn(x)[0]
            x = x if key == "attention" else x + self.attention(x, x, x)[0]
            y, state = self.stateful(x)
            x = x + y * state.mean()
            x = x + self.scripted(x)
            x = x + x @ self.table
            return self.head(x.mean(1))

    oracle = copy.deepcopy(network).eval()
    oracle.__class__ = Without
    compact = dnat.discretize(network, {key: "none"}, images()).eval()
    assert torch.allclose(compact(images()), oracle(images()), rtol=1e-5, atol=1e-6)
    saved = next(e.madds for e in edges if e.key == key)
    assert dnat.cost(network, images()).madds - dnat.cost(compact, images()).madds == saved
    relaxed = dnat.relax(network, [e for e in edges if len(e.choices) > 1]).eval()
    assert torch.equal(relaxed(images()), network.eval()(images()))
    relaxed.set_one_hot({key: "none"})
    assert torch.allclose(relaxed(images()), oracle(images()), rtol=1e-5, atol=1e-6)


def test_a_choice_that_is_left_undone_is_an_error_and_can_be_told():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x):
            x = self.stem(x)
            y = x + self.branch(x)
            return self.head((y if float(y.detach().sum()) < 1e9 else -y).mean((2, 3)))

    network = Stubborn()
    edges = dnat.find_edges(dnat.trace(network, images()))
    assert [e.key for e in edges if "none" in e.choices] == []
    with pytest.raises(dnat.DnatError, match="the smallest reachable cost"):
        dnat.select(dnat.relax(network, edges), budget=0.05)
    with pytest.raises(IncompleteError, match=r"branch stays original: .* lets values of tensors decide") as error:
        dnat.discretize(network, {"branch": "none"}, images())
    report = dnat.discretize(network, {"branch": "none"}, images(), report=True)
    assert report.choices == error.value.report.choices == {"branch": "original"}
    assert torch.equal(report.network.eval()(images()), network.eval()(images()))


def test_choices_of_a_table_of_yours_can_be_made_of_the_plain_network():
    network = dnat.build("darts_v2", channels=4, layers=3)
    x = images(2, 16)
    edges = dnat.find_edges(dnat.trace(network, x), {"sep_conv_3x3": ["sep_conv_3x3", "sep_conv_5x5"]})
    edge = next(e for e in edges if "sep_conv_5x5" in e.choices)
    relaxed = dnat.relax(network, edges)
    relaxed.set_one_hot({edge.key: "sep_conv_5x5"})
    made = dnat.discretize(network, {edge.key: "sep_conv_5x5"}, x)
    again = dnat.discretize(relaxed, {edge.key: "sep_conv_5x5"}, x)
    assert made.state_dict().keys() == again.state_dict().keys()
