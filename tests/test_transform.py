import copy
import functools
import itertools
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import images, small
from test_training import config, tiny_data
from torch import nn

import dnat
import dnat.lab.baselines
from dnat.budget import Costs
from dnat.costs import Latency
from dnat.data.images import Augmentation
from dnat.discretization import discretization
from dnat.errors import DataError, UsageError, WrongTypeError
from dnat.files import sealed
from dnat.lab.methods import METHODS as EVERY_METHOD
from dnat.lab.methods import check_method
from dnat.optimizers import states_of
from dnat.records import Records
from dnat.relaxation import relax
from dnat.results import Commitment
from dnat.session import weights_digest
from dnat.settings import Job
from dnat.state import RunState
from dnat.training import (
    Interrupted,
    NonFiniteError,
    Progress,
    Trainer,
    short_stage,
    theta_rate,
    theta_steps,
)

pytestmark = pytest.mark.usefixtures("quiet")


ROOT = Path(__file__).parent.parent


def at(step):
    """Stop after this many batches."""
    return lambda progress: progress.step == step


class Dropping(nn.Module):
    """Draws random numbers while it trains, and has a branch to lose."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.conv2(self.dropout(torch.relu(self.norm1(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return Dropping()


METHODS = {"dnat": dnat.transform, "original": dnat.train}  # the others: test_baselines.py

# Both edges change under this pressure, so that the runs below really cross a transformation.
PRESSED = {"cost_weight": 20.0, "lr_theta": 0.3, "batch_size": 8}


def job(method="dnat", **options):
    return Job(network="test:dropping", method=method, config=config(**(PRESSED | options)))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(method):
    runs = [METHODS[method](network(), tiny_data(), config(**PRESSED, seed=s)).results() for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0]["weights_sha256"] != runs[2]["weights_sha256"]


@pytest.mark.parametrize("preset", ["paper", "improved"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_at_every_batch_gives_the_same_bits(method, preset, tmp_path):
    j = job(method, preset=preset)
    whole = METHODS[method](network(), tiny_data(), j.config)
    if method == "dnat":
        assert set(whole.choices.values()) != {"original"}
    # Each batch once: the odd ones with one preset, the even ones with the other.
    for stop_at in range(1 + (preset == "improved"), j.config.training.epochs * 3 + 1, 2):
        with Records.open(tmp_path / f"{stop_at}", j) as records, pytest.raises(Interrupted):
            METHODS[method](
                network(), tiny_data(), j.config, records=records, stop=lambda p, n=stop_at: p.step == n
            )
        with Records.open(tmp_path / f"{stop_at}", j) as records:
            torch.manual_seed(99)  # the global random state must not matter
            again = METHODS[method](network(), tiny_data(), j.config, records=records)
        assert again.results() == whole.results(), stop_at
        assert again.choices == whole.choices
        rows, wanted = (
            [{k: v for k, v in row.items() if "second" not in k and k != "memory"} for row in result.history]
            for result in (again, whole)
        )
        assert rows == wanted


def test_stopping_at_every_batch_in_turn_gives_the_same_bits(tmp_path):
    j = job()
    whole = dnat.transform(network(), tiny_data(), j.config).results()
    for _ in range(j.config.training.epochs * 3):
        with Records.open(tmp_path / "run", j) as records, pytest.raises(Interrupted):
            dnat.transform(network(), tiny_data(), j.config, records=records, stop=lambda p: True)
    with Records.open(tmp_path / "run", j) as records:
        assert dnat.transform(network(), tiny_data(), j.config, records=records).results() == whole
        assert [row["epoch"] for row in records.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("forgotten", ["momentum", "torch_rng", "theta", "step", "decided", "progress", "network"])
def test_each_part_of_a_checkpoint_matters(forgotten, tmp_path, monkeypatch):
    """The control of the tests above: leave one thing out, and the bits differ."""
    j = job()
    at = 2 if forgotten == "theta" else 4  # theta is trained in 3 steps, then the choices settle in 3 more
    whole = dnat.transform(network(), tiny_data(), j.config).results()
    with Records.open(tmp_path / "run", j) as records, pytest.raises(Interrupted):
        dnat.transform(network(), tiny_data(), j.config, records=records, stop=lambda p: p.step == at)
    restore = RunState.restore

    def forgetful(self, state):
        first = copy.deepcopy(self.trainer.network.state_dict())
        if forgotten == "momentum":
            state["optimizer"] = {}
        if forgotten == "decided":
            state["architecture"]["decisions"] = None
        if forgotten == "theta":
            state["architecture"]["optimizer"] = self.architecture.stage.optimizer.state_dict()
        if forgotten == "step":
            state["architecture"]["step"] = 0
        if forgotten == "progress":
            state["progress"]["step"] = 0
        if forgotten == "torch_rng":
            state["random"] = []
        restore(self, state)
        if forgotten == "network":
            self.trainer.network.load_state_dict(first)

    monkeypatch.setattr(RunState, "restore", forgetful)
    with Records.open(tmp_path / "run", j) as records:
        assert dnat.transform(network(), tiny_data(), j.config, records=records).results() != whole


def watched(monkeypatch, runs):
    """What the runs of methods are trained on: {method: its batches, "method weights": those it began with}."""
    from dnat.training import Trainer

    seen = {}
    step = Trainer.step

    def spy(self, x, y):
        seen.setdefault(method, []).append((x.clone(), y.clone()))
        if len(seen[method]) == 1:
            seen[method + " weights"] = copy.deepcopy(self.weights.state_dict())
        step(self, x, y)

    monkeypatch.setattr(Trainer, "step", spy)
    for method, run in runs.items():  # noqa: B007 (the spy reads it)
        run()
    return seen


@pytest.mark.parametrize(
    ("name", "side", "options", "cut"),
    [
        ("darts_v2", 32, {}, 16),
        ("proxyless_mobile", 32, {}, 16),
        ("resnet8", 32, {}, 0),
        ("darts_v2", 16, {}, 0),  # images that would be blank
        ("darts_v2", 32, {"preset": "improved"}, 0),
        ("darts_v2", 32, {"cutout": 0}, 0),
        ("resnet8", 16, {"cutout": 4}, 4),
        ("proxyless_mobile", 32, {"architecture_epochs": 1, "method": "dnat"}, 16),
        ("darts_v2", 32, {"method": "random"}, 16),
    ],
)
@pytest.mark.filterwarnings("ignore:lr_theta")
def test_cutout_is_that_of_the_paper(name, side, options, cut, monkeypatch):
    """White images, so that what is blanked shows: a square, or what of it lies within."""
    sizes = {"darts_v2": {"channels": 2, "layers": 3}, "proxyless_mobile": {"width": 0.1}, "resnet8": {"width": 2}}
    white = torch.full((24, 3, side, side), 255, dtype=torch.uint8), torch.arange(24) % 5
    grey = (0.5,) * 3
    data = dnat.Data.from_tensors("white", white, white, augmentation=Augmentation(pad=0))
    data = replace(data, mean=grey, std=grey)
    options = dict(options)
    method = options.pop("method", "original")
    searching = dnat.settings.Search(batch_size=4, samples=1, channels=2, layers=3)
    c = config(**({"preset": "paper", "epochs": 2, "architecture_epochs": 1, "search": searching} | options))
    given = dnat.build(name, seed=0, num_classes=5, **sizes[name])
    batches = watched(monkeypatch, {method: lambda: EVERY_METHOD[method](given, data, c)})[method]
    assert len(batches) == 6
    holes = torch.cat([(x == 0).all(1) for x, _ in batches])
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), rows * columns)
    assert int(rows.max()) == int(columns.max()) == cut
    assert (rows >= cut // 2).all()


def test_every_method_sees_the_same_images_and_starts_from_the_same_weights(monkeypatch):
    def started(method):
        torch.manual_seed(len(method))
        METHODS[method](network(), tiny_data(), config(**PRESSED))

    seen = watched(monkeypatch, {method: functools.partial(started, method) for method in METHODS})
    assert len(seen["dnat"]) == len(seen["original"]) == 12
    for a, b in zip(seen["dnat"], seen["original"], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    for key, tensor in seen["original weights"].items():
        assert torch.equal(seen["dnat weights"][key], tensor)


def test_the_global_state_is_left_alone():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    given = network()
    digest = weights_digest(given)
    dnat.transform(given, tiny_data(), config(**PRESSED))
    assert torch.get_num_threads() == 2
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    assert weights_digest(given) == digest
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        dnat.train(network(), tiny_data(), config(epochs=1, architecture_epochs=1))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_momentum_of_kept_weights_goes_on():
    net = network()
    relaxed = relax(net, dnat.find_edges(dnat.trace(net, images())))
    old = Trainer(relaxed.train(), tiny_data(), config(), Progress())
    list(old.epoch())
    kept = states_of(old.optimizer, old.weights)
    assert kept.keys() == dict(net.named_parameters()).keys()
    plain = discretization(relaxed, {"conv2": "none"}, images()).network
    assert dict(plain.named_parameters()).keys() < kept.keys()


@pytest.mark.parametrize("mode", ["full", "cell"])
@pytest.mark.parametrize("name", ["resnet8 with skips", "in place", "shared", "data dependent"])
def test_awkward_networks_go_through_the_whole_story(name, mode):
    result = dnat.transform(small(name), tiny_data(classes=5), config(**PRESSED, mode=mode))
    assert result.cost_after.madds <= result.cost_before.madds
    assert result.history[-1]["epoch"] == 4
    assert torch.isfinite(result.network(images())).all()


def test_nothing_is_lost_at_the_commit_when_choices_have_settled():
    result = dnat.transform(network(), tiny_data(), config(**PRESSED))
    assert set(result.choices.values()) != {"original"}
    assert result.commitment.compact.loss == pytest.approx(result.commitment.relaxed.loss, rel=1e-6)
    abrupt = dnat.transform(network(), tiny_data(), config(**PRESSED, settle=0.0)).commitment
    assert abrupt.compact.loss != pytest.approx(abrupt.relaxed.loss, rel=1e-4)


@pytest.mark.parametrize("settle", [0.0, 0.5])
@pytest.mark.parametrize("budget", [0.8, "60%", 0.45])
def test_a_budget_is_kept_by_the_whole_story(budget, settle):
    given = small("resnet8")
    limit = {"60%": 0.6}.get(budget, budget) * dnat.cost(given, images()).madds
    result = dnat.transform(given, tiny_data(classes=5), config(budget=budget, settle=settle))
    assert result.cost_after.madds <= limit


def test_a_budget_out_of_reach_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="the smallest reachable cost is"):
        dnat.transform(small("resnet8"), tiny_data(classes=5), config(budget=0.01))


def test_a_time_budget_leaves_less_to_do(tmp_path):
    j = job(latency_budget=0.7)
    with Records.open(tmp_path / "run", j) as records:
        result = dnat.transform(small("resnet8"), tiny_data(classes=5), j.config, records=records)
        seconds = records.read_json("latencies.json")["whole"]
    assert result.cost_after.madds < result.cost_before.madds
    assert sum(seconds) == pytest.approx(result.latency_before.seconds, rel=3)


def test_a_time_budget_that_was_missed_is_tried_again_with_a_smaller_one(monkeypatch):
    """Networks with 0.4 seconds that their operations do not tell of; the clock is made up."""

    def seconds(network, example, program, **options):
        return [op.madds / whole for op in program.traces[0].operations]

    def measured(networks, example, **options):
        shares = [2 * dnat.cost(network, example[:1]).madds / whole for network in networks]
        return [Latency(0.4 + 0.6 * share, 0.0, 20, len(example), "cpu") for share in shares]

    given, whole = small("resnet8"), 2 * dnat.cost(small("resnet8"), images()).madds
    monkeypatch.setattr("dnat.planning.operation_seconds", seconds)
    for module in ("costs", "transformation"):
        monkeypatch.setattr(f"dnat.{module}.latencies", measured)
    c = config(latency_budget=0.7, latency_batch=2, settle=0.0)
    result = dnat.transform(given, tiny_data(classes=5), c)
    assert not result.commitment.notes
    assert result.latency_after.seconds <= 0.7
    assert 0 < result.cost_after.madds <= 0.5 * result.cost_before.madds
    for module in ("costs", "transformation"):
        monkeypatch.setattr(f"dnat.{module}.latencies", lambda networks, x: [Latency(2.0, 0.0, 20, 2, "cpu")] * 2)
    stubborn = dnat.transform(given, tiny_data(classes=5), c)
    assert stubborn.commitment.notes == (
        "the time budget of 700.00 ms was not reached",
        "the network takes 2000.00 ms in the end, 43% more than its time budget",
    )


def test_the_report_says_what_was_saved_and_what_could_not_change():
    given = small("residual")
    result = dnat.transform(given, tiny_data(), config(budget=0.5))
    moment = result.commitment
    changed = [e for e in moment.edges if e.choice != "original"]
    assert changed
    before = dnat.cost(given, images(2)).madds
    for edge in changed:
        alone = dnat.discretize(given, {edge.key: edge.choice}, images(2))
        assert edge.saved == before - dnat.cost(alone, images(2)).madds
    reasons = {e.key: dict(e.refused) for e in moment.fixed}
    assert reasons["stem>stem_norm"]["identity"] == "its input is 3x8x8, its output 4x8x8"
    assert "no longer depend on the input" in reasons["stem>stem_norm"]["none"]


def test_a_short_stage_is_warned_of():
    words = (
        r"lr_theta 0.001 x 3 steps moves theta by about 0.003, .*: theta will hardly change one; take about 2000 "
    )
    with pytest.warns(UserWarning, match=words):
        dnat.transform(network(), tiny_data(), config(lr_theta=0.001))


def advised(text):
    """The numbers of epochs and the rate that a warning advises; None where it does not."""
    epochs = re.search(r"about (\d+) architecture epochs", text)
    rate = re.search(r"or lr_theta ([\d.e-]+)$", text)
    return int(epochs[1]) if epochs else None, float(rate[1]) if rate else None


def test_what_a_short_stage_is_told_is_true_and_new():
    """Of every stage: what is advised is more than what was given, and with it nothing is warned of."""
    warned = 0
    for epochs, batches, rate, budget in itertools.product(
        (1, 2, 7), (1, 3, 11, 40), ("auto", 3e-4, 0.004, 0.09, 0.1, 0.5), (None, 0.7)
    ):
        c = dnat.Config(epochs=8, architecture_epochs=epochs, lr_theta=rate, budget=budget)
        text = short_stage(c, batches)
        reach = theta_rate(c, batches) * theta_steps(c, batches)
        assert bool(text) == (reach < 0.5)
        if not text:
            continue
        warned += 1
        assert ("the budget will choose, not theta" in text) == (budget is not None)
        more, faster = advised(text)
        assert more > epochs
        assert not short_stage(c.but(epochs=more, architecture_epochs=more), batches)
        assert faster is None or faster > theta_rate(c, batches)
    assert warned > 20
    assert short_stage(dnat.Config(theta_reach=0.1), 20).endswith("take a theta_reach of 3 or more")
    assert not short_stage(dnat.Config(lr_theta=1e-6, judge="loss", budget=0.5), 20)


def test_who_decided_stands_beside_each_choice():
    """Theta does not move, and a budget asks for changes: they are the budget's, and so it is written down."""
    c = config(lr_theta=1e-6, budget=0.6)
    edges = dnat.transform(network(), tiny_data(), c).commitment.edges
    changed = [e for e in edges if e.choice != "original"]
    assert changed
    assert {e.by for e in changed} == {"budget"}
    assert all("was changed to" in e.reason for e in changed)
    free = dnat.transform(network(), tiny_data(), config(lr_theta=1e-6)).commitment.edges
    assert {(e.by, e.reason, e.choice) for e in free} == {("theta", "", "original")}
    again = Commitment.from_table(
        json.loads(json.dumps(dnat.transform(network(), tiny_data(), c).commitment.table()))
    )
    assert again.edges == edges


