import copy
import pickle
import random
import warnings

import pytest
import torch
from reference import SMALL, images, legal_sets, small
from torch import nn

import dnat
from dnat.discretization import IncompleteError, _same, discretization
from dnat.edges import legal_edges
from dnat.relaxation import relax
from dnat.rewriting import rewritable


def edges_of(network):
    return dnat.find_edges(dnat.trace(network, images()))


def sets_to_try(edges):
    sets = legal_sets(edges) if len(edges) <= 6 else legal_sets(edges[:6])
    return [s | {e.key: "original" for e in edges if e.key not in s} for s in sets[:: max(1, len(sets) // 48)]]


@pytest.mark.parametrize("name", SMALL)
def test_one_hot_relaxed_equals_discretized_for_every_legal_set(name):
    network = small(name)
    edges = edges_of(network)
    relaxed = relax(network, edges)
    for choices in sets_to_try(edges):
        made = discretization(relaxed, choices, images(), edges[0].program)
        assert not made.undone, made.undone
        assert made.choices == choices
        reference = copy.deepcopy(relaxed)
        reference.set_one_hot(choices)
        for training in (False, True):
            a, b = copy.deepcopy(made.network).train(training), copy.deepcopy(reference).train(training)
            x = images()
            assert torch.equal(a(x), b(x)), (choices, training)
            a(x).square().sum().backward()  # in-place code must not break it


@pytest.mark.parametrize("name", SMALL)
def test_keys_are_a_subset_and_nothing_of_dnat_is_left(name):
    network = small(name)
    edges = edges_of(network)
    for choices in sets_to_try(edges)[:: max(1, len(sets_to_try(edges)) // 6)]:
        plain = dnat.discretize(network, choices, images())
        known = set(network.state_dict())
        added = {k for k in plain.state_dict() if k not in known}
        assert not added
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
        again = pickle.loads(pickle.dumps(copy.deepcopy(plain)))
        assert torch.equal(again.eval()(images()), plain.eval()(images()))


@pytest.mark.parametrize("name", [n for n in SMALL if "skips" not in n])
def test_all_original_is_the_original(name):
    network = small(name)
    plain = dnat.discretize(network, {}, images())
    assert plain.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(plain.eval()(images()), network.eval()(images()))
    assert type(plain) is type(network)


def test_the_network_that_is_given_is_left_alone():
    network = small("in place").train()
    before = copy.deepcopy(network.state_dict())
    out = copy.deepcopy(network)(images())
    dnat.discretize(network, {"conv1>norm1": "identity", "conv2>norm2": "none"}, images())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert torch.equal(copy.deepcopy(network)(images()), out)
    assert network.relu.inplace


def test_none_takes_along_what_only_fed_it():
    network = small("residual")
    made = discretization(network, {"conv2": "none"}, images())
    assert {"conv1", "norm1", "conv2"} <= set(made.removed)
    cost = dnat.cost(made.network, images())
    assert cost.madds == 64 * 3 * 4 * 9 + 4 * 5
    assert cost.params == 3 * 4 * 9 + 8 + 25


def test_identity_removes_parameters_and_multiply_adds():
    network = small("resnet8")
    edge = edges_of(network)[0]
    before, after = (
        dnat.cost(network, images()),
        dnat.cost(dnat.discretize(network, {edge.key: "identity"}, images()), images()),
    )
    assert before.madds - after.madds == edge.madds
    assert before.params - after.params == 4 * 4 * 9 + 8


def test_theta_of_what_is_kept_becomes_one():
    network = small("residual")
    relaxed = relax(network, edges_of(network))
    relaxed.architecture.theta.data[:, 2] = 0.5
    made = discretization(relaxed, {}, images()).network
    assert torch.equal(made.eval()(images()), network.eval()(images()))
    assert not torch.equal(relaxed.eval()(images()), network(images()))


def test_trained_operations_on_null_edges_are_kept():
    network = small("resnet8 with skips")
    relaxed = relax(network, edges_of(network))
    reduce = relaxed.network.get_submodule("layer2.0.skip3.identity_operation")
    nn.init.constant_(reduce.conv1.weight, 0.25)
    plain = dnat.discretize(relaxed, {"layer2.0.skip3": "identity"}, images())
    assert torch.equal(plain.state_dict()["layer2.0.skip3.identity_operation.conv1.weight"], reduce.conv1.weight)
    assert not any(type(m).__name__ == "NullEdge" for m in plain.modules())


def test_what_cannot_be_traced_is_kept_and_said():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            y = self.branch(x)
            return x + y if float(x.detach().sum()) < 1e9 else x - y

    made = discretization(Untraceable(), {"branch": "none"}, images())
    assert made.choices == {"branch": "original"}
    assert "lets values of tensors decide" in made.undone["branch"]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"conv9": "none"}, "unknown edge 'conv9'; did you mean 'conv2'"),
        ({"conv1>norm1": "none"}, "cannot become 'none' .*; legal: original, identity"),
    ],
)
def test_wrong_choices_are_refused(choices, words):
    with pytest.raises(ValueError, match=words):
        dnat.discretize(small("residual"), choices, images())


def test_choices_that_are_legal_alone_but_not_together_are_refused():
    with pytest.raises(ValueError, match=r"cannot be made together: .*every input of add would be lost"):
        dnat.discretize(small("two branches"), {"left": "none", "right": "none"}, images())


def test_dropout_and_stochastic_depth_do_not_disturb_the_check():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            x = self.stem(x)
            return self.dropout(x + self.dropout(self.branch(x)))

    made = discretization(Dropping(), {"branch": "none"}, images())
    assert not made.undone
    assert "branch.0" in made.removed


def test_attention_that_drops_weights_does_not_disturb_the_check():
    """What it draws in the original and in the rewritten network differs; what it computes does not."""

    class Attending(nn.Module):
        class Branch(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
                self.out = nn.Linear(4, 4)

            def forward(self, x):
                return self.out(self.attention(x, x, x, need_weights=False)[0])

        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(3, 4), self.Branch(), self.Branch()

        def forward(self, x):
            x = self.stem(x)
            x = x + self.left(x)
            return x + self.right(x)

    x = torch.randn(2, 6, 3)
    made = discretization(Attending(), {"left.out": "none"}, x)
    assert not made.undone
    assert "left.attention" in made.removed
    network = made.network.train()
    assert not torch.equal(network(x), network(x))  # the one that stays drops as before
    assert torch.equal(network.eval()(x), network(x))


def test_what_a_forward_counts_goes_on_counting():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.stem, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            self.calls += 1
            x = self.stem(x)
            return x + self.branch(x)

    made = discretization(Counting(), {"branch": "none"}, images())
    assert "changes its attributes" in made.undone["branch"]
    before = made.network.calls
    made.network(images())
    assert made.network.calls == before + 1


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (torch.ones(2), True),
        (torch.ones(2) + 1e-6, True),
        (torch.ones(2) + 1e-3, False),
        (torch.ones(1), False),  # broadcasting would find it equal
        (torch.ones(1, 2), False),
        (torch.ones(2).double(), False),
        (torch.ones(2).long(), False),
    ],
)
def test_outputs_are_the_same_in_values_shape_and_type(other, same):
    assert _same(([torch.ones(2)], {}), ([other], {})) is same
    assert _same(([], {"mean": torch.ones(2)}), ([], {"mean": other})) is same


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rounding_is_measured_by_the_largest_of_an_output(size):
    """A zero that others round differently may be off by that much of what stands beside it."""
    one, near, far = (torch.tensor([size, share * size]) for share in (0.0, 3e-6, 3e-5))
    assert _same(([near], {}), ([one], {}))
    assert not _same(([far], {}), ([one], {}))


