"""Runs as tables to take along, held against the files of real runs and against statistics by hand."""

import csv
import json
import re
import shutil
import statistics
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from reference import unsealed

from dnat.errors import UsageError
from dnat.lab import results
from dnat.lab.cli import cli
from dnat.lab.report import gather
from dnat.lab.runs import run
from dnat.lab.tabulation import _alike, escaped, latex, tabulate
from dnat.settings import Job, read_toml
from dnat.training import Interrupted

SWEEP = (
    *("sweep", "--networks", "resnet8", "--methods", "original,dnat-full@0.5", "--seeds", "3", "--epochs", "2"),
    *("--architecture-epochs", "1", "--batch-size", "50", "--train-limit", "100", "--test-limit", "50"),
    *("--set", "network.width=4", "--set", "threads=1"),
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Six trials: four done, one stopped, one not begun; and a run beside them with another rate."""
    folder = tmp_path_factory.mktemp("runs")
    planned = CliRunner().invoke(cli, [*SWEEP, "--plan", "--out", str(folder / "sweep")], catch_exceptions=False)
    assert planned.exit_code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = sorted((folder / "sweep" / "trials").glob("*.toml"))
        for file in files:
            job, seed = Job.from_flat(read_toml(file)), file.stem[-1]
            if seed != "2":
                run(job, folder / "sweep" / file.stem)
            elif job.method == "dnat":
                with pytest.raises(Interrupted):
                    run(job, folder / "sweep" / file.stem, stop=lambda progress: progress.step == 1)
        other = job.but(method="dnat", config=job.config.but(lr=0.05, seed=0))
        run(other, folder / "slow")
    return folder / "sweep"


def truth(folder):
    return json.loads((folder / "record.json").read_text())


def test_there_is_a_row_for_each_trial_with_what_its_record_has(sweep):
    table = tabulate([sweep, sweep.parent / "slow", sweep.parent / "slow"])
    rows = table.records()
    assert len(rows) == 7
    assert table.notes == ()
    done = [row for row in rows if row["status"] == "done"]
    assert len(done) == 5
    for row in done:
        record = truth(sweep.parent / row["run"] if row["run"] == "slow" else sweep / row["run"])
        found = record["results"]
        assert (row["metric"], row["reason"]) == ("accuracy", None)
        assert (row["test_before"], row["test_after"]) == (found["test_accuracy_before"], found["test_accuracy"])
        assert {k: row[k] for k in ("madds", "params")} == found["cost_after"]
        assert {k: row[f"{k}_before"] for k in ("madds", "params")} == found["cost_before"]
        assert row["weights_sha256"] == found["weights_sha256"]
        assert row["training_seconds"] == pytest.approx(sum(record["seconds"].values()))
        assert row["latency"] == record["latency"]["after"]["seconds"]
        for name in ("network", "data", "method", "preset", "seed"):
            assert row[name] == record["job"][name]
        assert row["budget"] == record["job"].get("budget")
    assert [(r["label"], r["seed"]) for r in rows if r["run"] != "slow"] == [
        (label, seed) for label in ("original", "dnat-full 0.5") for seed in (0, 1, 2)
    ]


def test_settings_have_a_column_where_they_differ(sweep):
    alone = tabulate([sweep])
    job = json.loads((sweep / "resnet8-original-seed0" / "record.json").read_text())["job"]
    own = {"network", "data", "method", "preset", "seed", "latency_batch"}
    assert {*alone.columns} & {*job, "network.width"} == own
    both = tabulate([sweep, sweep.parent / "slow"])
    assert {*both.columns} - {*alone.columns} == {"lr"}
    assert [row["latency_batch"] for row in alone.records()] == [1, 1, None, 1, 1, None]  # as measured
    rates = {row["run"]: row["lr"] for row in both.records()}
    assert rates.pop("slow") == 0.05
    assert 0.05 not in rates.values()


def test_trials_without_a_result_say_why(sweep):
    rows = {row["run"]: row for row in tabulate([sweep]).records()}
    (stopped,) = (row for row in rows.values() if row["status"] == "interrupted")
    assert stopped["reason"] == "Interrupted: stopped after epoch 0, batch 1"
    (pending,) = (row for row in rows.values() if row["status"] == "pending")
    for row in (stopped, pending):
        assert (row["network"], row["seed"], row["test_after"]) == ("resnet8", 2, None)


def test_a_damaged_run_keeps_its_row(sweep, tmp_path):
    shutil.copytree(sweep.parent / "slow", tmp_path / "broken")
    (tmp_path / "broken" / "record.json").write_text('{"results": ')
    (tmp_path / "broken" / "config.toml").write_text("=")
    first, second = tabulate([tmp_path / "broken", sweep.parent / "slow"]).records()
    assert (first["run"], second["run"]) == ("slow", "broken")
    assert (second["status"], second["label"]) == ("damaged", None)
    assert second["reason"].startswith("record.json")


def test_csv_and_json_hold_the_table(sweep):
    table = tabulate([sweep])
    read = list(csv.DictReader(table.csv().splitlines()))
    assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in table.records()]
    assert json.loads(table.json()) == table.records()


def test_the_frame_and_parquet_hold_the_table(sweep, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = results(sweep, sweep.parent / "slow")
    table = tabulate([sweep, sweep.parent / "slow"])
    assert tuple(frame.columns) == table.columns
    for name, values in zip(table.columns, zip(*table.rows, strict=True), strict=True):
        assert [None if pandas.isna(v) else v for v in frame[name]] == list(values), name
    means = frame[frame.status == "done"].groupby("label").test_after.mean()
    assert means["original"] == pytest.approx(statistics.mean(r["test_after"] for r in table.records()[:2]))
    pytest.importorskip("pyarrow")
    file = tmp_path / "all.parquet"
    ran = CliRunner().invoke(
        cli,
        ["results", str(sweep), str(sweep.parent / "slow"), "--parquet", "--out", str(file)],
        catch_exceptions=False,
    )
    assert ran.exit_code == 0
    pandas.testing.assert_frame_equal(pandas.read_parquet(file), frame)


def test_the_code_of_the_guide_runs(sweep, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas")
    guide = (Path(__file__).parent.parent / "docs" / "results.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sweep").symlink_to(sweep)
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", guide, re.S)[0], {})
    printed = capsys.readouterr().out
    assert "dnat-full 0.5" in printed
    for name in tabulate([sweep]).columns:
        assert f"`{name}`" in guide


def test_metrics_that_do_not_count_have_columns_too(sweep, tmp_path):
    shutil.copytree(sweep.parent / "slow", tmp_path / "other")
    record = truth(tmp_path / "other")
    record["metrics"] = {"mae": "min", "r2": "max"}
    record["results"] |= {"test_mae": 0.5, "test_mae_before": 2.0, "test_r2": 0.25, "test_r2_before": -1.0}
    (tmp_path / "other" / "record.json").write_text(json.dumps(unsealed(record)))
    (row,) = tabulate([tmp_path / "other"]).records()
    assert (row["metric"], row["test_before"], row["test_after"]) == ("mae", 2.0, 0.5)
    assert (row["test_r2_before"], row["test_r2"]) == (-1.0, 0.25)


def test_columns_of_texts_and_numbers_become_texts():
    assert _alike([0.5, None, "5ms"]) == ["0.5", None, "5ms"]
    assert _alike([1, 0.5, None]) == [1, 0.5, None]
    assert _alike([True, 1]) == ["True", "1"]


def test_missing_libraries_are_said(sweep, tmp_path, monkeypatch):
    for library in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"needs pandas: pip install 'dnat\[tables\]'"):
        results(sweep)
    ran = CliRunner().invoke(cli, ["results", str(sweep), "--parquet", "--out", str(tmp_path / "x.parquet")])
    assert re.search(r"needs pyarrow: pip install 'dnat\[tables\]'", str(ran.exception))
    assert not (tmp_path / "x.parquet").exists()
    for form in ("--csv", "--json", "--latex"):
        assert CliRunner().invoke(cli, ["results", str(sweep), form]).exit_code == 0


def test_a_parquet_file_is_not_printed(sweep):
    ran = CliRunner().invoke(cli, ["results", str(sweep), "--parquet"])
    assert "say where it goes (--out FILE)" in str(ran.exception)


def cells_of(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))]


def test_the_latex_table_has_means_deviations_and_tests(sweep):
    text = latex(gather([sweep]))
    lines = text.splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    assert r"\label{tab:digits}" in lines
    head, *rows = [cells_of(line) for line in lines if line.endswith(r" \\")]
    assert len({len(row) for row in (head, *rows)}) == 1
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert len(columns) == len(head)
    accuracy = {}
    for method in ("original", "dnat"):
        folders = [
            p.parent for p in sorted(sweep.glob("*/record.json")) if truth(p.parent)["job"]["method"] == method
        ]
        accuracy[method] = [100 * truth(folder)["results"]["test_accuracy"] for folder in folders]
    for row, (method, values) in zip(rows, accuracy.items(), strict=True):
        assert row[1] == {"original": "original", "dnat": "dnat-full 0.5"}[method]
        assert row[head.index("n")] == "2"
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        assert row[head.index(r"accuracy, \%")] == rf"{mean:.2f} $\pm$ {deviation:.2f}"
    pairs = [b - a for a, b in zip(*accuracy.values(), strict=True)]
    assert rows[1][head.index("difference")].replace("$", "").startswith(f"{statistics.mean(pairs):+z.2f}")
    flipped = [abs(a * pairs[0] + b * pairs[1]) for a in (1, -1) for b in (1, -1)]
    p = sum(other >= abs(sum(pairs)) - 1e-9 for other in flipped) / 4  # two seeds can show nothing: "?"
    assert rows[1][head.index("p (Holm)")] == f"{p:.3g} ?"


EVIL = r"50 % of a_b & {c} #1 \input{x} ~ ^ $y$ | <i>"


def test_settings_tell_methods_of_the_latex_table_apart(sweep, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sweep / "resnet8-dnat-full-0.5-seed0", other)
    record = truth(other)
    record["job"]["lr"] = 0.5
    record["results"]["test_accuracy"] = 0.25
    (other / "record.json").write_text(json.dumps(unsealed(record)))
    words = ["results", str(sweep), str(other), "--by", "lr"]
    done = CliRunner().invoke(cli, [*words, "--latex"], catch_exceptions=False)
    rows = [cells_of(line) for line in done.stdout.splitlines() if "dnat-full" in line]
    rate = truth(sweep / "resnet8-dnat-full-0.5-seed0")["job"]["lr"]
    assert [row[1] for row in rows] == [f"dnat-full 0.5 lr={rate}", "dnat-full 0.5 lr=0.5"]
    assert [row[2:4] for row in rows][1] == ["1", "25.00"]
    assert "--by is for --latex" in str(CliRunner().invoke(cli, words).exception)
    assert "--by lr makes a row of each" in str(CliRunner().invoke(cli, [*words[:-2], "--latex"]).exception)


def test_text_for_latex_is_text():
    told = escaped(EVIL)
    back = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textbar{}": "|",
        "$<$": "<",
        "$>$": ">",
    }
    pattern = "|".join([*map(re.escape, back), r"\\[&%$#_{}]"])
    assert re.sub(pattern, lambda m: back.get(m[0], m[0][1:]), told) == EVIL
    assert not re.search(
        r"[&%$#_{}~^\\|<>]", re.sub(pattern, "", told)
    )  # nothing that LaTeX would take as its own


def test_the_command_prints_or_writes(sweep, tmp_path):
    def ran(*words):
        done = CliRunner().invoke(cli, ["results", str(sweep), *words], catch_exceptions=False)
        assert done.exit_code == 0
        return done

    table = tabulate([sweep])
    assert ran().stdout == ran("--csv").stdout == table.csv()
    assert ran("--json").stdout == table.json()
    written = ran("--latex", "--out", str(tmp_path / "new" / "table.tex"))
    assert written.stdout == ""
    assert (tmp_path / "new" / "table.tex").read_text() == latex(gather([sweep]))
    assert "is not in the table: interrupted" in written.stderr
    lost = CliRunner().invoke(cli, ["results", str(tmp_path / "nothing")])
    assert "neither a run directory" in str(lost.exception)