def test_a_poisoned_run_keeps_its_last_good_checkpoint(tmp_path):
    j = job(lr=1e30, grad_clip=0.0)
    with Records.open(tmp_path / "run", j) as records, pytest.raises(NonFiniteError):
        dnat.transform(network(), tiny_data(), j.config, records=records)
    with Records.open(tmp_path / "run", j) as records:
        newest = records.newest()
        assert newest is None or all(t.isfinite().all() for t in newest[1]["network"].values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 99}, "batch_size 99 is larger than the 24 training images"),
        ({"device": "cuda:7"}, "there is no device 'cuda:7' here"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:1, mps, not 'gpu'"),
        ({"latency_batch": 10**9}, "latency_batch 1000000000 is larger than the 10 test images"),
    ],
)
def test_what_cannot_work_is_said_first(options, words):
    with pytest.raises(ValueError, match=words):
        dnat.transform(network(), tiny_data(), config(**options))


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="tells 5 classes apart, but tiny has 8"):
        dnat.transform(network(), tiny_data(classes=8), config())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ValueError, match="Sequential has no operation that could be changed"):
        dnat.transform(plain, tiny_data(), config())
    assert dnat.train(plain, tiny_data(), config()).choices == {}


def test_bf16_and_contiguous_layout_run():
    for options in ({"amp": "bf16"}, {"channels_last": False}, {"single_pass": True}, {"theta_optimizer": "sgd"}):
        result = dnat.transform(network(), tiny_data(), config(**(PRESSED | options)))
        assert 0 <= result.test.accuracy <= 1
        json.dumps(result.results(), allow_nan=False)


