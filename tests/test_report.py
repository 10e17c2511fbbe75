"""Reports: their numbers against the records', the page as Chromium sees it, and what must not get through."""

import contextlib
import csv
import dataclasses
import html.parser
import itertools
import json
import os
import random
import re
import shutil
import statistics
import time
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from reference import unsealed

from dnat.lab.cli import cli
from dnat.lab.drawing import rows_to_json
from dnat.lab.metrics import Metric
from dnat.lab.report import draw, gather, markdown, page
from dnat.lab.report import series as numbers
from dnat.lab.report.configuration import recipes, settings
from dnat.lab.report.figures import cost_figure, curve_figure, strip_figure, tradeoff_figure
from dnat.lab.report.gather import number
from dnat.lab.report.headline import headline, sentences
from dnat.lab.report.looks import DARK, LIGHT, METHOD_COLOURS, Look, plain
from dnat.lab.report.page import _tile
from dnat.lab.report.placing import spread_apart
from dnat.lab.report.published import PUBLISHED, published
from dnat.lab.report.table import papers_tables
from dnat.lab.runs import build_network, load_data, picture_rows, run
from dnat.lab.runs.pictures import rows_of
from dnat.results import Commitment
from dnat.rundir import RunFiles, read_job
from dnat.settings import ALIASES, Job, read_toml

EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>|a\\|`b` {{7*7}} &amp; ${1} ünï→\u2028"


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The directory of a real run: made once, varied by all."""
    folder = tmp_path_factory.mktemp("real") / "run"
    job = Job.from_flat(
        {
            "network": "resnet8",
            "network_options": {"width": 4},
            "train_limit": 100,
            "test_limit": 50,
            "epochs": 3,
            "architecture_epochs": 2,
            "threads": 1,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a short architecture stage
        run(job, folder)
    return folder


def write(path, value):
    path.write_text(json.dumps(unsealed(value) if path.name == "record.json" else value))


def vary(real, folder, method, seed, accuracy, *, network="resnet8", epochs=None, choices=(), **more):
    """A run directory like the real one with another method, seed and accuracy (in percent)."""
    folder.mkdir(parents=True)
    for file in ("config.toml", "status.json", "environment.json", "architecture.svg"):
        shutil.copyfile(real / file, folder / file)
    record = json.loads((real / "record.json").read_text())
    name, mode = ALIASES.get(method, (method, "full"))
    record["job"] |= {"method": name, "mode": mode, "seed": seed, "network": network} | more.get("job", {})
    before = record["results"]["cost_before"]
    share = more.get("share", 1.0)
    record["results"] |= {
        "test_accuracy": accuracy / 100,
        "dead": more.get("dead", False),
        "cost_after": {"params": round(share * before["params"]), "madds": round(share * before["madds"])},
    }
    record["seconds"] = {"search": more.get("search", 0.0), "network": 3600.0 + seed}
    write(folder / "record.json", record)
    rows = [json.loads(line) for line in (real / "metrics.jsonl").read_text().splitlines()]
    if epochs:
        last = {k: v for k, v in rows[-1].items() if k not in ("gates", "columns")}
        rows = rows[:2] + [last | {"epoch": e} for e in range(3, epochs + 1)]
    for row in rows:
        row["test_accuracy"] = accuracy / 100 * (1 - 0.5 ** row["epoch"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    architecture = json.loads((real / "architecture.json").read_text())
    if name == "original":
        architecture["commitment"] = None
    for edge, choice in zip((architecture["commitment"] or {}).get("edges", ()), choices, strict=False):
        edge["choice"] = choice
    write(folder / "architecture.json", architecture)
    return folder


ACCURACIES = {
    "original": (90.0, 91.0, 92.5, 89.5),
    "dnat-full": (93.1, 92.2, 94.0, 92.9),
    "nat": (10.0, 92.0, 91.0, 10.0),
}


@pytest.fixture(scope="session")
def sweep(real, tmp_path_factory):
    """Two networks with three methods, four seeds; some runs that are not finished; a method with one seed."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    for network, (method, accuracies) in itertools.product(("resnet8", "resnet20"), ACCURACIES.items()):
        for seed, accuracy in enumerate(accuracies):
            vary(
                real,
                folder / f"{network}-{method}-seed{seed}",
                method,
                seed,
                accuracy - 20 * (network == "resnet20") * (accuracy > 10),
                network=network,
                share={"original": 1.0, "dnat-full": 0.7, "nat": 0.9 - 0.1 * seed}[method],
                search=600.0 if method == "nat" else 0.0,
                dead=accuracy == 10,
                choices=("identity", "none" if seed else "original"),
            )
    vary(real, folder / "resnet20-random-seed0", "random", 0, 71.0, network="resnet20", share=0.8)
    for name, state, reason in (
        ("resnet8-lstm-seed0", "failed", "NonFiniteError: loss is nan"),
        ("resnet8-lstm-seed1", "interrupted", "stopped after epoch 2, batch 1"),
        ("resnet8-lstm-seed2", "running", ""),
    ):
        (folder / name).mkdir()
        shutil.copyfile(real / "config.toml", folder / name / "config.toml")
        write(folder / name / "status.json", {"state": state, "reason": reason, "attempts": 1})
    (folder / "resnet8-lstm-seed3").mkdir()
    shutil.copyfile(real / "config.toml", folder / "resnet8-lstm-seed3" / "config.toml")
    (folder / "resnet8-lstm-seed4").mkdir()
    shutil.copyfile(real / "config.toml", folder / "resnet8-lstm-seed4" / "config.toml")
    (folder / "resnet8-lstm-seed4" / "record.json").write_text('{"results": ')
    return folder


