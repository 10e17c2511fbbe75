import copy
import dataclasses
import math
import pickle

import pytest
import torch
from reference import SMALL, images, relaxed_by_hand, small
from torch import nn

import dnat
from dnat.relaxation import CHOICES, attaching, mix, relax
from dnat.relaxation.mixing import added


def relaxed_of(name, **options):
    network = small(name)
    return network, relax(network, dnat.find_edges(dnat.trace(network, images())), **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
@pytest.mark.parametrize("name", SMALL)
def test_untouched_means_the_original_bit_for_bit(name, gate, mode, training):
    network, relaxed = relaxed_of(name, gate=gate, mode=mode)
    network.train(training)
    relaxed.train(training)
    assert torch.equal(relaxed(images()), network(images()))
    for key, tensor in network.state_dict().items():  # running statistics, too
        assert torch.equal(relaxed.state_dict()[key], tensor)


@pytest.mark.parametrize("name", ["residual", "in place", "shared", "data dependent"])
def test_any_theta_gives_the_same_as_the_obvious_twin(name):
    network, relaxed = relaxed_of(name)
    torch.manual_seed(2)
    theta = torch.randn(len(relaxed.groups), 3).double()
    relaxed, network = relaxed.double().eval(), network.double().eval()
    relaxed.architecture.theta.data.copy_(theta)
    original, identity = CHOICES.index("original"), CHOICES.index("identity")
    gates = {
        e.key: (theta[i, original].item(), theta[i, identity].item() if "identity" in e.choices else 0)
        for i, e in enumerate(relaxed.edges)
    }
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    x = images(dtype=torch.float64)
    assert torch.allclose(relaxed(x), relaxed_by_hand(network, relaxed.edges, gates)(x), rtol=1e-12)


@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
def test_gradient_of_theta_by_finite_differences(gate):
    _, relaxed = relaxed_of("residual", gate=gate)
    relaxed = relaxed.double().eval()

    def loss(theta):
        with torch.nn.utils.stateless._reparametrize_module(relaxed, {"architecture.theta": theta}):
            return relaxed(images(dtype=torch.float64)).square().sum()

    theta = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(loss, theta.requires_grad_())


def test_the_mixture_passes_gradcheck_to_second_order():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs += [torch.randn((), dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def mixed(y, x, original, identity):
        return mix([(y, original), (x, identity)])

    assert torch.autograd.gradcheck(mixed, inputs)
    assert torch.autograd.gradgradcheck(mixed, inputs)
    for exact in (0.0, 1.0):  # values that the forward pass takes a shorter way with
        inputs[2].data.fill_(exact)
        assert torch.autograd.gradcheck(mixed, inputs)
        assert torch.autograd.gradgradcheck(mixed, inputs)


@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
def test_theta_none_never_moves(gate):
    _, relaxed = relaxed_of("resnet8 with skips", gate=gate)
    optimizer = torch.optim.Adam(relaxed.thetas(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        relaxed(images()).square().sum().backward()
        assert not next(relaxed.thetas()).grad[:, CHOICES.index("none")].any()
        optimizer.step()
    theta = next(relaxed.thetas())
    assert not theta[:, CHOICES.index("none")].any()
    assert theta[:, CHOICES.index("identity")].any()


def test_theta_original_of_a_scale_invariant_edge_has_no_gradient():
    # conv-norm-relu-conv-norm: the second norm undoes any scale of the first unit (Euler; docs/methods.md C2).
    network = dnat.build("resnet8", width=4, seed=1).double().train()
    x = images(dtype=torch.float64)
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, x)))
    for module in relaxed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    relaxed(x).square().sum().backward()
    gradient = next(relaxed.thetas()).grad[:, CHOICES.index("original")].abs()
    first, second = gradient[0], gradient[1]
    assert first < 1e-9 * second


def test_sigmoid_gates_follow_their_closed_form():
    _, relaxed = relaxed_of("residual", gate="sigmoid")
    values = torch.linspace(-2, 3, 6)
    relaxed.architecture.theta.data = values.view(2, 3)
    logistic = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    low, high = logistic(-4), logistic(4)
    wanted = [(logistic(8 * v - 4) - low) / (high - low) for v in values.tolist()]
    assert torch.allclose(relaxed.architecture.gates().flatten(), torch.tensor(wanted), atol=1e-6)


def test_a_gate_of_zero_silences_what_is_not_finite():
    y, x = torch.tensor([1.0, math.inf]), torch.tensor([math.nan, 2.0])
    zero, one = torch.tensor(0.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    out = mix([(y, one), (x, zero)])
    assert torch.equal(out, torch.tensor([1.0, math.inf]))
    out = mix([(y[:1], one), (x[:1], zero)])
    out.sum().backward()
    assert zero.grad.isfinite()
    assert torch.equal(mix([(y, zero), (x, zero)]), torch.zeros(2))


def test_the_mixture_may_be_mapped_over_its_gates():
    """Under vmap no gate has one value that could be asked for."""
    x, y = torch.randn(3), torch.tensor([1.0, math.inf, 2.0])
    one, two = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.0])
    mapped = torch.func.vmap(lambda a, b: mix([(x, a), (y, b)]))(one, two)
    assert torch.equal(mapped, one[:, None] * x)
    per_image = torch.func.vmap(lambda row, a: mix([(row, a), (row * 2, 1 - a)]))(torch.ones(3, 2), one)
    assert torch.equal(per_image, (2 - one)[:, None].expand(3, 2))


def test_the_mixture_waits_for_no_device():
    """On the meta device there is no value to wait for, as on a GPU none should be."""
    x, gate = torch.empty(2, 3, device="meta"), torch.empty((), device="meta", requires_grad=True)
    out = mix([(x, gate), (x, gate), (x, gate)], gate)
    assert (out.shape, out.device.type) == ((2, 3), "meta")
    out.sum().backward()
    assert gate.grad.shape == ()


def test_parameters_are_partitioned():
    network, relaxed = relaxed_of("resnet8 with skips")
    weights, thetas = {id(p) for p in relaxed.weights()}, {id(p) for p in relaxed.thetas()}
    assert weights | thetas == {id(p) for p in relaxed.parameters()}
    assert not weights & thetas
    assert network.state_dict().keys() <= relaxed.state_dict().keys()
    assert type(relaxed.network) is type(network)


def test_the_network_that_is_given_is_left_alone():
    network, relaxed = relaxed_of("resnet8 with skips")
    before = copy.deepcopy(network.state_dict())
    relaxed.train()
    torch.optim.SGD(relaxed.parameters(), 0.1).zero_grad()
    relaxed(images()).sum().backward()
    torch.optim.SGD(relaxed.parameters(), 0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert relaxed.detached().state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", SMALL)
def test_copies_pickles_and_loads(name):
    _, relaxed = relaxed_of(name)
    relaxed.eval()
    relaxed.architecture.theta.data.normal_()
    x = images()
    wanted = relaxed(x)
    twin = copy.deepcopy(relaxed)
    again = pickle.loads(pickle.dumps(relaxed))
    fresh = relaxed_of(name)[1].eval()
    fresh.load_state_dict(relaxed.state_dict())
    relaxed.architecture.theta.data.zero_()  # the copies must not share theta with it
    for other in (twin, again, fresh):
        assert torch.equal(other(x), wanted)
    assert not torch.equal(relaxed(x), wanted)


def test_a_forward_that_fails_leaves_nothing_behind():
    network, relaxed = relaxed_of("residual")
    wanted = network.eval()(images())
    relaxed.eval()
    relaxed.network.conv2.register_forward_pre_hook(lambda m, a: 1 / 0, prepend=False)
    with pytest.raises(ZeroDivisionError):
        relaxed(images())
    relaxed.network.conv2._forward_pre_hooks.popitem()
    assert torch.equal(relaxed(images()), wanted)


def test_autocast_keeps_the_bits():
    network, relaxed = relaxed_of("resnet8")
    network.eval(), relaxed.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relaxed(images()), network(images()))


def test_one_theta_moves_all_edges_of_a_group():
    network = dnat.build("resnet20", width=4, seed=1).eval()
    edges = dnat.find_edges(dnat.trace(network, images()))
    cell, full = relax(network, edges, mode="cell").eval(), relax(network, edges).eval()
    row = torch.tensor([0.0, 0.3, 0.7])
    group = cell.groups[0]
    cell.architecture.theta.data[0] = row
    for edge in edges:
        if edge.group == group:
            full.architecture.theta.data[full.row(edge)] = row
    assert torch.equal(cell(images()), full(images()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "ful"}, "unknown mode 'ful'; did you mean 'full'"),
        ({"gate": "sigmod"}, "unknown gate 'sigmod'; did you mean 'sigmoid'"),
    ],
)
def test_unknown_names_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        relaxed_of("residual", **options)


