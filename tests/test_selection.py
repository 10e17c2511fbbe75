import itertools

import pytest
import torch
from reference import SMALL, images, small
from torch import nn

import dnat
from dnat.budget import Costs, InfeasibleError, cheapest
from dnat.config import Amount
from dnat.edges import problems
from dnat.relaxation import relax
from dnat.selection import decide


def relaxed_of(name, **options):
    network = small(name)
    return relax(network, dnat.find_edges(dnat.trace(network, images())), **options)


def set_theta(relaxed, key, identity, original):
    row = relaxed.row(next(e for e in relaxed.edges if e.key == key))
    relaxed.architecture.theta.data[row] = torch.tensor([0.0, identity, original])


@pytest.mark.parametrize(
    ("identity", "original", "choice"),
    [
        (0.2, 0.8, "original"),
        (0.8, 0.2, "identity"),
        (-0.1, -0.2, "none"),
        (-3.0, 0.1, "original"),  # by sign, not by magnitude
        (0.5, 0.5, "original"),  # ties: original, identity, none
        (0.0, -0.5, "identity"),
        (0.0, 0.0, "original"),
    ],
)
def test_signed_argmax_and_ties(identity, original, choice):
    relaxed = relaxed_of("residual")
    set_theta(relaxed, "conv2", identity, original)
    assert dnat.select(relaxed)["conv2"] == choice


def test_the_start_changes_nothing():
    for name, mode, gate in itertools.product(
        ("residual", "resnet8 with skips"), ("full", "cell"), ("raw", "sigmoid")
    ):
        assert set(dnat.select(relaxed_of(name, mode=mode, gate=gate)).values()) == {"original"}


def test_sigmoid_gates_are_cut_in_the_middle():
    relaxed = relaxed_of("residual", gate="sigmoid")
    set_theta(relaxed, "conv2", 0.4, 0.45)
    assert dnat.select(relaxed)["conv2"] == "none"
    set_theta(relaxed, "conv2", 0.4, 0.55)
    assert dnat.select(relaxed)["conv2"] == "original"


def test_a_null_edge_is_connected_above_its_threshold():
    relaxed = relaxed_of("resnet8 with skips")
    set_theta(relaxed, "layer1.0.skip2", 0.7, 1.0)
    assert dnat.select(relaxed)["layer1.0.skip2"] == "original"  # the paper: the identity must exceed 1
    chosen = {d.edge.key: d.choice for d in decide(relaxed, skip_threshold=0.5)}
    assert chosen["layer1.0.skip2"] == "identity"


def test_a_node_never_starves():
    relaxed = relaxed_of("two branches")
    set_theta(relaxed, "left", -1.0, -0.3)
    set_theta(relaxed, "right", -1.0, -0.2)
    decisions = {d.edge.key: d for d in decide(relaxed)}
    assert decisions["left"].choice == "none"
    assert decisions["right"].choice == "original"  # its theta is the better one
    assert "restored" in decisions["right"].reason
    assert decisions["right"].margin < 0


JOINS = {"sum": ("one", "two"), "cat": ("left", "right"), "long sum": ("a", "b", "c"), "stack": ("up", "down")}