@pytest.fixture(scope="session")
def report(sweep):
    return gather([sweep])


def group_of(report, network):
    (found,) = (g for g in report.groups if g.network == network)
    return found


# What is gathered.


def test_nothing_is_dropped(report, sweep):
    names = {r.name for r in report.runs} | {u.name for u in report.unfinished}
    assert names == {p.parent.name for p in sweep.glob("*/config.toml")}
    assert {u.name[-1]: u.state for u in report.unfinished} == {
        "0": "failed",
        "1": "interrupted",
        "2": "running",
        "3": "pending",
        "4": "damaged",
    }
    text = markdown(report)
    for unfinished in report.unfinished:
        assert re.search(rf"^\| {unfinished.name} \| {unfinished.state} \| ", text, re.M)
    assert "NonFiniteError: loss is nan" in text
    assert [r.record["results"]["test_accuracy"] for r in report.runs] == [
        json.loads((r.directory / "record.json").read_text())["results"]["test_accuracy"] for r in report.runs
    ]


def test_trials_of_a_sweep_that_were_never_started_are_named(real, tmp_path):
    out = tmp_path / "grid"
    words = f"sweep --networks resnet8 --methods original,dnat-full --seeds 2 --epochs 3 --plan --out {out}"
    assert CliRunner().invoke(cli, words.split(), catch_exceptions=False).exit_code == 0
    vary(real, out / "resnet8-original-seed0", "original", 0, 90.0)
    told = {"state": "failed", "attempts": 1, "exit_code": 65, "reason": "loss is nan", "seconds": 1.0}
    write(out / "trials.json", {"resnet8-dnat-full-seed1": told})
    found = gather([out])
    assert [run.name for run in found.runs] == ["resnet8-original-seed0"]
    assert {(u.name, u.state, u.reason) for u in found.unfinished} == {
        ("resnet8-original-seed1", "pending", ""),
        ("resnet8-dnat-full-seed0", "pending", ""),
        ("resnet8-dnat-full-seed1", "failed", "loss is nan"),
    }
    assert {u.resume for u in found.unfinished} == {
        f"dnat sweep --out {out}",
        f"dnat sweep --out {out} --retry-failed",
    }
    given, _ = recipes(found, most=5)
    assert [r.commands for r in given] == [("dnat sweep --config sweep.toml --out runs/grid-again",)]
    assert given[0].files["sweep.toml"] == (out / "sweep.toml").read_text()


def test_what_is_named_twice_counts_once(report, sweep):
    one = next(sweep.glob("resnet8-nat-*"))
    again = gather([one, sweep, sweep.parent / "sweep" / ".." / "sweep", one])
    assert len(again.runs) == len(report.runs)
    assert again.summary == report.summary


def test_what_cannot_be_reported_is_refused(sweep, real, tmp_path):
    with pytest.raises(ValueError, match=r"unknown run or sweep in .* 'swep'; did you mean 'sweep'"):
        gather([sweep.parent / "swep"])
    with pytest.raises(ValueError, match="is neither a run directory"):
        gather([tmp_path])
    unfinished = sorted(sweep.glob("resnet8-lstm-*"))
    with pytest.raises(ValueError, match=r"none of these 5 runs is finished.*loss is nan"):
        gather(unfinished)
    other = vary(real, tmp_path / "other", "nat", 0, 50.0)
    with pytest.raises(ValueError, match=r"resnet8-nat-seed0 and .*other both hold nat with resnet8"):
        gather([sweep, other])
    with pytest.raises(ValueError, match="did you mean 'dnat-full'"):
        gather([sweep], baseline="dnat-ful")
    with pytest.raises(ValueError, match="did you mean 'papers'"):
        markdown(gather([other]), layout="paper")


def test_a_baseline_that_sweeps_share_counts_once(real, tmp_path):
    """Two sweeps with other rates, each with the untouched network: their bits are the same, whatever the rate."""
    for folder, rate, accuracy in (("a", 0.1, 80.0), ("b", 0.2, 84.0)):
        for seed in (0, 1, 2):
            told = {"share": 0.7, "job": {"lr_theta": rate}}
            vary(real, tmp_path / folder / f"original-{seed}", "original", seed, 90.0 + seed, job=told["job"])
            vary(real, tmp_path / folder / f"dnat-{seed}", "dnat-full", seed, accuracy + seed, **told)
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        ValueError, match=r"seed 0; they differ in lr_theta \(0\.1 and 0\.2\): --by lr_theta makes"
    ):
        gather(paths)
    both = gather(paths, by=["lr_theta"])
    assert {row.method: row.mean for row in both.summary.rows} == {
        "original": 91.0,
        "dnat-full lr_theta=0.1": 81.0,
        "dnat-full lr_theta=0.2": 85.0,
    }
    assert {c.method: c.mean for c in both.summary.comparisons} == {
        "dnat-full lr_theta=0.1": -10.0,
        "dnat-full lr_theta=0.2": -6.0,
    }
    assert [run.trial.method for run in both.runs] == [m for m in both.methods for _ in range(3)]
    assert f"seed count once: {tmp_path / 'b' / 'original-0'}, " in both.notes[0]
    assert "| dnat-full lr_theta=0.2 |" in markdown(both, layout="long").replace("|  ", "")
    assert "dnat-full lr_theta=0.2" in page(both)
    # One bit more is another run.
    file = tmp_path / "b" / "original-1" / "record.json"
    record = json.loads(file.read_text())
    record["results"]["weights_sha256"] = "0"
    write(file, record)
    assert [row.n for row in gather(paths, by=["lr_theta"]).summary.rows if "original" in row.method] == [3, 1]


