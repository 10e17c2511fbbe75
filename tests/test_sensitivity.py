import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from reference import SMALL, images, legal_sets, small
from torch import nn

import dnat
from dnat.budget import Costs, by_edge
from dnat.data import Augmentation
from dnat.edges import problems
from dnat.relaxation import relax
from dnat.sensitivity import (
    VIEWS,
    Judge,
    Sensitivity,
    affordable_images,
    batch_size,
    least_damage,
    modules_before,
    shown_batches,
)
from dnat.tracing import in_mode

BATCHES = (images(6), images(4).flip(0) * 2)


def relaxed_of(network, space="dnat", mode="full", example=None):
    program = dnat.trace(network, images() if example is None else example)
    return relax(network, dnat.find_edges(program, space), mode)


def answers_in_batch_mode(network, x):
    """Of a plain network: everything in eval mode, but for batch norms."""
    network = network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        return network(x).double().numpy()


def kl_by_hand(own, other):
    p = np.exp(own) / np.exp(own).sum(1, keepdims=True)
    q = np.exp(other) / np.exp(other).sum(1, keepdims=True)
    return (p * (np.log(p) - np.log(q))).sum(1)


def damage_by_hand(network, choices, relaxed=None):
    """KL of the network's answers and the discretized one's, norms re-estimated in both, mean over images."""
    made = dnat.discretize(relaxed or network, choices, images())
    rows = []
    for x in BATCHES:
        own = answers_in_batch_mode(copy.deepcopy(network), x)
        rows.extend(kl_by_hand(own, answers_in_batch_mode(made, x)))
    return np.mean(rows)


