"""What runs of other tasks are judged by, where it is shown: real short runs, and runs whose best is the least."""

import io
import json
import re
import shutil
import statistics
import warnings
from dataclasses import asdict

import pytest
import torch
from reference import unsealed
from rich.console import Console
from torch import nn

import dnat
from dnat.data import from_loaders
from dnat.errors import UsageError
from dnat.lab.metrics import ACCURACY, Measured, Metric, first_of, measured_in, metrics_of, result_of, watched
from dnat.lab.online import values
from dnat.lab.online.report import build
from dnat.lab.report import draw, gather, markdown, page
from dnat.lab.report.figures import curve_figure, strip_figure, tradeoff_figure
from dnat.lab.report.headline import headline, sentences
from dnat.lab.report.looks import Look
from dnat.lab.report.series import curves, mean_spots, pareto, spots
from dnat.lab.report.table import papers_tables
from dnat.lab.summary import markdown as long_table
from dnat.lab.summary import summarize, trial_from
from dnat.lab.sweep import View
from dnat.lab.sweep.schedule import Live
from dnat.lab.sweep.trials import progress
from dnat.lab.terminal.sweep import sweep_table
from dnat.lab.terminal.tables import result_table
from dnat.lab.terminal.tracker import TerminalTracker
from dnat.records import Records
from dnat.rundir import ARCHITECTURE, RECORD, RunFiles
from dnat.settings import ALIASES, Job
from dnat.tasks import Task, task_of

MAE = Metric("mae", "min")


def network(outputs):
    """Two blocks, of which the second can become an identity."""
    torch.manual_seed(0)
    middle = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *middle, *end)