def test_edges_of_another_network_are_refused():
    edges = dnat.find_edges(dnat.trace(small("residual"), images()))
    with pytest.raises(ValueError, match="Shared has no conv1>norm1"):
        relax(small("shared"), edges)
    known = dnat.find_edges(dnat.trace(small("shared"), images()))[0]
    for place in ("entry", "exit"):
        with pytest.raises(ValueError, match="were the edges found in another network"):
            relax(small("shared"), [dataclasses.replace(known, **{place: "nowhere"})])
    with pytest.raises(ValueError, match="no edges to relax"):
        relax(small("shared"), ())


def test_a_theta_of_the_networks_own_is_not_lost():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta, self.layer = nn.Parameter(torch.full((3,), 7.0)), nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) + self.theta

    network, x = Own(), torch.ones(2, 3)
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, x)))
    state = relaxed.state_dict()
    assert state.keys() == {"theta", "layer.weight", "layer.bias", "architecture.theta"}
    assert state["theta"].tolist() == [7.0] * 3
    relaxed.load_state_dict({k: v + 1 for k, v in state.items()})
    assert relaxed.network.theta.tolist() == [8.0] * 3
    assert relaxed.architecture.theta.tolist() == [[1.0, 1.0, 2.0]]


def test_a_norm_behind_a_block_that_is_an_edge_itself():
    """As Swin V2 has it: the block's last layer and the norm behind the block are a unit."""

    class Post(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Dropout(0.0))
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            return x + self.norm(self.mlp(x))

    network = nn.Sequential(nn.Linear(3, 4), Post(), Post(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    edges = dnat.find_edges(dnat.trace(network, x))
    keys = {e.key: e.choices for e in edges}
    assert "identity" in keys["1.mlp"]
    assert "none" in keys["1.mlp.2>1.norm"]
    relaxed = dnat.relax(network, edges).eval()
    assert torch.equal(relaxed(x), network(x))
    for choices in (
        {"1.mlp": "identity"},
        {"1.mlp.2>1.norm": "none"},
        {"1.mlp": "identity", "2.mlp.2>2.norm": "none"},
    ):
        relaxed.set_one_hot({e.key: choices.get(e.key, "original") for e in edges})
        made = dnat.discretize(network, choices, x).eval()
        assert torch.allclose(relaxed(x), made(x), atol=1e-6), choices


# --- norms that are weighed in place of their outputs


def learned(network, inputs):
    """Output, gradients and buffers of a step of all that can learn."""
    network.train().zero_grad()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    output = network(inputs)
    output.square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"output": output, **gradients, **{name: b.clone() for name, b in network.named_buffers()}}


@pytest.mark.parametrize("name", ["resnet8", "resnet8 with skips", "in place", "shared", "residual"])
def test_weighing_a_norm_is_weighing_its_output(name, monkeypatch):
    network = small(name)
    x = images(dtype=torch.float64)
    found = []
    for weighed in (attaching.WEIGHED, ()):
        monkeypatch.setattr(attaching, "WEIGHED", weighed)
        relaxed = relax(network, dnat.find_edges(dnat.trace(network, images()))).double()
        theta = torch.randn(len(relaxed.groups), 3, generator=torch.Generator().manual_seed(4)).double()
        theta[0, CHOICES.index("original")] = 0.0
        relaxed.architecture.theta.data.copy_(theta)
        found.append(learned(relaxed, x))
    folded, plain = found
    assert folded.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.allclose(folded[key], value, rtol=1e-9, atol=1e-11), key


def test_a_step_of_the_weights_keeps_no_more_than_the_network_alone():
    network = dnat.build("resnet8", width=4, seed=0).train()
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images()))).train()
    relaxed.architecture.theta.data += 0.1
    relaxed.architecture.theta.requires_grad_(False)
    kept = []
    for part in (network, relaxed):
        sizes = {}
        own = {p.data_ptr() for p in part.parameters()}

        def pack(x, sizes=sizes, own=own):
            if x.dim() > 1 and x.data_ptr() not in own:
                sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            part(images())
        kept.append(sum(sizes.values()))
    assert kept[0] == kept[1] > 0