NAMES = [name for name in SMALL if name != "masked"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damage_is_the_kl_of_the_network_that_is_made(name):
    network = small(name)
    relaxed = relaxed_of(network)
    judge = Judge(relaxed, BATCHES)
    assert judge.sees_classes
    found = judge.alone()
    assert found.images == 10
    assert {g: set(row) for g, row in found.damages.items()} == {e.key: set(e.choices) for e in relaxed.edges}
    pairs = [(edge, choice) for edge in relaxed.edges for choice in edge.choices[1:]]
    for edge, choice in random.Random(0).sample(pairs, min(len(pairs), 6)):
        expected = damage_by_hand(network, {edge.key: choice}, relaxed)
        assert found.damages[edge.key][choice] == pytest.approx(expected, rel=1e-4, abs=1e-6), (edge, choice)
    assert any(d > 1e-4 for row in found.damages.values() for d in row.values())
    assert all(row["original"] == 0 for row in found.damages.values())


@pytest.mark.parametrize("name", ["residual", "resnet8", "concatenating"])
def test_the_damage_of_a_set_is_that_of_all_its_choices_together(name):
    network = small(name)
    relaxed = relaxed_of(network)
    judge = Judge(relaxed, BATCHES)
    sets = legal_sets(relaxed.edges)
    for choices in random.Random(0).sample(sets, min(len(sets), 8)):
        assert judge.damage(choices) == pytest.approx(damage_by_hand(network, choices), rel=1e-4, abs=1e-6)
    assert judge.damage({}) == 0


class Again(nn.Module):
    """Calls its stem a second time, behind what may change, where the images are bright."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        y = self.relu(self.norm(self.stem(x)))
        y = y + self.conv(y)
        if x.mean() > 1:
            y = y + self.relu(self.stem(y))
        return self.head((y + self.last(y)).mean((2, 3)))


class Nested(nn.Module):
    """Branches that begin with modules of several operations."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.begins = nn.ModuleList(self.normed() for _ in range(2))
        self.ends = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.head = nn.Linear(4, 5)

    def normed(self):
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    def forward(self, x):
        x = self.stem(x)
        for begin, end in zip(self.begins, self.ends, strict=True):
            x = x + end(begin(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", [*SMALL, "again", "nested"])
def test_what_is_remembered_gives_the_same_bits(name, mode):
    made = {"again": Again, "nested": Nested}
    network = made[name]() if name in made else small(name)
    relaxed = relaxed_of(network, mode=mode)
    judge = Judge(relaxed, [*BATCHES, images() + 3])
    found = judge.alone()
    for group, row in found.damages.items():
        for choice, damage in row.items():
            alone = {edge.key: choice for edge in relaxed.members(group)}
            assert judge.damage(alone) == damage, (group, choice)


COUNTED = []


class Counted(nn.Conv2d):
    def forward(self, x):
        COUNTED.append(self.in_channels)
        return super().forward(x)


def test_what_lies_before_an_edge_is_computed_once():
    network = small("resnet8")
    stem = Counted(3, 4, 3, padding=1, bias=False)
    stem.load_state_dict(network.conv1.state_dict())
    network.conv1 = stem
    relaxed = relaxed_of(network)
    assert all("conv1" in modules_before([edge]) for edge in relaxed.edges)
    judge = Judge(relaxed, BATCHES)
    COUNTED.clear()
    judge.alone()
    assert len(COUNTED) == len(BATCHES)  # the first choice; then it is known


def test_cell_mode_changes_a_group_together():
    network = small("resnet8")
    relaxed = relaxed_of(network, mode="cell")
    assert len(relaxed.groups) < len(relaxed.edges)
    found = Judge(relaxed, BATCHES).alone()
    for group, row in found.damages.items():
        for choice in relaxed.choices_of(group):
            alone = {edge.key: choice for edge in relaxed.members(group)}
            assert row[choice] == pytest.approx(damage_by_hand(network, alone), rel=1e-4, abs=1e-6)


def test_other_operations_are_judged_with_their_own_weights():
    network = small("resnet8")
    relaxed = relaxed_of(network, "nat++")
    found = Judge(relaxed, BATCHES).alone().damages
    edge = next(e for e in relaxed.edges if e.others)
    for name, _ in edge.others[:3]:
        expected = damage_by_hand(network, {edge.key: name}, relaxed)
        assert found[edge.key][name] == pytest.approx(expected, rel=1e-4, abs=1e-6)


class Maps(nn.Module):
    """Gives two maps and a number that is no float."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, scale=1.0):
        x = self.stem(x * scale)
        return {"maps": [x + self.conv(x), x * 2], "count": torch.tensor(len(x))}


def test_outputs_that_are_no_scores_are_compared_by_their_squares():
    network = Maps()
    relaxed = relaxed_of(network)
    batches = [{"x": images(), "scale": 2.0}, (images(2),)]
    judge = Judge(relaxed, batches)
    assert not judge.sees_classes
    parts = []
    for x in (images() * 2, images(2)):
        with torch.no_grad():
            stem = network.stem(x)
            both, changed = stem + network.conv(stem), stem + stem
        share = ((both - changed) ** 2).mean() / both.var(unbiased=False)
        parts.append(float(share) / 2)  # the mean over two outputs, the second of which is as it was
    expected = (4 * parts[0] + 2 * parts[1]) / 6
    assert judge.alone().damages["conv"]["identity"] == pytest.approx(expected, rel=1e-5)


def test_norms_that_are_frozen_keep_their_statistics():
    network = small("resnet8").train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    relaxed = relaxed_of(network)
    found = Judge(relaxed, BATCHES).alone().damages
    edge = next(e for e in relaxed.edges if "none" in e.choices)
    rows = []
    for x in BATCHES:
        with torch.no_grad(), in_mode(network, False):
            own = network(x).double().numpy()
        made = dnat.discretize(network, {edge.key: "none"}, images()).eval()
        rows.extend(kl_by_hand(own, made(x).detach().double().numpy()))
    assert found[edge.key]["none"] == pytest.approx(np.mean(rows), rel=1e-4)


class Drawing(nn.Module):
    """Drops out whatever its mode, before and behind what may change."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.first, self.second = self.Noise(), self.Noise()

    class Noise(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, True) + random.random() * np.random.rand()  # noqa: NPY002

    def forward(self, x):
        x = self.first(self.stem(x))
        x = self.second(x + self.conv(x))
        return self.head(x.mean((2, 3)))


def test_a_network_that_draws_draws_the_same_in_every_pass():
    relaxed = relaxed_of(Drawing())
    judge = Judge(relaxed, BATCHES)
    found = judge.alone().damages["conv"]
    assert judge.draws
    assert judge.damage({}) == 0 < found["none"] == judge.damage({"conv": "none"})
    assert found == Judge(relaxed, BATCHES).alone().damages["conv"]


class Fragile(nn.Module):
    """Fails when it is given what it does not expect."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        self.register_buffer("calls", torch.zeros(()))

    most = math.inf

    def forward(self, x):
        self.calls += 1
        if self.calls > Fragile.most:
            raise RuntimeError("it was called too often")
        x = self.norm(self.stem(x))
        x = x + self.conv(x)
        return self.head((x + self.last(x)).mean((2, 3)))


def state_of(relaxed):
    return (
        {k: v.clone() for k, v in relaxed.state_dict().items()},
        {path: module.training for path, module in relaxed.named_modules()},
        {path: module.__dict__.get("forward") for path, module in relaxed.named_modules()},
        {path: set(module.__dict__) for path, module in relaxed.named_modules()},
        relaxed.architecture.mode,
    )


@pytest.mark.parametrize("most", [math.inf, 1])
def test_the_network_and_all_generators_are_left_as_they_were(most, monkeypatch):
    relaxed = relaxed_of(Fragile().train())
    relaxed.network.last.eval()
    own = relaxed.network.stem.forward
    relaxed.network.stem.__dict__["forward"] = own  # of the user's: it must come back
    judge = Judge(relaxed, BATCHES)
    with torch.no_grad():
        relaxed.architecture.theta.uniform_()
    before = state_of(relaxed)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    monkeypatch.setattr(Fragile, "most", most)
    if most == math.inf:
        judge.alone()
        judge.damage({"conv": "none"})
    else:
        with pytest.raises(dnat.DnatError, match="called too often"):
            judge.alone()
    after = state_of(relaxed)
    assert before[1:] == after[1:]
    assert relaxed.network.stem.forward is own
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1] == random.getstate()
    assert (generators[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_what_was_kept_is_not_shown_again():
    relaxed = relaxed_of(small("resnet8"))
    judge = Judge(relaxed, BATCHES)
    kept, told = [], []
    whole = judge.alone(keep=lambda found: kept.append(list(found)))
    assert [len(found) for found in kept] == [1, 2]
    again = Judge(relaxed, BATCHES).alone(lambda done, of: told.append((done, of)), known=kept[0])
    assert again == whole
    trials = sum(len(e.choices) - 1 for e in relaxed.edges)
    assert told[0] == (trials + 1, 2 * trials)
    assert told[-1] == (2 * trials, 2 * trials)


class Endless(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.answer = answer

    def forward(self, x):
        x = self.stem(x)
        return self.answer(x + self.conv(x))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda x: x.mean((2, 3)) / 0, "not finite"),
        (lambda x: x.mean((2, 3)).argmax(1), "no floating-point numbers"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(answer, why):
    with pytest.raises(ValueError, match=why):
        Judge(relaxed_of(Endless(answer)), BATCHES)


def test_a_batch_that_norms_have_no_use_for_is_refused():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
    )
    with pytest.raises(ValueError, match="too small to re-estimate norms"):
        Judge(relaxed_of(network), [images(1)])
    with pytest.raises(ValueError, match="at least one batch"):
        Judge(relaxed_of(network), [])


def test_a_choice_that_ruins_all_numbers_does_infinite_damage():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            nn.init.constant_(self.conv.weight, 0.0)
            nn.init.constant_(self.conv.bias, 9.0)

        def forward(self, x):
            x = -self.stem(x).square()
            return (x * 1e-3 + self.conv(x)).log().mean((2, 3))

    assert Judge(relaxed_of(Root()), BATCHES).alone().damages["conv"]["none"] == math.inf


def every_set(relaxed):
    groups = relaxed.by_group()
    rows = {g: relaxed.choices_of(g) for g in groups}
    for choices in itertools.product(*rows.values()):
        found = dict(zip(rows, choices, strict=True))
        if not problems(by_edge(groups, found)):
            yield found


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", [n for n in SMALL if "skips" not in n])
def test_the_set_of_least_damage_is_that_of_an_exhaustive_search(name, mode):
    relaxed = relaxed_of(small(name), mode=mode)
    groups, costs = relaxed.by_group(), Costs(relaxed.edges)
    sets = list(every_set(relaxed))
    prices = [costs.of(by_edge(groups, s)) for s in sets]
    generator = random.Random(3)
    for values in ([0.0], [0.0, 1.0], [0.0, 1e-7, 0.3, 5.0], [math.inf, 1.0], None):

        def draw(values=values):
            return generator.uniform(0, 2) if values is None else generator.choice(values)

        rows = {g: {c: draw() if c != "original" else 0.0 for c in relaxed.choices_of(g)} for g in groups}
        sensitivity = Sensitivity(rows, 1)
        sums = [sensitivity.sum_of(s) for s in sets]
        for limit in {min(prices), costs.total, *generator.sample(prices, min(4, len(prices)))}:
            found = least_damage(groups, sensitivity, costs, limit)
            assert costs.of(by_edge(groups, found)) <= limit
            assert not problems(by_edge(groups, found))
            inside = [(s, p) for s, p in zip(sums, prices, strict=True) if p <= limit]
            floor = min(generator.choice([0.8, 0.97, 1.0]) * limit, max(p for _, p in inside))
            dear = least_damage(groups, sensitivity, costs, limit, floor)
            assert floor * (1 - 1e-6) <= costs.of(by_edge(groups, dear)) <= limit
            assert not problems(by_edge(groups, dear))
            assert sensitivity.sum_of(dear) <= min(s for s, p in inside if p >= floor) + 1e-6
            least = min(s for s, _ in inside)
            assert sensitivity.sum_of(found) == pytest.approx(least, abs=1e-6)
            for group in (g for g, c in found.items() if c != "original"):
                back = by_edge(groups, {**found, group: "original"})
                assert costs.of(back) > limit or problems(back), (limit, found, group)


@pytest.mark.parametrize("name", ["resnet8", "concatenating", "residual", "nested"])
def test_a_budget_is_used_wherever_the_sizes_of_edges_allow_it(name):
    """By all sets: within 3 % below the budget if any is, or else as near to it as any."""
    relaxed = relaxed_of(Nested() if name == "nested" else small(name))
    groups, costs = relaxed.by_group(), Costs(relaxed.edges)
    sensitivity = Judge(relaxed, BATCHES).alone()
    sets = list(every_set(relaxed))
    prices = [costs.of(by_edge(groups, s)) for s in sets]
    draw = random.Random(2)
    for limit in (p * draw.choice([1.0, 1.01, 1.02, 1.2]) for p in draw.sample(prices, min(8, len(prices)))):
        floor = min(0.97 * limit, max(p for p in prices if p <= limit))
        found = least_damage(groups, sensitivity, costs, limit, 0.97 * limit)
        assert floor * (1 - 1e-6) <= costs.of(by_edge(groups, found)) <= limit
        sums = [sensitivity.sum_of(s) for s, p in zip(sets, prices, strict=True) if floor <= p <= limit]
        assert sensitivity.sum_of(found) <= min(sums) + 1e-6


def test_shown_images_are_training_images_without_labels_or_crops():
    data = dnat.load("digits", train_limit=40, test_limit=20)
    shown = data.train_inputs(15, 3)[0]
    assert shown.shape == (15, 3, 16, 16)
    whole = data.train_batch(torch.arange(40), None)[0]
    rows = [next(i for i in range(40) if torch.equal(whole[i], x)) for x in shown]
    assert len(set(rows)) == 15
    assert torch.equal(shown, data.train_inputs(15, 3)[0])
    assert not torch.equal(shown, data.train_inputs(15, 4)[0])
    assert len(data.train_inputs(100, 0)[0]) == 40


def test_few_images_are_shown_again_as_training_varies_them():
    data = dnat.load("digits", train_limit=40, test_limit=20)
    once = data.train_inputs(40, 3)
    for count, views in ((40, 0), (79, 0), (80, 1), (130, 2), (10_000, VIEWS)):
        shown = shown_batches(data, count, 125, 3)
        assert [len(batch) for batch in shown] == [40] * (1 + views), count
        assert torch.equal(shown[0], once[0])
        again = [x for epoch in range(views) for x, _ in data.train_batches(3, epoch, 40)]
        assert all(map(torch.equal, shown[1:], again))
    assert not torch.equal(shown[1].sort(0).values, shown[2].sort(0).values)
    assert [len(batch) for batch in shown_batches(data, 80, 25, 3)] == [20, 20, 20, 20]
    assert len(shown_batches(dnat.load("digits", train_limit=600, test_limit=20), 10_000, 600, 3)) == 1  # not few


def test_what_does_not_vary_or_may_leave_little_is_shown_once(tmp_path):
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = (images, torch.arange(12) % 2)
    still = dnat.Data.from_tensors("still", split, split, augmentation=Augmentation(0, flip=False))
    for number, image in enumerate(images):
        place = tmp_path / ("train", "test")[number % 2] / "ab"[number // 6]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number}.png")
    crops = dnat.load("folder", tmp_path, image_size=16, augmentation=Augmentation(resized=True))
    for data, count in ((still, 12), (crops, 6)):
        assert [len(batch) for batch in shown_batches(data, 1000, 125, 0)] == [count]


def test_as_many_images_are_shown_as_take_a_few_minutes():
    """By hand: half of 2.5e12 multiply-adds for each choice and image, in fifties, from 64 to 1,000."""
    relaxed = relaxed_of(small("resnet8"))
    trials = sum(len(edge.choices) - 1 for edge in relaxed.edges)
    for madds in (1.0, 1e9, 4e9, 1e14):
        exactly = 2.5e12 / (madds * trials / 2)
        assert affordable_images(relaxed, madds) == min(max(64, 50 * (exactly // 50)), 1000), madds
    assert 64 < affordable_images(relaxed, 1e9) < 1000
    assert dnat.Config().limit.judge_images == "auto"
    with pytest.raises(ValueError, match="judge_images must be 'auto' or at least 1, not 0"):
        dnat.Config(judge_images=0)


def test_batches_are_as_large_as_what_is_remembered_allows(monkeypatch):
    relaxed = relaxed_of(small("resnet8"))
    assert batch_size(relaxed) == 125
    monkeypatch.setattr("dnat.sensitivity.MEMORY", 100_000)
    assert 8 < batch_size(relaxed) < 125
    monkeypatch.setattr("dnat.sensitivity.MEMORY", 1)
    assert batch_size(relaxed) == 8
