import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import dnat
from dnat.edges import Tally
from dnat.lab import cli as module
from dnat.lab.cli import cli, exit_code, output
from dnat.lab.cli.group import MODULES
from dnat.lab.terminal.tables import changes_table
from dnat.lab.terminal.tracker import TerminalTracker

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--network", "resnet8", "--set", "network.width=4", "--set", "threads=1", "--train-limit", "200"]
QUICK = [*TINY, "--test-limit", "50", "--epochs", "2", "--architecture-epochs", "1", "--set", "lr_theta=1.0"]


def run(*arguments, folder, **environment):
    """The real command in a process of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"DNAT_DATA": ""} | environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("cli")
    result = run("transform", *QUICK, "--seed", 1, "--out", "runs/one", folder=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_writes_what_it_says(finished):
    folder, result = finished
    files = {p.name for p in (folder / "runs" / "one").iterdir()}
    assert files == {
        ".lock",
        "architecture.json",
        "architecture.png",
        "architecture.svg",
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "network.safetensors",
        "predictions.safetensors",
        "record.json",
        "status.json",
    }
    assert "test accuracy  " in result.stdout
    assert len(re.findall(r"^ +\d/2 ", result.stdout, re.M)) == 2
    assert "\x1b" not in result.stdout + result.stderr  # plain lines where nobody watches
    record = json.loads((folder / "runs" / "one" / "record.json").read_text())
    accuracy = record["results"]["test_accuracy"]
    assert f"{accuracy:.2%}" in result.stdout


def test_the_same_command_again_is_done(finished):
    folder, _ = finished
    before = (folder / "runs" / "one" / "record.json").read_bytes()
    result = run("transform", *QUICK, "--seed", 1, "--out", "runs/one", folder=folder)
    assert result.returncode == 0
    assert "is done already" in result.stdout
    assert (folder / "runs" / "one" / "record.json").read_bytes() == before


def test_the_same_seed_gives_the_same_results_in_another_process(finished):
    folder, _ = finished
    assert run("transform", *QUICK, "--seed", 1, "--out", "runs/two", folder=folder).returncode == 0
    one, two = (json.loads((folder / "runs" / n / "record.json").read_text())["results"] for n in ("one", "two"))
    assert one == two


def test_evaluate_gives_the_recorded_accuracy(finished):
    folder, _ = finished
    result = run("evaluate", "runs/one", folder=folder)
    results = json.loads((folder / "runs" / "one" / "record.json").read_text())["results"]
    assert (
        f"test accuracy {results['test_accuracy']:.2%}, loss {results['test_loss']:.4f} on 50 images"
        in result.stdout
    )


def test_draw_gives_the_same_picture(finished):
    folder, _ = finished
    picture = folder / "runs" / "one" / "architecture.svg"
    before = picture.read_bytes()
    picture.unlink()
    assert run("draw", "runs/one", "--format", "svg", folder=folder).returncode == 0
    assert picture.read_bytes() == before


def test_another_configuration_in_the_same_place_is_refused(finished):
    folder, _ = finished
    result = run("transform", *QUICK, "--seed", 2, "--out", "runs/one", folder=folder)
    assert result.returncode == 2
    assert "seed 1 (there) / 2 (now)" in result.stderr


@pytest.mark.slow  # test_torture has shorter ones
def test_killed_at_any_moment_and_run_again_gives_the_same_results(finished):
    folder, _ = finished
    long = [*TINY, "--epochs", "20", "--architecture-epochs", "10", "--set", "lr_theta=0.2", "--seed", "3"]
    assert run("transform", *long, "--out", "runs/whole", folder=folder).returncode == 0
    generator, kills = random.Random(0), 0
    command = [sys.executable, str(ROOT / "cli.py"), "transform", *long, "--out", "runs/killed"]
    while not (folder / "runs" / "killed" / "record.json").exists():
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        # Some epochs of this start are seen first: on a busy machine the start itself takes longer than any wait.
        seen = 0 if kills == 0 else generator.randrange(6, 12)
        for _ in zip(range(seen), (line for line in process.stdout if "/20 " in line), strict=False):
            pass
        try:
            process.wait(timeout=generator.random() / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        process.stdout.close()
        assert kills < 40
    whole, killed = (json.loads((folder / "runs" / n / "record.json").read_text()) for n in ("whole", "killed"))
    assert kills > 0
    assert whole["results"] == killed["results"]
    rows = [json.loads(line) for line in (folder / "runs" / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 21))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75(finished, number):
    folder, _ = finished
    name = f"runs/signal-{number.name}"
    long = [*TINY, "--epochs", "300", "--seed", "4", "--out", name]
    command = [sys.executable, str(ROOT / "cli.py"), "transform", *long]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any("train loss" in line for line in process.stdout)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command goes on with it" in errors
    assert json.loads((folder / name / "status.json").read_text())["state"] == "interrupted"
    assert list((folder / name).glob("checkpoint-*.ckpt"))
    if number == signal.SIGINT:
        return
    locked = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = "".join(itertools.takewhile(lambda line: "train loss" not in line, locked.stdout))
    assert re.search(
        r"goes on after epoch [0-9]+ \(architecture stage\)|goes on after epoch [0-9]+ \(network", told
    )
    second = run("resume", name, folder=folder)
    assert second.returncode == 73
    assert f"in use by pid {locked.pid}" in second.stderr
    locked.kill()
    locked.communicate()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["transform", "--network", "resent8"], 2, "unknown network 'resent8'; did you mean 'resnet8'?"),
        (["transform"], 2, "no network given: add --network NAME"),
        (["transform", *TINY, "--data", "digit"], 2, "unknown data set 'digit'; did you mean 'digits'?"),
        (["transform", *TINY, "--data", "cifar10"], 65, "data_batch_1 cannot be read"),
        (["transform", *TINY, "--epochs", "0"], 2, "epochs must be at least 1, not 0"),
        (["transform", *TINY, "--batch-size", "500"], 2, "batch_size 500 is larger than the 200 training images"),
        (["transform", *TINY, "--set", "lrr=1"], 2, "unknown setting 'lrr'; did you mean 'lr'?"),
        (["transform", *TINY, "--set", "lr=fast"], 2, "lr must be a number, not the text 'fast'"),
        (["transform", *TINY, "--set", "lr"], 2, "--set takes key=value, not 'lr'"),
        (
            ["transform", *TINY, "--set", "network.wdith=2"],
            2,
            "unknown option of resnet8 'wdith'; did you mean 'width'?",
        ),
        (["transform", *TINY, "--seed", "-1"], 2, "seed must be an integer from 0"),
        (["transform", *TINY, "--preset", "papr"], 2, "preset must be one of paper, improved"),
        (["transform", *TINY, "--config", "missing.toml"], 2, "missing.toml: cannot be read"),
        (["transform", *TINY, "--out", "runs/a b"], 2, "'a b' cannot name a run"),
        (
            ["transform", *QUICK, "--set", "lr=1e30", "--set", "grad_clip=0", "--out", "runs/x"],
            65,
            "not finite any more",
        ),
        (["transform", "--epoch", "3"], 2, "Did you mean"),
        (["trasform"], 2, "unknown command 'trasform'; did you mean 'transform'?"),
        (["resume", "runs/nothing"], 2, "is not a run directory"),
        (["evaluate", "runs/nothing"], 2, "is not a run directory"),
        (["edges", "--network", "torchvision:resnet81"], 2, "did you mean 'resnet18'"),
        (["transform", "--network", "json:dumps"], 2, "network 'json:dumps' is refused"),
        (["transform", "--network", "os:nothing"], 2, "'os:nothing' is refused"),
    ],
)
def test_mistakes_get_one_clear_line_and_leave_nothing(arguments, code, words, tmp_path, monkeypatch, capsys):
    """In this process: a start of its own for each would take most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAT_DATA", "")
    monkeypatch.setattr(sys, "argv", ["dnat", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        module.main()
    errors = capsys.readouterr().err
    assert ended.value.code == code, errors
    assert words in errors
    assert "Traceback" not in errors
    if "runs/x" not in arguments:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: dnat.build("nothing"), 2),
        (lambda: torch.zeros(2).view(3), 1),
        (lambda: json.loads("{"), 1),  # a ValueError, but none of ours
    ],
)
def test_an_error_of_ours_is_told_from_one_of_the_users(call, code):
    with pytest.raises((ValueError, RuntimeError)) as error:
        call()
    assert exit_code(error.value) == code


