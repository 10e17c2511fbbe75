import ctypes
import itertools
import random
import re

import pytest
import test_moves
import torch
from reference import SMALL, images, small
from scipy.optimize import milp
from torch import nn

import dnat
from dnat.budget import Costs, InfeasibleError, best, by_edge, cheapest, model, solver, streams
from dnat.budget.model import Model
from dnat.budget.solver import CHATTER, without_chatter
from dnat.discretization import discretization
from dnat.edges import problems
from dnat.planning import make_plan


def edges_of(network):
    return dnat.find_edges(dnat.trace(network, images()))


def groups_of(edges, mode="full"):
    groups = {}
    for edge in edges:
        groups.setdefault(edge.key if mode == "full" else edge.group, []).append(edge)
    return groups


def legal_of(groups):
    return {g: [c for c in m[0].choices if all(c in e.choices for e in m)] for g, m in groups.items()}


def every_set(groups):
    """All legal choices of groups, by trying every one."""
    legal = legal_of(groups)
    for choices in itertools.product(*legal.values()):
        found = dict(zip(legal, choices, strict=True))
        if not problems(by_edge(groups, found)):
            yield found


BRUTE = [n for n in SMALL if "skips" not in n]


@pytest.mark.parametrize("name", SMALL)
def test_costs_are_those_of_the_discretized_network(name):
    network = small(name)
    edges = edges_of(network)
    costs = Costs(edges)
    assert costs.of({}) == costs.total == dnat.cost(network, images()).madds
    sets = list(itertools.islice(every_set(groups_of(edges)), 3000))
    for choices in random.Random(1).sample(sets, min(len(sets), 30)):
        made = discretization(network, choices, images(), edges[0].program)
        assert not made.undone
        real = dnat.cost(made.network, images()).madds
        assert costs.of({e: choices[e.key] for e in edges}) == real, choices


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", BRUTE)
def test_the_best_set_is_that_of_an_exhaustive_search(name, mode):
    edges = edges_of(small(name))
    groups, costs = groups_of(edges, mode), Costs(edges)
    legal = legal_of(groups)
    sets = list(every_set(groups))
    prices = [costs.of(by_edge(groups, s)) for s in sets]
    assert cheapest(groups, legal, costs)[1] == min(prices)
    generator = random.Random(2)
    for _ in range(6):
        scores = {g: {c: generator.uniform(-1, 1) for c in choices} for g, choices in legal.items()}
        worth = [sum(scores[g][c] for g, c in s.items()) for s in sets]
        for limit in {min(prices), costs.total, *generator.sample(prices, min(4, len(prices)))}:
            found = best(groups, scores, costs, limit)
            assert costs.of(by_edge(groups, found)) <= limit
            assert not problems(by_edge(groups, found))
            value = sum(scores[g][c] for g, c in found.items())
            assert value == pytest.approx(max(w for w, p in zip(worth, prices, strict=True) if p <= limit))


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", BRUTE)
def test_the_best_set_that_uses_the_limit_is_that_of_an_exhaustive_search(name, mode):
    edges = edges_of(small(name))
    groups, costs = groups_of(edges, mode), Costs(edges)
    sets = [(s, costs.of(by_edge(groups, s))) for s in every_set(groups)]
    prices = sorted({price for _, price in sets})
    generator = random.Random(4)
    for _ in range(4):
        scores = {g: {c: generator.uniform(-1, 1) for c in choices} for g, choices in legal_of(groups).items()}
        between = generator.uniform(prices[0], prices[-1])
        for limit in (prices[0], *generator.sample(prices, min(3, len(prices))), between, 2 * costs.total):
            dearest = max(price for price in prices if price <= limit)
            least = min(0.97 * limit, dearest)
            found = best(groups, scores, costs, limit, 0.97 * limit)
            assert not problems(by_edge(groups, found))
            assert least <= costs.of(by_edge(groups, found)) <= limit
            value = sum(scores[g][c] for g, c in found.items())
            worths = (sum(scores[g][c] for g, c in s.items()) for s, price in sets if least <= price <= limit)
            assert value == pytest.approx(max(worths))
    with pytest.raises(InfeasibleError, match=f"smallest reachable cost is {prices[0]:.6g}"):
        best(groups, scores, costs, prices[0] - 1, 0.97 * prices[0])