def test_a_result_is_json_and_says_what_became_of_each_edge():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = dnat.transform(network(), tiny_data(), config(**PRESSED))
    assert set(result.choices) == {"conv1>norm1", "conv2"}
    assert json.loads(json.dumps(result.results()))["choices"] == result.choices
    assert result.results()["cost_after"] == {
        "params": dnat.cost(result.network, images()).params,
        "madds": dnat.cost(result.network, images()).madds,
    }


def test_names_will_do_and_other_things_are_refused():
    c = config(epochs=1, architecture_epochs=1, batch_size=1379)
    by_name = dnat.transform("resnet8", "digits", c).results()
    assert by_name == dnat.transform(dnat.build("resnet8", seed=0), dnat.load("digits"), c).results()
    with pytest.raises(TypeError, match=r"data must be a dnat.Data or a name, not list"):
        dnat.transform("resnet8", [])
    with pytest.raises(TypeError, match=r"a network must be a torch.nn.Module or a name, not int"):
        dnat.transform(3, "digits")


def test_a_run_writes_its_files_and_no_others(tmp_path):
    j = job()
    for method in METHODS:
        with Records.open(tmp_path / method, j) as records:
            METHODS[method](network(), tiny_data(), j.config, records=records)
        names = {p.name for p in (tmp_path / method).iterdir() if p.suffix != ".ckpt"}
        assert names == {".lock", "config.toml", "environment.json", "status.json", "metrics.jsonl"}


