import copy
import functools
import itertools
import json
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_training import config, tiny_data
from test_transform import network as dropping
from test_transform import watched

import dnat
from dnat.checkpoints import Checkpoints
from dnat.lab.baselines import LEARNERS, candidates, configured
from dnat.lab.baselines import search as searching
from dnat.lab.baselines.ascent import fit, improved
from dnat.lab.baselines.embedding import PAPER
from dnat.lab.baselines.search import SearchRun, divided
from dnat.lab.baselines.spaces import GenotypeSpace
from dnat.lab.cli import cli
from dnat.lab.methods import METHODS, check_method
from dnat.lab.runs import restore
from dnat.networks.cells import CellNetwork
from dnat.networks.genotypes import is_alive, transformed
from dnat.records import Records
from dnat.rundir import SEARCH_RESULT
from dnat.settings import Config, Job, Search
from dnat.training import Interrupted, NonFiniteError, is_dead

pytestmark = pytest.mark.usefixtures("quiet")

SMALL = {"channels": 2, "layers": 3, "epochs": 2, "batch_size": 4, "samples": 3, "calibration": 2}
NAO = {"architectures": 6, "nao_epochs": 20}


def settings(**options):
    search = Search(**(SMALL | NAO | options.pop("search", {})))
    return config(**({"epochs": 2, "architecture_epochs": 1, "search": search} | options))


def cell_network(genotype="resblock"):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CellNetwork(genotype, channels=2, layers=3, num_classes=5)


def untimed(result):
    """The rows of a run without its times and its memory."""
    return [{k: v for k, v in row.items() if "second" not in k and k != "memory"} for row in result.history]


GIVEN = {"cells": cell_network, "edges": dropping}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *(("nat", "cells"), ("nat", "edges"), ("nat++", "cells"), ("lstm", "edges")),
        *(("random", "edges"), ("max-gcn", "edges"), ("nao", "cells"), ("nao", "edges")),
    ],
)
def test_the_same_seed_gives_the_same_bits(method, given):
    torch.manual_seed(17)
    before = torch.get_rng_state()
    network = GIVEN[given]()
    weights = copy.deepcopy(network.state_dict())
    short = {"epochs": 1, "search": {"epochs": 1}}
    runs = [METHODS[method](network, tiny_data(32), settings(seed=1, **copy.deepcopy(short))) for _ in range(2)]
    assert runs[0].results() == runs[1].results()
    if method == "nat":
        other = METHODS[method](network, tiny_data(32), settings(seed=2, **copy.deepcopy(short)))
        assert runs[0].results()["weights_sha256"] != other.results()["weights_sha256"]
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key]), key
    result = runs[0]
    assert result.seconds["search"] > 0
    assert result.seconds["network"] > 0
    assert [row["stage"] for row in result.history] == ["search", "network"]
    assert result.commitment is not None
    assert result.cost_before == dnat.cost(network, tiny_data(32).example())
    assert result.dead == is_dead(result.network, tiny_data(32))
    assert (result.genotype is not None) == (given == "cells")


@pytest.mark.parametrize(
    ("method", "given", "official"),
    [
        *(("nat", "cells", False), ("nao", "cells", True), ("lstm", "edges", False)),
        pytest.param("nat", "cells", True, marks=pytest.mark.slow),
    ],
)
def test_stopped_at_every_batch_and_after_every_judgement_gives_the_same_bits(method, given, official, tmp_path):
    """Each attempt takes three batches, or judges three architectures, and stops."""
    c = settings(search={"official": official, "momentum": 0.0 if official else 0.9})
    job = Job(network="test:any", method=method, config=c)
    whole = METHODS[method](GIVEN[given](), tiny_data(32), c)
    attempts = 0
    while True:
        torch.manual_seed(attempts)  # the global random state must not matter
        asked = itertools.count(1)
        with Records.open(tmp_path / "run", job) as records:
            try:
                again = METHODS[method](
                    GIVEN[given](),
                    tiny_data(32),
                    c,
                    records=records,
                    stop=lambda progress, asked=asked: next(asked) == 3,
                )
                break
            except Interrupted:
                attempts += 1
    # Of the search's batches, its judgements, and the training's batches every third.
    assert attempts >= (2 * (3 + (5 if method != "nao" else 0)) + 2) // 3 + 2 * 4 // 3
    assert again.results() == whole.results()
    assert untimed(again) == untimed(whole)
    assert again.seconds["search"] > 0
    assert not list((tmp_path / "run").glob("search-*.ckpt"))
    found = json.loads((tmp_path / "run" / SEARCH_RESULT).read_text())
    assert 1 <= len(found["judged"]) <= 3