@pytest.mark.parametrize("name", BRUTE)
def test_what_cannot_be_reached_is_said(name):
    edges = edges_of(small(name))
    groups, costs = groups_of(edges), Costs(edges)
    scores = {g: dict.fromkeys(c, 0.0) for g, c in legal_of(groups).items()}
    least = min(costs.of(by_edge(groups, s)) for s in every_set(groups))
    with pytest.raises(InfeasibleError, match=f"smallest reachable cost is {least:.6g}"):
        best(groups, scores, costs, least - 1)


@pytest.mark.parametrize("name", SMALL)
def test_the_expected_cost_is_the_mean_over_random_choices(name):
    """Of independent choices, where no two edges can only together make something unnecessary."""
    edges = edges_of(small(name))
    groups, costs = groups_of(edges), Costs(edges)
    legal = legal_of(groups)
    table = costs.expectation(groups, legal)
    assert table.total == costs.total
    for group, choices in legal.items():
        for choice in choices:
            alone = costs.of({e: choice for e in groups[group]})
            parts = [sum(p for g, c, p in killers if (g, c) == (group, choice)) for _, killers in table.shares]
            assert set(parts) <= {0.0, 1.0}
            kept = table.fixed + sum(s * (1 - p) for (s, _), p in zip(table.shares, parts, strict=True))
            kept += sum(amount for g, c, amount in table.added if (g, c) == (group, choice))
            assert kept == pytest.approx(alone)


def test_any_weights_of_operations_can_be_budgeted():
    network = small("residual")
    edges = edges_of(network)
    trace = edges[0].program.traces[0]
    costs = Costs(edges, [1.0] * len(trace.operations))
    assert costs.total == len(trace.operations)
    assert costs.of({edges[-1]: "none"}) < costs.total - 3  # a convolution, a norm, an activation, another one
    with pytest.raises(ValueError, match="2 weights for"):
        Costs(edges, [1.0, 2.0])


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "densenet121", "vit_b_16"])
def test_budgets_of_real_networks_are_kept(name):
    size = 224 if "vit" in name else 64
    network = dnat.build(f"torchvision:{name}", seed=0)
    edges = dnat.find_edges(dnat.trace(network, torch.zeros(2, 3, size, size)))
    groups, costs = groups_of(edges), Costs(edges)
    legal = legal_of(groups)
    least = cheapest(groups, legal, costs)[1]
    generator = random.Random(3)
    scores = {g: {c: generator.uniform(-1, 1) for c in choices} for g, choices in legal.items()}
    for share in (0.01, 0.3, 0.8):
        limit = least + share * (costs.total - least)
        found = best(groups, scores, costs, limit)
        assert costs.of(by_edge(groups, found)) <= limit
        assert not problems(by_edge(groups, found))


