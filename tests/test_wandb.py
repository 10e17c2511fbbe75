import gc
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from click.testing import CliRunner
from wandb_server import KEY, WandbServer

from dnat.files import read_sealed
from dnat.lab.cli import cli
from dnat.lab.online import values
from dnat.lab.online.mirror import WandbTracker
from dnat.lab.online.report import build, create, upload_commands
from dnat.lab.runs import run
from dnat.lab.summary import markdown, summarize
from dnat.settings import Config, Job
from dnat.training import Interrupted

JOB = Job(
    network="resnet8",
    network_options={"width": 4},
    train_limit=100,
    test_limit=50,
    config=Config(epochs=2, architecture_epochs=1, batch_size=50, threads=1, lr_theta=5.0),
)
ROWS = ("epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
WANDB = Path(sys.executable).with_name("wandb")

# W&B drops its process without waiting for it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _nobody(tmp_path_factory):
    """No key and no setting of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("WANDB", "DNAT_SWEEP"))]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        yield
        gc.collect()  # what is dropped is dropped here, and not in another module


@pytest.fixture(autouse=True)
def _read_again():
    """W&B reads the environment once, and again after it was torn down."""
    yield
    import wandb

    wandb.teardown()


def stopped_run(directory, patch):
    """Begin JOB by the command, which gets SIGTERM when the first epoch is logged; returns what was said."""
    log = WandbTracker.log

    def log_and_stop(tracker, row):
        log(tracker, row)
        os.kill(os.getpid(), signal.SIGTERM)

    file = directory.with_suffix(".toml")
    file.write_text(JOB.to_toml())
    with patch.context() as inner:
        inner.setattr(WandbTracker, "log", log_and_stop)
        command = ["transform", "--config", str(file), "--out", str(directory), "--wandb", "offline"]
        result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, Interrupted), result.output
    return result.output


def resume(directory, mode):
    result = CliRunner().invoke(cli, ["resume", str(directory), "--wandb", mode], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def inspected(piece):
    """The records of a W&B run's file by kind, as `wandb leet inspect --json` reads them (without its Python)."""
    from wandb.util import get_core_path

    (file,) = piece.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", "--run-file", file, piece.parent]
    for _ in range(100):
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        kinds = {}
        for line in found.stdout.splitlines():
            record = json.loads(line)
            kinds.setdefault(record["type"], []).append(record.get(record["type"]))
        if "exit" in kinds:
            break
        time.sleep(0.1)  # W&B's process may still be writing when the run has ended
    return kinds


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def state(directory):
    return read_sealed(Path(directory) / "wandb.json")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without W&B."""
    directory = tmp_path_factory.mktemp("plain") / "run"
    return SimpleNamespace(directory=directory, record=run(JOB, directory))


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run that is tracked offline, stopped in its second epoch and resumed, with a key in the environment."""
    directory = tmp_path_factory.mktemp("offline") / "run-1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("DNAT_SWEEP", "runs/table-2")
        stopped = stopped_run(directory, patch)
        between = state(directory)
        output = resume(directory, "offline")
    pieces = sorted((directory / "wandb").glob("offline-run-*"))
    return SimpleNamespace(
        directory=directory,
        said=stopped + output,
        between=between,
        pieces=pieces,
        found=[inspected(piece) for piece in pieces],
    )


def test_the_bits_are_those_of_a_run_without(plain, offline):
    record = json.loads((offline.directory / "record.json").read_text())
    assert record["results"] == plain.record["results"]
    assert set(record["results"]["choices"].values()) != {"original"}  # so that the table has something to say


def test_a_resumed_run_goes_on_with_the_same_one(offline):
    assert len(offline.pieces) == 2
    assert offline.between == {"id": state(offline.directory)["id"], "rows": 1, "result": False}
    assert state(offline.directory) == offline.between | {"rows": 2, "result": True}
    for found in offline.found:
        (head,) = found["run"]
        assert head["run_id"] == offline.between["id"]
        assert head["run_group"] == "resnet8/dnat-full"
        assert head["job_type"] == "transform"
        assert head["project"] == "dnat"
        assert head["display_name"] == "run-1"
        assert head["tags"] == ["digits", "improved", "full", "dnat", "table-2"]
        config = head["config"]["update"]
        wanted = {k: v for k, v in JOB.flat().items() if k not in ("data_root", "streaming", "workers")}
        # JSON has no integers of its own, nor tuples.
        assert {k: v for k, v in config.items() if k != "_wandb"} == wanted | {"label": "dnat-full"}
    assert [found["exit"][0]["exit_code"] for found in offline.found] == [75, 0]
    assert "preempting" in offline.found[0]
    assert "preempting" not in offline.found[1]


def test_the_history_is_that_of_the_files(offline):
    history = [row["item"] for found in offline.found for row in found["history"]]
    assert [row["_step"] for row in history] == [1, 2, 3]
    wanted = rows(offline.directory)
    for logged, row in zip(history, wanted, strict=False):
        assert {k: logged[k] for k in ROWS} == pytest.approx({k: row[k] for k in ROWS}, abs=0)
    for column, gates in zip(wanted[0]["columns"], zip(*wanted[0]["gates"], strict=True), strict=True):
        bins, counts = (history[0][f"gates/{column}.{what}"] for what in ("bins", "values"))
        expected, edges = numpy.histogram(gates, bins=32)
        assert counts == expected.tolist()
        assert bins == pytest.approx(edges.tolist())
    axes = {m.get("name") or m["glob_name"]: m["step_metric"] for m in offline.found[0]["metric"]}
    assert axes["test_*"] == "epoch"
    assert axes["search/*"] == "search/epoch"


def test_shares_of_widths_make_no_sections():
    """A slash in a name begins a section of W&B's page."""
    edge = {"key": "a:width", "kind": "width", "operation": "16 channels", "choice": "5/8", "reason": ""}
    edge |= {"gates": [0.0, 0.0, 1.0], "others": [["5/8", 0.75]], "margin": 0.5, "madds": 9, "saved": 3}
    unit = edge | {"key": "b", "kind": "unit", "choice": "none", "others": []}
    logged = values.of_choices([edge, unit])
    assert logged["choices/a_width/5_of_8"] == 0.75
    assert all(name.count("/") in (0, 2) for name in logged)
    assert dict(zip(logged["choices"].columns, logged["choices"].data[0], strict=True))["choice"] == "5/8"
    gates = values.of_row({"epoch": 1, "columns": ["original", "5/8"], "gates": [[0.0, 1.0]]}, "")
    assert set(gates) == {"epoch", "gates/original", "gates/5_of_8"}
    cost, accuracy = {"params": 1, "madds": 1}, {"test_accuracy": 0.5, "test_loss": 1.0, "dead": False}
    results = accuracy | dict.fromkeys(("test_accuracy_before", "train_accuracy", "train_loss"), 0.5)
    results |= {"cost_before": cost, "cost_after": cost}
    record = {"results": results, "latency": {}, "seconds": {}}
    found = values.of_result(record, [edge, unit])
    assert {k: v for k, v in found.items() if k.startswith(("edges", "widths"))} == {
        "edges": 2,
        "edges_changed": 2,
        "widths": 1,
        "widths_narrowed": 1,
    }
    assert "widths" not in values.of_result(record, [unit])


def test_the_result_the_pictures_and_the_table(offline):
    record = json.loads((offline.directory / "record.json").read_text())
    edges = json.loads((offline.directory / "architecture.json").read_text())["commitment"]["edges"]
    summary = {}
    for update in offline.found[1]["summary"]:
        summary |= update["update"]
    results = record["results"]
    assert summary["test_accuracy"] == results["test_accuracy"]
    assert summary["dead"] is False
    for name in ("params", "madds"):
        assert summary[name] == results["cost_after"][name]
        assert summary[f"{name}_before"] == results["cost_before"][name]
    assert summary["latency_after"] == record["latency"]["after"]["seconds"]
    assert summary["seconds_network"] == record["seconds"]["network"]
    changed = [e for e in edges if e["choice"] != "original"]
    assert (summary["edges"], summary["edges_changed"]) == (len(edges), len(changed))
    assert summary["choices/layer1_0_conv1_layer1_0_bn1/identity"] == edges[0]["gates"][1]
    files = offline.pieces[1] / "files"
    picture = files / summary["architecture.path"]
    assert picture.read_bytes() == (offline.directory / "architecture.png").read_bytes()
    table = json.loads((files / summary["choices.path"]).read_text())
    for row, edge in zip(table["data"], edges, strict=True):
        shown = dict(zip(table["columns"], row, strict=True))
        assert (shown["edge"], shown["choice"], shown["MAdds saved"]) == (
            edge["key"],
            edge["choice"],
            edge["saved"],
        )
        assert [shown[c] for c in ("none", "identity", "original")] == edge["gates"]
        assert shown["margin"] == edge["margin"]


def test_nothing_private_is_written_or_said(offline):
    host = os.uname().nodename if hasattr(os, "uname") else None
    assert KEY not in offline.said
    read = 0
    for path in offline.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            read += 1
    assert read > 15
    for found in offline.found:
        (head,) = found["run"]
        text = json.dumps(head)
        assert "host" not in head or head["host"] != host
        for private in (str(Path.home()), str(offline.directory), sys.executable, os.getcwd()):
            assert private not in text
    written = {
        path.relative_to(piece / "files").parts[0]
        for piece in offline.pieces
        for path in (piece / "files").rglob("*")
    }
    assert written <= {"media"}  # no metadata, requirements, code, git diff or output


def test_what_was_tracked_offline_is_uploaded_by_the_command_that_is_printed(offline, tmp_path):
    directory = tmp_path / "it's a run"
    shutil.copytree(offline.directory, directory, symlinks=True)
    printed = CliRunner().invoke(cli, ["report", str(tmp_path), str(directory), "--wandb"], catch_exceptions=False)
    (command,) = printed.stdout.splitlines()
    with WandbServer() as server:
        env = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_ENTITY": "me"}
        env["PATH"] = f"{WANDB.parent}{os.pathsep}{env['PATH']}"
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        name = state(directory)["id"]
        history = server.history(name)
        assert [row["_step"] for row in history] == [1, 2, 3]
        assert [row["test_loss"] for row in history[:2]] == [row["test_loss"] for row in rows(directory)]
        assert server.ended[name] == 0
        (summary,) = server.lines[name]["wandb-summary.json"]
        record = json.loads((directory / "record.json").read_text())
        assert summary["madds"] == record["results"]["cost_after"]["madds"]
        bucket = server.sent("UpsertBucket")[0]
        assert (bucket["groupName"], bucket["jobType"]) == ("resnet8/dnat-full", "transform")
        assert json.loads(bucket["config"])["label"]["value"] == "dnat-full"
        assert bucket["tags"][-1] == "table-2"
        assert (directory / "architecture.png").read_bytes() in server.files.values()
        assert any(path.startswith("media/table/choices") for path in server.files)
        (artifact,) = server.sent("CreateArtifact")
        assert artifact["input"]["artifactCollectionName"].endswith("choices")
    assert upload_commands([directory]) == []
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no run"):
        upload_commands([tmp_path / "nothing"])


def test_a_finished_run_is_mirrored_later_and_goes_on_online(plain, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(plain.directory, directory)
    before = states()
    with WandbServer() as server:
        for name, value in {"API_KEY": KEY, "BASE_URL": server.url, "ENTITY": "me"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("WANDB_PROJECT", "others")
        output = resume(directory, "online")
        run_id = state(directory)["id"]
        assert f"{server.url}/me/others/runs/{run_id}" in output
        assert [row["_step"] for row in server.history(run_id)] == [1, 2, 3]
        assert server.ended == {run_id: 0}
        assert server.posted == []  # nothing but the run itself
        assert {name for name in server.files if not name.startswith("media/")} <= {
            "config.yaml",
            "wandb-summary.json",
        }
        sent = json.dumps([server.operations, server.lines]) + server.files["config.yaml"].decode()
        host = re.escape(os.uname().nodename)  # on its own: a short name may be a part of anything
        for private in (KEY, rf"(?<!\w){host}(?!\w)", *map(re.escape, (sys.executable, os.getcwd(), "pytest"))):
            assert not re.search(private, sent), private
        count = len(server.operations)
        assert "is done already" in resume(directory, "online")
        assert len(server.operations) == count  # W&B has it all
        # The server is told of a row that it lacks, at the step that follows.
        with open(directory / "metrics.jsonl", "a") as file:
            file.write(json.dumps(rows(directory)[-1] | {"epoch": 3}) + "\n")
        (directory / "wandb.json").write_text(json.dumps(state(directory) | {"result": False}))
        resume(directory, "online")
        assert [row["epoch"] for row in server.history(run_id) if "test_loss" in row] == [1, 2, 3]
        assert server.sent("RunResumeStatus")[-1]["name"] == run_id
    assert states() == before
    assert KEY not in output


def states():
    """What a tracker must not touch: random numbers and threads."""
    legacy = numpy.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), legacy, torch.get_rng_state().tolist(), torch.get_num_threads()


def children():
    """The processes that W&B has started for this one."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "wandb-core" in line]


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for W&B's process as Linux shows it")
def test_the_run_goes_on_when_wandb_dies(plain, tmp_path):
    killed = []

    def kill(progress):
        if progress.step == 3:
            killed.extend(children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return False

    notes = []
    tracker = WandbTracker(JOB, tmp_path / "run", "offline", label="dnat-full", notify=notes.append)
    record = run(JOB, tmp_path / "run", tracker=tracker, stop=kill)
    tracker.result(record)
    tracker.finish()
    assert killed
    assert record["results"] == plain.record["results"]
    assert len(notes) == 2  # where it is, and that it is no more
    assert "the run goes on without it" in notes[1]
    assert not state(tmp_path / "run")["result"]
    resume(tmp_path / "run", "offline")
    assert state(tmp_path / "run")["result"]


@pytest.mark.parametrize("lacking", ["a key", "a server"])
def test_without_a_server_the_run_is_tracked_offline(lacking, plain, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(plain.directory, directory)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    if lacking == "a server":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    output = resume(directory, "online")
    assert time.monotonic() - started < 15
    assert output.count("W&B cannot be reached") == 1
    assert output.count("tracked offline") == 1
    assert KEY not in output
    assert state(directory)["result"]
    assert len(list((directory / "wandb").glob("offline-run-*"))) == 1


def test_a_server_that_falls_silent_does_not_hold_the_run(plain, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    shutil.copytree(plain.directory, directory)
    notes = []
    server = WandbServer()
    with server:
        for name, value in {"API_KEY": KEY, "BASE_URL": server.url, "ENTITY": "me", "FINISH_TIMEOUT": "1"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        tracker = WandbTracker(JOB, directory, "online", label="dnat-full", notify=notes.append)
        tracker._try(tracker._begin)
        assert notes[0].startswith(f"W&B: {server.url}")
    started = time.monotonic()
    tracker.log({})
    tracker.finish()
    assert time.monotonic() - started < 10
    assert len(notes) == 2
    assert "TimeoutError" in notes[1]
    assert not state(directory)["result"]


def test_any_error_is_told_once_and_a_second_ctrl_c_is_none(tmp_path, plain):
    directory = tmp_path / "run"
    shutil.copytree(plain.directory, directory)
    (directory / "wandb.json").write_text("broken")
    notes = []
    tracker = WandbTracker(JOB, directory, "offline", label="dnat-full", notify=notes.append)
    tracker.log({})
    tracker.result(plain.record)
    tracker.finish()
    assert len(notes) == 2
    assert "wandb.json cannot be read" in notes[0]
    assert "a new W&B run begun" in notes[0]
    assert state(directory)["result"]

    class Odd(BaseException):
        pass

    def fail(error):
        raise error

    tracker = WandbTracker(JOB, directory, "offline", label="dnat-full", notify=notes.append)
    with pytest.raises(KeyboardInterrupt):
        tracker._try(lambda: fail(KeyboardInterrupt()))
    before = len(notes)
    tracker._try(lambda: fail(Odd(f"no {KEY}")))
    tracker._try(lambda: fail(Odd("again")))
    assert len(notes) == before + 1
    assert "Odd: no ...;" in notes[-1]


def test_searches_have_an_axis_of_their_own(tmp_path):
    """Rows of a search come before those of the training, at steps of their own; the run is one of a sweep."""
    directory = tmp_path / "table-3" / "run"
    directory.mkdir(parents=True)
    (tmp_path / "table-3" / "sweep.toml").touch()
    search = [{"epoch": n, "train_loss": 2.0 / n, "reward": 0.1 * n} for n in (1, 2)]
    training = [{"epoch": n, "train_loss": 1.0 / n} for n in (1, 2)]
    tracker = WandbTracker(JOB, directory, "offline", label="nat")
    for name, told, found in (("search", tracker.searched, search), ("metrics", tracker.log, training)):
        for row in found:
            with open(directory / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            told(row)
    tracker.finish()
    (piece,) = (directory / "wandb").glob("offline-run-*")
    found = inspected(piece)
    assert found["run"][0]["tags"][-1] == "table-3"
    history = [row["item"] for row in found["history"]]
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    assert [row.get("search/epoch") for row in history] == [1, 2, None, None]
    assert [row.get("epoch") for row in history] == [None, None, 1, 2]
    assert [row["search/reward"] for row in history[:2]] == [0.1, 0.2]
    assert [row["train_loss"] for row in history[2:]] == [1.0, 0.5]


@pytest.fixture
def compared(plain):
    """A summary of two methods, one of them with a name that has to be quoted."""
    other = json.loads(json.dumps(plain.record))
    other["job"] |= {"network": "mine:it's", "method": "original"}
    return summarize([plain.record, other])


def test_a_report_is_made_with_wandbs_own_client(compared, monkeypatch):
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        address = create(compared, markdown(compared), "dnat", "")
        assert address.startswith(f"{server.url}/me/dnat/reports/")
        (sent,) = server.sent("upsertView")
    assert (sent["entityName"], sent["projectName"]) == ("me", "dnat")
    blocks = json.loads(sent["spec"])["blocks"]
    (text,) = [b["content"] for b in blocks if b["type"] == "markdown-block"]
    assert text.startswith("## digits")
    grids = [b["metadata"] for b in blocks if b["type"] == "panel-grid"]
    sets = [s for grid in grids for s in grid["runSets"]]
    found = {s["name"]: {f["key"]["name"]: f["value"] for f in s["filters"]["filters"]} for s in sets}
    assert found == {
        "dnat-full": {"network": "resnet8", "data": "digits", "label": "dnat-full"},
        "original": {"network": "mine:it's", "data": "digits", "label": "original"},
    }
    assert {s["project"]["name"] for s in sets} == {"dnat"}
    panels = {p["viewType"]: p["config"] for p in grids[0]["panelBankSectionConfig"]["panels"]}
    assert (panels["Run History Line Plot"]["groupAgg"], panels["Run History Line Plot"]["groupArea"]) == (
        "mean",
        "stddev",
    )
    assert panels["Scatter Plot"]["xAxis"] == "summary:madds"
    assert panels["Bar Chart"]["groupBy"] == "label.value"
    assert {"Parallel Coordinates Plot", "Run Comparer", "Media Browser"} <= set(panels)


def test_a_report_without_what_it_needs(plain, compared, tmp_path, monkeypatch):
    assert len(build(compared, "text", "dnat", "").blocks) == 7
    files = ["--html", str(tmp_path / "page.html"), "--markdown", str(tmp_path / "text.md")]
    flags = ["--wandb-report", "--wandb-project", "p", "--wandb-entity", "e"]
    result = CliRunner().invoke(cli, ["report", str(plain.directory), *files, *flags])
    why = r"did not take the report: .*wandb login.* project 'p' and entity 'e'"
    assert isinstance(result.exception, ValueError)
    assert re.search(why, str(result.exception))
    assert (tmp_path / "page.html").exists()  # ours is there all the same
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ValueError, match=r"pip install 'dnat\[workspaces\]'"):
        build(compared, "text", "dnat", "me")


LIVE = os.environ.get("DNAT_WANDB_LIVE") == "1" and os.environ.get("WANDB_API_KEY")


@pytest.mark.skipif(not LIVE, reason="writes to your W&B account: set DNAT_WANDB_LIVE=1 and WANDB_API_KEY")
def test_a_real_server_takes_a_run(plain, tmp_path):
    """In a process of its own, with the key that the module hides from all other tests."""
    directory = tmp_path / "dnat-live-test"
    shutil.copytree(plain.directory, directory)
    env = os.environ | {"WANDB_API_KEY": LIVE, "WANDB_PROJECT": "dnat-live-test"}
    command = [
        sys.executable,
        "-c",
        "from dnat.lab.cli import main; main()",
        "resume",
        str(directory),
        "--wandb",
        "online",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tracked offline" not in done.stdout
    assert shlex.quote(state(directory)["id"]) in done.stdout
    assert state(directory)["result"]
