"""Two networks image by image: the file of a run, held against its record and networks, and what is made of it."""

import itertools
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from reference import unsealed
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy import stats

import dnat
from dnat.lab.cli import cli
from dnat.lab.formatting import p_text
from dnat.lab.runs import load_data, network_for, restore, run
from dnat.lab.runs.tested import write_predictions
from dnat.lab.summary.images import Discordance, discordance, two_level_interval
from dnat.settings import Job
from dnat.tasks import task_of

SMALL = {
    "network": "resnet8",
    "network_options": {"width": 4},
    "train_limit": 100,
    "test_limit": 70,
    "epochs": 3,
    "architecture_epochs": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods at two seeds, with a validation part; one of other test images."""
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a short architecture stage
        for method in ("original", "dnat-full"):
            for seed in (0, 1):
                own = {"budget": 0.5} if method != "original" else {}
                run(Job.from_flat(SMALL | own | {"method": method, "seed": seed}), folder / f"{method}-{seed}")
        run(Job.from_flat(SMALL | {"budget": 0.5, "seed": 0, "label": "mine"}), folder / "labelled")
        run(Job.from_flat(SMALL | {"test_limit": 50, "train_limit": 120, "seed": 0}), folder / "other")
        run(Job.from_flat(SMALL | {"train_limit": 120, "validation": 0.2, "seed": 0}), folder / "more")
    return folder


def test_predictions_are_the_networks(runs):
    """Those of the network that is read again, and of the one that was given; their share is the record's."""
    for folder in runs.iterdir():
        table = load_file(folder / "predictions.safetensors")
        record = json.loads((folder / "record.json").read_text())
        network, job, _ = restore(folder)
        data = load_data(job)
        given = network_for(job, data)
        inputs, target = next(data.test_batches(data.test_count))
        assert table["labels"].tolist() == target.tolist()
        assert table["labels"].dtype == np.uint8
        for name, tested, key in (("before", given, "_before"), ("after", network, "")):
            with torch.no_grad():
                assert table[name].tolist() == tested.eval()(inputs).argmax(1).tolist()
            right = float((table[name] == table["labels"]).mean())
            assert right == record["results"][f"test_accuracy{key}"]
            assert right == pytest.approx(dnat.evaluate(tested, data).accuracy)


def test_no_bit_depends_on_a_label(runs):
    mine, other = (json.loads((runs / name / "record.json").read_text()) for name in ("labelled", "dnat-full-0"))
    assert mine["results"] == other["results"]
    assert (mine["job"].pop("label"), other["job"].get("label")) == ("mine", None)
    assert mine["job"] == other["job"]
    told = []
    again = Job.from_flat(SMALL | {"budget": 0.5, "seed": 0, "label": "other"})
    assert run(again, runs / "labelled", notify=told.append)["job"]["label"] == "mine"  # it is done, as it was
    assert told == ["label 'other' is not taken: a run keeps the one that it began with (mine)"]


def digest(folder):
    with safe_open(folder / "predictions.safetensors", "np") as file:
        return file.metadata()["test"]


def test_the_digest_is_of_the_test_images_alone(runs):
    assert digest(runs / "original-0") == digest(runs / "dnat-full-1") == digest(runs / "more")
    assert digest(runs / "other") != digest(runs / "more")


def test_tasks_without_classes_have_no_predictions(runs):
    network, job, _ = restore(runs / "original-0")
    assert write_predictions(network, network, load_data(job), job.config, task_of("regression")) is None


# Statistics of two networks on the same images.


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_scipys_binomial_test(pairs):
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    found = discordance(first, second)
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    assert (found.first, found.second, found.images) == (b, c, len(pairs))
    assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0)
    assert found.shares == pytest.approx((first.mean(), second.mean()))


def test_mcnemar_by_hand():
    """Seven images that the first alone has right, one that the second alone has: 2 * (1 + 8) / 2**8."""
    first, second = np.zeros(20, dtype=bool), np.zeros(20, dtype=bool)
    first[:7] = second[7] = True
    assert discordance(first, second) == Discordance(0, 7, 1, 12, 2 * 9 / 2**8)
    assert discordance(second, first).p == discordance(first, second).p
    with pytest.raises(ValueError, match="on the same images"):
        discordance(first, second[:-1])


@pytest.mark.parametrize("table", [[[1, 0, -1], [0, 0, 1]], [[1, 1, 0, -1]], [[2, 5, 1], [0, -3, 4], [1, 1, 7]]])
def test_the_two_level_bootstrap_draws_seeds_and_images(table):
    """Quantiles among all ways to draw seeds, and images with which all of them are tested."""
    table = np.array(table)
    seeds, images = (range(n) for n in table.shape)
    means = [
        table[np.ix_(s, i)].mean()
        for s in itertools.product(seeds, repeat=len(seeds))
        for i in itertools.product(images, repeat=len(images))
    ]
    found = two_level_interval(table, 0.9, resamples=20000)
    for end, share in zip(found, (0.05, 0.95), strict=True):
        low, high = np.quantile(means, [share - 0.01, share + 0.01], method="inverted_cdf")
        assert low - 1e-9 <= end <= high + 1e-9