def real_run(folder, task, target, outputs, method=dnat.transform):
    """A run of a task, in files as `dnat.lab.runs` writes them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(48, 1, 6, 6, generator=generator)
    pairs = torch.utils.data.TensorDataset(x, target(x))
    data = from_loaders(pairs, pairs, name="drawn")
    config = dnat.Config(epochs=2, architecture_epochs=1, batch_size=16, threads=1)
    job = Job(network="mine:net", data="mine:drawn", method="original", config=config)
    with warnings.catch_warnings(), Records.open(folder, job) as records:
        warnings.simplefilter("ignore")  # of a short architecture stage
        result = method(network(outputs), data, config, task=task, records=records)
        commitment = result.commitment.table() if result.commitment else None
        records.write_json(ARCHITECTURE, {"commitment": commitment, "rows": [], "genotypes": []})
        record = {
            "results": result.results(),
            "metrics": dict(task_of(task).metrics),
            "seconds": result.seconds,
            "latency": {"before": asdict(result.latency_before), "after": asdict(result.latency_after)},
            "job": job.flat(),
        }
        records.finish(record)
    return folder


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression") / "run"
    return real_run(folder, dnat.tasks.Regression(), lambda x: x.flatten(1).mean(1, keepdim=True), 1)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "run"
    return real_run(folder, dnat.tasks.MultiLabel(), lambda x: (x.flatten(1)[:, :3] > 0.5).float(), 3)


def shown(*parts):
    screen = Console(file=io.StringIO(), width=160)
    for part in parts:
        screen.print(part)
    return screen.file.getvalue()


def test_metrics_are_read_and_old_records_are_of_accuracy():
    assert metrics_of({}) == (ACCURACY,)
    assert watched({}) == "test"
    record = {"metrics": {"mae": "min", "r2": "max"}, "watched": "validation", "results": {"test_mae": 3.5}}
    assert metrics_of(record) == (MAE, Metric("r2"))
    assert watched(record) == "validation"
    assert result_of(record) == Measured(MAE, 3.5)
    assert result_of({"results": {"test_accuracy": 0.5}}) == Measured(ACCURACY, 0.5)
    assert result_of({"metrics": {"r2": "max"}, "results": {"test_r2": -4.0}}).value == -4.0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"metrics": {}}, "at least one metric"),
        ({"metrics": {"mae": "less"}}, "metrics.mae of a record must be 'max' or 'min', not 'less'"),
        ({"metrics": "mae"}, "metrics of a record must be a table"),
        ({"metrics": {"mae": "min"}, "results": {}}, "lacks results.test_mae"),
        ({"metrics": {"mae": "min"}, "results": {"test_mae": -0.5}}, "at least 0, not -0.5"),
        ({"metrics": {"miou": "max"}, "results": {"test_miou": 1.5}}, "from 0 to 1, not 1.5"),
        ({"metrics": {"mine": "max"}, "results": {"test_mine": float("nan")}}, "a finite number, not nan"),
    ],
)
def test_what_is_wrong_with_a_records_metrics_is_told(record, message):
    with pytest.raises(UsageError, match=message):
        result_of(record)
    with pytest.raises(UsageError, match="watched of a record must be 'test' or 'validation', not 'train'"):
        watched({"watched": "train"})


def test_rows_tell_their_first_metric_and_the_split_that_is_watched():
    row = {"epoch": 1, "train_loss": 1.0, "train_mae": 0.5, "train_r2": 0.1}
    tested = {"test_loss": 2.0, "test_mae": 0.75, "test_r2": 0.2}
    held_out = {"validation_loss": 3.0, "validation_mae": 0.25, "validation_r2": 0.3}
    assert first_of(row) == first_of(row | tested) == first_of(row | held_out) == "mae"
    assert [measured_in(r).value for r in (row, row | tested, row | held_out)] == [0.5, 0.75, 0.25]
    assert measured_in({"epoch": 1}) is None
    # A task of a loss alone is judged by it.
    assert measured_in({"train_loss": 1.0, "test_loss": 2.0}) == Measured(Metric("loss"), 2.0)


_SHOWN = (("loss", ".4f"), ("mae", ".4g"))


def test_a_real_regression_is_shown(regression, tmp_path):
    record = RunFiles(regression).record()
    results = record["results"]
    text = shown(result_table(record))
    for name, title in (("mae", "MAE"), ("mse", "MSE")):
        assert f"test {title} " in text
        assert f"{results[f'test_{name}']:.4g}" in text
    assert f"{results['test_r2']:.2%}" in text
    assert f"{results['relaxed_test_mae']:.4g}" in text
    assert f"{results['committed_test_mae']:.4g}" in text
    assert "accuracy" not in text

    screen = Console(file=io.StringIO(), width=200)
    rows = RunFiles(regression).rows()
    tracker = TerminalTracker(screen, 2)
    for row in rows:
        tracker.log(row)
    head, *lines = screen.file.getvalue().splitlines()
    assert re.split(" {2,}", head.strip()) == [
        *("epoch", "train loss", "MAE", "test loss", "MAE", "time", "per s", "stage"),
    ]
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        told = [f"{row['epoch']}/2", *(f"{row[f'{s}_{n}']:{f}}" for s in ("train", "test") for n, f in _SHOWN)]
        assert re.split(" {2,}", line.strip())[:5] == told
        assert line.index(told[1]) + len(told[1]) == head.index("train loss") + len("train loss")
    assert progress(regression) == ("network", 2, Measured(Metric("mae"), rows[-1]["test_mae"]))

    summary = values.of_result(record, [])
    for name in ("mae", "r2", "mse"):
        assert summary[f"test_{name}"] == results[f"test_{name}"]
        assert summary[f"test_{name}_before"] == results[f"test_{name}_before"]
    assert not any("accuracy" in name for name in summary)

    report = gather([regression])
    (trial,) = (run.trial for run in report.runs)
    assert (trial.metric, trial.value, trial.watched) == (MAE, results["test_mae"], "test")
    (curve,) = curves(report.groups[0])
    assert list(curve.values) == [row["test_mae"] for row in rows]
    for words in (markdown(report), page(report)):
        assert "MAE" in words
        assert "ccuracy" not in words.partition('id="settings"')[0]
    assert draw(report, tmp_path, ["png"])


def test_a_real_multi_label_run_is_shown_in_percent(labels):
    record = RunFiles(labels).record()
    results = record["results"]
    text = shown(result_table(record))
    assert f"{results['test_f1']:.2%}" in text
    assert f"{results['test_exact']:.2%}" in text
    assert f"{100 * results['test_f1']:.2f} % test F1" in markdown(gather([labels]))


def test_curves_and_moments_of_a_validation_split(regression, tmp_path):
    folder = shutil.copytree(regression, tmp_path / "validated")
    record = json.loads((folder / RECORD).read_text())
    results = {k.replace("_test_", "_validation_"): v for k, v in record["results"].items()}
    (folder / RECORD).write_text(json.dumps(unsealed(record) | {"results": results, "watched": "validation"}))
    rows = RunFiles(folder).rows()
    moved = [{k.replace("test_", "validation_"): v for k, v in row.items()} for row in rows]
    RunFiles(folder).path("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))

    text = shown(result_table(RunFiles(folder).record()))
    assert "validation MAE, choices just made" in text
    assert "test MAE " in text
    screen = Console(file=io.StringIO(), width=200)
    TerminalTracker(screen, 2).log(moved[0])
    assert "validation loss" in screen.file.getvalue()
    assert progress(folder)[2].value == rows[-1]["test_mae"]

    group = gather([folder]).groups[0]
    assert (group.watched, group.tested) == ("validation MAE", "test MAE")
    assert list(curves(group)[0].values) == [row["test_mae"] for row in rows]
    figure = curve_figure(group, Look(("original",)))
    assert figure.alt.startswith("Validation MAE over the epochs")
    assert strip_figure(group, Look(("original",))).alt.startswith("Test MAE of each seed")


# --- a sweep whose best is the least ---------------------------------------------------------------------------

ERRORS = {
    "original": (0.30, 0.31, 0.29, 0.32, 0.30, 0.305, 0.3),
    "dnat-full": (0.21, 0.22, 0.20, 0.215, 0.205, 0.21, 0.2),
    "nat": (0.40, 0.45, 0.41, 0.43, 0.42, 0.44, 0.4),
}
SHARES = {"original": 1.0, "dnat-full": 0.8, "nat": 0.6}


def vary(run, folder, method, seed, value, *, data="numbers", metrics=None, name="mae"):
    """A run like another one with another method, seed and error."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(".lock", "*.safetensors"))
    record = json.loads((folder / RECORD).read_text())
    base, mode = ALIASES.get(method, (method, "full"))
    record["job"] |= {"method": base, "mode": mode, "seed": seed, "data": data}
    record["results"][f"test_{name}"] = value
    before = record["results"]["cost_before"]
    record["results"]["cost_after"] = {k: round(SHARES[method] * v) for k, v in before.items()}
    record["metrics"] = metrics or record["metrics"]
    (folder / RECORD).write_text(json.dumps(unsealed(record)))
    return folder