@functools.cache
def whole_run():
    """A run that nothing stopped; it is the same for all."""
    return METHODS["nat"](cell_network(), tiny_data(32), settings())


@pytest.mark.parametrize("forgotten", ["optimizer", "reinforce", "network", "rewards", "phase"])
def test_each_part_of_a_searchs_checkpoint_matters(forgotten, tmp_path, monkeypatch):
    """The control of the test above."""
    c = settings()
    job = Job(network="test:any", method="nat", config=c)
    # In the middle of the second epoch's first part, or of its second.
    stopped = 9 if forgotten == "optimizer" else 13
    with Records.open(tmp_path / "run", job) as records, pytest.raises(Interrupted):
        METHODS["nat"](cell_network(), tiny_data(32), c, records=records, stop=lambda p: p.step == stopped)
    original = Checkpoints.newest

    def without(self):
        newest = original(self)
        if newest is None or self.stage != "search":
            return newest
        state = dict(newest[1])
        if forgotten in ("network", "optimizer"):
            state["shared"] = state["shared"] | {forgotten: _scrambled(state["shared"][forgotten])}
        elif forgotten == "reinforce":
            state[forgotten] = _scrambled(state[forgotten])
        else:
            state[forgotten] = [] if forgotten == "rewards" else 0
        return newest[0], state

    monkeypatch.setattr(Checkpoints, "newest", without)
    with Records.open(tmp_path / "run", job) as records:
        again = METHODS["nat"](cell_network(), tiny_data(32), c, records=records)
    assert untimed(again) != untimed(whole_run())


def test_the_time_before_a_stop_counts(tmp_path, monkeypatch):
    job = Job(network="test:any", method="nat", config=settings())
    with Records.open(tmp_path / "run", job) as records, pytest.raises(Interrupted):
        METHODS["nat"](cell_network(), tiny_data(32), job.config, records=records, stop=lambda p: p.step == 2)
    original = Checkpoints.newest

    def later(self):
        newest = original(self)
        if self.stage == "search" and newest:
            assert 0 < newest[1]["epoch_seconds"] < 1000
            newest[1]["epoch_seconds"] += 1000
        return newest

    monkeypatch.setattr(Checkpoints, "newest", later)
    with Records.open(tmp_path / "run", job) as records:
        again = METHODS["nat"](cell_network(), tiny_data(32), job.config, records=records)
    first, second, *_ = again.history
    assert first["seconds"] > 1000 > second["seconds"]
    assert 1000 < again.seconds["search"] < 2000