def test_a_run_that_began_with_other_weights_is_not_gone_on_with(tmp_path):
    j = job()
    with Records.open(tmp_path / "run", j) as records, pytest.raises(Interrupted):
        dnat.transform(network(), tiny_data(), j.config, records=records, stop=at(2))
    other = network()
    torch.nn.init.zeros_(other.head.bias)
    with (
        Records.open(tmp_path / "run", j) as records,
        pytest.raises(ValueError, match="a run that began with other weights"),
    ):
        dnat.transform(other, tiny_data(), j.config, records=records)


def test_distillation_goes_on_with_the_same_teacher(tmp_path):
    j = job(distillation=0.5)
    whole = dnat.transform(network(), tiny_data(), j.config).results()
    with Records.open(tmp_path / "run", j) as records, pytest.raises(Interrupted):
        dnat.transform(network(), tiny_data(), j.config, records=records, stop=at(8))
    with Records.open(tmp_path / "run", j) as records:
        assert dnat.transform(network(), tiny_data(), j.config, records=records).results() == whole
    assert whole != dnat.transform(network(), tiny_data(), job(distillation=0.0).config).results()


def test_trained_weights_ask_for_gentle_settings():
    assert Job.from_flat({"network": "resnet8", "weights": "w.pt"}).config.preset == "fine-tune"
    assert (
        Job.from_flat({"network": "resnet8", "weights": "w.pt", "preset": "paper"}).config.training.distillation
        == 0
    )
    assert Job.from_flat({"network": "resnet8"}).config.preset == "improved"


