"""Methods against tables whose every number can be worked out by hand."""

import dataclasses
import itertools
import json
import lzma
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import images
from test_training import config, tiny_data

import dnat
from dnat.budget import InfeasibleError
from dnat.discretization import discretization
from dnat.edges import problems
from dnat.lab.ground_truth import (
    Known,
    Lookup,
    Ranking,
    compare_with_table,
    live_form,
    prices,
    reachable,
    read_architecture,
    read_table,
    summary,
)
from dnat.lab.methods import METHODS
from dnat.networks.nasbench import EDGES, OPERATIONS
from dnat.results import Transformation
from dnat.settings import Search
from dnat.training import Evaluation

pytestmark = pytest.mark.usefixtures("quiet")

ROOT = Path(__file__).resolve().parent.parent
CELLS = ["".join(digits) for digits in itertools.product("01234", repeat=6)]
CODES = ["".join(digits) for digits in itertools.product("012", repeat=8)]
TINY = {"nasbench201": {"width": 4, "cells": 1}, "nasbench_macro": {"width": 0.1}}
# Under this pressure much changes.
PRESSED = {"cost_weight": 20.0, "cost_target": 0.0, "lr_theta": 0.3}

# The four ways from a cell's input to its output, as places of its six edges (0->1, 0->2, 1->2, 0->3, 1->3, 2->3).
WAYS = ((3,), (0, 4), (1, 5), (0, 2, 5))


def alive(cell):
    """By the list of ways: a cell without what lies on none of them; nothing if there is none."""
    there = [way for way in WAYS if all(cell[i] != "0" for i in way)]
    used = {i for way in there for i in way}
    return "".join(digit if i in used else "0" for i, digit in enumerate(cell)) if there else None


def accuracy_of_cell(cell):
    """Two for each 3x3 convolution, one for each skip, a half for a 1x1, 1.2 for a pool, 3 for the edge 0 -> 3."""
    worth = {"0": 0.0, "1": 1.0, "2": 0.5, "3": 2.0, "4": 1.2}
    return 50 + sum(worth[digit] for digit in cell) + 3 * (cell[3] != "0")


TABLE = {cell: accuracy_of_cell(cell) for cell in CELLS}
MACRO = {code: 60 + sum((i + 1) * int(digit) for i, digit in enumerate(code)) / 4 for code in CODES}


def written(cell):
    """A cell's digits as NAS-Bench-201's text."""
    nodes = {1: [], 2: [], 3: []}
    for (source, target), digit in zip(EDGES, cell, strict=True):
        nodes[target].append(f"{OPERATIONS[int(digit)]}~{source}|")
    return "+".join("|" + "".join(edges) for edges in nodes.values())


def compared(method, inputs, space="nasbench201", table=None, **options):
    table = table or (TABLE if space == "nasbench201" else MACRO)
    settings = config(**with_space(options))
    return compare_with_table(method, space, table, inputs, tiny_data(), settings, network_options=TINY[space])


def with_space(options):
    """Settings in which `space_` is the space of choices, since a network's space goes by that name here."""
    return {k.removesuffix("_"): v for k, v in options.items()}


def choosing(choices, cells=(0, 2, 4), change=lambda made: made):
    """A method that makes the choices at once: {edge: choice} in each of a tiny network's three cells."""

    def method(network, data, settings):
        example = data.example(2)
        wanted = {f"layers.{cell}.edges.{i}": choice for cell in cells for i, choice in choices.items()}
        edges = dnat.find_edges(dnat.trace(network, example), settings.relaxation.moves)
        made = discretization(network, wanted, example, edges[0].program)
        return change(returned(network, made.network, made.choices, data))

    return method


@dataclasses.dataclass(frozen=True)
class Returned(Transformation):
    """A transformation whose choices are given."""

    given: dict = dataclasses.field(default_factory=dict)

    @property
    def choices(self):
        return self.given


def returned(before, after, choices, data):
    nothing, x = Evaluation(0.0, {"accuracy": 0.0}), data.example(2)
    latency = dnat.latency(after, x, least_runs=2, least_seconds=0.0)
    costs = dnat.cost(before, x), dnat.cost(after, x)
    return Returned(after, None, [], *costs, nothing, nothing, latency, latency, {}, given=choices)


def test_both_forms_are_the_same_architecture():
    for cell in CELLS[::101]:
        assert read_architecture("nasbench201", written(cell)) == read_architecture("nasbench201", cell) == cell
    assert read_architecture("nasbench_macro", "01201210") == "01201210"