def test_a_file_then_set_then_flags(tmp_path):
    (tmp_path / "job.toml").write_text(
        'network = "resnet8"\nlr = 0.1\nseed = 5\nepochs = 7\n[network_options]\nwidth = 4\n'
    )
    job = module.make_job(str(tmp_path / "job.toml"), ("lr=0.2", "seed=6", "network.skips=true"), {"seed": 7})
    assert (job.config.training.lr, job.config.seed, job.config.training.epochs) == (0.2, 7, 7)
    assert job.network_options == {"width": 4, "skips": True}


def test_a_saved_configuration_is_a_configuration_file(finished):
    from dnat.records import read_job

    folder, _ = finished
    assert module.make_job(str(folder / "runs" / "one" / "config.toml"), (), {}) == read_job(
        folder / "runs" / "one"
    )


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(name):
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert cli.commands[name].help
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


def test_each_command_is_imported_from_where_it_stands():
    where = {name: command.callback.__module__.rpartition(".")[2] for name, command in cli.commands.items()}
    assert where == MODULES


@pytest.mark.parametrize("command", ["networks", "datasets"])
def test_what_there_is_is_listed_without_what_other_commands_need(command):
    code = f"import sys; from dnat.lab.cli.group import cli; cli.main(['{command}'], standalone_mode=False); "
    code += "print(*({'torch', 'pydantic', 'numpy', 'scipy'} & {*sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert "resnet20" in done.stdout or "digits" in done.stdout