def test_what_cannot_be_rewritten_is_known_before():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            y = self.branch(x)
            return x + y if float(x.detach().sum()) < 1e9 else x - y

    (edge,) = edges_of(Untraceable())
    assert edge.choices == ("original", "identity")
    assert "lets values of tensors decide" in dict(edge.refused)["none"]
    with pytest.raises(IncompleteError, match=r"branch stays original: .*ask for the report"):
        dnat.discretize(Untraceable(), {"branch": "none"}, images())
    told = dnat.discretize(Untraceable(), {"branch": "none"}, images(), report=True)
    assert told.choices == {"branch": "original"}
    for name in SMALL:
        program = dnat.trace(small(name), images())
        legal = legal_edges(program)
        assert rewritable(program, legal) == legal


def test_zeros_in_a_concatenation_fit_any_batch_and_size():
    network = small("concatenating")
    plain = dnat.discretize(network, {"left": "none", "right": "none"}, images()).eval()
    relaxed = relax(network, edges_of(network)).eval()
    relaxed.set_one_hot({"left": "none", "right": "none"})
    for n, size in ((1, 8), (3, 12), (2, 5)):
        assert torch.equal(plain(images(n, size)), relaxed(images(n, size)))
    assert not hasattr(plain, "left")


def test_a_layer_with_a_mask_keeps_its_arguments():
    network = small("masked")
    plain = dnat.discretize(network, {"layers.0.inner": "none", "layers.1.mixing": "identity"}, images())
    layer = plain.layers[0]
    assert layer(images(2)[:, [0, 0, 0, 0]], None, scaled=True).shape == (2, 4, 8, 8)
    with pytest.raises(
        AssertionError, match="mask was None"
    ):  # what was fixed by the trace may not be given otherwise
        layer(images(2)[:, [0, 0, 0, 0]], torch.ones(1), scaled=True)