def test_live_forms_of_all_cells_by_the_four_ways():
    for cell in CELLS:
        wanted = alive(cell)
        if wanted:
            assert live_form("nasbench201", cell) == wanted
        else:
            with pytest.raises(ValueError, match=f"'{cell}' is a dead cell"):
                live_form("nasbench201", cell)
    assert live_form("nasbench_macro", "01201210") == "01201210"


@pytest.mark.parametrize("cell", ["333300", "301420", "043012", "030420"])
def test_a_live_form_computes_what_the_whole_cell_does(cell):
    """With fresh norms, which leave zeros alone."""
    live = live_form("nasbench201", cell)
    assert live != cell
    whole = dnat.build(f"nasbench201:{cell}", **TINY["nasbench201"]).eval()
    part = dnat.build(f"nasbench201:{live}", **TINY["nasbench201"]).eval()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    assert torch.equal(whole(images()), part(images()))


def may_become(before, after, more):
    return after in (before, "0", "1") or after in more.get(before, "")


@pytest.mark.parametrize("cell", ["333333", "301420", "043012", "000300", "111111", "404404"])
@pytest.mark.parametrize(
    ("moves", "more"),
    [("dnat", {}), ("nat++", {"3": "24"}), ({"conv_1x1": ["avg_pool_3x3", "skip_connect"]}, {"2": "4"})],
)
def test_reachable_cells_by_trying_all(cell, moves, more):
    start = alive(cell)
    wanted = [
        c for c in CELLS if alive(c) == c and all(may_become(a, b, more) for a, b in zip(start, c, strict=True))
    ]
    assert list(reachable("nasbench201", cell, moves)) == wanted


@pytest.mark.parametrize("code", ["12212112", "01201210", "00000000", "20200200"])
def test_reachable_codes_by_trying_all(code):
    """The first layer of each stage, of which there are three, must stay."""
    wanted = [
        c
        for c in CODES
        if all(b == a or (b == "0" and i not in (0, 2, 5)) for i, (a, b) in enumerate(zip(code, c, strict=True)))
    ]
    assert list(reachable("nasbench_macro", code)) == wanted


@pytest.mark.parametrize(
    ("cell", "found_", "of"), [("333333", 290, 290), ("342124", 193, 193), ("300010", 16, 27)]
)
def test_what_dnat_itself_can_come_to(cell, found_, of):
    """By trying every set of choices on one cell: all, unless a node has no edge to lose (as the guide says)."""
    network = dnat.build(f"nasbench201:{cell}", **TINY["nasbench201"])
    edges = {e.key: e for e in dnat.find_edges(dnat.trace(network, images(2)), everything=True)}
    edges = [edges[f"layers.0.edges.{i}"] for i in range(6)]
    found = set()
    for choices in itertools.product(*(e.choices for e in edges)):
        if not problems(dict(zip(edges, choices, strict=True))):
            digit = {"identity": "1", "none": "0"}
            found.add(alive("".join(digit.get(c, d) for c, d in zip(choices, cell, strict=True))))
    wanted = set(reachable("nasbench201", cell))
    assert found <= wanted
    assert (len(found), len(wanted)) == (found_, of)


def test_multiply_adds_are_those_of_the_networks():
    """By the formula of NAS-Bench-201, and by building networks of both spaces at random."""
    price = prices("nasbench201", (3, 32, 32))
    for cell in CELLS[::97]:
        wanted = 7_783_050 - 10 + 35_389_440 * cell.count("3") + 3_932_160 * cell.count("2")
        assert price.of(cell) == wanted
    cases = [("nasbench201", CELLS[::1213], (3, 8, 8)), ("nasbench_macro", CODES[::487], (1, 16, 16))]
    for space, some, pixels in cases:
        price = prices(space, pixels, num_classes=5, **TINY[space])
        for architecture in some:
            network = dnat.build(f"{space}:{architecture}", in_channels=pixels[0], num_classes=5, **TINY[space])
            assert price.of(architecture) == dnat.cost(network, torch.zeros(2, *pixels)).madds