def _scrambled(value):
    """The same tree with other floating point tensors."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value * 0.5 + 0.1
    if isinstance(value, dict):
        return {k: _scrambled(v) for k, v in value.items()}
    return [_scrambled(v) for v in value] if isinstance(value, list) else value


def search_run(learner="nat", data=None, **options):
    """A search that stands at its beginning."""
    space = GenotypeSpace(cell_network("darts_v2"), None, settings(**options), (3, 8, 8), 5)
    return SearchRun(space, LEARNERS[learner], data or tiny_data(32), settings(**options), "")


UNUSED = [({}, False), ({"official": True}, True), ({"unused_weights": "move"}, True),
          ({"official": True, "unused_weights": "rest"}, False)]  # fmt: skip


@pytest.mark.parametrize(("options", "moves"), UNUSED)
def test_shared_weights_move_by_sgd_and_those_that_a_step_does_not_use_as_the_settings_say(options, moves):
    """A twin by the equations: v <- momentum v + g + decay w, w <- w - lr v, with g = 0 where nothing is used."""
    run = search_run(search={"lr": 0.1, "momentum": 0.5, "weight_decay": 0.25, **options})
    run.shared.network.double()
    first = run.space.given
    other = transformed(first, {("normal", 0, 0): "conv_3x3", ("reduce", 0, 1): "conv_3x3"})
    wanted = {name: p.detach().clone() for name, p in run.shared.network.named_parameters()}
    velocity = {}
    images, labels = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 5
    left_out = 0
    for genotype in (first, other, other, first):
        run.space.sample = lambda random, genotype=genotype: genotype
        run._train_weights(images, labels)
        twin = copy.deepcopy(run.shared.network)
        twin.load_state_dict({**twin.state_dict(), **wanted})
        twin.zero_grad()
        twin.choose(genotype)
        torch.nn.functional.cross_entropy(twin.train()(images).float(), labels).backward()
        for name, p in twin.named_parameters():
            if p.grad is None and (name not in velocity or not moves):
                continue
            left_out += p.grad is None
            slope = (0 if p.grad is None else p.grad) + 0.25 * wanted[name]
            velocity[name] = 0.5 * velocity.get(name, 0) + slope
            wanted[name] = wanted[name] - 0.1 * velocity[name]
        for name, p in run.shared.network.named_parameters():
            assert torch.allclose(p, wanted[name], rtol=1e-9, atol=1e-12), name
    assert (left_out > 0) == moves


def test_all_methods_train_from_the_same_weights_on_the_same_images(monkeypatch):
    def started(number, method):
        torch.manual_seed(number)
        c = settings() if method != "original" else config(epochs=2, architecture_epochs=1)
        METHODS[method](dropping(), tiny_data(32), c)

    named = enumerate(("original", *LEARNERS))
    seen = watched(monkeypatch, {m: functools.partial(started, number, m) for number, m in named})
    for method in LEARNERS:
        assert len(seen[method]) == len(seen["original"]) == 8
        for a, b in zip(seen[method], seen["original"], strict=True):
            assert torch.equal(a[0], b[0])
        found = {k: t for k, t in seen[method + " weights"].items() if k in seen["original weights"]}
        assert found  # NAT++'s other operations have weights of their own
        for key, tensor in found.items():
            assert torch.equal(tensor, seen["original weights"][key]), (method, key)


def test_test_images_decide_nothing_but_where_the_released_code_lets_them():
    """Other test images, the same search; NAT++'s code judged on them, so with `official` they do decide."""
    data = tiny_data(32)
    other = replace(data, test_images=255 - data.test_images, test_labels=(data.test_labels + 1) % 5)
    scores = {}
    for official, methods in ((False, ("nat",)), (True, ("nat++",))):
        for method in methods:
            c = settings(epochs=1, search={"official": official, "epochs": 1})
            for name, d in (("same", data), ("other", other)):
                result = METHODS[method](cell_network(), d, c)
                note = result.commitment.notes[0]
                scores[method, official, name] = note, *result.choices.items()
    assert scores["nat", False, "same"] == scores["nat", False, "other"]
    assert scores["nat++", True, "same"] != scores["nat++", True, "other"]


def test_dead_networks_are_made_by_the_released_form_alone(monkeypatch):
    """A policy that wants null everywhere: the released code makes it, ours keeps the network."""
    draw = candidates.draw

    def null(probabilities, generator):
        drawn = draw(probabilities, generator)
        return replace(drawn, actions=torch.zeros_like(drawn.actions))

    for module in (searching, candidates):
        monkeypatch.setattr(module, "draw", null)
    data = tiny_data(32)
    ours = METHODS["nat"](cell_network(), data, settings())
    assert not ours.dead
    assert is_alive(ours.genotype)
    assert "nothing that was proposed can be used" in " ".join(ours.commitment.notes)
    released = METHODS["nat"](cell_network(), data, settings(search={"official": True}))
    assert released.dead
    assert not is_alive(released.genotype)
    assert released.results()["dead"]