def test_help_does_not_import_torch():
    code = "import sys; from dnat.lab.cli import cli; cli.main(['--help'], standalone_mode=False); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_lists():
    for arguments, words in (
        (["networks"], ["resnet20", "269,722", "40,551,040"]),
        (["datasets"], ["digits", "cifar10", "50,000"]),
        (["edges", "--network", "resnet8"], ["layer1.0.conv2>layer1.0.bn2", "identity, none"]),
        (
            ["edges", "--network", "resnet8", "--space", "nat++"],
            ["others 2, identity, none", "others 1: sep_conv_3x3, dil_conv_3x3, conv_1x1\n"],
        ),
        (
            ["edges", "--network", "resnet8", "--space", "dnat,width"],
            ["7 edges (3 of them widths)", "layer1.0.conv1:width", "7/8 to 1/8 (14 to 2)"],
        ),
    ):
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        for word in words:
            assert word in result.output


def test_on_a_terminal_there_are_bars(tmp_path):
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, str(ROOT / "cli.py"), "transform", *QUICK, "--out", "runs/terminal"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=child, stderr=child, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    )
    os.close(child)
    shown, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert process.wait() == 0
    text = shown.decode()
    assert "steps/s" in text
    assert "test accuracy  " in text


@pytest.mark.slow
def test_a_trained_network_is_made_smaller_within_a_budget(finished):
    """The second job of users: from a file of weights to a file that needs no dnat."""
    folder, _ = finished
    result = run("transform", *QUICK, "--method", "original", "--seed", 5, "--out", "runs/given", folder=folder)
    assert result.returncode == 0, result.stderr
    smaller = [*QUICK, "--weights", "runs/given/network.safetensors", "--budget", "0.6", "--out", "runs/smaller"]
    result = run("transform", *smaller, folder=folder)
    assert result.returncode == 0, result.stderr
    record = json.loads((folder / "runs" / "smaller" / "record.json").read_text())
    given = json.loads((folder / "runs" / "given" / "record.json").read_text())["results"]
    results = record["results"]
    assert results["cost_after"]["madds"] <= 0.6 * results["cost_before"]["madds"]
    assert record["job"]["preset"] == "fine-tune"
    assert record["job"]["distillation"] == 0.5
    assert results["test_accuracy_before"] == given["test_accuracy"]
    (row,) = (line.split() for line in result.stdout.splitlines() if line.startswith("test accuracy  "))
    assert row[2:4] == [f"{results[f'test_accuracy{when}']:.2%}" for when in ("_before", "")]
    assert "before: the network as it was given" in result.stdout
    assert record["latency"]["before"]["seconds"] > 0

    result = run("export", "runs/smaller", "--to", "py", "--out", "small.py", folder=folder)
    assert result.returncode == 0, result.stderr
    assert "read again without dnat; largest difference" in result.stdout
    code = "import small, torch; n = small.load().eval(); print(n(torch.zeros(1, 3, 32, 32)).shape)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.strip() == "torch.Size([1, 10])", loaded.stderr
    assert "dnat" not in (folder / "small.py").read_text()
    result = run("export", "runs/smaller", "--to", "onyx", folder=folder)
    assert result.returncode == 2
    assert "unknown form 'onyx'; did you mean 'onnx'" in result.stderr


