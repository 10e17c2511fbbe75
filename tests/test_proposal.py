import copy
import dataclasses
import itertools
import json
import math
import random
import re
import time
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from reference import SMALL, images, small
from torch import nn

import dnat
from dnat.budget import by_edge
from dnat.edges import problems
from dnat.lab.cli import cli
from dnat.lab.drawing import draw_plan
from dnat.proposal import Planner, Proposals, described, kept, parse_budget, tied
from dnat.records import read_job

BUDGETS = [0.9, 0.2, "0.8 params"]
SHOWN = images(12)


def made_of(network, choices):
    return dnat.cost(dnat.discretize(network, choices, images()), images())


@pytest.fixture(scope="module")
def eight():
    """A network with numbers that are nothing special, and a plan for it."""
    network = small("resnet8")
    return network, dnat.plan(network, SHOWN, BUDGETS, measure=1)


def test_a_plan_says_what_the_network_that_is_made_costs(eight):
    network, result = eight
    before = dnat.cost(network, images())
    assert (result.madds, result.params) == (before.madds, before.params)
    assert [p.budget for p in result.proposals] == ["0.9", "0.2", "0.8 params"]
    for proposal in result.proposals:
        real = made_of(network, proposal.changed)
        assert (proposal.madds, proposal.params) == (real.madds, real.params)
        assert proposal.seconds > 0
        assert proposal.changed
    first, second, third = result.proposals
    assert first.madds <= 0.9 * before.madds
    assert second.madds <= 0.2 * before.madds
    assert third.params <= 0.8 * before.params
    assert third.unit == "params"


