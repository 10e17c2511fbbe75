import itertools

import pytest
import torch
from reference import SMALL, images, small
from torch import nn

import dnat
from dnat.budget import Costs, InfeasibleError, cheapest
from dnat.edges import problems
from dnat.relaxation import relax
from dnat.selection import decide
from dnat.settings import Amount


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


BRUTE = [name for name in SMALL if "skips" not in name]
"""With null edges there are too many sets to try them all."""


def all_sets(relaxed):
    """Every legal set of choices of groups, as (choices of edges, groups that stay original)."""
    groups = relaxed.by_group()
    for choices in itertools.product(*(relaxed.choices_of(g) for g in groups)):
        made = dict(zip(groups, choices, strict=True))
        found = {e: made[g] for g, members in groups.items() for e in members}
        if not problems(found):
            yield found, frozenset(g for g, c in made.items() if c == "original")


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", BRUTE)
def test_what_was_asked_for_is_used_by_trying_every_set(name, mode):
    """As a limit, or as what nothing is charged below: the result lies in the last 3 % wherever a legal set does,
    else at the dearest; and no legal set that would fit keeps its originals and more, at a higher cost."""
    relaxed = relaxed_of(name, mode=mode, gate="sigmoid")
    costs = Costs(relaxed.edges)
    sets = [(costs.of(made), kept) for made, kept in all_sets(relaxed)]
    prices = sorted({cost for cost, _ in sets})
    generator = torch.Generator().manual_seed(5)
    shares = torch.rand(6, generator=generator) * 0.98 + 0.02
    theta = relaxed.architecture.theta
    for number, amount in enumerate([*(shares * costs.total).tolist(), prices[0], prices[len(prices) // 2]]):
        if amount < prices[0]:
            with pytest.raises(InfeasibleError, match="smallest reachable cost"):
                decide(relaxed, limit=Amount(amount, relative=False), floor=amount)
            continue
        # Theta that would drop all, keep all, or has no opinion; scores of another judge.
        theta.data = torch.rand(theta.shape, generator=generator) * (0.4, 1.4, 1.0)[number % 3]
        worths = None if number % 2 else (theta.detach() * 3 - 1).tolist()
        wish = {d.edge: d.choice for d in decide(relaxed, worths=worths)}
        options = [{"limit": Amount(amount, relative=False)}, {}]
        for given in options if costs.of(wish) <= amount else options[:1]:
            decisions = decide(relaxed, floor=amount, worths=worths, **given)
            made = {d.edge: d.choice for d in decisions}
            assert not problems(made)
            found, originals = (
                costs.of(made),
                {relaxed.groups[relaxed.row(e)] for e in made if made[e] == "original"},
            )
            dearest = max(cost for cost in prices if cost <= amount * (1 + 1e-12))
            assert min(0.97 * amount, dearest) * (1 - 1e-9) <= found <= dearest
            more = [cost for cost, kept in sets if kept > originals and found < cost <= amount]
            assert not more
            assert all(bool(d.reason) == (d.by not in ("theta", "loss")) for d in decisions)


@pytest.mark.parametrize("name", ["residual", "two branches", "resnet8"])
def test_a_wish_that_uses_nearly_all_is_only_added_to(name):
    relaxed = relaxed_of(name, gate="sigmoid")
    costs, generator = Costs(relaxed.edges), torch.Generator().manual_seed(6)
    for _ in range(10):
        theta = relaxed.architecture.theta
        theta.data = torch.rand(theta.shape, generator=generator)
        wish = {d.edge: d.choice for d in decide(relaxed)}
        amount = costs.of(wish) * 1.02
        made = {d.edge: d.choice for d in decide(relaxed, floor=amount)}
        assert all(choice in ("original", wish[edge]) for edge, choice in made.items())
        # Without a wish to be cheap nothing is restored.
        assert {d.edge: d.choice for d in decide(relaxed, limit=Amount(amount, relative=False))} == wish


def test_what_fits_only_with_another_change_is_found():
    """Theta that leaves nothing of a cell but its skip: each convolution that reads a node would come back with
    the one that leads there, which is too much; instead of that one a skip fits."""
    network = dnat.build("nasbench201:330133", width=4, cells=1, num_classes=5)
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images())), mode="cell", gate="sigmoid")
    for edge in relaxed.edges:
        set_theta(relaxed, edge.key, 0.1, 0.45 if edge.operation == "skip_connect" else 0.3)
    costs = Costs(relaxed.edges)
    amount = 0.6 * costs.total
    cheap = {d.edge: d.choice for d in decide(relaxed)}
    alone = {costs.of({**cheap, **dict.fromkeys(edges, "original")}) for edges in relaxed.by_group().values()}
    assert all(cost == costs.of(cheap) or cost > amount for cost in alone)
    found = costs.of({d.edge: d.choice for d in decide(relaxed, floor=amount)})
    dearest = max(cost for made, _ in all_sets(relaxed) if (cost := costs.of(made)) <= amount)
    assert costs.of(cheap) < min(0.97 * amount, dearest) <= found <= dearest


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