def test_dropout_by_function_still_follows_the_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return nn.functional.dropout(x + self.branch(x), 0.5, self.training)

    made = discretization(Dropping(), {"branch": "none"}, images())
    assert not made.undone
    network = made.network
    assert torch.equal(network.eval()(images()), network(images()))
    assert (network.train()(images()) == 0).float().mean() > 0.3


def test_python_random_numbers_are_not_baked_in():
    class RandomDepth(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                if not self.training or random.random() < 0.5:
                    x = x + block(x)
            return x

    random.seed(11)
    before = random.getstate()
    made = discretization(RandomDepth(), {"blocks.1": "none", "blocks.2": "identity"}, images())
    assert random.getstate() == before
    assert made.choices["blocks.2"] == "identity"
    assert "random numbers of Python" in made.undone["blocks.1"]


def test_writes_into_buffers_are_not_lost():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Conv2d(3, 3, 1)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            self.mean.lerp_(x.mean((0, 2, 3)), 0.1)
            return x + self.branch(x)

    made = discretization(nn.Sequential(Counting(), nn.Conv2d(3, 5, 1)), {"0.branch": "none"}, images())
    assert not made.undone
    assert "branch" not in dict(made.network[0].named_children())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(made.network)))
    copied(images())
    assert copied[0].mean.abs().sum() > 0


def test_no_grad_inside_a_forward_is_not_lost():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.branch = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            with torch.no_grad():
                y = self.frozen(x)
            return y + self.branch(x)

    network = nn.Sequential(Frozen(), nn.Conv2d(3, 5, 1))
    edges = dnat.find_edges(dnat.trace(network, images()), everything=True)
    reasons = {e.key: dict(e.refused) for e in edges}
    assert reasons["0.frozen"] == dict.fromkeys(
        ("identity", "none"), "the network runs it without gradients (under no_grad)"
    )
    made = discretization(network, {"0.branch": "none"}, images())
    assert "switches gradients" in made.undone["0.branch"]