def test_a_budget_out_of_reach_leaves_no_directory(finished):
    folder, _ = finished
    result = run("transform", *QUICK, "--budget", "1k", "--out", "runs/impossible", folder=folder)
    assert result.returncode == 2
    assert "the smallest reachable cost is" in result.stderr
    assert not (folder / "runs" / "impossible").exists()


def test_edges_are_measured_and_what_cannot_change_is_explained(monkeypatch):
    result = CliRunner().invoke(cli, ["edges", "--network", "resnet8", "--all", "--measure"], terminal_width=160)
    assert result.exit_code == 0, result.output
    assert "ms" in result.output
    assert "4 operations and blocks cannot change" in result.output
    assert "not none:" in result.output
    with pytest.raises(ValueError, match="has no operation that could be changed; --all tells why"):
        CliRunner().invoke(
            cli, ["edges", "--network", "test_cli:unchangeable", "--image-size", "8"], catch_exceptions=False
        )


def test_edges_of_the_larger_space_fit_the_page():
    """No key is cut, and no time is given where none is known."""
    arguments = ["edges", "--network", "resnet8", "--space", "nat++", "--measure"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "…" not in result.output
    lines = result.output.splitlines()
    assert next(line for line in lines if "conv1>bn1" in line).endswith(" -")
    assert any(line.endswith(" ms") for line in lines)


def test_a_width_that_cannot_shrink_says_why():
    arguments = ["edges", "--network", "test_cli:counting", "--image-size", "8", "--space", "dnat,width", "--all"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, terminal_width=160)
    assert "not narrower:" in result.output
    assert re.search("first:width .*other code counts", result.output)
    assert "a width is no operation" not in result.output


class Counting(torch.nn.Module):
    """Its code knows how many channels there are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        assert x.shape[1] == 8
        return self.second(x.relu()).mean((2, 3))


def counting():
    return Counting()


def test_what_a_run_did_is_counted_apart(capsys):
    """Of three operations one goes and one is replaced, of two widths one is narrower."""
    blank = {"gates": [0.0, 0.25, 0.5], "margin": -0.0, "saved": 7, "by": "theta"}
    edges = [
        {"key": "a", "kind": "unit", "operation": "conv_3x3", "choice": "identity"} | blank,
        {"key": "b", "kind": "unit", "operation": "conv_3x3", "choice": "conv_1x1"} | blank,
        {"key": "c", "kind": "unit", "operation": "conv_3x3", "choice": "original"} | blank,
        {"key": "d:width", "kind": "width", "operation": "3 x 64 channels", "choice": "6/8"} | blank,
        {"key": "e:width", "kind": "width", "operation": "16 channels", "choice": "original"} | blank,
    ]
    for edge, other in ((edges[1], "conv_1x1"), (edges[3], "6/8")):
        edge["others"] = [[other, 0.75]]
    screen = Console(width=140)
    screen.print(changes_table(edges))
    told = "1 of 3 operations removed, 1 replaced, 1 of 2 widths narrowed"
    shown = capsys.readouterr().out
    assert told in shown
    assert "2 x 64 channels (6/8)" in shown
    assert "-0.000" not in shown
    TerminalTracker(screen, 1).committed(Tally.of_reports(edges))
    assert capsys.readouterr().out == f"the choices are made: {told}\n"
    TerminalTracker(screen, 1).committed(Tally.of_reports(edges[:3]))
    assert capsys.readouterr().out == "the choices are made: 2 of 3 edges changed\n"


def unchangeable():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3))


def test_a_network_of_ones_own_is_found_where_one_stands(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1),\n"
        "                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    command = [
        str(Path(sys.executable).with_name("dnat")),
        "edges",
        "--network",
        "mine:make",
        "--image-size",
        "16",
    ]
    options = ["--set", "network.num_classes=3"]
    result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "identity" in result.stdout


def test_what_lasts_says_so_while_it_lasts(capsys):
    with output.told_if_slow("looking", seconds=0.0):
        deadline = time.monotonic() + 30
        while not (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == "note: looking; this takes long\n"
    with output.told_if_slow("looking", seconds=60.0):
        pass
    assert not any(isinstance(t, threading.Timer) and not t.finished.is_set() for t in threading.enumerate())
