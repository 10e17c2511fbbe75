"""Who hears of a run: the line of progress, the CSV file, other programs; and a result as it is printed."""

import csv
import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import dnat
from dnat import tracking
from dnat.integrations import trackers
from dnat.lab.cli import cli
from dnat.lab.terminal.tracker import TerminalTracker
from dnat.tracking import CsvTracker, ProgressLine, Tracker, Trackers
from dnat.training import Interrupted, Progress

pytestmark = pytest.mark.usefixtures("quiet")

CONFIG = dnat.Config(epochs=2, architecture_epochs=1, batch_size=50, threads=1, budget=0.5)
ARGUMENTS = (
    *("transform", "--network", "resnet8", "--set", "network.width=4", "--train-limit", "100"),
    *("--test-limit", "50", "--epochs", "2", "--architecture-epochs", "1", "--batch-size", "50"),
    *("--set", "threads=1"),
)


@pytest.fixture(scope="module")
def data():
    return dnat.load("digits", train_limit=100, test_limit=50)


def network(seed=0):
    return dnat.build("resnet8", seed=seed, width=4)


class Everything(Tracker):
    """Keeps the rows it is told."""

    def __init__(self):
        self.rows, self.ends = [], []

    def log(self, row):
        self.rows.append(row)

    def failed(self, code):
        self.ends.append(code)

    def finish(self):
        self.ends.append("finish")


class Terminal(io.StringIO):
    """What stands on a terminal's lines: a carriage return goes to the beginning of the last one."""

    def isatty(self):
        return True

    def shown(self):
        lines = []
        for text in self.getvalue().split("\n"):
            line = ""
            for part in text.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