def test_an_edge_stands_once_in_the_architecture(real):
    architecture, job = RunFiles(real).architecture(), read_job(real)
    commitment = Commitment.from_table(architecture["commitment"])
    data = load_data(job)
    network = build_network(job, data.num_classes, (data.channels, *data.image_size))
    rows = picture_rows(network, data, commitment, job.config.relaxation.moves)
    assert rows_of(architecture) == rows
    edges = {edge.key for edge in commitment.edges}
    assert edges < {row.key for row in rows}
    assert {k for row in architecture["rows"] if row["key"] in edges for k in row} == {"key", "removed", "left"}
    assert rows_of(architecture | {"rows": rows_to_json(rows)}) == rows  # as older runs have them


def test_damaged_files_of_finished_runs_are_noted(real, tmp_path):
    one = vary(real, tmp_path / "one", "dnat-full", 0, 90.0)
    with open(one / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "test_acc')
    (one / "architecture.json").write_text("[]")
    found = gather([one])
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 lines of metrics.jsonl cannot be read: curves lack them",
        "architecture.json holds no table",
    ]
    assert numbers.gates(found.runs[0]) == []
    assert len(numbers.curves(found.groups[0])[0].epochs) == 3
    for note in found.notes:
        assert note in page(found)


def test_what_is_missing_in_many_runs_is_told_once(real, tmp_path):
    runs = [vary(real, tmp_path / f"run-{seed}", "dnat-full", seed, 90.0 + seed) for seed in range(5)]
    for without in runs[:4]:
        (without / "architecture.json").unlink()
    (runs[4] / "environment.json").unlink()
    alone, together = gather(runs[::-1]).notes
    assert together == "architecture.json is missing, in 4 runs: run-3, run-2, run-1 and 1 more"
    assert alone == "run-4: environment.json is missing"


# Tables.


def test_the_papers_table_has_the_records_numbers(report):
    (table,) = papers_tables(report)
    assert table.methods == ("original", "dnat-full", "nat", "random")
    assert [line.network for line in table.lines] == ["resnet8", "resnet20"]
    for place, values in enumerate(ACCURACIES.values()):
        accuracy, hours = table.lines[0].cells[place]
        assert accuracy == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        # (3600 + the mean of the seeds' numbers) seconds, of which the search is told apart.
        assert hours == ("0.167 + 1" if place == 2 else "1")
    assert table.lines[0].cells[3] == ("-", "-")
    assert table.lines[1].cells[3] == ("71.00", "1")  # one run has no deviation
    assert table.lines[0].best == (1,)
    assert "| resnet8 | 90.75 ± 1.32 | 1 | **93.05 ± 0.74** | 1 |" in markdown(report)


def test_layouts(report):
    papers, long, both = (markdown(report, layout=name) for name in ("papers", "long", "both"))
    assert "original, %" in papers
    assert "p (Holm)" not in papers
    assert "p (Holm)" in long
    assert "original, %" not in long
    assert "original, %" in both
    assert "p (Holm)" in both


def test_published_numbers_stand_apart(real, tmp_path):
    made = [
        vary(real, tmp_path / f"{m}{s}", m, s, 90.0 + s, network="resnet20", job={"data": "cifar10"})
        for m in ("original", "dnat-full")
        for s in (0, 1)
    ]
    found = gather(made)
    (table,) = papers_tables(found, with_published=True)
    assert table.methods == ("original", "dnat-full", "nat", "dnat-cell", "random", "lstm", "max-gcn")
    ours, kim_lee, policies, main = table.lines
    assert ours.cells[0][0] == "90.50 ± 0.71"
    assert kim_lee.cells[:4] == (
        ("91.66 ± 0.16", "8"),
        ("93.12 ± 0.12", "8.7"),
        ("55.78 ± 42.34", "14"),
        ("93.29 ± 0.11", "11.2"),
    )
    assert (policies.cells[0][0], policies.cells[2][0]) == ("91.37", "92.97")
    assert (main.cells[0][0], main.cells[2][0]) == ("91.37", "92.95")
    assert [line.source for line in table.lines] == [None, 1, 2, 3]
    text = markdown(found, with_published=True)
    assert "| published [1] | 91.66 ± 0.16 | 8 |" in text
    assert "- [1] Kim & Lee 2020 (arXiv 2006.08231)" in text
    statistics_of = text.partition("# Statistics")[2]
    assert statistics_of
    assert statistics_of == markdown(found).partition("# Statistics")[2]
    # Cells of NAT's genotypes stand for the same rows; other data and networks have none.
    assert published("cifar10", "resblock") == published("cifar10", "resnet20")
    assert published("cifar10", "vgg_cell")
    assert not published("digits", "resnet20")
    assert not published("cifar10", "resnet8")