@pytest.fixture(scope="module")
def report(regression, tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors") / "sweep"
    for method, errors in ERRORS.items():
        for seed, error in enumerate(errors):
            vary(regression, folder / f"{method}-seed{seed}", method, seed, error)
    return gather([folder])


def test_the_least_error_is_the_best(report):
    (group,) = report.groups
    best = headline(report, group)
    assert (best.row.method, best.row.values) == ("dnat-full", ERRORS["dnat-full"])
    first, second = sentences(report, group)
    mean, std = statistics.mean(ERRORS["dnat-full"]), statistics.stdev(ERRORS["dnat-full"])
    assert f"dnat-full has the lowest mean test MAE, {mean:.4g} ± {std:.4g} (n = 7): -" in first
    assert "points" not in first
    assert "%" not in first
    assert "significant (p = 0.0312)" in first
    assert "nat needs the fewest multiply-adds" in second
    (line,) = papers_tables(report)[0].lines
    assert [report.methods[place] for place in line.best] == ["dnat-full"]
    means = mean_spots(spots(group, tradeoff_axis(group)))
    assert [s.method for s in pareto(means, group.metric)] == ["nat", "dnat-full"]  # the original is beaten
    comparison = report.summary.comparison(best.row)
    assert comparison.differences == pytest.approx(
        [a - b for a, b in zip(ERRORS["dnat-full"], ERRORS["original"], strict=True)]
    )


def tradeoff_axis(group):
    from dnat.lab.report.series import axes

    return axes(group)[0]


def test_tables_and_pages_name_the_error(report, tmp_path):
    text = markdown(report, with_published=True)
    assert "| network | original, MAE | hours |" in text
    assert f"**{statistics.mean(ERRORS['dnat-full']):.4g} ± " in text
    assert "the lowest mean of a row in bold" in text
    assert "MAE (less is better): on the test examples" in text
    assert "| method | n | MAE | difference |" in long_table(report.summary)
    shown_page = page(report)
    assert "lowest mean MAE" in shown_page
    assert "MAE against cost" in shown_page
    assert '"test MAE"' in shown_page
    (group,) = report.groups
    look = Look(report.methods)
    view = tradeoff_figure(group, look).views["multiply-adds"]
    front = view["data"][0]
    assert sorted(front["y"]) == [statistics.mean(ERRORS["dnat-full"]), statistics.mean(ERRORS["nat"])]
    assert all("%{y:.4g}<" in trace["hovertemplate"] for trace in view["data"][1:])
    low, high = strip_figure(group, look).views[""]["layout"]["xaxis"]["range"]
    assert 0.1 < low < 0.2 < 0.45 < high < 0.5
    assert len(draw(report, tmp_path, ["svg"])) == 3


def test_what_is_judged_by_another_metric_is_told_apart_or_refused(report, labels, regression, tmp_path):
    other = vary(labels, tmp_path / "labels", "original", 0, 0.75, data="tags", name="f1")
    both = gather([*(run.directory for run in report.runs), other])
    text = markdown(both)
    assert "75.00 % test F1 (n = 1)" in text
    assert "MAE (less is better): on the test examples; F1: on the test examples" in text
    assert "| network | method | n | F1, % | difference |" in text
    assert "the best mean of a row in bold" in text
    assert page(both)
    mixed = vary(labels, tmp_path / "mixed", "nat", 9, 0.75, name="f1")
    message = "runs on numbers are judged by different metrics, mae .min. of mine:net, f1 .max. of mine:net"
    with pytest.raises(UsageError, match=message):
        gather([*(run.directory for run in report.runs), mixed])


def test_a_name_of_ones_own_stays_a_name(regression, tmp_path):
    name = "a|b [red]<i>$x_1"
    metrics = {name: "min"}
    run = vary(regression, tmp_path / "own", "original", 0, 1234.5, name=name, metrics=metrics)
    record = RunFiles(run).record()
    results = {f"test_{name}_before": 1.0, f"relaxed_test_{name}": None, f"committed_test_{name}": None}
    assert f"test {name} " in shown(result_table(record | {"results": record["results"] | results}))
    report = gather([run])
    assert r"a\|b" in markdown(report)
    text = page(report)
    assert "[red]<i>" not in text
    assert len(draw(report, tmp_path / "pictures", ["svg"])) == 2  # there are no curves


def test_a_sweeps_screen_names_the_metric():
    live = {"a": Live(1.0, 9, "network", 3, Measured(MAE, 0.123456)), "b": Live(1.0, 9)}
    text = shown(sweep_table(View((), live, 1), {}, 3.0))
    assert "MAE" in text
    assert "0.1235" in text
    live["b"] = Live(1.0, 9, "network", 3, Measured(ACCURACY, 0.5))
    mixed = shown(sweep_table(View((), live, 1), {}, 3.0))
    assert "metric" in mixed
    assert "50.00%" in mixed


def test_wandbs_report_looks_at_the_metric(report):
    made = build(report.summary, "table", "dnat", "me")
    (grid,) = (block for block in made.blocks if type(block).__name__ == "PanelGrid")
    titles = [getattr(panel, "title", None) for panel in grid.panels]
    assert "Test MAE, mean and deviation" in titles
    assert "Test MAE by multiply-adds" in titles
    assert grid.panels[0].y == ["test_mae"]


def test_small_differences_are_no_rounding():
    """Those of shares are of whole images, and of others what their size makes them."""
    records = [
        {
            "results": {"test_mse": value, "cost_before": cost, "cost_after": cost},
            "metrics": {"mse": "min"},
            "seconds": {},
            "job": {"network": "a", "data": "d", "method": method, "seed": seed},
        }
        for cost in [{"params": 1, "madds": 1}]
        for method, errors in (("original", (3e-12, 4e-12)), ("nat", (1e-12, 1e-12)))
        for seed, value in enumerate(errors)
    ]
    (comparison,) = summarize(records).comparisons
    assert comparison.differences == pytest.approx((-2e-12, -3e-12), rel=1e-6)
    assert "1e-12 ± 0" in long_table(summarize(records))
    assert trial_from(records[0]).value == 3e-12


def test_tasks_of_a_loss_alone(tmp_path):
    task = Task.of(nn.functional.mse_loss)
    run = real_run(tmp_path / "run", task, lambda x: x.flatten(1).mean(1, keepdim=True), 1, method=dnat.train)
    record = RunFiles(run).record()
    assert result_of(record) == Measured(Metric("mse_loss", "min"), record["results"]["test_mse_loss"])
    assert "test mse_loss " in shown(result_table(record))
    assert "the lowest mean of a row in bold" in markdown(gather([run]))


def test_how_runs_were_trained_is_compared_also_with_older_ones(regression):
    record = RunFiles(regression).record()
    older = json.loads(json.dumps(record))
    older["job"] |= {"method": "dnat", "mode": "full"}
    for setting in ("optimizer", "label_smoothing", "ema", "validation"):
        del older["job"][setting]
    assert not any("trained alike" in note for note in summarize([record, older]).notes)
    record["job"]["optimizer"] = "adamw"
    (note,) = (note for note in summarize([record, older]).notes if "trained alike" in note)
    assert "optimizer is adamw (original), sgd (dnat-full)" in note