@pytest.fixture(scope="module")
def told(data):
    """A run with a line of progress and a tracker: its result, what the terminal shows, the rows."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "stderr", Terminal())
        patch.setattr(tracking, "REDRAW_SECONDS", 0.0)
        tracker = Everything()
        result = dnat.transform(network(), data, CONFIG, tracker=tracker)
        return result, sys.stderr, tracker


def test_a_terminal_shows_one_line_that_ends_with_the_last_epoch(told):
    result, terminal, tracker = told
    last, rest = terminal.shown()
    row = result.history[-1]
    assert rest == ""
    assert last.startswith("epoch 2/2 network done, ")
    assert f"loss {row['train_loss']:.4f}" in last
    assert f"test accuracy {row['test_accuracy']:.4f}" in last
    assert last.endswith("00:00 left")
    drawn = terminal.getvalue().split("\r")
    assert len([d for d in drawn if re.match(r"epoch 1/2 architecture [12]/2, loss \d", d)]) == 2
    assert tracker.rows == result.history  # the other tracker hears all the same


def test_the_loss_in_the_middle_of_an_epoch_is_the_mean_so_far(monkeypatch):
    monkeypatch.setattr(tracking, "REDRAW_SECONDS", 0.0)
    stream = io.StringIO()
    line, progress = ProgressLine(stream), Progress(totals=torch.zeros(3))
    line.epoch("network", progress, batches=4, epochs=1)
    progress.batch = progress.step = 2
    progress.totals += torch.tensor([3.0, 8.0, 5.0])  # loss summed over 8 examples
    line.batch(progress)
    assert "network 2/4, loss 0.3750" in stream.getvalue()


@pytest.mark.parametrize(("taken", "words"), [(2.0, "01:00 left"), (200.0, "1.7 h left")])
def test_the_time_left_is_that_of_the_steps_so_far(monkeypatch, taken, words):
    now = [100.0]
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: now[0]))
    stream = io.StringIO()
    line, progress = ProgressLine(stream), Progress(step=5)  # it goes on there
    line.epoch("network", progress, batches=10, epochs=4)
    progress.step, now[0] = 10, 100.0 + 5 * taken  # five steps; 30 are left
    line.batch(progress)
    assert stream.getvalue().endswith(words)


def test_the_line_never_breaks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    line = ProgressLine(stream)
    line.epoch("architecture", Progress(), batches=10**9, epochs=10**9)
    line.finish()
    assert [len(text) for text in stream.shown()] == [29, 0]


@pytest.mark.parametrize(
    ("progress", "terminal", "tracker", "drawn"),
    [
        (None, False, Tracker(), False),  # tests, pipes, logs
        (None, True, Tracker(), True),
        (False, True, Tracker(), False),
        (True, False, Tracker(), True),
        (None, True, Trackers(Tracker(), ProgressLine(io.StringIO())), False),  # another one is shown
        (None, True, Trackers(TerminalTracker(Console(file=io.StringIO()), 2)), False),  # by the command
    ],
)
def test_when_the_line_is_drawn(monkeypatch, progress, terminal, tracker, drawn):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with tracking.shown(tracker, progress) as told:
        told.epoch("network", Progress(), 3, 2)
    assert bool(stream.getvalue()) == drawn
    assert stream.getvalue().endswith("\n" if drawn else "")


def test_a_notebook_shows_the_line_where_it_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    with tracking.shown(Tracker(), None) as told:
        told.epoch("network", Progress(), 3, 2)
    assert sys.stdout.getvalue().startswith("\repoch 1/2 network 0/3")
    assert not sys.stderr.getvalue()


def test_progress_is_yes_or_no(data):
    with pytest.raises(TypeError, match="progress must be True, False or None, not 'yes'"):
        dnat.train(network(), data, CONFIG, progress="yes")


def test_a_tracker_hears_how_its_block_ends():
    tracker = Everything()
    with tracker:
        pass
    with pytest.raises(Interrupted), tracker:
        raise Interrupted("stopped")
    assert tracker.ends == ["finish", 75, "finish"]


def test_the_csv_file_has_the_rows_of_an_uninterrupted_run(data, tmp_path):
    """Also where the run was stopped after an epoch had been told of, and goes on from before it."""
    job = dnat.settings.Job(network="resnet8", network_options={"width": 4}, config=CONFIG)
    file = tmp_path / "numbers" / "rows.csv"
    with dnat.Records.open(tmp_path / "run", job) as records:
        with pytest.raises(Interrupted):
            dnat.transform(
                network(), data, CONFIG, records=records, tracker=CsvTracker(file), stop=lambda p: p.step == 3
            )
        CsvTracker(file).log({"epoch": 2, "train_loss": 99.0})  # told of, but not in the checkpoint
        result = dnat.transform(network(), data, CONFIG, records=records, tracker=CsvTracker(file))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == len(result.history) == 2
    for row, truth in zip(rows, result.history, strict=True):
        assert {k: v for k, v in row.items() if v} == {
            k: str(v) for k, v in truth.items() if k not in ("gates", "columns")
        }


def test_the_command_writes_what_metrics_jsonl_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, [*ARGUMENTS, "--track", "csv", "--out", "run"], catch_exceptions=False)
    assert done.exit_code == 0
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
    truth = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    for row, line in zip(rows, truth, strict=True):
        assert all(row[k] == str(v) for k, v in line.items() if k not in ("gates", "columns"))


def test_tensorboard_reads_the_numbers(told, data, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with trackers.TensorBoardTracker(tmp_path) as tracker:
        result = dnat.transform(network(), data, CONFIG, tracker=tracker)
        tracker.result(result.record())
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("train_loss", "test_accuracy", "lr"):
        read = [(e.step, e.value) for e in events.Scalars(name)]
        assert read == [(r["epoch"], pytest.approx(r[name], rel=1e-6)) for r in result.history]
    assert events.Scalars("result/madds")[0].value == result.cost_after.madds
    assert {"gates/none", "gates/original"} <= set(events.Tags()["histograms"])


def test_mlflow_reads_the_numbers(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    kept = tmp_path / "id.json"
    half = trackers.MlflowTracker("mine", {"lr": 0.1}, kept)
    with pytest.raises(Interrupted), half:
        dnat.transform(network(), data, CONFIG, tracker=half, stop=lambda p: p.step == 3)
    first = json.loads(kept.read_text())["id"]
    assert mlflow.MlflowClient().get_run(first).info.status == "KILLED"
    with trackers.MlflowTracker("mine", {"lr": 0.1}, kept) as tracker:
        result = dnat.transform(network(), data, CONFIG, tracker=tracker)
        tracker.result(result.record())
    run = mlflow.MlflowClient().get_run(first)  # the same one went on
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "mine", {"lr": "0.1"})
    assert run.data.metrics["result/params"] == result.cost_after.params
    history = mlflow.MlflowClient().get_metric_history(first, "test_accuracy")
    assert {(m.step, m.value) for m in history} == {(r["epoch"], r["test_accuracy"]) for r in result.history}


def test_wandb_is_told_the_numbers(told):
    result = told[0]
    run = SimpleNamespace(rows=[], summary={})
    run.log = run.rows.append
    tracker = trackers.WandbTracker(run)
    tracker.epoch("network", Progress(), 2, 2)
    for row in result.history:
        tracker.log(row)
    tracker.result(result.record())
    assert [row["test_loss"] for row in run.rows] == [row["test_loss"] for row in result.history]
    assert [row["epoch"] for row in run.rows] == [1, 2]
    assert run.summary["test_accuracy"] == result.test.accuracy
    assert run.summary["madds_before"] == result.cost_before.madds


def test_a_tracker_that_fails_ends_itself_and_not_the_run(data):
    def fail(row):
        raise OSError("the server\nis gone")

    tracker = trackers.WandbTracker(SimpleNamespace(log=fail, summary={}))
    with pytest.warns(UserWarning, match=r"W&B: OSError: the server is gone; the run goes on") as caught:
        result = dnat.train(network(), data, CONFIG, tracker=tracker)
    assert len(result.history) == 2
    assert len([c for c in caught if "W&B" in str(c.message)]) == 1


@pytest.mark.parametrize(
    ("make", "library", "extra"),
    [
        (lambda: trackers.TensorBoardTracker("x"), "torch.utils.tensorboard", "tensorboard"),
        (lambda: trackers.MlflowTracker(), "mlflow", "mlflow"),
    ],
)
def test_a_missing_library_is_said_before_anything_is_trained(monkeypatch, make, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(dnat.DnatError, match=rf"library is needed: pip install 'dnat\[{extra}\]'"):
        make()


class Cells(HTMLParser):
    """The texts of a page's cells, its bars, and what is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.bars, self.titles = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "rect":
            self.bars.append(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(text)
        if self.open and self.open[-1] == "title":
            self.titles.append(text)


def test_a_result_prints_as_a_small_table(told):
    result = told[0]
    lines = str(result).splitlines()
    before, after = result.cost_before, result.cost_after
    assert repr(result) == str(result)
    assert max(map(len, lines)) <= 80
    table = {line[: lines[0].index("before") - 4].strip(): line for line in lines[1:6]}
    (madds,) = (line for line in lines if line.startswith("multiply-adds"))
    assert madds.split()[1:3] == [f"{before.madds:,}", f"{after.madds:,}"]
    assert madds.split()[3] == f"{100 * (after.madds / before.madds - 1):+.1f}"
    (accuracy,) = (line for line in lines if line.startswith("test accuracy"))
    assert [float(v) for v in accuracy.split()[2:4]] == [result.before.accuracy, result.test.accuracy]
    assert len(table) == 5
    changed = [e for e in result.commitment.edges if e.choice != "original"]
    assert changed
    assert lines[6:] == [f"{len(changed)} of 4 edges changed", *(f"  {e.key} {e.choice}" for e in changed)]


def test_of_many_changes_the_first_are_named(told):
    result = told[0]
    edge = replace(result.commitment.edges[0], choice="none", key="<a>")
    many = replace(result, commitment=replace(result.commitment, edges=(edge,) * 9))
    assert str(many).splitlines()[6:] == ["9 of 9 edges changed", *["  <a> none"] * 6, "  and 3 more"]
    assert "<a>" not in many._repr_html_()


def test_a_notebook_shows_the_table_and_a_bar_for_each_edge(told):
    result = told[0]
    page = Cells()
    page.feed(result._repr_html_())
    assert page.open == []
    words = {tuple(re.split(r"\s{2,}", line.strip())) for line in str(result).splitlines()[1:6]}
    assert words == {tuple(page.cells[i : i + 4]) for i in range(3, len(page.cells), 4)}
    edges = [e for e in result.commitment.edges if e.madds]
    assert len(page.bars) == len(edges)
    most = max(e.madds for e in edges)
    for edge, bar, title in zip(edges, page.bars, page.titles, strict=True):
        assert edge.key in title
        assert float(bar["height"]) == pytest.approx(max(60 * edge.madds / most, 2), abs=0.06)
        assert ("fill:none" in bar["style"]) == (edge.choice != "original")


def test_a_network_that_was_only_trained_prints_too(data):
    result = dnat.train(network(), data, CONFIG)
    assert str(result).endswith("trained as it is")
    assert "<svg" not in result._repr_html_()


def test_two_default_runs_at_once_do_not_meet(tmp_path):
    """Other settings have another directory."""
    words = [sys.executable, "-m", "dnat.lab.cli", *ARGUMENTS]
    pair = [
        subprocess.Popen([*words, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for more in ((), ("--set", "lr=0.05"))
    ]
    said = [process.communicate(timeout=300)[0].decode() for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    names = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all((tmp_path / "runs" / name / "record.json").exists() for name in names)