def test_published_numbers_are_the_papers_by_name():
    from dnat.data import describe
    from dnat.networks import NETWORKS

    assert {p.network for p in PUBLISHED} <= set(NETWORKS)
    assert {p.data for p in PUBLISHED} <= {d.name for d in describe()}
    assert len(PUBLISHED) == 4 * 3 + 2 + 3 * 3 + 6 * 5 + 7 * 2
    assert len({(p.source, p.data, p.network, p.method) for p in PUBLISHED}) == len(PUBLISHED)
    # What the paper's runs of NAT on ResNet20 give (its second table), as this row prints it.
    runs = (10.0, 75.14, 91.05, 10.0, 92.68)
    (nat,) = (p for p in PUBLISHED if (p.data, p.network, p.method, p.n) == ("cifar10", "resnet20", "nat", 5))
    assert (nat.accuracy, nat.std) == pytest.approx((statistics.mean(runs), statistics.stdev(runs)), abs=0.01)


def test_words_say_what_the_statistics_say(report, sweep):
    (first,) = sentences(report, group_of(report, "resnet8"))
    assert first.startswith("resnet8 on digits: dnat-full has the highest mean test accuracy, 93.05 ± 0.74 %")
    assert "+2.30 [" in first
    assert "too few seeds to be significant" in first
    # Four seeds give 1/16 at least, one-sided, and two methods double it; of nat's 16 ways 14 are as good.
    bounded = gather([sweep], margin=1.0)
    *_, last = sentences(bounded, group_of(bounded, "resnet8"))
    assert last == (
        "resnet8 on digits: not worse than original by 1 point or more: not shown of dnat-full (too few seeds), "
        "nat (too few seeds)."
    )
    loose = dataclasses.replace(bounded, summary=dataclasses.replace(bounded.summary, confidence=0.8))
    *_, last = sentences(loose, group_of(loose, "resnet8"))
    assert last.endswith("by 1 point or more: shown of dnat-full (p = 0.125); not shown of nat (p = 0.875).")
    assert last in page(loose).replace("&#39;", "'")
    assert "| resnet8 | dnat-full | 4 | +2.30 |" in markdown(bounded)
    # Of equal means the cheaper one is named first, and the cheapest of all by itself.
    group = group_of(report, "resnet8")
    equal = dataclasses.replace(group.rows[0], method="dnat-full", madds=2.0)
    least = dataclasses.replace(group.rows[0], method="nat", mean=50.0, std=None, madds=1.0)
    tied = dataclasses.replace(group, rows=(group.rows[0], equal, least))
    first, second = sentences(report, tied)
    assert "the same as original, with fewer multiply-adds" in _tile(headline(report, tied), 0.05).notes
    assert not any("the same" in note for note in _tile(headline(report, group), 0.05).notes)
    assert "dnat-full has the highest mean test accuracy, 90.75 ± 1.32 % (n = 4), the same as original: " in first
    assert "nat needs the fewest multiply-adds, -25.0 [" in second
    assert " % to before, at 50.00 %" in second


# Numbers of the figures.


def test_curves_are_the_metrics(report):
    group = group_of(report, "resnet8")
    found = numbers.curves(group)
    assert len(found) == 12
    for curve in found:
        (source,) = (r for r in group.runs[curve.method] if r.trial.seed == curve.seed)
        rows = [json.loads(line) for line in (source.directory / "metrics.jsonl").read_text().splitlines()]
        assert list(curve.epochs) == [row["epoch"] for row in rows]
        assert list(curve.values) == [100 * row["test_accuracy"] for row in rows]
        assert curve.committed == (None if curve.method == "original" else 2)
    mine = [c for c in found if c.method == "nat"]
    mean = numbers.mean_curve(mine)
    for epoch, accuracy in zip(mean.epochs, mean.values, strict=True):
        values = [dict(zip(c.epochs, c.values, strict=True))[epoch] for c in mine]
        assert accuracy == pytest.approx(sum(values) / 4)


def test_the_mean_of_curves_needs_all_of_them():
    long = numbers.Curve("nat", 0, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), None)
    short = numbers.Curve("nat", 1, (1.0, 3.0), (20.0, 40.0), 2.0)
    mean = numbers.mean_curve([long, short])
    assert (mean.epochs, mean.values, mean.committed) == ((1.0, 3.0), (15.0, 35.0), None)


@given(st.integers(1, 700), st.integers(2, 120))
def test_thinned_curves_keep_their_ends(n, most):
    curve = numbers.Curve("nat", 0, tuple(map(float, range(n))), tuple(map(float, range(n))), None)
    found = numbers.thinned(curve, most)
    assert len(found.epochs) == min(n, most)
    assert (found.epochs[0], found.epochs[-1]) == (0.0, n - 1.0)
    assert found.values == found.epochs
    if n > most:  # evenly: no gap is wider than the mean one rounded up
        steps = [b - a for a, b in itertools.pairwise(found.epochs)]
        assert max(steps) - min(steps) <= 1


spot = st.builds(
    numbers.Spot,
    st.just("nat"),
    st.none(),
    st.integers(0, 6).map(float),
    st.integers(0, 6).map(float),
    st.just(False),
)


@given(st.lists(spot, max_size=12))
def test_the_pareto_line_holds_what_nothing_beats(places):
    def is_beaten(a):
        return any(
            b.cost <= a.cost and b.value >= a.value and (b.cost, b.value) != (a.cost, a.value) for b in places
        )

    expected = sorted((a.cost, a.value) for a in places if not is_beaten(a))
    assert [(s.cost, s.value) for s in numbers.pareto(places)] == expected