def test_the_best_at_the_cost_by_hand():
    """Without 2 -> 3 nothing reads node 2: three convolutions are left, 50 + 3 * 2 + 3 = 59. The other three edges
    can be skips at no cost: 50 + 3 * 2 + 3 * 1 + 3 = 62. At any cost all six stay: 50 + 6 * 2 + 3 = 65."""
    (outcome,) = compared(choosing({5: "none"}), [written("333333")])
    price = prices("nasbench201", (3, 8, 8), num_classes=5, **TINY["nasbench201"])
    assert outcome.before == Known("333333", 65.0, price.of("333333"))
    assert outcome.after == Known("300330", 59.0, price.of("300330"))
    assert outcome.ranking.best == Known("111333", 62.0, price.of("111333"))
    assert outcome.ranking.best_anywhere == outcome.before
    assert (outcome.regret, outcome.regret_anywhere, outcome.problem) == (3.0, 6.0, "")
    assert outcome.ranking.reachable == 290
    assert outcome.ranking.missing == 0


def test_the_budget_is_what_counts_and_not_what_was_used_of_it():
    """Layers 1 and 7 of 12212112 go, whatever was allowed; what else was is found by trying all."""

    def method(network, data, settings):
        made = discretization(network, {"layers.1": "identity", "layers.7": "identity"}, data.example(2))
        return returned(network, made.network, made.choices, data)

    price = prices("nasbench_macro", (3, 8, 8), num_classes=5, **TINY["nasbench_macro"])
    start = "12212112"
    reached = [c for c in CODES if all(b in (a, "0") for a, b in zip(start, c, strict=True))]
    reached = [c for c in reached if all(c[i] == start[i] for i in (0, 2, 5))]
    for budget in (0.9, 0.7, str(price.of("10212110"))):
        (outcome,) = compared(method, [start], "nasbench_macro", budget=budget)
        allowed = budget * price.of(start) if isinstance(budget, float) else price.of("10212110")
        within = [MACRO[c] for c in reached if price.of(c) <= allowed]
        assert outcome.ranking.allowed == pytest.approx(allowed)
        assert outcome.ranking.among == len(within)
        assert outcome.ranking.best.accuracy == max(within)
        assert outcome.ranking.mean == pytest.approx(statistics.fmean(within))
        assert outcome.ranking.rank == 1 + sum(a > MACRO["10212110"] for a in within)
        assert outcome.regret == max(within) - MACRO["10212110"]
        assert outcome.used == pytest.approx(price.of("10212110") / allowed)
    # What costs more than was allowed stands beside all at its own cost.
    for options in ({}, {"budget": 0.2}):
        (outcome,) = compared(method, [start], "nasbench_macro", **options)
        assert outcome.ranking.allowed == price.of("10212110")
        assert outcome.used == 1.0


@pytest.mark.parametrize(
    ("cell", "choices", "moves", "after"),
    [
        ("333333", {}, "dnat", "333333"),
        ("333333", {5: "none"}, "dnat", "300330"),
        ("333333", {0: "identity", 1: "identity", 4: "none"}, "dnat", "113303"),
        ("333333", {0: "conv_1x1", 3: "avg_pool_3x3", 4: "none"}, "nat++", "233403"),
        ("342043", {3: "identity", 1: "none"}, "dnat", "302143"),
        ("342043", {2: "none", 4: "none"}, "dnat", "040003"),
    ],
)
def test_where_a_result_stands_by_trying_all(cell, choices, moves, after):
    (outcome,) = compared(choosing(choices), [cell], space_=moves)
    more = {"3": "24"} if moves == "nat++" else {}
    start, convolutions = alive(cell), 35_389_440 / 3_932_160  # a 3x3 costs nine times a 1x1

    def madds(c):
        return convolutions * c.count("3") + c.count("2")

    reached = [
        c for c in CELLS if alive(c) == c and all(may_become(a, b, more) for a, b in zip(start, c, strict=True))
    ]
    within = [TABLE[c] for c in reached if madds(c) <= madds(after)]
    ranking = outcome.ranking
    assert outcome.problem == ""
    assert outcome.after.architecture == after
    assert outcome.after.accuracy == TABLE[after]
    assert ranking.best.accuracy == max(within)
    assert madds(ranking.best.architecture) <= madds(after)
    assert TABLE[ranking.best.architecture] == max(within)
    assert ranking.best_anywhere.accuracy == max(TABLE[c] for c in reached)
    assert ranking.rank == sorted(within, reverse=True).index(TABLE[after]) + 1
    assert (ranking.among, ranking.reachable) == (len(within), len(reached))
    assert ranking.mean == pytest.approx(sum(within) / len(within))
    variance = sum((a - ranking.mean) ** 2 for a in within) / len(within)
    assert ranking.std == pytest.approx(math.sqrt(variance))
    assert outcome.control_regret == pytest.approx(max(within) - ranking.mean)
    # Drawing does the same, within five standard errors.
    draws = torch.tensor(within)[torch.randint(len(within), (20_000,))]
    assert abs(draws.mean().item() - ranking.mean) <= 5 * ranking.std / math.sqrt(20_000) + 1e-4
    assert (draws > ranking.mean + 1e-4).double().mean().item() == pytest.approx(ranking.better, abs=0.02)