@pytest.mark.parametrize(
    ("given", "judge", "stage"),
    [
        ({"budget": 0.7}, "answers", 0),
        ({"latency_budget": 0.7}, "answers", 0),
        ({}, "theta", 2),  # there is nothing to judge within
        ({"budget": 0.7, "architecture_epochs": 3}, "theta", 3),  # theta's stage is asked for
        ({"budget": 0.7, "judge": "theta"}, "theta", 2),
        ({"budget": 0.7, "judge": "answers", "architecture_epochs": 3}, "answers", 3),
        ({"choices": {"a": "none"}}, "theta", 0),
        ({"preset": "improved", "budget": 0.7}, "theta", 2),
    ],
)
def test_who_decides_of_a_trained_network(given, judge, stage):
    found = Job.from_flat({"network": "resnet8", "weights": "w.pt", "epochs": 3, **given})
    assert (found.config.limit.judge, found.config.training.architecture_epochs) == (judge, stage)
    assert Job.from_flat(found.flat()) == found


def test_images_per_second_counts_a_short_last_batch_as_it_is():
    """22 images and 2: a batch of the full size in their place would be 44 of 24."""
    row = dnat.train(network(), tiny_data(24), config(epochs=1, architecture_epochs=1, batch_size=22)).history[0]
    rate, seconds = row["images_per_second"], row["seconds"]
    assert rate * seconds == pytest.approx(24, abs=0.0005 * rate + 0.05 * seconds)  # both are rounded