@given(st.lists(st.floats(0, 100), min_size=1, max_size=17))
def test_labels_keep_their_order_and_distance_on_the_axis(values):
    places = spread_apart(values, (0.0, 100.0), 300, gap=17)
    order = sorted(range(len(values)), key=lambda i: values[i])
    step = 17 * 100 / 300
    assert all(places[b] - places[a] >= step - 1e-6 for a, b in itertools.pairwise(order))
    assert step / 2 - 1e-6 <= min(places)
    assert max(places) <= 100 - step / 2 + 1e-6
    alone = all(values[b] - values[a] >= step + 1e-6 for a, b in itertools.pairwise(order))
    if alone and step / 2 <= min(values) and max(values) <= 100 - step / 2:
        assert places == values


def test_long_curves_are_shown_where_they_differ():
    def curve(n, sign=1):
        epochs = tuple(float(e) for e in range(1, n + 1))
        return numbers.Curve("nat", 0, epochs, tuple(sign * (90 - 80 / e) for e in epochs), None)

    assert numbers.reach([curve(20)]) == (10, 90 - 80 / 20)
    assert numbers.reach([curve(101), curve(5)]) == (90 - 80 / 11, 90 - 80 / 101)  # from epoch 11 on
    # An error is worst where it is largest.
    less = Metric("mae", "min")
    assert numbers.reach([curve(101, -1), curve(5, -1)], less.direction) == (80 / 101 - 90, 80 / 11 - 90)


def painted(value, palette, is_colour=False):
    """The figure as the page draws it."""
    if isinstance(value, str):
        return palette[value[1:]] if is_colour and value[0] == "@" else value
    if isinstance(value, dict):
        return {k: painted(v, palette, k.endswith("color")) for k, v in value.items()}
    return [painted(v, palette, is_colour) for v in value] if isinstance(value, list) else value


def test_figures_hold_the_records_points(report):
    group, look = group_of(report, "resnet8"), Look(report.methods)
    trials = {r.name: r.trial for runs in group.runs.values() for r in runs}.values()
    strip = strip_figure(group, look).views[""]["data"]
    found = sorted(x for t in strip if t["mode"] == "markers" and len(t["x"]) == 4 for x in t["x"])
    assert found == sorted(t.value for t in trials)
    # Each seed's line joins its points, wherever they are.
    points = {(x, y) for t in strip if t["mode"] == "markers" for x, y in zip(t["x"], t["y"], strict=True)}
    lines = [t for t in strip if t["mode"] == "lines"]
    assert len(lines) == 4
    assert all(set(zip(t["x"], t["y"], strict=True)) <= points for t in lines)
    means = [t for t in strip if t.get("error_x")]
    assert [t["x"][0] for t in means] == [pytest.approx(statistics.mean(v)) for v in ACCURACIES.values()]
    dead = [t["marker"]["symbol"] for t in strip if t["mode"] == "markers" and len(t["x"]) == 4][2]
    assert [s == "x" for s in dead] == [True, False, False, True]

    trade = tradeoff_figure(group, look).views
    assert set(trade) == {"multiply-adds", "parameters", "time"}
    for name, cost in (("multiply-adds", "madds"), ("parameters", "params")):
        size = 1e6 if "millions" in trade[name]["layout"]["xaxis"]["title"]["text"] else 1e3
        drawn = sorted(
            (x, y) for t in trade[name]["data"] if len(t["x"]) == 4 for x, y in zip(t["x"], t["y"], strict=True)
        )
        assert drawn == [pytest.approx(p) for p in sorted((getattr(t, cost) / size, t.value) for t in trials)]
    # dnat-full is cheaper and better than both others: the line is that one point.
    front = trade["multiply-adds"]["data"][0]
    assert front["y"] == [pytest.approx(93.05)]

    bars = cost_figure(group, look).views[""]
    assert bars["layout"]["xaxis"]["title"]["text"].startswith("hours")
    assert [t["x"] for t in bars["data"]] == [
        pytest.approx([0, 0, 600 / 3600]),
        pytest.approx([3601.5 / 3600] * 3),
    ]
    assert bars["data"][0]["y"] == [2, 1, 0]
    assert bars["data"][1]["marker"]["color"] == [look.colour(m) for m in group.runs]
    hours = [
        [t.search_seconds + t.training_seconds for t in (r.trial for r in runs)] for runs in group.runs.values()
    ]
    assert bars["data"][1]["error_x"]["array"] == pytest.approx([statistics.stdev(h) / 3600 for h in hours])


def test_no_interval_is_cut(report):
    look = Look(report.methods)
    for group in report.groups:
        view = strip_figure(group, look).views[""]
        low, high = view["layout"]["xaxis"]["range"]
        marks = [t for t in view["data"] if t.get("error_x")]
        assert marks
        for mark in marks:
            reach = mark["error_x"]["array"][0]
            assert low < mark["x"][0] - reach < mark["x"][0] + reach < high