def test_where_all_are_equal_nothing_is_won_and_the_cheapest_is_named():
    outcomes = compared(choosing({5: "none"}), ["333333"], table=dict.fromkeys(CELLS, 80.1))
    ranking = outcomes[0].ranking
    assert (ranking.rank, ranking.std, ranking.better, outcomes[0].regret) == (1, 0.0, 0.0, 0.0)
    assert ranking.mean == pytest.approx(80.1)
    # Of skips alone, the first by its digits: 0 -> 3.
    assert ranking.best.architecture == ranking.best_anywhere.architecture == "000100"
    found = summary(outcomes)
    assert (found.wins, found.losses, found.ties, found.wins_by_chance, found.p_value) == (0, 0, 1, 0.0, 1.0)


def test_what_the_table_lacks_is_left_out_and_counted():
    table = {c: a for c, a in TABLE.items() if c != "111333"}
    (outcome,) = compared(choosing({5: "none"}), ["333333"], table=table)
    assert outcome.ranking.missing == 1
    assert outcome.ranking.reachable == 289
    assert outcome.ranking.best.accuracy == 62.0
    assert outcome.ranking.best.architecture == "113133"
    (outcome,) = compared(choosing({5: "none"}), ["333333"], table={"333333": 90.0, "111111": 80.0})
    assert outcome.problem == "the result 300330 is not in the table of accuracies"


def test_layers_of_the_macro_space_by_hand():
    """60 + (1 + 2 * 2 + 3 * 2 + 4 + 5 * 2 + 6 + 7 + 8 * 2) / 4 = 73.5; without layers 1 and 7, 60 + 34 / 4."""

    def method(network, data, settings):
        assert settings.relaxation.mode == "full"
        choices = {"layers.1": "identity", "layers.7": "identity"}
        made = discretization(network, choices, data.example(2))
        return returned(network, made.network, made.choices, data)

    (outcome,) = compared(method, ["12212112"], "nasbench_macro")
    assert outcome.before.accuracy == 60 + 54 / 4
    assert (outcome.after.architecture, outcome.after.accuracy) == ("10212110", 60 + 34 / 4)
    assert outcome.ranking.reachable == 32
    assert outcome.ranking.best.accuracy >= outcome.after.accuracy


def same_function(network, space, architecture, data):
    """Whether a network computes what the architecture's own does, with its weights under the same names."""
    twin = dnat.build(f"{space}:{architecture}", num_classes=5, **TINY[space]).eval()
    state = {re.sub(r"^(layers\.\d\.)op\.", r"\1", k): v for k, v in network.state_dict().items()}
    names = twin.state_dict().keys()
    if space == "nasbench_macro":  # layers that may change are edges of their own
        state = {k if k in names else k.replace(".op.", "."): v for k, v in state.items()}
    twin.load_state_dict(state)  # strict: no weight more and none less
    x = data.example(6)
    return torch.allclose(network.eval()(x), twin(x), rtol=1e-4, atol=1e-5)


FROM_201 = ("nasbench201", ["333333", written("301420"), "342043"])
FROM_MACRO = ("nasbench_macro", ["12212112", "01201210"])


@pytest.mark.parametrize(
    ("space", "inputs", "options"),
    [
        (*FROM_201, PRESSED),
        (*FROM_201, {"budget": 0.7}),
        (*FROM_MACRO, {"budget": 0.7}),
        (*FROM_MACRO, {"preset": "paper", "lr_theta": 0.3}),
    ],
)
def test_what_dnat_makes_is_the_architecture_that_is_looked_up(space, inputs, options):
    """The network that dnat trained has the weights of the looked-up architecture, and computes what it does."""
    results = []

    def method(network, data, settings):
        results.append(dnat.transform(network, data, settings))
        return results[-1]

    outcomes = compared(method, inputs, space, **options)
    assert [o.problem for o in outcomes] == [""] * len(inputs)
    if "preset" not in options:
        assert any(o.after.architecture != o.before.architecture for o in outcomes)
    for outcome, result in zip(outcomes, results, strict=True):
        assert same_function(result.network, space, outcome.after.architecture, tiny_data())
        assert outcome.after.madds == result.cost_after.madds
        assert outcome.after.madds <= options.get("budget", 1) * outcome.before.madds
        assert 1 <= outcome.ranking.rank <= outcome.ranking.among <= outcome.ranking.reachable
        assert outcome.regret >= 0