def test_nao_may_change_inputs_and_cost_and_the_record_shows_it(monkeypatch):
    """One edge of DARTS's normal cell gets another operation, one another input, one both; the rest stays."""
    changes = {"normal:0.0": ("conv_3x3", 0), "normal:2.1": ("skip_connect", 2), "normal:3.1": ("null", 0)}
    given = cell_network("darts_v2").genotype
    space = GenotypeSpace(cell_network("darts_v2"), None, settings(), (3, 8, 8), 5)
    sequence = space.sequence(given)
    for group, (operation, source) in changes.items():
        node, place = map(int, group.partition(":")[2].split("."))
        at = 2 * (2 * node + place)
        sequence[at : at + 2] = source, len(given.normal.nodes) + 1 + space.names.index(operation)
    monkeypatch.setattr(candidates, "improved", lambda *args, accept: [x for x in [tuple(sequence)] if accept(x)])
    result = METHODS["nao"](cell_network("darts_v2"), tiny_data(32), settings())
    assert len(result.choices) == len(result.commitment.edges)
    seen = {}
    for edge in result.commitment.edges:
        seen.setdefault(edge.group, set()).add((edge.choice, edge.reason))
    assert len(seen) == 16
    wanted = {
        "normal:0.0": {("conv_3x3", "")},
        "normal:2.1": {("identity", "reads node 2 instead of node 0")},
        "normal:3.1": {("none", "reads node 0 instead of node 2")},
    }
    assert seen == {group: wanted.get(group, {("original", "")}) for group in seen}
    assert result.cost_after.madds != result.cost_before.madds


def test_nao_judges_those_of_which_it_expects_most():
    run = search_run("nao", search={"samples": 3})
    random = np.random.default_rng(0)
    sequences = torch.tensor([run.space.sequence(run.space.sample(random)) for _ in range(40)])
    scores = (sequences[:, 1::4] % 7).double().sum(1)
    small = replace(PAPER, embedding=8, hidden=16, predictor_hidden=8, epochs=30, positions=True, lr=0.01)
    model, _ = fit(sequences, scores, run.space.tokens, 0, small)
    given = torch.tensor(run.space.sequence(run.space.given))
    reached = improved(model, given, 4 * 3, accept=lambda s: is_alive(run.space.architecture(s)))
    assert len(reached) > 3

    def promised(found):
        return model.predict(model.encode(torch.tensor(found))).tolist()

    kept = [
        tuple(run.space.sequence(a)) for a in candidates.Candidates(run.space, run.config, None)._improved(model)
    ]
    left = [s for s in reached if s not in kept]
    assert len(kept) == 3
    assert min(promised(kept)) >= max(promised(left))
    assert min(promised(left)) < max(promised(kept))


@pytest.mark.parametrize("method", ["nat", "nat++", "random", "max-gcn", "nao"])
def test_a_budget_is_kept_on_edges(method):
    network = dnat.build("resnet8", seed=0, width=4, num_classes=5)
    data = tiny_data(32, size=16)
    result = METHODS[method](network, data, settings(budget=0.7))
    assert result.cost_after.madds <= 0.7 * result.cost_before.madds
    assert not result.dead