def test_addition_passes_gradcheck_to_second_order():
    torch.manual_seed(0)
    y, x = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gate = torch.randn((), dtype=torch.float64, requires_grad=True)

    def summed(y, x, gate):
        return added(y * 1.0, x, gate, in_place=True)

    for value in (gate.item(), 0.0):
        gate.data.fill_(value)
        assert torch.equal(summed(y, x, gate), y + gate * x)
        assert torch.autograd.gradcheck(summed, (y, x, gate))
        assert torch.autograd.gradgradcheck(summed, (y, x, gate))
    silenced = added(
        torch.ones(2), torch.tensor([math.inf, math.nan]), torch.zeros((), requires_grad=True), in_place=True
    )
    assert torch.equal(silenced, torch.ones(2))


def test_norms_have_their_own_weights_again_whatever_happens():
    network = dnat.build("resnet8", width=4, seed=0)
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images()))).train()
    relaxed.architecture.theta.data += 0.1
    own = dict(relaxed.named_parameters())

    def same():
        return all(p is own[name] for name, p in relaxed.named_parameters()) and own.keys() == {
            name for name, _ in relaxed.named_parameters()
        }

    relaxed(images())
    assert same()
    block = relaxed.network.layer1[0]

    def fail(*args):
        raise RuntimeError("as it may")

    handle = block.bn1.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="as it may"):
        relaxed(images())
    handle.remove()
    assert same()
    # A recomputation ends in the middle of a forward, when all that was asked for is there.
    torch.utils.checkpoint.checkpoint(relaxed, images(), use_reentrant=False).sum().backward()
    assert same()


def test_whoever_listens_to_a_norm_keeps_what_it_was_given():
    network = dnat.build("resnet8", width=4, seed=0).eval()
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images()))).eval()
    relaxed.architecture.theta.data[:, CHOICES.index("identity")] = 1.0
    heard = []
    relaxed.network.layer1[0].bn1.register_forward_hook(
        lambda m, args, out: heard.append((out, out.clone())), prepend=True
    )
    with torch.no_grad():
        relaxed(images())
    assert torch.equal(*heard[0])