@pytest.mark.slow
def test_dnat_with_the_moves_of_nat_plus_plus():
    outcomes = compared(dnat.transform, ["333333", "343333", "333233"], space_="nat++", budget=0.6, seed=1)
    assert [o.problem for o in outcomes] == ["", "", ""]
    for outcome in outcomes:
        assert outcome.after.architecture in reachable("nasbench201", outcome.before.architecture, "nat++")
        assert outcome.after.madds <= 0.6 * outcome.before.madds


@pytest.mark.parametrize("method", ["nat", "random", "max-gcn", "nao"])
@pytest.mark.parametrize("space", ["nasbench201", "nasbench_macro"])
def test_the_methods_that_dnat_is_compared_with(method, space):
    """What they make is an architecture of the space, and stands where the table says."""
    search = Search(epochs=1, batch_size=4, samples=3, calibration=1, architectures=4, nao_epochs=5)
    start = "343333" if space == "nasbench201" else "12121211"
    (outcome,) = compared(METHODS[method], [start], space, search=search)
    assert outcome.problem == ""
    assert outcome.after.architecture in reachable(space, start)
    assert 1 <= outcome.ranking.rank <= outcome.ranking.among


def test_a_budget_out_of_reach_is_marked():
    near, far = compared(dnat.transform, ["333333", "111211"], budget=0.6)
    assert near.after.madds <= 0.6 * near.before.madds
    assert "the budget cannot be kept: the smallest reachable cost is" in far.problem


@pytest.mark.parametrize(
    ("space", "inputs"), [("nasbench201", ["333333", "301420"]), ("nasbench_macro", ["11211121"])]
)
def test_training_alone_changes_nothing(space, inputs):
    outcomes = compared(dnat.train, inputs, space, epochs=1, architecture_epochs=1)
    for text, outcome in zip(inputs, outcomes, strict=True):
        assert outcome.before == outcome.after
        assert outcome.before.architecture == (alive(text) if space == "nasbench201" else text)
        # At the cost of all that is there everything that can be reached may be drawn.
        assert outcome.ranking.among == outcome.ranking.reachable
    assert summary(outcomes).unchanged == len(inputs)


def test_the_same_seed_gives_the_same_outcomes():
    runs = [compared(dnat.transform, ["333333"], **PRESSED, seed=seed) for seed in (1, 1)]
    assert runs[0] == runs[1]


def test_the_method_is_given_what_the_space_needs():
    seen = []

    def method(network, data, settings):
        seen.append((network, settings))
        return dnat.train(network, data, settings)

    c = config(epochs=1, architecture_epochs=1, space="nat++", seed=3)
    compare_with_table(
        method, "nasbench201", TABLE, ["333333", "111211"], tiny_data(), c, network_options=TINY["nasbench201"]
    )
    allowed = {"conv_3x3": ["conv_1x1", "avg_pool_3x3"]}
    assert seen[0][1] == c.but(mode="cell", transitions=allowed)
    # Of skips and a 1x1 convolution NAT++'s table makes nothing else.
    assert seen[1][1] == c.but(mode="cell", space="dnat")
    same = dnat.build("nasbench201:333333", seed=3, num_classes=5, **TINY["nasbench201"]).state_dict()
    assert all(torch.equal(same[k], v) for k, v in seen[0][0].state_dict().items())