def test_attributes_that_others_read_stay_and_what_is_gone_is_noticed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.factor = nn.Conv2d(3, 3, 1), 0.5

        def forward(self, x):
            return x + self.branch(x)

    class Reading(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.block, self.head, self.weight = Block(), nn.Conv2d(3, 5, 1), weight

        def forward(self, x):
            if float(x.detach().sum()) > 1e9:
                return x
            x = self.block(x) * self.block.factor
            if self.weight:
                x = x * self.block.branch.weight.mean()
            return self.head(x)

    made = discretization(Reading(weight=False), {"block.branch": "none"}, images())
    assert not made.undone
    assert made.network.block.factor == 0.5
    made = discretization(Reading(weight=True), {"block.branch": "none"}, images())
    assert made.undone == {"block.branch": "the rewritten network computed something else"}


def test_a_dropout_function_takes_no_name_that_is_taken():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.dropout, self.stem = nn.Conv2d(3, 3, 1), nn.Dropout(0.5), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = nn.functional.dropout(self.stem(x), 0.1, self.training)
            return self.dropout(x) + self.branch(x)

    made = discretization(Two(), {"branch": "none"}, images())
    assert not made.undone
    assert sorted(m.p for m in made.network.modules() if isinstance(m, nn.Dropout)) == [0.1, 0.5]


def test_a_class_with_drop_in_its_name_is_checked_in_train_mode():
    class DropoutBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return nn.functional.dropout(self.norm(x + self.branch(x)), 0.3, self.training)

    network = nn.Sequential(DropoutBlock(), nn.Conv2d(3, 5, 1))
    made = discretization(network, {"0.branch": "none"}, images())
    assert not made.undone
    assert (made.network[0].train()(images()) == 0).any()


def test_keywords_that_nobody_gave_do_not_stand_in_the_way():
    """As transformers writes its layers: everything unknown is handed on."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x, mask=None, **kwargs):
            return self.two(torch.relu(self.one(x)))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x, *args, mask=None, **kwargs):
            return x + self.inner(x, mask, **kwargs)

    network = nn.Sequential(Layer(), nn.Conv2d(3, 5, 1))
    edges = dnat.find_edges(dnat.trace(network, images()))
    (edge,) = [e for e in edges if "none" in e.choices]
    made = discretization(network, {edge.key: "none"}, images(), edges[0].program)
    assert not made.undone
    assert "0.inner.one" in made.removed
    assert torch.equal(made.network(images()), network[1](images()))
    pickle.loads(pickle.dumps(made.network))(images())


def test_a_branch_stays_where_what_only_fed_it_could_not_go():
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = nn.Conv2d(3, 3, 1)

        def forward(self, x, y):
            return x + self.two(y)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.tail, self.head = nn.Conv2d(3, 3, 3, padding=1), Tail(), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            y = torch.relu(self.one(x))
            return self.head(self.tail(x, y)) if float(x.detach().sum()) < 1e9 else x

    network = Outer()
    made = discretization(network, {"tail.two": "none"}, images())
    assert "lets values of tensors decide" in made.undone["tail.two"]
    # Another way to keep the budget is found.
    tight = dnat.Config(epochs=2, architecture_epochs=1, batch_size=4, budget=0.3, threads=1, lr_theta=0.1)
    labels = torch.arange(8) % 5
    pixels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    data = dnat.Data.from_tensors("d", (pixels, labels), (pixels, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = dnat.transform(nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten()), data, tight)
    assert result.cost_after.madds <= 0.3 * result.cost_before.madds
    assert result.choices["0.one"] == "identity"


class Twigs(nn.Module):
    """A sum in a branch of a sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twig = Twig()
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.twig(x)).mean((2, 3)))


class Twig(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, bias=False)
        self.leaves = nn.ModuleList(nn.Conv2d(4, 4, 3, 1, 1, bias=False) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        return self.leaves[0](x) + self.leaves[1](x)


def test_a_branch_inside_a_dropped_branch_may_be_dropped_too():
    network, x = Twigs(), images(2, 8)
    edges = {e.key: e.choices for e in dnat.find_edges(dnat.trace(network, x))}
    assert "none" in edges["twig"]
    assert "none" in edges["twig.leaves.0"]
    compact = dnat.discretize(network, {"twig": "none", "twig.leaves.0": "none"}, x)
    assert not any("twig" in path for path, _ in compact.named_modules())


def test_running_means_that_are_but_rounding_are_no_difference():
    """The mean behind a norm without bias is 0 but for rounding, which a rewritten module may do otherwise."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)
    )
    one, other = block, copy.deepcopy(block)
    one.train()(torch.randn(2, 4, 8, 8))
    other.load_state_dict(one.state_dict())
    other[2].running_mean.mul_(3)
    assert other[2].running_mean.abs().max() < 1e-7
    tensors = [torch.ones(1)]
    assert _same((tensors, dict(one.named_buffers())), (tensors, dict(other.named_buffers())))
    other[2].running_mean.add_(0.01)
    assert not _same((tensors, dict(one.named_buffers())), (tensors, dict(other.named_buffers())))