def test_damages_of_a_plan_are_those_of_its_choices(eight):
    _, result = eight
    planner = Planner(small("resnet8"), SHOWN)
    rows = {e.key: e.damages for e in result.edges}
    for proposal in result.proposals:
        assert proposal.expected == pytest.approx(sum(rows[k][c] for k, c in proposal.choices.items()))
        assert proposal.damage == planner.judge.damage(proposal.choices)
    assert result.proposals[1].damage > 0
    # The curve goes down to what is the least, by trying every set.
    place = planner.place
    costs = place.amounts["madds"].costs
    sets = [dict(zip(rows, c, strict=True)) for c in itertools.product(*(list(r) for r in rows.values()))]
    priced = [
        (costs.of(chosen), sum(rows[k][c] for k, c in one.items()))
        for one, chosen in ((s, by_edge(place.groups, s)) for s in sets)
        if not problems(chosen)
    ]
    assert result.curve[-1][0] == min(price for price, _ in priced)
    for madds, damage in result.curve:
        assert damage == pytest.approx(min(d for price, d in priced if price <= madds), abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_another_budget_is_counted_as_the_network_that_is_made(name):
    network = small(name)
    planner = Planner(network, SHOWN)
    rows = {
        g: {c: random.Random(f"{g}{c}").random() for c in planner.place.relaxed.choices_of(g)}
        for g in planner.place.groups
    }
    for row in rows.values():
        row["original"] = 0.0
    sensitivity = dataclasses.replace(planner.measured(), damages=rows)
    for text in ("0.9", "0.6", "0.8 params"):
        try:
            found = planner.place.proposal(parse_budget(text), sensitivity)
        except ValueError:
            continue
        if network.__class__.__name__ == "ResNet" and "skip" in name:
            choices = dnat.discretize(planner.place.relaxed, found.choices, images())
            real = dnat.cost(choices, images())
            assert found.madds == real.madds
            continue  # the parameters of reductions are counted when they are made
        real = made_of(network, found.changed)
        assert (found.madds, found.params) == (real.madds, real.params), found.changed


def test_any_other_budget_comes_at_once(eight):
    network, result = eight
    begun = time.perf_counter()
    found = result.at(0.8)
    assert time.perf_counter() - begun < 1
    assert found.damage is None
    assert found.madds == made_of(network, found.changed).madds <= 0.8 * result.madds
    assert result.at(1.0).changed == {}
    assert result.at("5 s").unit == "seconds"
    with pytest.raises(ValueError, match="cannot be kept: at least"):
        result.at(0.001)
    with pytest.raises(ValueError, match="not a budget"):
        result.at("seven")


def test_a_budget_out_of_reach_is_told_and_the_others_are_given():
    result = dnat.plan(small("resnet8"), SHOWN, [0.01, 0.9])
    assert [p.budget for p in result.proposals] == ["0.9"]
    ((budget, why),) = result.refused
    assert budget == "0.01"
    least = result.curve[-1][0]
    assert f"({least / result.madds:.1%} of" in why
    assert why in str(result)
    with pytest.raises(ValueError, match="no times were measured"):
        result.at("5ms")


def test_a_time_is_kept_or_said_to_be_missed():
    result = dnat.plan(small("resnet8"), SHOWN, "0.6 time")
    assert result.seconds > 0
    for proposal in result.proposals:
        told = any("above the budget" in note for note in proposal.notes)
        assert told == (proposal.seconds > proposal.limit)


def test_it_is_written_down_and_read_again(eight, tmp_path):
    network, result = eight
    ruined = dataclasses.replace(result.edges[0], damages={**result.edges[0].damages, "identity": math.inf})
    result = dataclasses.replace(result, edges=(ruined, *result.edges[1:]), refused=(("0.1", "it cannot"),))
    text = result.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = Proposals.from_json(text)
    assert again == result
    assert str(again) == str(result)
    with pytest.raises(ValueError, match="read from a file"):
        again.at(0.8)
    bound = tied(again, network, images())
    assert bound.at(0.8) == result.at(0.8)
    with pytest.raises(ValueError, match="for another network"):
        tied(again, small("residual"), images())
    with pytest.raises(ValueError, match="inputs of other shapes"):
        tied(again, network, images(size=16))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: "{", "no JSON"),
        (lambda t: "[" * 100_000, "no JSON"),
        (lambda t: "[]", "not a plan"),
        (lambda t: json.dumps({"edges": []}), "not a plan"),
        (lambda t: t.replace('"format": 1', '"format": 2'), "format 2"),
        (lambda t: t.replace('"damages"', '"damage_"'), "not whole"),
        (lambda t: t.replace('"refused": []', '"refused": 3'), "not whole"),
        (lambda t: t.replace('"proposals": [', '"proposals": [7, '), "not whole"),
    ],
)
def test_strangers_are_refused(eight, change, why, tmp_path):
    _, result = eight
    text = change(result.to_json())
    assert text != result.to_json()
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(dnat.DnatError, match=f"plan.json: .*{why}"):
        Proposals.read(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(dnat.DnatError, match="no text"):
        Proposals.read(tmp_path / "plan.json")
    with pytest.raises(dnat.DnatError, match="cannot be read"):
        Proposals.read(tmp_path / "none.json")


@pytest.mark.parametrize("everything", [False, True])
def test_it_fits_a_screen_and_keys_are_whole(eight, everything):
    _, result = eight
    text = described(result, everything=everything)
    keys = [e.key for e in (*result.edges, *result.fixed)]
    for line in text.splitlines():
        assert len(line) <= 80 or line.split()[-1] in keys or re.match(" +(identity|none): ", line), line
    changed = {key for p in result.proposals for key in p.changed}
    for edge in result.edges:
        listed = any(line.endswith(f" {edge.key}") for line in text.splitlines())
        assert listed == (everything or edge.key in changed)
    listed = re.findall(r"^ +[\d.]+ %  (\S+)$", text.partition("cannot change, but for widths:")[2], re.M)
    if not everything:
        assert listed
        assert not any(edge.key.startswith(f"{key}.") for key in listed for edge in result.edges)
    if everything:
        assert all(re.search(rf"^ .* {re.escape(f.key)}$", text, re.M) for f in result.fixed)


@pytest.mark.parametrize("factor", [1, 100, 10_000])
def test_times_of_any_size_fit_a_screen(eight, factor):
    """A network may take a tenth of a second, or ten, on a machine that is busy."""
    _, result = eight
    slow = [dataclasses.replace(p, seconds=0.001234 * factor) for p in result.proposals]
    text = described(dataclasses.replace(result, seconds=0.001234 * factor, proposals=tuple(slow)))
    rows = [line for line in text.splitlines() if line.startswith(("  budget", "  0."))]
    assert len(rows) == 1 + len(BUDGETS)
    assert all(len(row) <= 80 and "e+" not in row for row in rows)


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_picture_shows_every_budget_and_every_edge(form, eight, tmp_path):
    _, result = eight
    first, *others = (draw_plan(result, tmp_path / f"{name}.{form}") for name in ("one", "two", "three", "four"))
    assert first == tmp_path / f"one.{form}"
    assert {first.read_bytes()} == {other.read_bytes() for other in others}
    if form == "png":
        return
    text = first.read_text()
    shown = re.findall(r">([^<>]+)</text>", text)
    assert {edge.key.partition(">")[0] for edge in result.edges} <= set(shown)
    names = [key.partition(">")[0] for key in result.order]
    assert [n for n in shown if n in names] == [n for n in names if n in shown]
    for proposal in result.proposals:
        assert f"{proposal.budget}: {proposal.madds / result.madds:.0%} left" in shown
        assert f"{proposal.budget}: {proposal.expected:.2g}" in shown
    # A cell for each edge and budget in the colour of the choice; a bar of that colour, and the legend's.
    taken = Counter(choice for p in result.proposals for choice in p.changed.values())
    for choice, colour in (("identity", "#d55e00"), ("none", "#b00020")):
        assert len(re.findall(f"fill: {colour}(?!; opacity)", text)) >= taken[choice]
    for wrong, why in (("plan", "end it in .png"), ("plan.gif", "end it in .png"), ("none/plan.png", "no folder")):
        with pytest.raises(dnat.DnatError, match=why):
            draw_plan(result, tmp_path / wrong)


@pytest.fixture(scope="module")
def narrowing():
    """The same with widths: `resnet8` has one in each of its three blocks."""
    network = small("resnet8")
    return network, dnat.plan(network, SHOWN, [0.7, "0.5 params"], space="dnat,width", measure=1)


def channels_left(network, key, choice):
    """The channels that stay, as the layer says that is made."""
    layer = dnat.discretize(network, {key: choice}, images()).get_submodule(key.removesuffix(":width"))
    return layer.out_channels


@pytest.mark.parametrize("everything", [False, True])
def test_widths_have_a_table_of_their_own(narrowing, everything):
    network, result = narrowing
    text = described(result, everything=everything)
    widths = [e for e in result.edges if e.kind == "width"]
    assert len(widths) == 3
    keys = [e.key for e in (*result.edges, *result.fixed)]
    for line in text.splitlines():
        assert len(line) <= 80 or line.split()[-1] in keys or re.match(" +(identity|none|narrower): ", line), line
    assert f"{len(result.edges)} edges may change, 3 of them widths" in text
    head, _, rest = text.partition("damage of so much of a width")
    table = rest.partition("\n\n")[0].splitlines()[1:]
    assert re.sub(" +", " ", table[0]) == " channels 6/8 4/8 2/8 1/8 saves 0.7 0.5 params width"
    shown = {line.split()[-1]: line.split() for line in table[1:]}
    assert all(any(key in p.changed for p in result.proposals) or everything for key in shown)
    narrowed = {key for p in result.proposals for key in p.changed if key.endswith(":width")}
    assert narrowed
    assert set(shown) == ({e.key for e in widths} if everything else narrowed)
    whole = dnat.cost(network, images()).madds
    for edge in widths:
        if edge.key not in shown:
            continue
        channels, *damages = shown[edge.key][:5]
        left = shown[edge.key][-3:-1]
        assert channels == str(network.get_submodule(edge.key.removesuffix(":width")).out_channels)
        for share, damage in zip(("6/8", "4/8", "2/8", "1/8"), damages, strict=True):
            same = [c for c in edge.damages if c != "original" and _keeps(int(channels), c, share)]
            assert damage == (f"{edge.damages[same[0]]:.3g}" if same else "-")
        halving = next(c for c in edge.damages if c != "original" and _keeps(int(channels), c, "4/8"))
        half = whole - made_of(network, {edge.key: halving}).madds
        assert f"{100 * half / whole:.1f} %" in " ".join(shown[edge.key])
        for cell, proposal in zip(left, result.proposals, strict=True):
            choice = proposal.choices[edge.key]
            assert cell == ("-" if choice == "original" else str(channels_left(network, edge.key, choice)))
    # Widths are no operations, and stand in no row of theirs.
    assert not any(":width" in line for line in head.splitlines())
    for proposal in result.proposals:
        row = next(line.split() for line in head.splitlines() if line.startswith(f"  {proposal.budget} "))
        gone = sum(not key.endswith(":width") for key in proposal.changed)
        assert row[-2:] == [f"{gone}/{len(result.edges) - 3}", f"{len(proposal.changed) - gone}/3"]


def _keeps(channels, choice, share):
    """Whether two shares of a few channels are as many."""
    first, second = (max(1, round(channels * int(text[0]) / 8)) for text in (choice, share))
    return first == second


def test_a_space_of_widths_alone_shows_nothing_else():
    result = dnat.plan(small("resnet8"), SHOWN, 0.8, space="width")
    text = str(result)
    assert "3 widths may shrink; " in text
    assert "identity" not in text
    assert "gone" not in text
    assert re.search(r"^  budget .* narrower$", text, re.M)


def test_in_cell_mode_a_group_has_a_share():
    """Its widths may differ in size, so that no number of channels is that of all."""
    result = dnat.plan(dnat.build("resnet20", width=4, seed=0), images(4), 0.5, space="dnat,width", mode="cell")
    (proposal,) = result.proposals
    rest = described(result, everything=True).partition("; share left:")[2]
    table = {line.split()[-1]: line for line in rest.partition("\n\n")[0].splitlines()[2:]}
    groups = {}
    for edge in result.edges:
        if edge.kind == "width":
            groups.setdefault(edge.group, []).append(edge)
    assert set(table) == set(groups)
    assert len(groups) == 2
    for group, members in groups.items():
        sizes = sorted({int(e.operation.split()[0]) for e in members})
        assert len(sizes) > 1
        assert table[group].split()[:3] == [str(sizes[0]), "to", str(sizes[-1])]
        choice = proposal.choices[members[0].key]
        assert table[group].split()[-2] == ("-" if choice == "original" else choice)


def test_the_picture_shows_how_much_of_each_width_is_kept(narrowing, tmp_path):
    network, result = narrowing
    first, second = (draw_plan(result, tmp_path / f"{name}.svg") for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    shown = re.findall(r">([^<>]+)</text>", text)
    assert {edge.key.partition(">")[0] for edge in result.edges} <= set(shown)
    widths = [e for e in result.edges if e.kind == "width"]
    bars = [_height(path) for path in re.findall(r'd="([^"]+)"[^>]*style="fill: #cc79a7"', text)]
    # A bar of full colour for each choice that is taken, and one for each cell that is narrower.
    parts = [
        channels_left(network, e.key, p.changed[e.key]) / int(e.operation.split()[0])
        for p in result.proposals
        for e in widths
        if e.key in p.changed
    ]
    taken = {(key, choice) for p in result.proposals for key, choice in p.changed.items() if ":width" in key}
    assert len(bars) == len(parts) + len(taken)
    cells = bars[len(taken) :]
    assert len(set(parts)) > 1
    whole = [_height(path) for path in re.findall(r'd="([^"]+)"[^>]*style="fill: #f9ecf3"', text)]
    assert len(whole) == len(parts)
    for found, part in zip(cells, parts, strict=True):
        assert found / whole[0] == pytest.approx(part, rel=1e-3)
    pale = len(re.findall("fill: #cc79a7; opacity: 0.35", text))
    assert pale == sum(len(e.damages) - 1 for e in widths) - len(taken)


def _height(path):
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    return max(numbers[1::2]) - min(numbers[1::2])


def test_very_many_names_do_not_lie_on_each_other(narrowing, tmp_path):
    result = narrowing[1]
    times = range(60)

    def named(key, i):
        return f"stage{i}.{key}"

    many = dataclasses.replace(
        result,
        edges=tuple(dataclasses.replace(e, key=named(e.key, i)) for i in times for e in result.edges),
        order=tuple(named(e.key, i) for i in times for e in result.edges),
        proposals=tuple(
            dataclasses.replace(p, choices={named(k, i): c for i in times for k, c in p.choices.items()})
            for p in result.proposals
        ),
        fixed=(),
    )
    text = draw_plan(many, tmp_path / "many.svg").read_text()
    changed = {key for p in many.proposals for key in p.changed}
    names = re.findall(r'translate\(([\d.]+) [\d.]+\) rotate\(-90\)"[^>]*>(stage\d+[^<]+)<', text)
    assert len(names) > 50
    assert {name for _, name in names} <= {key.partition(">")[0] for key in changed}
    places = sorted(float(x) for x, _ in names)
    assert min(b - a for a, b in itertools.pairwise(places)) > 6.4  # points, as large as the letters


def test_the_command_plans_what_fine_tuning_takes_within_a_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dnat.build("resnet8", width=4).state_dict(), "w.pt")
    words = ("plan", *TINY, "--images", 20, "--budget", "0.7")
    for more, widths in (((), 0), (("--weights", "w.pt"), 3), (("--weights", "w.pt", "--space", "dnat"), 0)):
        result = invoke(*words, *more, "--json")
        assert result.exit_code == 0, result.output
        plan = Proposals.from_json(result.stdout)
        assert sum(e.kind == "width" for e in plan.edges) == widths
        assert plan.space == ("dnat,width" if widths else "dnat")


def test_the_order_is_that_in_which_the_network_runs(eight):
    network, result = copy.deepcopy(eight[0]), eight[1]
    assert set(result.order) == {e.key for e in (*result.edges, *result.fixed)}
    seen = []
    for path, module in network.named_modules():
        module.register_forward_pre_hook(lambda m, a, path=path: seen.append(path))
    network(SHOWN[:2])
    entry = {e.key: e.entry for e in dnat.find_edges(dnat.trace(network, SHOWN[:2]), "dnat,width")}
    entries = [entry.get(key, key.partition(">")[0]) for key in result.order]
    assert [seen.index(e) for e in entries] == sorted(seen.index(e) for e in entries)


class Pair(nn.Module):
    """Takes two tensors, by place or by name, and gives features."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x, y):
        x = x + self.one(x)
        return self.head(x + self.two(torch.relu(x + y)))


def test_batches_are_whatever_the_network_takes():
    torch.manual_seed(1)
    network, x, y = Pair(), torch.randn(10, 6), torch.randn(10, 6)
    whole = dnat.plan(network, (x, y), 0.9)
    assert whole.images == 10
    named = dnat.plan(network, {"x": x, "y": y}, 0.9)
    assert [e.damages for e in named.edges] == [e.damages for e in whole.edges]
    several = dnat.plan(network, ((x[i : i + 4], y[i : i + 4]) for i in range(0, 10, 4)), 0.9, images=8)
    assert several.images == 8
    eight = dnat.plan(network, (x[:8], y[:8]), 0.9)
    for one, other in zip(several.edges, eight.edges, strict=True):
        assert one.damages == pytest.approx(other.damages, rel=1e-4)
    with pytest.raises(TypeError, match="images for images, labels in loader"):
        dnat.plan(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), [[x, y]], 0.9)
    for wrong in ("cifar10", 3, None):
        with pytest.raises(TypeError, match="data must be"):
            dnat.plan(network, wrong, 0.9)
    with pytest.raises(ValueError, match="data is empty"):
        dnat.plan(network, [], 0.9)


def test_what_is_asked_wrongly_is_refused():
    for budget, kind, why in (
        ("seven", ValueError, "not a budget"),
        ([], ValueError, "budget is empty"),
        (None, TypeError, "a budget must be"),
        ([True], TypeError, "a budget must be"),
    ):
        with pytest.raises(kind, match=why):
            dnat.plan(small("residual"), SHOWN, budget)
    with pytest.raises(TypeError, match="a network must be"):
        dnat.plan("resnet8", SHOWN)
    with pytest.raises(ValueError, match="images must be"):
        dnat.plan(small("residual"), SHOWN, images=0)
    with pytest.raises(ValueError, match="space must be"):
        dnat.plan(small("residual"), SHOWN, space="dnta")
    with pytest.raises(ValueError, match="multiply-adds alone"):
        dnat.plan(small("resnet8"), SHOWN, "0.9 params", space="nat++")


def test_the_network_is_left_as_it_was():
    network = small("resnet8").train()
    network.bn1.eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    result = dnat.plan(network, SHOWN, 0.7, mode="cell")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert modes == [m.training for m in network.modules()]
    assert torch.equal(state, torch.get_rng_state())
    groups = {}
    for edge in result.edges:
        groups.setdefault(edge.group, set()).add(result.proposals[0].choices[edge.key])
    assert all(len(choices) == 1 for choices in groups.values())


def test_a_plan_in_a_file_goes_on_where_it_was_stopped(tmp_path):
    network, batches = small("resnet8"), [images(), images().flip(0)]
    path, asked = tmp_path / "plan.json", [parse_budget(0.7)]
    whole = kept(Planner(network, batches), asked, 0, path, lambda what, done, of: None)
    assert Proposals.read(path) == whole
    assert {p.name for p in tmp_path.iterdir()} == {"plan.json"}
    path.unlink()
    trials = sum(len(e.choices) - 1 for e in Planner(network, batches).place.edges)

    def stop(what, done, of):
        if done == trials + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(Planner(network, batches), asked, 0, path, stop)
    assert {p.name for p in tmp_path.iterdir()} == {"plan.json.part"}
    told = []
    again = kept(Planner(network, batches), asked, 0, path, lambda what, done, of: told.append((what, done)))
    assert again == whole
    assert min(done for what, done in told if what == "trying choices") == trials + 1
    assert [done for what, done in told if what == "choosing sets"] == [0, 1]
    # Another budget is added, and nothing is tried again.
    told.clear()
    more = kept(Planner(network, batches), [parse_budget(0.9)], 0, path, lambda what, done, of: told.append(what))
    assert [p.budget for p in more.proposals] == ["0.7", "0.9"]
    assert more.proposals[0] == whole.proposals[0]
    assert "trying choices" not in told
    # What is of something else is neither used nor overwritten.
    with pytest.raises(ValueError, match="choose another file"):
        kept(Planner(network, batches[:1]), asked, 0, path, lambda what, done, of: None)
    with pytest.raises(ValueError, match="there is no folder"):
        kept(Planner(network, batches), asked, 0, tmp_path / "none" / "p.json", lambda what, done, of: None)
    (tmp_path / "other.json.part").write_text((tmp_path / "plan.json").read_text())
    other = kept(Planner(network, batches), asked, 0, tmp_path / "other.json", lambda what, done, of: None)
    assert other == whole


TINY = ["--network", "resnet8", "--set", "network.width=4"]


def invoke(*words):
    return CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=True)


def test_the_command_plans_and_transform_carries_it_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(
        *("plan", *TINY, "--images", 20, "--budget", "0.7,0.05", "--latency-budget", "0.9"),
        *("--out", "p.json", "--picture", "p.svg"),
    )
    assert result.exit_code == 0, result.output
    assert "the budget 0.05 cannot be kept" in result.output
    assert "picture: p.svg" in result.output
    assert "0.9 time" in (tmp_path / "p.svg").read_text()
    plan = Proposals.read("p.json")
    assert [p.budget for p in plan.proposals] == ["0.7", "0.9 time"]
    assert plan.images == 20
    printed = invoke("plan", *TINY, "--images", 20, "--budget", "0.05", "--json")
    assert printed.exit_code == 1
    assert Proposals.from_json(printed.stdout).proposals == ()
    assert "cannot be kept" in str(printed.exception)
    run = ["transform", *TINY, "--train-limit", 200, "--test-limit", 50, "--epochs", 1, "--set", "threads=1"]
    several = invoke(*run, "--plan", "p.json", "--out", "runs/one")
    assert "name one of 0.7, 0.9 time" in str(several.exception)
    done = invoke(*run, "--plan", "p.json", "--plan-budget", "0.7", "--out", "runs/one")
    assert done.exit_code == 0, done.output
    assert "the choices are those of the plan" in done.output
    record = json.loads((tmp_path / "runs/one/record.json").read_text())
    chosen = plan.proposal(0.7)
    assert record["results"]["choices"] == chosen.choices
    assert record["results"]["cost_after"]["madds"] == chosen.madds
    assert read_job(tmp_path / "runs/one").config.limit.choices == chosen.changed
    for words, why in (
        (("--plan-budget", "0.7"), "give --plan FILE"),
        (("--plan", "p.json", "--plan-budget", "0.3"), "nothing for the budget 0.3"),
        (("--plan", "p.json", "--plan-budget", "0.05"), "cannot be kept"),
        (("--plan", "p.json", "--plan-budget", "0.7", "--mode", "cell"), "leave --mode out"),
        (("--plan", "p.json", "--plan-budget", "0.7", "--budget", "0.7"), "leave out budget"),
        (("--plan", "p.json", "--plan-budget", "0.7", "--method", "original"), "for method 'dnat'"),
        (("--plan", "p.json", "--plan-budget", "0.7", "--set", "network.width=8"), "for another network"),
        (("--plan", "none.json"), "cannot be read"),
    ):
        refused = invoke(*run, *words, "--out", "runs/two")
        assert isinstance(refused.exception, dnat.DnatError), refused.output
        assert why in str(refused.exception)
    assert not (tmp_path / "runs/two").exists()


def test_choices_that_are_made_already_are_carried_out_as_they_are():
    network, data = small("resnet8"), dnat.load("digits", train_limit=200, test_limit=50)
    choices = {"layer2.0.conv2>layer2.0.bn2": "none"}
    config = dnat.Config(epochs=1, choices=choices, threads=1, batch_size=50)
    assert config.training.architecture_epochs == 0
    result = dnat.transform(network, data, config)
    assert {k: c for k, c in result.choices.items() if c != "original"} == choices
    assert result.cost_after == dnat.cost(dnat.discretize(network, choices, data.example()), data.example())
    assert all(edge.by == "plan" for edge in result.commitment.edges)
    assert [row["stage"] for row in result.history] == ["network"]
    for wrong, why in (
        ({"layer2.0.conv2>layer2.0.bn3": "none"}, "did you mean 'layer2.0.conv2>layer2.0.bn2'"),
        ({"layer2.0.conv2>layer2.0.bn2": "nonne"}, "did you mean 'none'"),
    ):
        with pytest.raises(ValueError, match=why):
            dnat.transform(network, data, config.but(choices=wrong))
    other = config.but(choices_for="0123456789abcdef")
    with pytest.raises(ValueError, match="for another network"):
        dnat.transform(network, data, other)
    both = dict.fromkeys(("left", "right"), "none")
    pair = small("two branches")
    with pytest.raises(ValueError, match="cannot be made together"):
        dnat.transform(pair, _of_five(), dnat.Config(epochs=1, choices=both, batch_size=4))
    for settings, why in (
        ({"budget": 0.7}, "leave out budget"),
        ({"judge": "answers", "budget": 0.7}, "leave out budget"),
        ({"architecture_epochs": 1}, "there is no such stage"),
        ({"choices": None, "choices_for": "ab"}, "give choices"),
    ):
        with pytest.raises(ValueError, match=why):
            dnat.Config(**{"choices": choices, **settings})
    with pytest.raises(TypeError, match="a table of texts"):
        dnat.Config(choices={"a": 3})


def _of_five():
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 5
    return dnat.Data.from_tensors("five", (x, y), (x, y))