def test_curves_of_all_that_epochs_tell(report):
    group, look = group_of(report, "resnet8"), Look(report.methods)
    views = curve_figure(group, look).views
    assert list(views)[:5] == [
        "test accuracy, %",
        "training loss",
        "test loss",
        "learning rate",
        "images a second",
    ]
    keys = ("test_accuracy", "train_loss", "test_loss", "lr", "images_per_second")
    run = group.runs["original"][0]
    for view, key in zip(views.values(), keys, strict=False):
        drawn = next(t for t in view["data"] if t["name"] == f"original, seed {run.trial.seed}")
        scale = 100 if key == "test_accuracy" else 1
        assert drawn["y"] == pytest.approx([scale * row[key] for row in run.metrics], rel=1e-5)


def test_plotly_knows_all_of_the_figures(report):
    import plotly.graph_objects as go

    look = Look(report.methods)
    for group in report.groups:
        for make in (curve_figure, strip_figure, tradeoff_figure, cost_figure):
            for view in make(group, look).views.values():
                for palette in (LIGHT, DARK):
                    go.Figure(painted(view, palette))  # refuses properties and values that it does not know


def contrast(a, b):
    """WCAG's contrast ratio of two colours."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_can_be_read(palette):
    assert contrast(palette["text"], palette["page"]) > 12
    assert contrast(palette["muted"], palette["page"]) > 4.5
    for i in range(METHOD_COLOURS):
        assert contrast(palette[f"m{i}"], palette["page"]) > 3, i


def test_methods_look_different():
    look = Look(tuple(f"method{i}" for i in range(24)))
    assert len({(look.colour(m), look.symbol(m)) for m in look.methods}) == 24
    assert len({(look.colour(m), look.dash(m)) for m in look.methods}) == 24


def test_gates_are_the_metrics(report, real):
    group = group_of(report, "resnet8")
    source = group.runs["dnat-full"][0]
    rows = [json.loads(line) for line in (real / "metrics.jsonl").read_text().splitlines()][:2]
    edges = json.loads((real / "architecture.json").read_text())["commitment"]["edges"]
    found = numbers.gates(source)
    assert [g.key for g in found] == [e["key"] for e in edges]
    for place, made in enumerate(found):
        assert made.epochs == (0.0, 1.0, 2.0)
        for column, (begin, *values) in made.gates.items():
            at = rows[0]["columns"].index(column)
            assert list(values) == [row["gates"][place][at] for row in rows]
            assert begin == (column == "original")
    assert found[0].chosen == ("identity",)
    assert numbers.gates(group.runs["original"][0]) == []


def test_choices_are_the_architectures(report):
    (full, nat) = numbers.choices(group_of(report, "resnet8"))
    assert (full.method, nat.method) == ("dnat-full", "nat")
    assert full.seeds == (0, 1, 2, 3)
    edges = [e["key"] for e in numbers.edges_of(report.runs[4])]
    assert dict(full.rows) == {edges[0]: ("identity",) * 4, edges[1]: ("original", "none", "none", "none")}
    assert full.staying == len(edges) - 2
    assert [numbers.agreement(row) for row in full.rows.values()] == [1.0, 0.75]


def test_shares_of_widths_are_shown_as_such(real, tmp_path):
    """In a table of choices and in gates: not as operations, and without gates that no width has."""
    folder = vary(real, tmp_path / "run", "dnat-full", 0, 90.0)
    architecture = json.loads((folder / "architecture.json").read_text())
    first = architecture["commitment"]["edges"][0]
    first |= {"key": "layer1.0.conv1:width", "kind": "width", "operation": "16 channels", "choice": "5/8"}
    write(folder / "architecture.json", architecture)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "gates" in row:
            row["columns"] = ["none", "identity", "original", "5/8", "1/8"]
            row["gates"] = [[0.0, 0.0, 0.6, 0.4, 0.0] for _ in row["gates"]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gather([folder])
    made = numbers.gates(found.runs[0])
    assert set(made[0].gates) == {"original", "5/8"}
    assert set(made[1].gates) == {"none", "identity", "original", "5/8"}
    shown = page(found)
    assert '<td><span class="choice narrowed">5/8</span></td>' in shown
    assert 'class="gate narrowed"' in shown
    assert "</span>narrower (the share of the channels that stays)" in shown
    assert "Of a width, the channels between two layers" in shown
    without = page(gather([vary(real, tmp_path / "other", "dnat-full", 0, 90.0)]))
    assert "narrower" not in without
    assert "Of a width" not in without


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), [1]])
def test_what_is_no_number_is_none(value):
    assert number(value) is None


# How to repeat it.


def test_recipes_repeat_the_runs(real, tmp_path):
    made = [vary(real, tmp_path / f"full{s}", "dnat-full", s, 90.0) for s in (0, 1)]
    made.append(vary(real, tmp_path / "slow", "dnat-full", 2, 90.0, job={"lr": 0.5}))
    found, left_out = recipes(gather(made), most=5)
    assert left_out == 0
    assert [r.commands for r in found] == [
        (
            "dnat transform --config full0.toml --out runs/full0-again",
            "dnat transform --config full0.toml --seed 1 --out runs/full1-again",
        ),
        ("dnat transform --config slow.toml --out runs/slow-again",),
    ]
    (tmp_path / "again.toml").write_text(found[0].files["full0.toml"])
    assert Job.from_flat(read_toml(tmp_path / "again.toml")) == Job.from_flat(read_toml(real / "config.toml"))
    assert recipes(gather(made), most=1)[1] == 1
    assert settings(gather(made)).differing == {"lr": ("0.025 / 0.5",)}


# The page.


class Parts(html.parser.HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.inside = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.inside.append(tag)

    def handle_data(self, data):
        self.texts.append((self.inside[-1] if self.inside else "", data))


def parts_of(text):
    parts = Parts()
    parts.feed(text)
    return parts


@pytest.fixture(scope="session")
def evil(real, tmp_path_factory):
    """Runs whose names, settings, reasons, edges and files hold what must not get through."""
    folder = tmp_path_factory.mktemp("evil") / "sweep-b'<b>&"
    for seed, method in itertools.product((0, 1), ("original", EVIL)):
        name = f"{'o' if method == 'original' else 'e'}<i>{seed}"
        one = vary(real, folder / name, "dnat-full", seed, 80.0 + seed, network=EVIL, job={"data": f"d{EVIL}"})
        record = json.loads((one / "record.json").read_text())
        record["job"] |= {"method": method, "crop": EVIL, EVIL: EVIL, "budget": None}
        record["finished"] = EVIL
        write(one / "record.json", record)
        architecture = json.loads((one / "architecture.json").read_text())
        for place, edge in enumerate(architecture["commitment"]["edges"]):
            edge |= {"key": f"{place}{EVIL}", "choice": EVIL if place else "identity"}
        write(one / "architecture.json", architecture)
        write(one / "environment.json", {"device": EVIL, EVIL: seed})
        (one / "config.toml").write_text(f"# {EVIL}\n")
        (one / "architecture.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(3)</script>'
            '<image href="http://example.invalid/a.png"/></svg>'
        )
    (folder / "failed").mkdir()
    (folder / "failed" / "config.toml").write_text("")
    write(folder / "failed" / "status.json", {"state": EVIL, "reason": EVIL})
    return folder


def test_nothing_gets_through_the_page(evil, report):
    text = page(gather([evil]), with_published=True)
    hostile, plain_page = parts_of(text), parts_of(page(report))
    assert set(hostile.tags) <= set(plain_page.tags)
    assert hostile.tags.count("script") == 4
    assert not [a for a in hostile.attributes if a[1].startswith("on")]
    # Nothing is loaded or led to from outside: links lead within the page, images are data.
    addresses = [a for a in hostile.attributes if a[1] in ("src", "href", "action", "data", "srcset")]
    assert addresses
    assert all(value.startswith(("#", "data:image/svg+xml;base64,")) for _, _, value in addresses)
    whole = "".join(data for tag, data in hostile.texts if tag != "script")
    assert whole.count(EVIL) > 10  # it stands there, as text
    for tag, data in hostile.texts:
        if tag == "script" and data.startswith(("[", "{")):
            assert "<" not in data
            json.loads(data, parse_constant=lambda name: pytest.fail(name))
    ((_, _, policy),) = (
        a for a in hostile.attributes if a[0] == "meta" and (a[2] or "").startswith("default-src")
    )
    assert policy.startswith(
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:;"
    )


def test_nothing_gets_through_markdown(evil):
    text = markdown(gather([evil]), with_published=True)
    assert not re.search(r"<[A-Za-z/!?]", text)
    tables = [
        list(lines) for kept, lines in itertools.groupby(text.split("\n"), lambda line: line[:1] == "|") if kept
    ]
    assert len(tables) == 4
    for lines in tables:
        counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
        assert len(counts) == 1, lines


def test_names_for_plotly():
    assert plain("<b>x</b> &lt;\n y") == "&lt;b&gt;x&lt;/b&gt; &amp;lt; y"
    assert len(plain("n" * 100, 20)) == 20


def test_a_large_sweep_stays_usable(real, tmp_path):
    generator = random.Random(0)
    for method, seed in itertools.product(("original", "dnat-full", "dnat-cell", "nat", "random"), range(20)):
        vary(real, tmp_path / f"{method}-{seed}", method, seed, generator.uniform(80, 95), epochs=200)
    started = time.monotonic()
    found = gather([tmp_path])
    text = page(found)
    assert time.monotonic() - started < 10
    assert len(text.encode()) < 8e6
    assert len(found.runs) == 100
    assert "as many are drawn" in text
    assert "One seed of each method is shown" in text
    drawn = curve_figure(found.groups[0], Look(found.methods)).views["test accuracy, %"]["data"]
    assert max(len(t["x"]) for t in drawn) <= numbers.CURVE_POINTS
    assert len(drawn) == 5 * (numbers.SEED_CURVES + 1)


# In a browser.


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here to open the page with")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = started.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@contextlib.contextmanager
def opened(browser, file, width=1280, scheme="light"):
    """A page of the browser; whatever it complains of, asks for or alerts makes the test fail."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    trouble = []
    tab.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda r: None if r.url.startswith(("data:", file.as_uri())) else trouble.append(r.url))
    tab.goto(file.as_uri())
    tab.evaluate("dnatDrawAll()")
    try:
        yield tab
        assert trouble == []
    finally:
        tab.close()


