"""Widths that shrink: by hand, in both modes, in all that is trained and kept, within budgets."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

import dnat
from dnat.budget import Costs, best, by_edge
from dnat.discretization import discretization
from dnat.edges import crosses, kept_of, problems
from dnat.edges.edge import widths_of
from dnat.narrowing import by_weights, staying
from dnat.planning import find_edges, times
from dnat.relaxation import relax
from dnat.tracing import copied, trace


class Block(nn.Module):
    """A bottleneck in a residual network: two inner widths, one of which two convolutions share."""

    def __init__(self, channels=8, inner=4, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.a, self.an = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.bn = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.c, self.cn = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn(self.b(self.an(self.a(x)).relu())).relu()
        return self.head((x + self.cn(self.c(y))).mean((2, 3)))


def network(seed=0, **options):
    """With statistics and weights of norms that tell channels apart."""
    torch.manual_seed(seed)
    made = Block(**options)
    with torch.no_grad():
        for m in made.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_()
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 1.5)
    return made


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def edges_of(net, space="dnat,width", x=X):
    return find_edges(trace(net, x), space)


def test_steps_are_eighths_and_multiples_of_eight_where_they_are_not_smaller():
    assert [kept_of(64, f"{n}/8") for n in range(1, 8)] == [8, 16, 24, 32, 40, 48, 56]
    assert [kept_of(16, f"{n}/8") for n in range(1, 8)] == [2, 4, 6, 8, 10, 12, 14]
    assert all(kept_of(n, f"{s}/8") % 8 == 0 for n in range(64, 300) for s in range(1, 8))
    for n in range(2, 200):
        kept = [kept_of(n, c) for c in widths_of(n)]
        assert kept == sorted(set(kept), reverse=True)
        assert 1 <= kept[-1] <= kept[0] < n


def test_a_width_keeps_the_channels_whose_weights_are_largest():
    net = network()
    edge = next(e for e in edges_of(net) if e.key == "a:width")
    made, read = net.a.weight.flatten(1).norm(dim=1), net.b.weight.transpose(0, 1).flatten(1).norm(dim=1)
    order = (-made * read).tolist()
    order = sorted(range(4), key=order.__getitem__)
    assert list(by_weights(net, [edge])["a:width"]) == order
    assert staying(edge, "6/8", order) == sorted(order[:3])


def by_hand(net, kept_a, kept_b):
    """The narrow network, built anew and filled index by index."""
    small = Block(inner=4)
    small.load_state_dict(net.state_dict())
    small.a, small.an = nn.Conv2d(8, len(kept_a), 1, bias=False), nn.BatchNorm2d(len(kept_a))
    small.b, small.bn = nn.Conv2d(len(kept_a), len(kept_b), 3, padding=1, bias=False), nn.BatchNorm2d(len(kept_b))
    small.c = nn.Conv2d(len(kept_b), 8, 1, bias=False)
    with torch.no_grad():
        small.a.weight.copy_(net.a.weight[kept_a])
        small.b.weight.copy_(net.b.weight[kept_b][:, kept_a])
        small.c.weight.copy_(net.c.weight[:, kept_b])
        for new, old, kept in ((small.an, net.an, kept_a), (small.bn, net.bn, kept_b)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(new, name).copy_(getattr(old, name)[kept])
    return small


@pytest.mark.parametrize("training", [False, True])
def test_what_is_cut_is_what_one_would_cut_by_hand(training):
    net = network()
    edges = {e.key: e for e in edges_of(net)}
    orders = by_weights(net, edges.values())
    choices = {"a:width": "6/8", "b:width": "2/8"}
    made = dnat.discretize(net, choices, X)
    twin = by_hand(net, *(staying(edges[k], c, orders[k]) for k, c in choices.items()))
    assert {n: p.shape for n, p in made.state_dict().items()} == {n: p.shape for n, p in twin.state_dict().items()}
    assert all(torch.equal(made.state_dict()[n], p) for n, p in twin.state_dict().items())
    assert torch.equal(made.train(training)(X), twin.train(training)(X))
    assert repr(made) == repr(twin)  # in_channels, num_features, ...
    assert dnat.cost(made, X) == dnat.cost(twin, X)


@pytest.mark.parametrize("training", [False, True])
def test_the_relaxed_network_is_the_original_and_at_one_hot_the_narrow_one(training):
    net = network().train(training)
    edges = edges_of(net)
    relaxed = relax(net, edges, gate="sigmoid")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(copied(relaxed)(X), copied(net)(X))
    widths = [e for e in edges if e.place]
    for combination in itertools.product(*(e.choices for e in widths)):
        choices = {e.key: c for e, c in zip(widths, combination, strict=True)}
        relaxed.set_one_hot(choices)
        small = dnat.discretize(net, choices, X).train(training)
        torch.testing.assert_close(copied(relaxed)(X), small(X))


def test_theta_of_a_width_feels_what_each_eighth_is_worth():
    """Against finite differences of the loss; and no theta of an original, which has no scale."""
    net = network().double().eval()
    edges = [e for e in edges_of(net, x=X.double()) if e.place]
    relaxed = relax(net, edges)
    theta = relaxed.architecture.theta
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        theta[:, 3:] += 0.3 * torch.rand(theta[:, 3:].shape, generator=generator)

    def loss():
        return relaxed(X.double()).square().mean()

    loss().backward()
    found = theta.grad.clone()
    for row, column in itertools.product(range(theta.shape[0]), range(theta.shape[1])):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                theta[row, column] += step
                values.append(float(loss()))
                theta[row, column] -= step
        assert float(found[row, column]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)
    assert not found[:, :3].any()
    assert found[:, 3:].abs().max() > 1e-3


def test_the_cost_of_every_set_is_that_of_the_network_it_makes_and_the_program_finds_the_best():
    net = network()
    edges = edges_of(net)
    costs, groups = Costs(edges), {e.key: [e] for e in edges}
    sets = [
        (combination, costs.of(chosen))
        for combination in itertools.product(*(e.choices for e in edges))
        if not problems(chosen := dict(zip(edges, combination, strict=True)))
    ]
    generator = random.Random(0)
    for combination, paid in generator.sample(sets, 12):
        made = dnat.discretize(net, {e.key: c for e, c in zip(edges, combination, strict=True)}, X)
        assert dnat.cost(made, X).madds == pytest.approx(paid)
    for _ in range(25):
        scores = {e.key: {c: -generator.random() for c in e.choices} | {"original": 0.0} for e in edges}
        limit = costs.total * generator.uniform(0.55, 1)
        floor = generator.choice([0, 0.97, 0.99]) * limit
        within = [(c, paid) for c, paid in sets if paid <= limit]
        least = min(floor, max(paid for _, paid in within))
        worth = [
            sum(scores[e.key][c] for e, c in zip(edges, s, strict=True)) for s, paid in within if paid >= least
        ]
        chosen = best(groups, scores, costs, limit, floor)
        assert sum(scores[k][c] for k, c in chosen.items()) == pytest.approx(max(worth))
        assert least - 1e-6 <= costs.of(by_edge(groups, chosen)) <= limit


def test_the_expected_cost_counts_what_a_width_saves():
    edges = edges_of(network())
    costs, groups = Costs(edges), {e.key: [e] for e in edges}
    table = costs.expectation(groups, {e.key: e.choices for e in edges})
    for edge in edges:
        for choice in edge.choices:
            left = table.fixed
            for cost, killers in table.shares:
                left += cost * math.prod(1 - p for g, c, p in killers if (g, c) == (edge.key, choice))
            assert left == pytest.approx(costs.of({edge: choice}))


def test_a_width_and_something_else_in_its_layers_place_exclude_each_other():
    net = network()
    edges = {e.key: e for e in edges_of(net)}
    width, unit = edges["a:width"], edges["b>bn"]
    assert crosses(width, unit, "identity")
    assert problems({width: "6/8", unit: "identity"})
    with pytest.raises(
        ValueError, match="a:width: identity at b>bn takes the place of what makes or reads its chan"
    ):
        dnat.discretize(net, {"a:width": "6/8", "b>bn": "identity"}, X)
    # A branch that goes takes its widths with it.
    both = dnat.discretize(net, {"a:width": "6/8", "c>cn": "none"}, X)
    alone = dnat.discretize(net, {"c>cn": "none"}, X)
    assert torch.equal(both.eval()(X), alone.eval()(X))


def test_other_code_that_counts_on_a_size_is_found_out_before_a_width_is_offered():
    class Fixed(Block):
        def forward(self, x):
            x = self.stem(x)
            y = self.an(self.a(x)).relu().view(-1, 4, 6, 6)
            return self.head((x + self.cn(self.c(self.bn(self.b(y)).relu()))).mean((2, 3)))

    torch.manual_seed(0)
    edges = find_edges(trace(Fixed(), X), "width", everything=True)
    refused = dict(next(e for e in edges if e.key == "a:width").refused)
    assert "other code counts on its size" in refused["6/8"]
    assert [e.key for e in edges if len(e.choices) > 1] == ["b:width"]


def test_times_of_narrower_layers_are_measured_and_divided():
    net = network(channels=16, inner=16).eval()
    program = trace(net, X)
    edges = find_edges(program, "dnat,width")
    taken = times(net, X, program, edges)
    assert set(taken.narrow) == {f"{n}/8" for n in range(1, 8)}
    parts = taken.parts(edges)
    costs = Costs(edges, taken.whole, parts)
    widths = {e.key: e for e in edges if e.place}
    a, b = widths["a:width"], widths["b:width"]
    for choice in taken.narrow:
        assert costs.of({a: choice, b: choice}) == pytest.approx(
            sum(
                n if i in a.place.operations | b.place.operations else w
                for i, (w, n) in enumerate(zip(taken.whole, taken.narrow[choice], strict=True))
            )
        )
        shared = a.place.operations & b.place.operations
        for i in shared:
            product = parts[a, choice][i] * parts[b, choice][i]
            assert product == pytest.approx(taken.narrow[choice][i] / taken.whole[i])


def test_in_cell_mode_repeated_blocks_share_a_width():
    net = dnat.build("resnet20")
    edges = find_edges(trace(net, torch.zeros(2, 3, 32, 32)), "width")
    groups = {e.key: e.group for e in edges}
    assert groups["layer1.0.conv1:width"] == groups["layer1.2.conv1:width"] == groups["layer3.1.conv1:width"]
    assert groups["layer2.0.conv1:width"] != groups["layer2.1.conv1:width"]
    relaxed = relax(net, edges, "cell")
    assert len(relaxed.groups) < len(edges)
    shared = groups["layer1.0.conv1:width"]
    choices = {e.key: "4/8" if e.group == shared else "original" for e in edges}
    made = dnat.discretize(net, choices, torch.randn(2, 3, 32, 32))
    layers = [made.get_submodule(k.removesuffix(":width")) for k in choices if groups[k] == shared]
    assert {layer.out_channels for layer in layers} == {8, 16, 32}


def test_a_run_that_learns_widths_goes_on_with_the_momentum_of_what_is_kept():
    """Momentum of another shape would end the first step of the narrow network."""
    data = dnat.load("digits", train_limit=200)
    config = dnat.Config(
        epochs=5, architecture_epochs=4, seed=1, space="dnat,width", budget=0.6, batch_size=50, threads=1, lr=0.05
    )
    result = dnat.transform("resnet8", data, config)
    narrowed = {k: c for k, c in result.choices.items() if "/" in c}
    assert narrowed
    assert result.cost_after.madds <= 0.6 * result.cost_before.madds
    for key, choice in narrowed.items():
        layer = result.network.get_submodule(key.removesuffix(":width"))
        original = dnat.build("resnet8", num_classes=10, in_channels=1).get_submodule(key.removesuffix(":width"))
        assert layer.out_channels == kept_of(original.out_channels, choice)


def test_a_discretization_of_a_trained_relaxed_network_has_its_weights():
    net = network()
    edges = edges_of(net)
    relaxed = relax(net, edges)
    with torch.no_grad():
        for p in relaxed.network.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)))
    order = relaxed.orders["a:width"]  # of the weights at the beginning, whatever they have become
    made = discretization(relaxed, {"a:width": "6/8"}, X)
    assert made.undone == {}
    assert torch.equal(made.network.a.weight, relaxed.network.a.weight[sorted(order[:3])])


def test_rounding_that_norms_make_large_is_no_difference():
    """Norms over two numbers give 1 and -1, whichever of two nearly equal ones is larger."""
    net = dnat.build("torchvision:mobilenet_v2", seed=0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = random.Random(1)
    choices = {e.key: draws.choice(e.choices) for e in edges_of(net, "width", x)}
    made = dnat.discretize(net, choices, x)
    kept = {k: kept_of(net.get_submodule(k[:-6]).out_channels, c) for k, c in choices.items() if c != "original"}
    assert {k: made.get_submodule(k[:-6]).out_channels for k in kept} == kept