class Starving(nn.Module):
    """A convolution and four joins in a row, sums and concatenations, each of which can lose all its inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        for name in itertools.chain(*JOINS.values()):
            setattr(self, name, nn.Conv2d(4, 4, 1, bias=False))
        self.join = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.mid(torch.relu(self.stem(x)))
        x = torch.relu(self.one(x) + self.two(x))
        x = torch.relu(self.join(torch.cat([self.left(x), self.right(x)], 1)))
        x = torch.relu(self.a(x) + self.b(x) + self.c(x))
        return self.head(torch.stack([self.up(x), self.down(x)], 1).flatten(1, 2).mean((2, 3)))


def starving():
    network = Starving()
    return relax(network, dnat.find_edges(dnat.trace(network, images())))


def test_a_starving_node_gets_its_best_input_back_and_nothing_else_changes():
    """Where all inputs of a join are none, the one with the largest theta stays; `mid` has no part in it."""
    relaxed = starving()
    assert {e.key for e in relaxed.edges} == {"mid", *itertools.chain(*JOINS.values())}
    generator = torch.Generator().manual_seed(0)
    starved = dict.fromkeys(JOINS, 0)
    for _ in range(40):
        theta = relaxed.architecture.theta.data
        theta.uniform_(-1, 0.2, generator=generator)
        theta[:, 1] = -1
        set_theta(relaxed, "mid", 0.9, 0.8)  # worth more than any input of a join
        wanted = {"mid": "identity"}
        for join, names in JOINS.items():
            worth = {name: theta[relaxed.row(e), 2].item() for e in relaxed.edges if (name := e.key) in names}
            wanted |= {name: "none" if value < 0 else "original" for name, value in worth.items()}
            if max(worth.values()) < 0:
                wanted[max(worth, key=worth.get)] = "original"
                starved[join] += 1
        decisions = decide(relaxed)
        assert {d.edge.key: d.choice for d in decisions} == wanted
        assert sum("was restored" in d.reason for d in decisions) == sum(d.margin < 0 for d in decisions)
    assert min(starved.values()) >= 10, starved


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", ["residual", "two branches", "resnet8", "resnet8 with skips", "sequential"])
def test_whatever_theta_is_the_network_lives(name, mode):
    relaxed = relaxed_of(name, mode=mode)
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        relaxed.architecture.theta.data.normal_(-0.3, 1, generator=generator)
        choices = dnat.select(relaxed)
        assert not problems({e: choices[e.key] for e in relaxed.edges})
        if mode == "cell":
            groups = {(e.group, choices[e.key]) for e in relaxed.edges}
            assert len(groups) == len({e.group for e in relaxed.edges})
    plain = dnat.discretize(relaxed, choices, images())
    x, y = images(), images().flip(0)
    assert not torch.equal(plain.eval()(x), plain.eval()(y))  # the output depends on the input


@pytest.mark.parametrize("budget", [0.9, "70%", 0.5, "3000"])
@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", ["residual", "resnet8", "resnet8 with skips", "sequential"])
def test_a_budget_is_kept_whatever_theta_is(name, mode, budget):
    relaxed = relaxed_of(name, mode=mode)
    generator = torch.Generator().manual_seed(1)
    costs, groups = Costs(relaxed.edges), relaxed.by_group()
    limit = 3000 if budget == "3000" else {"70%": 0.7}.get(budget, budget) * costs.total
    least = cheapest(groups, {g: relaxed.choices_of(g) for g in groups}, costs)[1]
    assert (least > limit) is (budget == "3000")
    for _ in range(5):
        relaxed.architecture.theta.data.normal_(0, 1, generator=generator)
        if least > limit:
            with pytest.raises(ValueError, match=f"smallest reachable cost is {least:.6g}"):
                dnat.select(relaxed, budget=budget)
        else:
            plain = dnat.discretize(relaxed, dnat.select(relaxed, budget=budget), images())
            assert dnat.cost(plain, images()).madds <= limit


def test_a_budget_that_is_kept_anyway_changes_nothing():
    relaxed = relaxed_of("residual")
    set_theta(relaxed, "conv2", 0.9, 0.2)
    assert dnat.select(relaxed, budget=1.0) == dnat.select(relaxed)


def test_a_budget_takes_the_least_valued_operations():
    relaxed = relaxed_of("resnet8")
    keys = [e.key for e in relaxed.edges if e.kind == "unit" and "identity" in e.choices]
    for key in keys:
        set_theta(relaxed, key, 0.1, 0.9)
    set_theta(relaxed, keys[1], 0.85, 0.9)  # hardly better than an identity
    saved = next(e.madds for e in relaxed.edges if e.key == keys[1])
    before = dnat.cost(small("resnet8"), images()).madds
    decisions = {d.edge.key: d for d in decide(relaxed, limit=Amount(before - saved, relative=False))}
    assert [k for k, d in decisions.items() if d.choice != "original"] == [keys[1]]
    assert decisions[keys[1]].reason == "original was changed to identity to keep the budget"


@pytest.mark.parametrize("budget", [0, -1, "many", "12 apples", "150%", "nan", "5ms"])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ValueError, match="is not a budget"):
        dnat.select(relaxed_of("residual"), budget=budget)


def test_a_choice_can_be_ruled_out():
    relaxed = relaxed_of("residual")
    set_theta(relaxed, "conv2", -1, -1)
    assert dnat.select(relaxed)["conv2"] == "none"
    choices = {d.edge.key: d.choice for d in decide(relaxed, ruled_out={"conv2": "none"})}
    assert choices["conv2"] == "original"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", SMALL)
def test_nothing_below_the_floor_that_could_be_kept(name, share):
    """Theta that would drop all: originals come back until none fits any more."""
    network = small(name)
    edges = dnat.find_edges(dnat.trace(network, images()))
    relaxed = dnat.relax(network, edges, gate="sigmoid")
    generator = torch.Generator().manual_seed(3)
    relaxed.architecture.theta.data = torch.rand(relaxed.architecture.theta.shape, generator=generator) * 0.4
    costs, groups = Costs(edges), relaxed.by_group()
    cheap = {d.edge: d.choice for d in decide(relaxed)}
    floor = share * costs.total
    decisions = decide(relaxed, floor=floor)
    kept = {d.edge: d.choice for d in decisions}
    assert costs.of(cheap) <= costs.of(kept) <= max(floor, costs.of(cheap))
    assert not problems(kept)
    restored = [e for e in edges if kept[e] != cheap[e]]
    assert all(kept[e] == "original" for e in restored)
    assert all("the cost that was asked for allows it" in d.reason for d in decisions if d.edge in restored)
    for edge, choice in kept.items():
        more = kept | dict.fromkeys(groups[relaxed.groups[relaxed.row(edge)]], "original")
        dearer = costs.of(more) > costs.of(kept)
        assert choice == "original" or not dearer or costs.of(more) > floor or problems(more)
    # Without a wish to be cheap nothing is restored.
    assert {d.edge: d.choice for d in decide(relaxed, floor=0.0)} == cheap


def test_with_room_for_one_the_most_wanted_comes_back():
    """Two edges of one cost that theta dropped; what each lost by decides, not what either is worth."""
    relaxed = relaxed_of("in place")
    keys = ["conv1>norm1", "conv2>norm2"]
    costs = Costs(relaxed.edges)
    room = costs.total - next(e.madds for e in relaxed.edges if e.key == keys[0])
    for (wanted, other), (near, far) in itertools.product(
        (keys, keys[::-1]), [((0.5, 0.4), (0.9, 0.6)), ((0.9, 0.85), (0.7, 0.3))]
    ):
        set_theta(relaxed, wanted, *near)
        set_theta(relaxed, other, *far)
        assert set(dnat.select(relaxed).values()) == {"identity"}
        kept = {d.edge.key: d.choice for d in decide(relaxed, floor=room)}
        assert kept == {wanted: "original", other: "identity"}


@pytest.mark.parametrize("budget", [None, 0.9, 0.7, 0.5])
@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", ["residual", "two branches", "resnet8", "resnet8 with skips"])
def test_who_decided_is_told_of_every_edge(name, mode, budget):
    """Theta where the choice is its argmax, by a count of its own; anything else with a reason."""
    relaxed = relaxed_of(name, mode=mode)
    generator = torch.Generator().manual_seed(7)
    seen = set()
    for _ in range(20):
        relaxed.architecture.theta.data.normal_(0.2, 1, generator=generator)
        limit = None if budget is None else Amount(budget, relative=True)
        try:
            decisions = decide(relaxed, limit=limit)
        except InfeasibleError:
            continue
        for d in decisions:
            _, identity, original = relaxed.architecture.theta[relaxed.row(d.edge)].tolist()
            legal = relaxed.choices_of(relaxed.groups[relaxed.row(d.edge)])
            worth = {"original": 1.0 if d.edge.kind == "skip" else original, "identity": identity, "none": 0.0}
            own = max((c for c in worth if c in legal), key=lambda c: worth[c])
            assert (d.by == "theta") == (d.choice == own), d
            assert bool(d.reason) == (d.by != "theta")
            assert (d.margin < 0) == (d.by != "theta")
            seen.add(d.by)
    assert seen <= ({"theta", "legality"} if budget is None else {"theta", "legality", "budget"})


def test_what_was_ruled_out_is_no_wish_of_thetas():
    relaxed = relaxed_of("residual")
    set_theta(relaxed, "conv2", -1, -1)
    decisions = {d.edge.key: d for d in decide(relaxed, ruled_out={"conv2": "none"})}
    assert decisions["conv2"].by == "rewriting"
    assert decisions["conv2"].reason == "none could not be carried out in full"
    with_loss = decide(relaxed, worths=[[0.0, -1.0, -2.0] for _ in relaxed.groups])
    assert {d.by for d in with_loss if d.choice != "original"} == {"loss"}