def wait_until(tab, expression):
    """The page's policy forbids the browser's own way to wait for an expression, which evaluates text."""
    limit = time.monotonic() + 10
    while not tab.evaluate(expression):
        assert time.monotonic() < limit, expression
        time.sleep(0.02)


def screenshots(tmp_path):
    folder = Path(os.environ.get("DNAT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_page_in_a_browser(report, browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(report, with_published=True))
    with opened(browser, file) as tab:
        assert tab.locator(".plot .main-svg").count() >= 8  # every figure is drawn
        for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            colour = DARK["text"] if scheme == "dark" else LIGHT["text"]
            wait_until(tab, f"document.querySelector('.plot').layout.font.color === '{colour}'")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.screenshot(path=screenshots(tmp_path) / f"report-{name}.png", full_page=True)
        tab.set_viewport_size({"width": 1280, "height": 900})
        _is_used(tab, report)


def _is_used(tab, report):
    """Theme, views, pickers and the table of runs, by keyboard."""
    _table_is_used(tab, report)
    layout = "document.querySelector('#cost .plot').layout"
    tab.locator("#theme").focus()
    tab.keyboard.press("Enter")
    wait_until(tab, f"{layout}.font.color === '{DARK['text']}'")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    tab.keyboard.press("Enter")
    assert "multiply-adds" in tab.evaluate(f"{layout}.xaxis.title.text")
    tab.locator("input[value=multiply-adds]").focus()
    tab.keyboard.press("ArrowRight")
    wait_until(tab, f"{layout}.xaxis.title.text.startsWith('parameters')")
    drawn = tab.evaluate("document.querySelector('#cost .plot').data.map((t) => t.x)")
    assert drawn == [
        t["x"] for t in tradeoff_figure(report.groups[0], Look(report.methods)).views["parameters"]["data"]
    ]
    picker = tab.locator("#gates select")
    titles = picker.locator("option").all_text_contents()
    assert len(titles) > 1
    picker.select_option(index=1)
    assert tab.locator("#gates .option:visible").get_attribute("data-title") == titles[1]
    # For paper everything is drawn, in light colours, with every part open.
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_until(tab, f"{layout}.font.color === '{LIGHT['text']}'")
    assert tab.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 700, "height": 900})  # about A4 without its margins
    wait_until(tab, "document.documentElement.scrollWidth <= 700")