class Unread(nn.Module):
    """Computes a branch that nobody reads, inside and beside what can change."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.unread = nn.Conv2d(4, 7, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        self.unread(x)
        return self.head((x + self.conv(x)).mean((2, 3)))


def test_what_nobody_reads_is_paid_for_and_stays():
    network = Unread()
    edges = edges_of(network)
    assert [e.key for e in edges] == ["conv"]
    costs, fixed, conv = Costs(edges), 64 * 9 * (3 * 4 + 4 * 7) + 4 * 5, 64 * 9 * 4 * 4
    assert costs.total == costs.of({}) == dnat.cost(network, images()).madds == fixed + conv
    assert costs.of({edges[0]: "none"}) == fixed
    groups, scores = groups_of(edges), {"conv": {"original": 1.0, "identity": 0.5, "none": 0.0}}
    assert best(groups, scores, costs, fixed + conv) == {"conv": "original"}
    assert best(groups, scores, costs, fixed + conv - 1) == {"conv": "identity"}
    with pytest.raises(InfeasibleError, match=f"smallest reachable cost is {fixed:.6g}"):
        best(groups, scores, costs, fixed - 1)


@pytest.mark.parametrize("name", BRUTE)
def test_a_model_gives_the_same_answer_twice_and_is_as_before(name):
    """Also where sets that cannot be made together were cut off on the way."""
    groups = groups_of(edges_of(small(name)))
    costs, generator = Costs([e for m in groups.values() for e in m]), random.Random(5)
    for share in (0.5, 0.8, 1.0):
        scores = {g: {c: generator.uniform(-1, 1) for c in choices} for g, choices in legal_of(groups).items()}
        model = Model(groups, scores, costs, share * costs.total)
        rows, objective = list(model.program.rows), list(model.program.objective)
        first = model.solve()
        assert model.solve() == first == Model(groups, scores, costs, share * costs.total).solve()
        assert (model.program.rows, model.program.objective) == (rows, objective)


def test_the_solver_says_nothing_of_its_own_and_nothing_else_is_lost(capfd):
    libc = ctypes.CDLL(None)
    with without_chatter():
        libc.puts(CHATTER + b"::something")
        libc.puts(b"of another library")
    libc.fflush(None)
    assert capfd.readouterr().out == "of another library\n"


class Streams(nn.Module):
    """Cells of one node, the sum of two convolutions of the two cells before, as in DARTS."""

    def __init__(self, cells=3, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.left, self.right = (
            nn.ModuleList(
                nn.Sequential(
                    nn.ReLU(),
                    nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
                    nn.BatchNorm2d(channels),
                )
                for _ in range(cells)
            )
            for size in (3, 1)
        )
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        before, here = (y := self.stem(x)), y * 2
        for left, right in zip(self.left, self.right, strict=True):
            before, here = here, left(here) + right(before)
        return self.head(here.mean((2, 3)))


def test_of_two_streams_the_best_set_is_that_of_an_exhaustive_search():
    torch.manual_seed(0)
    groups = groups_of(edges_of(Streams()))
    costs, legal = Costs([e for m in groups.values() for e in m]), legal_of(groups)
    sets = [(choices, costs.of(by_edge(groups, choices))) for choices in every_set(groups)]
    assert len(groups) == 6
    assert len(sets) > 100
    draw = random.Random(3)
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95) * 5:
        scores = {g: {c: draw.gauss(c == "original", 0.7) for c in choices} for g, choices in legal.items()}
        limit = share * costs.total
        within = [s for s, cost in sets if cost <= limit]
        found = best(groups, scores, costs, limit)
        assert worth(found, scores) == pytest.approx(max(worth(s, scores) for s in within), abs=1e-6)
        floor = 0.9 * limit
        within = [s for s, cost in sets if floor <= cost <= limit]
        if within:
            found = best(groups, scores, costs, limit, floor)
            assert worth(found, scores) == pytest.approx(max(worth(s, scores) for s in within), abs=1e-6)


def streaming(name):
    torch.manual_seed(0)
    if name == "streams":
        return edges_of(Streams(cells=4))
    if name == "small cells":
        return test_moves.edges_of(test_moves.network())
    network, given = name.partition(", ")[::2]
    options = {"channels": 4, "layers": 3} if network == "darts_v2" else {"channels": 2, "layers": 2}
    network = dnat.build(network, seed=0, skips="nulls" in given, **options)
    moves = "nat++" if "nat++" in given else "dnat"
    return dnat.find_edges(dnat.trace(network, torch.randn(2, 3, 16, 16)), moves)


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize(
    "name",
    ["streams", "small cells", "darts_v2", "darts_v2, nat++", "nasnet, nat++", "nat_enas, nulls"],
)
def test_no_legal_set_is_cut_off_or_made_dearer(name, mode, monkeypatch):
    """What is said of needs beforehand holds of every legal set, which costs in the program what it costs."""
    said = []
    monkeypatch.setattr(streams, "rows", lambda *given, real=streams.rows: said.extend(real(*given)) or said)
    groups = groups_of(streaming(name), mode)
    costs, legal = Costs([e for m in groups.values() for e in m]), legal_of(groups)
    model = Model(groups, {g: dict.fromkeys(c, 0.0) for g, c in legal.items()}, costs, None, worth=-1.0)
    assert len(said) > 5

    def cheapness(choices):
        fixed = [
            ([(v, sign)], sign * (choices[g] == c)) for (g, c), v in model.choices.items() for sign in (1.0, -1.0)
        ]
        values = model.program.solution(fixed)
        assert values is not None, choices
        return float(values @ model.program.objective)

    draw, tried = random.Random(1), 0
    untouched = cheapness(dict.fromkeys(legal, "original"))
    for number in range(2000):
        share = (0.05, 0.15, 0.3, 0.5)[number % 4]
        choices = {g: draw.choice(c) if draw.random() < share else "original" for g, c in legal.items()}
        if tried < 40 and not problems(by_edge(groups, choices)):
            tried += 1
            saved = (cheapness(choices) - untouched) * costs.total
            assert costs.of(by_edge(groups, choices)) == pytest.approx(costs.total - saved, rel=1e-6), choices
    assert tried > 15


def worth(choices, scores):
    return sum(scores[group][choice] for group, choice in choices.items())


def cells_of_darts():
    """(groups, costs, what theta may find choices worth) of a network of six cells."""
    network = dnat.build("darts_v2", seed=0, channels=4, layers=6, skips=False)
    groups = groups_of(dnat.find_edges(dnat.trace(network, torch.randn(2, 3, 32, 32))))
    draw, usual = random.Random(0), {"original": 0.9, "identity": 0.1, "none": 0.0}
    scores = {g: {c: usual[c] + draw.gauss(0, 0.15) for c in m[0].choices} for g, m in groups.items()}
    return groups, Costs([e for m in groups.values() for e in m]), scores


@pytest.fixture
def branches(monkeypatch):
    """Of each program that is solved, how many branches it took."""
    found = []

    def counted(*arguments, **options):
        result = milp(*arguments, **options)
        found.append(result.mip_node_count)
        return result

    monkeypatch.setattr(solver, "milp", counted)
    return found


def test_two_streams_need_few_branches(branches, monkeypatch):
    """Cells of DARTS: without the rows of `streams` a budget takes many branches, in several solutions."""
    groups, costs, scores = cells_of_darts()
    tight = [best(groups, scores, costs, share * costs.total) for share in (0.6, 0.3)]
    assert len(branches) == 2
    assert sum(branches) < 30
    monkeypatch.setattr(streams, "rows", lambda *given: [])
    for share, found in zip((0.6, 0.3), tight, strict=True):
        other = best(groups, scores, costs, share * costs.total)
        assert worth(found, scores) == pytest.approx(worth(other, scores), abs=1e-6)
    assert len(branches) > 4
    assert sum(branches[2:]) > 3 * sum(branches[:2])


def test_a_search_that_does_not_end_tells_how_far_it_came(monkeypatch):
    groups, costs, scores = cells_of_darts()
    whole = best(groups, scores, costs, 0.3 * costs.total)
    monkeypatch.setattr(streams, "rows", lambda *given: [])
    monkeypatch.setattr(solver, "MOST_BRANCHES", 1)
    with pytest.warns(UserWarning, match=r"best set in 1 branches.* at most (\d+\.\d+) more") as told:
        found = best(groups, scores, costs, 0.3 * costs.total)
    assert not problems(by_edge(groups, found))
    assert costs.of(by_edge(groups, found)) <= 0.3 * costs.total
    gap = float(re.search(r"at most (\S+) more", str(told[-1].message))[1])
    assert worth(found, scores) <= worth(whole, scores) <= worth(found, scores) + gap + 1e-3


def test_a_network_whose_best_set_may_not_be_found_says_so_before_it_is_trained(monkeypatch):
    network, images = dnat.build("darts_v2", seed=0, channels=4, layers=8, skips=False), torch.randn(2, 3, 32, 32)
    program = dnat.trace(network, images)
    make_plan(network, program, images, dnat.Config(budget=0.5))  # warnings are errors
    monkeypatch.setattr(model, "PROBED", 1)
    monkeypatch.setattr(streams, "rows", lambda *given: [])
    with pytest.warns(UserWarning, match="with 64 edges the best set within this budget may not be found"):
        make_plan(network, program, images, dnat.Config(budget=0.5))


class Chain(nn.Module):
    """Residual blocks of equal cost."""

    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
            for _ in range(blocks)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_layers_of_equal_cost_are_not_tried_one_by_one(branches, monkeypatch):
    groups = groups_of(edges_of(Chain(20)))
    costs, draw = Costs([e for m in groups.values() for e in m]), random.Random(0)
    usual = {"original": 0.9, "identity": 0.1, "none": 0.0}
    scores = {g: {c: usual[c] + draw.gauss(0, 0.05) for c in c_} for g, c_ in legal_of(groups).items()}
    found = best(groups, scores, costs, 0.7 * costs.total)
    assert len(branches) == 1
    assert branches[0] < 50  # 17,000 without the steps
    assert costs.of(by_edge(groups, found)) <= 0.7 * costs.total
    monkeypatch.setattr(model, "MOST_STEPS", 0)
    monkeypatch.setattr(solver, "MOST_BRANCHES", 3000)
    with pytest.warns(UserWarning, match="best set in 3000 branches"):
        other = best(groups, scores, costs, 0.7 * costs.total)
    assert worth(found, scores) >= worth(other, scores)