def changed(**given):
    """The result with other choices than those that were made."""
    return lambda made: dataclasses.replace(
        made, given={**made.given, **{k.replace("_", "."): v for k, v in given.items()}}
    )


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            choosing({3: "identity"}, cells=(0, 2)),
            "the cells differ: .*edges.3 is skip_connect, layers.4.edges.3 is conv_3x3",
        ),
        (
            choosing({}, change=changed(layers_0_edges_1="sep_conv_3x3")),
            "edges.1 became sep_conv_3x3, which is none of",
        ),
        (choosing({}, change=changed(stem="identity")), "stem became identity, but it is no edge of the space"),
        (
            choosing({}, change=changed(**{f"layers_{i}_edges_3": "none" for i in (0, 2, 4)})),
            "choices make 333033.*costs",
        ),
        (
            choosing(
                {}, change=changed(**{f"layers_{i}_edges_{j}": "none" for i in (0, 2, 4) for j in (3, 4, 5)})
            ),
            "the choices make a dead cell",
        ),
        (
            choosing(
                {},
                change=changed(**{f"layers_{i}_edges_{j}": "avg_pool_3x3" for i in (0, 2, 4) for j in range(6)}),
            ),
            "choices make 444444",
        ),
        (lambda n, d, c: (_ for _ in ()).throw(InfeasibleError("no network within 5")), "no network within 5"),
    ],
)
def test_what_is_no_architecture_is_marked_and_the_others_go_on(method, words):
    def first_only(network, data, settings):
        first = network.layers[0].edges[4].name == "conv_3x3"
        return (method if first else dnat.train)(network, data, settings)

    marked, fine = compared(first_only, ["333333", "333313"], epochs=1, architecture_epochs=1)
    assert re.search(words, marked.problem)
    assert marked.after is marked.ranking is None
    assert math.isnan(marked.regret)
    assert math.isnan(marked.regret_anywhere)
    assert math.isnan(marked.control_regret)
    assert fine.problem == ""
    assert summary([marked, fine]).failed == 1


def test_illegal_moves_are_marked():
    """The network is what the choices say, but a pool may come in no place of DNAT's own three choices."""

    def method(network, data, settings):
        settings = settings.but(space="nat++", transitions={"conv_3x3": ["avg_pool_3x3"]})
        return choosing({0: "avg_pool_3x3"})(network, data, settings)

    (outcome,) = compared(method, ["333333"])
    assert outcome.problem == "333333 cannot become 433333 by the moves of the space 'dnat'"
    (outcome,) = compared(method, ["333333"], space_="nat++")
    assert outcome.problem == ""


def test_other_errors_of_a_method_are_not_hidden():
    with pytest.raises(ValueError, match="batch_size 99 is larger"):
        compared(dnat.train, ["333333"], batch_size=99)