def test_the_two_level_interval_holds_the_truth():
    """Of seeds and images with effects of their own; one over images alone does not, since it knows one seed."""
    generator = np.random.default_rng(0)
    both, images = [], []
    for _ in range(150):
        effects = 0.1 * generator.normal(size=(8, 1)) + 0.3 * generator.normal(size=(1, 60))
        table = effects + generator.normal(size=(8, 60))
        for found, rows in ((both, table), (images, table[:1])):
            low, high = two_level_interval(rows, resamples=300)
            found.append(low <= 0 <= high)
    assert np.mean(both) > 0.9
    assert np.mean(images) < np.mean(both)


def test_what_is_drawn_in_portions_is_drawn_as_often():
    table = np.random.default_rng(1).normal(size=(3, 50_000))
    low, high = two_level_interval(table, resamples=200)
    assert low < table.mean() < high


# The command.


def said(*words):
    result = CliRunner().invoke(cli, ["compare", *map(str, words)])
    return result.output if result.exit_code == 0 else str(result.exception)


def test_two_runs_are_compared(runs):
    mine, theirs = (load_file(runs / name / "predictions.safetensors") for name in ("original-0", "dnat-full-0"))
    first, second = (table["after"] == table["labels"] for table in (mine, theirs))
    text = said(runs / "original-0", runs / "dnat-full-0")
    assert "resnet8 on digits, 70 test images\nfirst: original; second: dnat-full 0.5\n" in text
    (row,) = re.findall(r"^0 .*$", text, re.M)
    assert (first != second).any()
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    counts = [int((first & second).sum()), b, c, int((~first & ~second).sum())]
    assert row.split()[1:7] == [f"{100 * first.mean():.2f}", f"{100 * second.mean():.2f}", *map(str, counts)]
    assert row.split()[-1] == p_text(stats.binomtest(b, b + c).pvalue)
    assert f"second less first: {100 * (second.mean() - first.mean()):+.2f} [" in text
    assert "bootstrap over images\n" in text
    other = said(runs / "original-0", runs / "original-1")
    assert "first: original-0; second: original-1" in other
    assert re.search(r"^0 and 1 ", other, re.M)


def test_a_run_is_compared_with_what_it_was_given(runs):
    record = json.loads((runs / "dnat-full-1" / "record.json").read_text())["results"]
    (row,) = re.findall(r"^1 .*$", said(runs / "dnat-full-1"), re.M)
    assert row.split()[1:3] == [f"{100 * record[f'test_accuracy{when}']:.2f}" for when in ("_before", "")]


def test_methods_are_compared_over_seeds(runs):
    folders = [runs / f"{method}-{seed}" for method in ("original", "dnat-full") for seed in (0, 1)]
    text = said(*folders)
    assert re.findall(r"^(\d) ", text, re.M) == ["0", "1"]
    assert "first: original; second: dnat-full 0.5\n" in text
    shares = [json.loads((f / "record.json").read_text())["results"]["test_accuracy"] for f in folders]
    difference = 100 * (sum(shares[2:]) - sum(shares[:2])) / 2
    assert f"second less first: {difference:+.2f} [" in text
    assert "bootstrap over images and the 2 seeds\n" in text
    turned = said(*folders, "--baseline", "dnat-full 0.5")
    assert f"second less first: {-difference:+.2f} [" in turned
    assert max(map(len, text.splitlines())) <= 80


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    assert "other were not tested on the same images (70 of digits, 50 of digits)" in said(
        runs / "original-0", runs / "other"
    )
    old = tmp_path / "old"
    shutil.copytree(runs / "original-0", old)
    (old / "predictions.safetensors").unlink()
    assert "older dnat wrote it, which kept none" in said(old)
    (old / "predictions.safetensors").write_bytes(b"no such file")
    assert "is not what the run wrote" in said(old)
    record = json.loads((old / "record.json").read_text())
    (old / "record.json").write_text(json.dumps(unsealed(record)))  # of an older dnat: it is found out by reading
    assert "cannot be read" in said(old)
    (old / "record.json").unlink()
    assert "is not finished: `dnat resume" in said(old, runs / "other")
    assert "there is nothing to compare: no method has a seed in common with original" in said(
        runs / "dnat-full-0", runs / "dnat-full-1", runs / "dnat-full-1"
    )
    assert "unknown run or sweep in" in said(tmp_path / "nowhere")
    assert "--by is for the runs of several seeds" in said(runs / "original-0", "--by", "preset")