def _table_is_used(tab, report):
    """The table of runs is sorted, filtered, and downloaded as it is shown."""
    rows = "[...document.querySelectorAll('table.runs tbody tr')].filter((row) => !row.hidden)"
    column = "{}.map((row) => row.cells[{}].dataset.value)"
    heads = tab.locator("table.runs th button").all_text_contents()
    values = [run.trial.value for run in report.runs]
    place = heads.index("result")
    button = tab.locator("table.runs th button").nth(place)
    for order, wanted in (("ascending", sorted(values)), ("descending", sorted(values, reverse=True))):
        button.press("Enter")
        assert tab.locator("table.runs th").nth(place).get_attribute("aria-sort") == order
        assert [float(v) for v in tab.evaluate(column.format(rows, place))] == wanted
    tab.locator("#runs input").fill("nat resnet8")
    kept = [run for run in report.runs if "nat" in run.name and "resnet8" in run.name]
    assert sorted(tab.evaluate(column.format(rows, 0))) == sorted(run.name for run in kept)
    assert tab.locator("#runs [role=status]").text_content() == f"{len(kept)} of {len(report.runs)}"
    with tab.expect_download() as download:
        tab.locator("#runs .tools button").press("Enter")
    with open(download.value.path(), newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["run"]: float(row["result"]) for row in table} == {r.name: r.trial.value for r in kept}
    tab.locator("#runs input").fill("")


def test_nothing_gets_through_in_a_browser(evil, browser, tmp_path):
    file = tmp_path / "evil.html"
    file.write_text(page(gather([evil])))
    with opened(browser, file, 390) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.locator("img").count() == tab.locator("img[src^='data:image/svg+xml;base64,']").count() > 0
        labels = tab.locator("#seeds .plot .ytick").all_text_contents()
        assert any("<" in label for label in labels)  # shown as it is
        tab.screenshot(path=screenshots(tmp_path) / "report-evil.png", full_page=True)


# Pictures, and the command.


def test_pictures_are_the_same_every_time(report, tmp_path):
    from PIL import Image

    group = report.groups[0]
    rows = tuple(r for r in report.summary.rows if r.network == group.network)
    one = dataclasses.replace(report, summary=dataclasses.replace(report.summary, rows=rows))
    files = draw(one, tmp_path / "a" / "b")
    assert [f.name for f in files] == [
        f"{kind}-resnet8-digits.{form}" for kind in ("seeds", "tradeoff", "curves") for form in ("png", "svg")
    ]
    again = draw(one, tmp_path / "c", ("svg",))
    assert [f.read_bytes() for f in files if f.suffix == ".svg"] == [f.read_bytes() for f in again]
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert min(image.size) > 300
    with pytest.raises(ValueError, match="unknown format"):
        draw(one, tmp_path, ("gif",))


def test_pictures_of_strange_names(evil, tmp_path):
    for file in draw(gather([evil]), tmp_path, ("svg",)):
        assert file.parent == tmp_path
        assert parts_of(file.read_text()).tags.count("script") == 0


def test_the_command(sweep, report, real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cli, ["report", str(sweep)], catch_exceptions=False)
    assert ran.exit_code == 0
    assert ran.stdout == markdown(report) + "\n"
    assert (sweep / "report.md").read_text() == markdown(report)
    assert (sweep / "report.html").read_text() == page(report)
    flags = ["--html", "a/page.html", "--pictures", "figures", "--layout", "papers", "--published"]
    ran = CliRunner().invoke(cli, ["report", str(real), *flags], catch_exceptions=False)
    assert ran.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "figures", "report.md"]
    assert len(list((tmp_path / "figures").iterdir())) == 6