@pytest.mark.parametrize(
    ("space", "inputs", "options", "words"),
    [
        ("nasbench201", ["333"], {}, "has 3 digits; 6 are needed"),
        ("nasbench201", ["333000"], {}, "'333000' is a dead cell"),
        ("nasbench201", [], {}, "no inputs are given"),
        ("nasbench201", ["333300", "000300"], {}, "'000300' is there already \\('333300'\\)"),
        ("nasbench201", ["444444"], {}, "'444444' is not in the table"),
        ("nasbench201", ["444400"], {}, "'444400', in its live form 000400, is not in the table"),
        ("nasbench201", ["333333"], {"edges": ("layers.0.*",)}, "edges must not be set here, but is"),
        (
            "nasbench201",
            ["333333"],
            {"space_": "nat++", "transitions": {"conv_3x3": ["conv_1x1", "sep_conv_3x3"]}},
            "lets conv_3x3 become sep_conv_3x3, which is none of NAS-Bench-201's",
        ),
        ("nasbench_macro", ["10100100"], {}, "has nothing that may change"),
        ("nasbench_macro", ["12212112"], {"mode": "cell"}, "needs mode 'full', not 'cell'"),
        ("nasbench_macro", ["12212112"], {"space_": "nat++"}, "needs space 'dnat', not 'nat\\+\\+'"),
        ("nasbench201x", ["333333"], {}, "did you mean 'nasbench201'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(space, inputs, options, words):
    def method(network, data, settings):
        raise AssertionError("trained")

    table = {"333333": 90.0, "333300": 80.0, "000300": 80.0} if space == "nasbench201" else MACRO
    with pytest.raises(ValueError, match=words):
        compare_with_table(
            method,
            space,
            table,
            inputs,
            tiny_data(),
            config(**with_space(options)),
            network_options=TINY.get(space),
        )


def test_things_of_the_wrong_type():
    with pytest.raises(TypeError, match="inputs must be a list of architectures, not the text '333333'"):
        compare_with_table(dnat.train, "nasbench201", TABLE, "333333", tiny_data())
    with pytest.raises(TypeError, match=r"a table must be a mapping of accuracies .*, not list"):
        compare_with_table(dnat.train, "nasbench201", list(TABLE), ["333333"], tiny_data())
    with pytest.raises(ValueError, match="nasbench_macro has the moves of the space 'dnat' alone"):
        reachable("nasbench_macro", "11111111", "nat++")
    with pytest.raises(ValueError, match="did you mean 'nat\\+\\+'"):
        reachable("nasbench201", "333333", "nat+")


def test_tables_of_both_kinds_are_read(tmp_path):
    (tmp_path / "a.csv").write_text(f"\ufeffarchitecture,accuracy\n{written('301420')},91.5\n\n012340, 90 \n")
    (tmp_path / "a.json").write_text(json.dumps({written("301420"): 91.5, "012340": 90}))
    for name in ("a.csv", "a.json"):
        assert read_table(tmp_path / name, "nasbench201") == {"301420": 91.5, "012340": 90.0}
    rows = {"01201210": {"mean_acc": 91.5, "test_acc": [91.0, 92.0]}, "01201211": 90}
    (tmp_path / "c.json.xz").write_bytes(lzma.compress(json.dumps(rows).encode()))
    assert read_table(tmp_path / "c.json.xz", "nasbench_macro") == {"01201210": 91.5, "01201211": 90.0}
    (tmp_path / "b.CSV").write_text("architecture,accuracy\n01201210,91.5\n")
    assert read_table(str(tmp_path / "b.CSV"), "nasbench_macro") == {"01201210": 91.5}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "301420,90\n", "line 1: the header must be 'architecture,accuracy', not '301420,90'"),
        ("a.csv", "", "line 1: the header must be"),
        ("a.csv", "architecture,accuracy\n", "the table of accuracies is empty"),
        (
            "a.csv",
            "architecture,accuracy\n301420,90\n30142,90\n",
            "line 3: code '30142' has 5 digits; 6 are needed",
        ),
        ("a.csv", "architecture,accuracy\n|nor_conv_3x3~0|+|non~0|,90\n", "line 2: cell .*did you mean 'none'"),
        ("a.csv", "architecture,accuracy\n301420,good\n", "line 2: the accuracy must be a number, not 'good'"),
        ("a.csv", "architecture,accuracy\n301420,nan\n", "line 2: the accuracy must be a number of percent"),
        ("a.csv", "architecture,accuracy\n301420,inf\n", "line 2: the accuracy must be a number of percent"),
        ("a.csv", "architecture,accuracy\n301420,-1\n", "line 2: the accuracy must be a number of percent"),
        (
            "a.csv",
            "architecture,accuracy\n301420,90,5\n",
            "line 2: an architecture and an accuracy are needed, not 3",
        ),
        (
            "a.csv",
            f"architecture,accuracy\n301420,90\n{written('301420')},91\n",
            "line 3: 301420 is there already .*line 2",
        ),
        ("a.csv", "architecture,accuracy\n301420,0.91\n", "must be in percent, but the largest is 0.91"),
        ("a.json", '{"301420": 90, "301420": 91}', "key '301420': 301420 is there already"),
        ("a.json", '{"301420": true}', "key '301420': the accuracy must be a number of percent.*not True"),
        ("a.csv.xz", "architecture,accuracy\n", "is no file of xz"),
        ("a.xz", "", "a table is a file .csv or .json, not '.xz'"),
        ("a.json", '{"301420": {"mean_acc": "90"}}', "key '301420': the accuracy must be a number of percent"),
        ("a.json", '{"301420": {"mean": 90}}', "key '301420': the accuracy must be a number of percent"),
        ("a.json", '{"301420": NaN}', "the accuracy must be a number of percent"),
        ("a.json", '{"301450": 90}', "key '301450': code '301450', position 4"),
        ("a.json", '["301420", 90]', "must be an object"),
        ("a.json", "{", "not JSON"),
        ("a.txt", "", "a table is a file .csv or .json, not '.txt'"),
        ("a", "", "a table is a file .csv or .json, not 'one without a suffix'"),
    ],
)
def test_tables_that_cannot_be_used(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / name, "nasbench201")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv", "nasbench201")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_table(tmp_path / "a.csv", "nasbench201")


def an_outcome(after, mean, better, best=90.0, anywhere=95.0, before=85.0):
    known = [Known("333333", before, 9), Known("300330", after, 5), Known("111333", best, 5)]
    ranking = Ranking(10, known[2], Known("333331", anywhere, 8), 2, 4, mean, 1.0, better, 6, 0)
    return Lookup(known[0], known[1], ranking)