def test_what_cannot_be_done_is_said_before_anything_is_trained():
    data = tiny_data(32)
    with pytest.raises(ValueError, match=r"know no budget on genotypes.*search.graph='edges'"):
        check_method("nat", cell_network(), data, settings(budget=0.5))
    with pytest.raises(ValueError, match="needs a network of cells, not Dropping"):
        check_method("nat", dropping(), data, settings(search={"graph": "genotype"}))
    with pytest.raises(ValueError, match=r"search.batch_size 16 is larger than the 13 training images"):
        check_method("lstm", dropping(), data, settings(search={"batch_size": 16}))
    check_method("nat", cell_network(), data, settings(budget=0.9, search={"graph": "edges"}))
    with pytest.raises(NonFiniteError, match=r"lower search.lr \(1e\+30\)"):
        METHODS["random"](dropping(), data, settings(search={"lr": 1e30, "epochs": 4}))


def test_a_directory_of_another_search_is_refused(tmp_path):
    c = settings()
    job = Job(network="test:any", method="nat", config=c)
    for stop in (3, 10**9):
        directory = tmp_path / str(stop)
        with Records.open(directory, job) as records:
            if stop == 3:
                with pytest.raises(Interrupted):
                    METHODS["nat"](dropping(), tiny_data(32), c, records=records, stop=lambda p: p.step == 3)
            else:
                METHODS["nat"](dropping(), tiny_data(32), c, records=records)
            other = dropping()
            with torch.no_grad():
                other.head.weight.add_(1)
            with pytest.raises(ValueError, match="holds a search for another network, with other weights"):
                METHODS["nat"](other, tiny_data(32), c, records=records)


def test_settings_of_a_search():
    job = Job.from_flat({"network": "resnet8", "method": "nat", "epochs": 60, "search": {"samples": 4}})
    assert (job.config.search.epochs, job.config.search.samples) == (10, 4)
    assert Config(epochs=600, preset="paper").search.epochs == 100  # as NAT's
    assert Job.from_flat(tomllib.loads(job.to_toml())) == job
    for method, epochs in (("nat", 100), ("nat++", 200), ("nao", 100)):  # of 600, as the released code has them
        released = Job.from_flat(
            {"network": "resnet8", "method": method, "epochs": 600, "search": {"official": True}}
        )
        assert released.config.search.epochs == epochs == tomllib.loads(released.to_toml())["search"]["epochs"]
        assert configured(method, Config(epochs=600, search=Search(official=True))).search.epochs == epochs
        assert configured(method, Config(epochs=600, search=Search(official=True, epochs=7))).search.epochs == 7
        assert configured(method, Config(epochs=600)).search.epochs == 100
    other = job.but(config=job.config.but(search=job.config.search.but(samples=5)))
    assert job.differences(other) == {"search.samples": (4, 5)}
    assert "search" not in Job.from_flat({"network": "resnet8"}).flat()
    for name, mode in (("dnat-cell", "cell"), ("dnat-full", "full")):
        made = Job.from_flat({"network": "resnet8", "method": name})
        assert (made.method, made.config.relaxation.mode) == ("dnat", mode)
    with pytest.raises(ValueError, match="method 'dnat-cell' has mode 'cell', not 'full'"):
        Job.from_flat({"network": "resnet8", "method": "dnat-cell", "mode": "full"})
    with pytest.raises(ValueError, match=r"unknown setting 'search\.sample'; did you mean 'search\.samples'"):
        Job.from_flat({"network": "resnet8", "method": "nat", "search": {"sample": 4}})
    with pytest.raises(ValueError, match=r"method 'dnat' does not search: search\.samples"):
        Job.from_flat({"network": "resnet8", "search": {"samples": 4}})
    for wrong in ({"split": 1.0}, {"samples": 0}, {"lr": -1.0}, {"decay": 1.0}, {"channels": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            Search(**wrong)
    with pytest.raises(TypeError, match="official must be true or false"):
        Search(official=1)


COMMAND = ["transform", "--data", "digits", "--train-limit", "80", "--test-limit", "20", "--epochs", "2"]
FLAGS = ["--architecture-epochs", "1", "--batch-size", "16", "--device", "cpu", "--set", "threads=1"]
FEW = ["--set", "search.epochs=1", "--set", "search.samples=2", "--set", "search.batch_size=16",
       "--set", "search.channels=2", "--set", "search.layers=3", "--set", "search.architectures=4",
       "--set", "search.nao_epochs=20"]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("nat", "resblock"),
        pytest.param("nat++", "darts_v2", marks=pytest.mark.slow),
        pytest.param("nao", "darts_v2", marks=pytest.mark.slow),
        pytest.param("nat++", "resnet8", marks=pytest.mark.slow),
    ],
)
def test_the_command_ends_with_files_from_which_the_network_comes_back(method, name, tmp_path):
    options = ["--set", "network.width=4"] if name == "resnet8" else ["--set", "network.channels=2"]
    options += [] if name == "resnet8" else ["--set", "network.layers=3"]
    run = tmp_path / "run"
    command = [*COMMAND, *FLAGS, *FEW, *options, "--method", method, "--network", name, "--out", str(run)]
    shown = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "search epoch" in shown.output
    assert re.search(r"; search \d+\.\d s, network \d+\.\d s$", shown.output, re.M)  # its time stands apart
    again = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "is done already" in again.output
    if name != "resnet8":  # each edge of a cell once, whatever cells there are
        lines = re.findall(r"^((?:normal|reduce):\d\.\d) ", shown.output, re.M)
        assert len(lines) == len(set(lines)) == int(re.search(r"(\d+) of 16 edges changed", shown.output)[1])
    record = json.loads((run / "record.json").read_text())
    assert {"search", "network"} <= record["seconds"].keys()
    tested = CliRunner().invoke(cli, ["evaluate", str(run)], catch_exceptions=False)
    assert f"test accuracy {record['results']['test_accuracy']:.2%}" in tested.output
    network, _, example = restore(run)
    assert dnat.cost(network, example).madds == record["results"]["cost_after"]["madds"]
    drawn = CliRunner().invoke(cli, ["draw", str(run), "--format", "svg"], catch_exceptions=False)
    assert drawn.exit_code == 0
    exported = CliRunner().invoke(cli, ["export", str(run), "--to", "py", "--no-verify"], catch_exceptions=False)
    assert exported.exit_code == 0, exported.output
    assert (run / "search.jsonl").exists()