# What is given, and how it is called


def without_weights():
    with torch.device("meta"):
        return Dropping()


def broken(name, value):
    made = network()
    dict([*made.named_parameters(), *made.named_buffers()])[name].data.flatten()[0] = value
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_weights, r"stem\.weight of Dropping lies on the meta device.*to_empty"),
        (
            lambda: network().bfloat16(),
            r"stem\.weight is bfloat16, but images come as float32.*network\.float\(\)",
        ),
        (lambda: network().half(), r"stem\.weight is float16"),
        (lambda: network().double(), r"stem\.weight is float64"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)),
            r"1\.weight has no shape yet: run the network once",
        ),
        (lambda: broken("conv1.weight", float("nan")), r"conv1\.weight of the network as it is given holds NaN"),
        (lambda: broken("norm1.running_var", float("inf")), r"norm1\.running_var .* holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_networks_that_cannot_be_trained_are_refused_before_anything_is(make, words, method, tmp_path):
    call = METHODS.get(method) or functools.partial(dnat.lab.baselines.search_and_train, method)
    with Records.open(tmp_path / "run", job()) as records, pytest.raises(UsageError, match=words):
        call(make(), tiny_data(), config(), records=records)
    assert not list((tmp_path / "run").glob("*.ckpt"))
    with pytest.raises(UsageError, match=words):
        check_method(method, make(), tiny_data(), config())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_is_evaluated_or_refused_in_words(kind):
    with pytest.raises(UsageError, match=r"network\.float\(\)"):
        dnat.evaluate(network().to(kind), tiny_data())
    with pytest.raises(UsageError, match="meta device"):
        dnat.evaluate(without_weights(), tiny_data())

    class Casting(Dropping):  # takes care of it itself
        def forward(self, x):
            return super().forward(x.to(self.stem.weight.dtype)).float()

    casting = Casting()
    casting.load_state_dict(network().state_dict())
    wanted, found = dnat.evaluate(casting, tiny_data()), dnat.evaluate(casting.to(kind), tiny_data())
    assert found.loss == pytest.approx(wanted.loss, rel=0.02)


def test_infinity_in_a_mask_is_no_fault():
    masked = network()
    masked.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    dnat.train(masked, tiny_data(), config(epochs=1, architecture_epochs=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config": {"epochs": 2}}, r"config must be a dnat.Config, not dict: dnat.Config\(\*\*settings\)"),
        ({"config": {}}, "config must be a dnat.Config, not dict"),
        ({"config": "fast"}, "config must be a dnat.Config, not str"),
        ({"records": "runs/one"}, r"records must be a dnat.Records, not str: dnat.Records.open"),
        ({"tracker": print}, "tracker must be a dnat.Tracker, not builtin_function"),
        ({"stop": True}, "stop must be a function, not bool"),
        ({"data": (torch.zeros(4, 3, 8, 8), torch.arange(4))}, "data must be a dnat.Data or a name, not tuple"),
        ({"network": 3}, "a network must be a torch.nn.Module or a name, not int"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_arguments_of_another_type_are_named(arguments, words, method):
    call = METHODS.get(method) or functools.partial(dnat.lab.baselines.search_and_train, method)
    with pytest.raises(WrongTypeError, match=words):
        call(**{"network": network(), "data": tiny_data(), "config": config(), **arguments})


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_computed_wherever_it_is_called_from(around, method):
    wanted = METHODS[method](network(), tiny_data(), config(**PRESSED))
    with around():
        found = METHODS[method](network(), tiny_data(), config(**PRESSED))
        assert not torch.is_grad_enabled()
    assert found.results() == wanted.results()
    assert all(p.requires_grad and not p.is_inference() for p in found.network.parameters())


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path):
    j, data = job("original"), tiny_data()
    with Records.open(tmp_path / "run", j) as records, pytest.raises(Interrupted):
        dnat.train(network(), data, j.config, records=records, stop=at(2))
    # The same classes, labels and sizes; one pixel is another.
    pixels = data.train_images.clone()
    pixels[3, 2, 2, 0] += 1
    with (
        Records.open(tmp_path / "run", j) as records,
        pytest.raises(DataError, match=r"on other images \(pixels, "),
    ):
        dnat.train(network(), replace(data, train_images=pixels), j.config, records=records)
    with Records.open(tmp_path / "run", j) as records:
        found = dnat.train(network(), data, j.config, records=records)
    assert found.results() == dnat.train(network(), data, j.config).results()


def test_answers_decide_before_anything_is_trained(tmp_path):
    """The set has the least damage; all epochs train the compact network; a stopped run ends with the same."""
    from dnat.sensitivity import Judge, batch_size, least_damage

    options = {"judge": "answers", "budget": 0.7, "judge_images": 16, "epochs": 2, "seed": 3}
    settings = dnat.Config(batch_size=8, threads=1, lr=0.05, warm_up=0.5, **options)
    assert settings.training.architecture_epochs == 0
    whole = dnat.transform(network(), tiny_data(), settings)
    assert [row["stage"] for row in whole.history] == ["network", "network"]
    assert whole.commitment.epoch == 0
    assert whole.cost_after.madds <= 0.7 * whole.cost_before.madds
    made, data = network().train(), tiny_data()
    edges = dnat.find_edges(dnat.trace(made, data.example(2)))
    relaxed = dnat.relax(made, edges, gate="sigmoid")
    judge = Judge(relaxed, data.train_inputs(16, 3)[0].split(batch_size(relaxed)))
    costs, sensitivity = Costs(edges), judge.alone()
    limit = 0.7 * costs.total
    found = least_damage(relaxed.by_group(), sensitivity, costs, limit, 0.97 * limit)
    assert whole.choices == found
    assert {e.by for e in whole.commitment.edges} == {"answers"}
    with Records.open(tmp_path / "run", job()) as records, pytest.raises(Interrupted):
        dnat.transform(network(), tiny_data(), settings, records=records, stop=lambda progress: progress.step == 3)
    with Records.open(tmp_path / "run", job()) as records:
        again = dnat.transform(network(), tiny_data(), settings, records=records)
    assert again.results() == whole.results()


KILLED = """
import os, sys
sys.path.insert(0, "tests")
import dnat.sensitivity
import test_transform as t
dnat.sensitivity.MEMORY = 1  # small batches
def stop(progress):
    os.kill(os.getpid(), 9)
with t.Records.open(sys.argv[1], t.answering()) as records:
    t.dnat.transform(t.network(), t.tiny_data(), t.answering().config, records=records, stop=stop)
"""


def answering():
    return job(judge="answers", budget=0.7, judge_images=24, epochs=1, architecture_epochs=0, lr_theta="auto")


def test_what_was_measured_outlives_a_kill_and_is_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr("dnat.sensitivity.MEMORY", 1)
    j = answering()

    def finished(name):
        with Records.open(tmp_path / name, j) as records:
            done = dnat.transform(network(), tiny_data(), j.config, records=records)
            return done, records.read_json("sensitivity.json")

    whole, table = finished("whole")
    assert table["images"] == table["of"] == 24
    assert len(table["batches"]) == 3
    means = {
        group: {c: max(sum(b[group][c] - b[group]["original"] for b in table["batches"]) / 3, 0) for c in row}
        for group, row in table["damages"].items()
    }
    assert table["damages"] == {g: pytest.approx(row, rel=1e-9, abs=1e-12) for g, row in means.items()}
    assert table["not_judged"] == {e.key: dict(e.refused) for e in whole.commitment.edges if e.refused}
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed"], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    kept = json.loads((tmp_path / "killed" / "sensitivity.json").read_text())
    assert (kept["images"], kept["batches"]) == (8, table["batches"][:1])
    for name in ("marked", "other"):
        shutil.copytree(tmp_path / "killed", tmp_path / name)
    again, known = finished("killed")
    assert again.results() == whole.results()
    assert known == table
    # What is kept is believed.
    group, row = next((g, row) for g, row in kept["batches"][0].items() if "none" in row)
    row["none"] = 777.0
    (tmp_path / "marked" / "sensitivity.json").write_text(json.dumps(sealed(kept)))
    assert finished("marked")[1]["batches"][0][group]["none"] == 777.0
    # Of another network it is not.
    kept["digest"] = "0" * 64
    (tmp_path / "other" / "sensitivity.json").write_text(json.dumps(sealed(kept)))
    assert finished("other")[1] == table


class Root(nn.Module):
    """Without its branch there are no numbers left."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.other = nn.Conv2d(5, 5, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.0)
        nn.init.constant_(self.conv.bias, 9.0)

    def forward(self, x):
        x = -self.stem(x).square()
        x = (x * 1e-3 + self.conv(x)).log().mean((2, 3), keepdim=True)
        return (x + self.other(x)).flatten(1)


def test_what_cannot_be_judged_is_told(tmp_path):
    torch.manual_seed(0)
    j = Job(network="test:root", config=config(judge="answers", budget=0.99, epochs=1, architecture_epochs=0))
    with Records.open(tmp_path / "run", j) as records:
        done = dnat.transform(Root(), tiny_data(), j.config, records=records)
        table = records.read_json("sensitivity.json")
        records.write_json("record.json", done.commitment.table())  # numbers that JSON knows
    assert table["damages"]["conv"]["none"] is None
    assert table["not_judged"]["conv"]["none"] == "the answers are not finite with it"
    assert done.choices["conv"] == "original"


def test_a_run_stops_while_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr("dnat.sensitivity.MEMORY", 1)
    j = answering()
    with Records.open(tmp_path / "run", j) as records:
        for images_so_far in (8, 16, 24):
            with pytest.raises(Interrupted, match="what was measured is kept"):
                dnat.transform(network(), tiny_data(), j.config, records=records, stop=lambda progress: True)
            assert records.read_json("sensitivity.json")["images"] == images_so_far
        again = dnat.transform(network(), tiny_data(), j.config, records=records)
    assert again.results() == dnat.transform(network(), tiny_data(), j.config).results()


def test_a_judge_that_needs_a_budget_says_so():
    for judge in ("loss", "answers"):
        with pytest.raises(ValueError, match=f"judge '{judge}' needs a budget"):
            dnat.Config(judge=judge)
    with pytest.raises(ValueError, match="architecture_epochs must be from 1"):
        dnat.Config(architecture_epochs=0)


@pytest.mark.parametrize("settle", [0.0, 0.5])
def test_a_stage_whose_choices_are_stable_ends_early(settle, tmp_path):
    """Within a budget theta chooses from the first epoch on, so that two equal ones end the stage after two."""
    early = config(
        epochs=9, architecture_epochs=6, budget=0.8, settle=settle, lr_theta=0.1, batch_size=10, preset="improved"
    )
    data = tiny_data(n=20, classes=10)
    whole = dnat.transform("resnet8", data, early)
    assert whole.commitment.epoch == 6
    result = dnat.transform("resnet8", data, early.but(patience=2))
    # Three epochs settle where half of six do.
    assert result.commitment.epoch == (2 if settle == 0 else 5)
    assert [row["stage"] for row in result.history].count("architecture") == result.commitment.epoch
    assert len(result.history) == 9
    if settle:  # all gates are where they were to go
        assert result.commitment.relaxed.loss == pytest.approx(result.commitment.compact.loss, rel=1e-3)
    job = dnat.settings.Job(network="resnet8", data="digits", config=early.but(patience=2))
    for stop in (3, 4, 7, 10, None):  # 4 and 10: the last batches of epochs that end theta's steps, and the stage
        with Records.open(tmp_path / "run", job) as records:
            try:
                again = dnat.transform(
                    "resnet8", data, job.config, records=records, stop=lambda p, stop=stop: p.step == stop
                )
            except Interrupted:
                assert stop
    assert again.choices == result.choices
    state = result.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_patience_is_for_theta():
    with pytest.raises(ValueError, match=r"patience is for choices that theta makes.*judge='answers'"):
        dnat.Config(preset="fine-tune", budget=0.7, patience=2)