def test_a_summary_by_hand():
    """Four results: two above the mean of a draw, one below, one equal to it but for rounding."""
    outcomes = [
        an_outcome(88.0, 86.0, 0.5),
        an_outcome(87.0, 86.5, 0.25),
        an_outcome(80.0, 84.0, 0.5),
        an_outcome(0.1 + 0.2, 0.3, 0.75, best=0.5),
        Lookup(Known("111111", 20.0, 1), problem="no network within 5"),
    ]
    found = summary(outcomes)
    assert (found.n, found.failed, found.unchanged) == (4, 1, 0)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.before == 85.0
    assert found.after == pytest.approx((88 + 87 + 80 + 0.3) / 4)
    assert found.control == pytest.approx((86 + 86.5 + 84 + 0.3) / 4)
    assert found.regret == pytest.approx((2 + 3 + 10 + 0.2) / 4)
    assert found.control_regret == pytest.approx((4 + 3.5 + 6 + 0.2) / 4)
    assert found.regret_anywhere == pytest.approx((7 + 8 + 15 + 94.7) / 4)
    assert found.wins_by_chance == 2.0
    assert found.used == 0.5  # each costs 5 of 10
    # Two or more of four draws: by all sixteen ways in which they can turn out.
    chances, wanted = (0.5, 0.25, 0.5, 0.75), 0.0
    for won in itertools.product((True, False), repeat=4):
        wanted += (sum(won) >= 2) * math.prod(c if w else 1 - c for c, w in zip(chances, won, strict=True))
    assert found.p_value == pytest.approx(wanted)
    with pytest.raises(ValueError, match="none of 1 outcomes has a result: no network within 5"):
        summary(outcomes[4:])
    with pytest.raises(ValueError, match="none of 0 outcomes"):
        summary([])


def test_random_draws_themselves_win_as_often_as_by_chance():
    """The control of the control: architectures drawn at random are no better than their like."""
    reached = [c for c in reachable("nasbench201", "333333") if c.count("3") <= 4]
    accuracies = [TABLE[c] for c in reached]
    mean = statistics.fmean(accuracies)
    better = sum(a > mean for a in accuracies) / len(accuracies)
    drawn = torch.randint(len(reached), (400,)).tolist()
    found = summary(an_outcome(accuracies[i], mean, better, best=max(accuracies)) for i in drawn)
    assert found.wins_by_chance == pytest.approx(400 * better)
    assert abs(found.wins - found.wins_by_chance) < 4 * math.sqrt(400 * better * (1 - better))
    assert found.p_value > 1e-4
    assert found.regret == pytest.approx(found.control_regret, abs=4 * statistics.pstdev(accuracies) / 20)


@pytest.mark.slow
def test_the_code_of_the_guide_runs(tmp_path):
    guide = (ROOT / "docs" / "ground_truth.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.S)
    assert len(blocks) >= 2
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    (printed,) = re.findall(r"prints\n\n```\n(.*?)```", guide, re.S)
    assert result.stdout == printed


@pytest.mark.slow
def test_the_command_line(tmp_path):
    table, out = tmp_path / "table.csv", tmp_path / "out.json"
    table.write_text("architecture,accuracy\n" + "".join(f"{c},{a}\n" for c, a in TABLE.items()))
    command = [sys.executable, ROOT / "benchmarks" / "ground_truth.py", "nasbench201", table, "--data", "digits"]
    command += ["--inputs", "333333", "--random", "1", "--methods", "dnat", "original", "--json", out]
    command += ["--train-limit", "48", "--test-limit", "20", "--image-size", "8"]
    for setting in (
        "epochs=2",
        "architecture_epochs=1",
        "batch_size=16",
        "threads=1",
        "network.width=4",
        "network.cells=1",
    ):
        command += ["--set", setting]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "| dnat | 333333 | 65.00 |" in result.stdout
    rows = json.loads(out.read_text())
    assert [row["method"] for row in rows] == ["dnat", "dnat", "original", "original"]
    assert rows[2]["after"] == rows[2]["before"] == {**rows[0]["before"]}
    assert re.search(
        r"^dnat: n = 2 .* mean regret \d+\.\d\d, of a random draw .* allowed cost used$", result.stdout, re.M
    )
    # The same command again prints what is kept; other settings are another comparison.
    out.write_text(out.read_text().replace('"accuracy": 65.0', '"accuracy": 64.0'))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "| dnat | 333333 | 64.00 |" in again.stdout
    assert len(json.loads(out.read_text())) == 4
    wrong = subprocess.run(
        [*command[:3], tmp_path / "none.csv", "--data", "digits"], capture_output=True, text=True, timeout=300
    )
    assert wrong.returncode == 2
    assert "none.csv: cannot be read" in wrong.stderr