def test_a_search_divides_what_it_is_given_by_the_seed():
    one, two, three = (divided(tiny_data(32), settings(seed=s))[0].train_index for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("nat", "proxyless_mobile"),
        ("nat++", "mobilenetv2_cell"),
        ("max-gcn", "resnet20"),
        ("nao", "darts_v2"),
        ("lstm", "mobilenet_v2"),
    ],
)
def test_every_method_on_real_images(method, name, cifar10_root, tmp_path):
    """One command each, on CIFAR-10."""
    cells = name in ("resblock", "mobilenetv2_cell", "darts_v2")
    sizes = {
        "resnet20": ["network.width=4"],
        "proxyless_mobile": ["network.width=0.1"],
        "mobilenet_v2": ["network.width=0.1"],
    }
    pairs = ["network.channels=2", "network.layers=3"] if cells else sizes[name]
    options = [text for pair in pairs for text in ("--set", pair)]
    command = [*COMMAND, "--data", "cifar10", "--data-root", str(cifar10_root), *FLAGS, *FEW, *options]
    command += ["--epochs", "1", "--method", method, "--network", name, "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["seconds"]["search"] > 0
    assert record["results"]["cost_after"]["madds"] <= record["results"]["cost_before"]["madds"] or method == "nao"


def test_images_per_second_of_a_search_counts_short_last_batches_as_they_are():
    """13 images for the weights and 19 for the policy, in batches of 11: as full ones they would be 44."""
    search = {"batch_size": 11, "epochs": 1, "split": 0.4}
    row = METHODS["nat"](cell_network(), tiny_data(32), settings(search=search)).history[0]
    assert row["stage"] == "search"
    assert row["images_per_second"] * row["seconds"] == pytest.approx(32, rel=0.2)
