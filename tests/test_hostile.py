"""Files of somebody else: nothing of theirs is run unasked, read from elsewhere, waited for, or believed.

Each case calls the command in this process: it ends with a line that names the thing and one of the codes for what
is refused, or does its work; it never shows a traceback, and prints nothing that would control a terminal.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import sys
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dnat.checkpoints import MAGIC, CorruptError, unpack
from dnat.files import MOST_TEXT, SEAL, parse_json, sealed, write_json
from dnat.lab import cli as module
from dnat.lab.cli import trust as asking
from dnat.lab.consent import Code, code_in, code_in_sweep, folder, is_trusted, trust
from dnat.lab.formatting import line, plain
from dnat.lab.runs import run
from dnat.lab.sweep import Sweep
from dnat.lab.sweep.trials import progress
from dnat.naming import SOURCES
from dnat.networks import FAMILIES
from dnat.settings import Config, Job
from dnat.training import Interrupted

pytestmark = pytest.mark.filterwarnings("ignore:lr_theta")
SHORT = {"epochs": 3, "architecture_epochs": 2, "batch_size": 30, "threads": 1, "latency_batch": 2}
TINY = {"network_options": {"width": 2}, "train_limit": 60, "test_limit": 40, "image_size": 8}
QUICK = [
    "--data",
    "digits",
    "--image-size",
    "8",
    "--train-limit",
    "60",
    "--test-limit",
    "40",
    "--batch-size",
    "30",
    "--epochs",
    "1",
]
QUICK += ["--method", "original", "--set", "threads=1"]
EVIL = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
def net(**options):
    import dnat
    return dnat.build("resnet8", width=2, num_classes=10)
data = task = net
"""
BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ESC = "a\x1b[31mred\x1b]52;c;ZWNobw==\x07\x9b1m\u202eb"


def job(**options):
    return Job(network="resnet8", **TINY, config=Config(**SHORT), **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    run(job(), place / "done")
    with pytest.raises(Interrupted):
        run(job(), place / "part", stop=lambda progress: progress.step == 5)
    return place


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in; whatever waits for ever is ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAT_DATA", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path.parent / f"{tmp_path.name}-state"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def late(number, frame):
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def said(here, monkeypatch, capsys):
    """The command: its exit code, and all that it printed."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["dnat", *map(str, words)])
        code = 0
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert "Traceback" not in text, text
        assert "bug of dnat" not in text, text
        assert not BAD.search(text), text
        return code, text

    return command


@pytest.fixture
def done(made, here):
    return shutil.copytree(made / "done", here / "run")


@pytest.fixture
def part(made, here):
    return shutil.copytree(made / "part", here / "run")


@pytest.fixture
def evil(here):
    """The file that is there once a stranger's module was imported."""
    (here / "evil.py").write_text(EVIL)
    return here / "RAN"


def stranger(directory, **settings):
    """A run directory with a configuration alone."""
    directory.mkdir(parents=True, exist_ok=True)
    table = {"network": "resnet8"} | settings
    (directory / "config.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()))
    return directory


# --- code that a file names


KINDS = ("network", "data", "task")
READERS = {
    "resume": ("resume", "run"),
    "evaluate": ("evaluate", "run"),
    "predict": ("predict", "run", "x.png"),
    "export": ("export", "run", "--to", "py"),
    "quantize": ("export", "run", "--to", "safetensors", "--measure"),
    "transform": ("transform", "--config", "run/config.toml", "--out", "new"),
    "other seed": ("transform", "--config", "run/config.toml", "--seed", "7", "--out", "new"),
}


@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_code_that_a_file_names_is_not_run_unasked(kind, words, here, said, evil):
    stranger(here / "run", **{kind: "evil:net"})
    Image.new("RGB", (8, 8)).save("x.png")
    code, text = said(*words)
    assert code == 2
    assert f"{kind} evil:net" in text
    assert "--trust-code" in text
    assert str(here / "evil.py") in text
    assert "names code" in text
    assert not evil.exists()
    assert str(here) not in sys.path
    assert not (here / "new").exists()


SWEEPS = {
    "network": 'networks = ["evil:net"]',
    "second": 'networks = ["resnet8", "evil:net"]',
    "data": 'networks = ["resnet8"]\ndata = "evil:data"',
    "task": 'networks = ["resnet8"]\ntask = "evil:task"',
    "of network": 'networks = ["resnet8"]\n[network.resnet8]\ndata = "evil:data"',
    "of method": 'networks = ["resnet8"]\n[method.original]\ndata = "evil:data"',
    "variant": 'networks = ["resnet8"]\n[variant.mine]\nmethod = "dnat"\ndata = "evil:data"',
}


@pytest.mark.parametrize(
    "words", [("--out", "s"), ("--config", "s/sweep.toml", "--out", "t"), ("--out", "s", "--plan")]
)
@pytest.mark.parametrize("text", SWEEPS.values(), ids=SWEEPS)
def test_code_that_a_sweep_names_is_not_run_unasked(text, words, here, said, evil):
    (here / "s").mkdir()
    lists, _, rest = text.partition("\n")
    content = f'{lists}\nmethods = ["original"]\nseeds = [0]\n{rest}\n'
    if "threads" not in content:
        head, bracket, tables = content.partition("[network.") if "[network." in content else (content, "", "")
        content = f"threads = 1\n{head}{bracket}{tables}"
    (here / "s" / "sweep.toml").write_text(content)
    code, told = said("sweep", *words)
    assert code == 2
    assert "evil:" in told
    assert "--trust-code" in told
    assert not evil.exists()
    assert not (here / "t").exists()


@pytest.mark.parametrize("words", [("draw", "run"), ("report", "run"), ("results", "run"), ("compare", "run")])
def test_what_only_looks_at_a_run_imports_nothing(words, done, said, evil):
    config = done / "config.toml"
    config.write_text(config.read_text().replace('"resnet8"', '"evil:net"'))
    table = json.loads((done / "record.json").read_text())
    table["job"]["network"] = "evil:net"
    del table["files"]
    write_json(done / "record.json", sealed({k: v for k, v in table.items() if k != SEAL}))
    code, _ = said(*words)
    assert code in (0, 2, 65)
    assert not evil.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("settings", "lr"),
        ("networks", "resnet8"),
        ("datasets",),
        ("edges", "--network", "resnet8", "--image-size", "8"),
        ("report", "run"),
        ("evaluate", "run"),
        ("sweep", "--networks", "resnet8", "--methods", "original", "--seeds", "1", "--out", "s", "--plan"),
    ],
)
def test_where_no_code_is_named_no_module_is_looked_for_where_one_stands(words, done, here, said):
    """A folder of a stranger's may hold a torch.py, or a yaml.py."""
    assert said(*words)[0] == 0
    assert str(here) not in sys.path


# --- what may be named


FOREIGN = [
    "os:system",
    "os.path:join",
    "subprocess:getoutput",
    "runpy:run_path",
    "shutil:rmtree",
    "builtins:exec",
    "pickle:loads",
    "importlib:import_module",
    "ctypes:CDLL",
    "pty:spawn",
    "code:interact",
    "json:dumps",
    "socket:create_connection",
    "numpy:load",
    "scipy.io:loadmat",
    "wandb:init",
    "pip:main",
    "PIL.Image:open",
    "matplotlib.pyplot:show",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_network_can_be_is_refused_even_if_it_is_trusted(name, kind, here, said):
    stranger(here / "run", **{kind: name}, network_options={})
    before = {*sys.modules}
    code, text = said("resume", "run", "--trust-code")
    assert code == 2
    assert f"{kind} '{name}' is refused" in text
    assert name.partition(":")[0] in before or name.partition(":")[0] not in sys.modules


@pytest.mark.parametrize("name", ["os:system", "shutil:rmtree", "builtins:eval", "numpy:fromfile"])
@pytest.mark.parametrize(
    "words",
    [
        ("transform", "--network"),
        ("edges", "--network"),
        ("networks",),
        ("plan", "--network"),
        ("sweep", "--out", "s", "--methods", "original", "--seeds", "1", "--networks"),
    ],
)
def test_it_is_refused_where_it_is_typed_too(words, name, said, here):
    code, text = said(*words, name)
    assert code == 2
    assert f"network '{name}' is refused" in text
    assert not (here / "s").exists()


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("from os import *", "mine:system", "it is posix.system, no network"),
        ("from subprocess import getoutput as net", "mine:net", "it is subprocess.getoutput"),
        (
            "from functools import partial\nfrom os import system\nnet = partial(system, 'touch RAN')",
            "mine:net",
            "posix",
        ),
        ("net = exec", "mine:net", "it is builtins.exec"),
        ("import sys\nsys.exit(0)", "mine:net", "it calls sys.exit(0)"),
        ("import sys\ndef net(): sys.exit(0)", "mine:net", "it calls sys.exit(0)"),
        ("def net(: pass", "mine:net", "SyntaxError"),
        ("net = 7", "mine:net", "is not a function"),
        ("def net(): return 7", "mine:net", "must return a torch.nn.Module, not int"),
        ("", "mine:net", "unknown function of mine 'net'"),
        ("", "mine:" + "n" * 600, "more than 500"),
        ("", "mi ne:net", "is not the name of a module"),
        ("", "../mine:net", "is not the name of a module"),
        ("", "mine:a.b", "names no function"),
        ("", "nowhere_at_all:net", "No module named 'nowhere_at_all'"),
    ],
)
def test_what_the_users_own_module_may_give(source, name, words, here, said):
    (here / "mine.py").write_text(source)
    code, text = said("transform", "--network", name, *QUICK, "--out", "run")
    assert code == 2
    assert words in text
    assert not (here / "run").exists()
    assert not (here / "RAN").exists()


def test_the_sources_of_networks_that_need_no_code_are_those_that_there_are():
    assert {*FAMILIES, "torchvision", "timm"} == SOURCES


# --- consent


def test_what_was_typed_is_known_from_then_on_until_it_changes(here, said, evil):
    assert said("transform", "--network", "evil:net", *QUICK, "--out", "run")[0] == 0
    assert evil.exists()
    assert len(list(folder().iterdir())) == 1
    assert not list((here / "run").glob("*trust*"))  # what comes along with a directory says nothing
    for words in (("evaluate", "run"), ("resume", "run"), ("export", "run", "--to", "safetensors", "--no-verify")):
        assert said(*words)[0] == 0, words
    config = here / "run" / "config.toml"
    config.write_text(config.read_text().replace("evil:net", "evil:other"))
    code, text = said("resume", "run")
    assert (code, "evil:other" in text) == (2, True)
    text = config.read_text().replace("evil:other", "evil:net")
    config.write_text(text.replace("[network_options]\n", "[network_options]\npath = 'x'\n"))
    assert "with path='x'" in said("resume", "run")[1]  # other arguments are another call


def test_a_directory_that_was_moved_is_asked_about_and_trusted_by_the_flag(here, said, evil):
    assert said("transform", "--network", "evil:net", *QUICK, "--out", "run")[0] == 0
    (here / "run").rename("moved")
    assert said("evaluate", "moved")[0] == 2
    assert said("evaluate", "moved", "--trust-code")[0] == 0
    assert said("evaluate", "moved")[0] == 0


def test_where_a_yes_cannot_be_kept_work_goes_on(here, said, evil, monkeypatch):
    (here / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file"))
    code, text = said("transform", "--network", "evil:net", *QUICK, "--out", "run")
    assert code == 0
    assert "note: that this code may run could not be kept (Not a directory)" in text
    assert said("evaluate", "run")[0] == 2


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_on_a_terminal_it_is_asked(answer, code, here, said, evil, monkeypatch):
    stranger(here, network="evil:net", **{"image_size": 8, "train_limit": 60, "test_limit": 40, "batch_size": 30})
    asked = []

    def confirm(question, err):
        asked.append(question)
        return answer == "y\n"

    monkeypatch.setattr(asking.click, "confirm", confirm)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    words = ("transform", "--config", "config.toml", *QUICK[8:], "--out", "run")
    ended, text = said(*words)
    assert ended == code, text
    assert f"network evil:net\n    from {here / 'evil.py'}" in text
    assert asked == ["Run it?"]
    assert evil.exists() == (code == 0)
    if code == 0:  # the file is known from now on, as the directory is
        assert said(*words)[0] == 0
        assert len(asked) == 1


def test_a_sweep_hands_its_consent_on_to_its_trials(here, said, evil):
    words = ["--methods", "original", "--seeds", "1", "--set", "threads=1", "--out", "s", "--plan"]
    code, text = said("sweep", "--networks", "resnet8,evil:net", *words)
    assert code == 0
    plain_one, with_code = sorted(text.splitlines(), key=lambda command: "--trust-code" in command)
    assert "--trust-code" not in plain_one
    assert re.search(r"transform --config s/trials/evil-net\S+ --out \S+ --trust-code", with_code)
    assert not evil.exists()
    assert said("sweep", "--out", "s", "--plan")[0] == 0  # this user's own
    assert said("sweep", "--out", "s", "--networks", "resnet8,evil:net,evil:data", "--plan")[0] == 0
    toml = here / "s" / "sweep.toml"
    toml.write_text(toml.read_text().replace("evil:data", "evil:other"))
    assert "evil:other" in said("sweep", "--out", "s", "--plan")[1]


def test_a_yes_holds_for_one_place_one_name_and_its_arguments(here):
    code = Code("network", "mine:net", {"width": 2})
    trust(here / "a", [code])
    (here / "link").symlink_to(here / "a")
    assert is_trusted(here / "a", [code])
    assert is_trusted(here / "link", [code])
    assert not is_trusted(here / "b", [code])
    for other in (
        Code("network", "mine:net"),
        Code("network", "mine:nett", {"width": 2}),
        Code("data", "mine:net", {"width": 2}),
    ):
        assert not is_trusted(here / "a", [other])
        assert not is_trusted(here / "a", [code, other])
    assert is_trusted(here / "a", [])
    assert all(
        file.stat().st_mode & 0o077 == 0 or file.parent.stat().st_mode & 0o077 == 0 for file in folder().iterdir()
    )


def test_what_a_job_and_a_sweep_name():
    assert code_in({"network": "resnet8", "data": "digits"}) == ()
    assert code_in({"network": "timm:vit", "data": "a:b", "task": "c:d"}) == (
        Code("data", "a:b"),
        Code("task", "c:d"),
    )
    given = Sweep(
        networks=("resnet8", "a:b"),
        settings={"network_options": {"x": 1}},
        of_method={"dnat": {"network_options": {"x": 2}, "task": "e:f"}},
    )
    assert code_in_sweep(given) == (
        Code("network", "a:b", {"x": 1}),
        Code("network", "a:b", {"x": 2}),
        Code("task", "e:f"),
    )


# --- links, pipes, devices

OWN = [
    ".lock",
    "config.toml",
    "record.json",
    "status.json",
    "environment.json",
    "metrics.jsonl",
    "architecture.json",
    "architecture.svg",
    "architecture.png",
    "network.safetensors",
    "predictions.safetensors",
    "latency.json",
]
LOOKING = (("resume", "run"), ("evaluate", "run"), ("report", "run"), ("draw", "run"), ("compare", "run"))


def put(path, what, target):
    """A link to somebody's file, or a pipe, in place of a file."""
    path.unlink(missing_ok=True)
    if what == "link":
        path.symlink_to(target)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("name", OWN)
def test_nothing_is_read_or_written_through_what_stands_in_a_run(name, what, done, here, said):
    secret = here / "secret"
    secret.write_text("top-secret\n")
    put(done / name, what, secret)
    for words in LOOKING:
        code, text = said(*words)
        if what == "pipe" and name == "config.toml" and code == 65:
            assert "config.toml" in text
        assert code in (2, 65), (words, text)
        assert name in text, (words, text)
    assert secret.read_text() == "top-secret\n"
    assert not [p for p in here.glob("report.*") if "top-secret" in p.read_text()]
    assert os.path.lexists(done / name)


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "status.json", "checkpoint-000000005.ckpt", "mine"])
@pytest.mark.parametrize("words", [("resume", "run"), ("report", "run", "--html", "r.html")])
def test_an_unfinished_run_does_not_go_on_through_links(words, name, what, part, here, said):
    secret = here / "secret"
    secret.write_text("top-secret\n")
    put(part / name, what, secret)
    code, text = said(*words)
    assert code in (2, 65)
    assert name in text
    assert secret.read_text() == "top-secret\n"


@pytest.mark.parametrize("words", [("transform", "--network", "resnet8", *QUICK, "--out", "run")])
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_directory_with_no_more_than_a_lock_is_none_to_begin_in(what, words, here, said):
    (here / "run").mkdir()
    (here / "secret").write_text("top-secret\n")
    put(here / "run" / ".lock", what, here / "secret")
    code, text = said(*words)
    assert code == 65
    assert ".lock is" in text
    assert (here / "secret").read_text() == "top-secret\n"


OF_SWEEPS = ("sweep.toml", "trials.json", ".lock", ".stop", "trials", "logs", "logs/x.log", "trials/x.toml")


@pytest.mark.parametrize("words", [("sweep", "--out", "s"), ("report", "s"), ("results", "s")])
@pytest.mark.parametrize("name", OF_SWEEPS)
def test_nothing_is_read_or_written_through_what_stands_in_a_sweep(name, words, made, here, said):
    planned = ("sweep", "--networks", "resnet8", "--methods", "original", "--seeds", "1", "--out", "s", "--plan")
    assert said(*planned)[0] == 0
    shutil.copytree(made / "done", here / "s" / "resnet8-dnat-seed0")
    secret = here / ("secrets" if name in ("trials", "logs") else "secret")
    if name in ("trials", "logs"):
        shutil.move(here / "s" / name, secret)
    else:
        secret.write_text("top-secret\n")
        (here / "s" / name).unlink(missing_ok=True)
    (here / "s" / name).symlink_to(secret)
    code, text = said(*words)
    if words[0] == "sweep":
        assert code == 65
    # A report of the runs that are done tells what it could not read.
    assert code in (0, 65)
    assert name in text
    assert "top-secret" not in text + "".join(p.read_text() for p in here.glob("s/report.*"))
    assert secret.is_dir() or secret.read_text() == "top-secret\n"


@pytest.mark.parametrize("device", ["pipe", "/dev/zero", "folder"])
@pytest.mark.parametrize(
    "words",
    [
        ("transform", "--config", "IT", "--out", "run"),
        ("sweep", "--config", "IT", "--out", "s"),
        ("transform", "--network", "genotype:IT", *QUICK, "--out", "run"),
        ("networks", "genotype:IT"),
        ("draw", "IT.json"),
        ("transform", "--network", "resnet8", *QUICK, "--weights", "IT.pt", "--out", "run"),
        ("transform", "--network", "resnet8", *QUICK, "--weights", "IT.safetensors", "--out", "run"),
        ("transform", "--network", "resnet8", *QUICK, "--plan", "IT.json", "--out", "run"),
        ("plan", "--network", "resnet8", "--data", "digits", "--weights", "IT.pt"),
        ("transform", "--network", "resnet8", "--data", "cifar10", "--data-root", "root", "--out", "run"),
        ("transform", "--network", "resnet8", "--data", "folder", "--data-root", "IT.zip", "--out", "run"),
    ],
)
def test_what_is_no_regular_file_is_not_waited_for(words, device, here, said):
    (here / "root" / "cifar-10-batches-py").mkdir(parents=True)
    for name in ("IT", "IT.json", "IT.pt", "IT.safetensors", "IT.zip", "root/cifar-10-batches-py/data_batch_1"):
        if device == "pipe":
            os.mkfifo(name)
        elif device == "folder":
            (here / name).mkdir()
        else:
            (here / name).symlink_to(device)
    code, text = said(*words)
    assert code in (2, 65)
    assert any(name in text for name in ("IT", "data_batch_1", "/dev/zero"))
    assert not (here / "run").exists()


def test_pictures_that_are_pipes_are_named(done, here, said):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (here / "pictures" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8)).save(here / "pictures" / split / name / f"{i}.png")
    os.mkfifo("pictures/train/a/2.png")
    code, text = said(
        "transform", "--network", "resnet8", "--data", "folder", "--data-root", "pictures", "--image-size", "8"
    )
    assert code == 65
    assert "a/2.png cannot be read: it is no regular file" in text
    code, text = said("predict", "run", "pictures/train/a", "/dev/zero")
    assert code == 65
    assert "a/2.png cannot be read: it is no regular file" in text


# --- sizes and depths


def nodes(count, edges=1):
    edge = {"operation": "skip_connect", "input": 0}
    cell = {"nodes": [[edge] * edges for _ in range(count)], "concat": [2]}
    return json.dumps({"normal": cell, "reduce": cell})


GENOTYPES = {
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep tables": ('{"normal":' * 200 + "1" + "}" * 200, "nested too deeply"),
    "many nodes": (nodes(3000), "3000 nodes, more than 100"),
    "many edges": (nodes(1, 10_000), "10000 edges, more than 100"),
    "long integer": ('{"normal": ' + "9" * 5000 + "}", "more than 64 bits"),
    "not a number": ('{"normal": NaN}', "which is no number"),
    "large": (" " * (MOST_TEXT + 1), "more than"),
    "no text": (b"\xff\xfe\x00", "no text of UTF-8"),
    "empty": ("", "must be JSON"),
}


@pytest.mark.parametrize(("content", "words"), GENOTYPES.values(), ids=GENOTYPES)
@pytest.mark.parametrize("command", [("networks", "genotype:x.json"), ("draw", "x.json")])
def test_genotypes_that_nobody_means(command, content, words, here, said):
    (here / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = said(*command)
    assert code == 2
    assert "x.json" in text
    assert words in text


CONFIGS = {
    "deep": ("edges = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "rather deep": ("edges = " + "[" * 50 + "]" * 50, "nested too deeply"),
    "deep tables": ("[" + ".".join("a" * 200) + "]", "nested too deeply"),
    "long integer": ("epochs = " + "9" * 5000, "64 bits"),
    "large": ("#" * (MOST_TEXT + 1), "more than"),
    "zero bytes": ("lr = 0.1\0", "not a TOML file"),
    "no text": ("\udcff", "no text of UTF-8"),
    "a list": ("network = [1, 2]", "network"),
    "a table": ("[network]\nx = 1", ""),
    "tables for words": ('network = "resnet8"\n[data]\nx = 1', ""),
}


@pytest.mark.parametrize(("content", "words"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "command",
    [("transform", "--config", "x.toml"), ("sweep", "--config", "x.toml", "--out", "s"), ("resume", "run")],
)
def test_configurations_that_nobody_means(command, content, words, here, said):
    (here / "run").mkdir()
    for path in ("x.toml", "run/config.toml"):
        (here / path).write_bytes(content.encode("utf-8", "surrogateescape"))
    code, text = said(*command)
    assert code == 2
    assert words in text
    assert not (here / "s").exists()


TABLES = {
    "deep": "[" * 100_000,
    "deep tables": '{"a":' * 900 + "1" + "}" * 900,
    "long integer": '{"results": ' + "9" * 5000 + "}",
    "infinite": '{"results": Infinity}',
    "a list": "[1]",
    "no results": "{}",
    "other kinds": '{"results": 3, "job": "x", "files": []}',
}


@pytest.mark.parametrize("words", [("report", "run"), ("results", "run"), ("evaluate", "run")])
@pytest.mark.parametrize("name", ["record.json", "architecture.json"])
@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_tables_that_dnat_never_wrote(content, name, words, done, said):
    (done / name).write_text(content)
    code, text = said(*words)
    assert code in ((2, 65) if name == "record.json" and words[0] != "results" else (0, 2, 65))  # those list all
    assert name in text


@pytest.mark.parametrize("seeds", ["0-99999999999", "99999999999", "0-5,7-1000000", "0-" + "9" * 5000, "9" * 5000])
def test_more_seeds_than_anybody_could_wait_for(seeds, said, here):
    code, text = said("sweep", "--networks", "resnet8", "--methods", "original", "--seeds", seeds, "--out", "s")
    assert code == 2
    assert "seeds" in text
    assert not (here / "s").exists()


def test_weights_that_would_unpack_to_more_than_they_are(here, said):
    torch.save({"x": torch.zeros(1 << 20)}, "stored.pt")
    with zipfile.ZipFile("stored.pt") as stored, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in stored.namelist():
            bomb.writestr(member, stored.read(member))
    code, text = said("transform", "--network", "resnet8", *QUICK, "--weights", "bomb.pt", "--out", "run")
    assert code == 2
    assert "bomb.pt cannot be read as weights: it holds compressed data" in text


@pytest.mark.parametrize("text", ["[" * 100_000, '{"preprocess": NaN}', "[1]", '{"classes": [[]]}'])
def test_metadata_of_weights_are_no_more_than_texts(text, done, said):
    save_file(load_file(done / "network.safetensors"), "x.safetensors", {"preprocess": text, "extra_state": text})
    how = ["--set", "network.width=2", "--image-size", "8", "--train-limit", "60", "--test-limit", "40"]
    code, told = said("plan", "--network", "resnet8", *how, "--images", "8", "--weights", "x.safetensors")
    assert code in (0, 2), told


@pytest.mark.parametrize(
    "header", [b"[" * 5000, b"[]", b"{}", b'{"format": 1}', b'{"format": ' + b"9" * 5000 + b"}", b"\xff"]
)
def test_checkpoints_made_by_hand_are_set_aside(header, part, said):
    (path,) = sorted(part.glob("checkpoint-*.ckpt"))[-1:]
    start = MAGIC + struct.pack("<Q", len(header)) + header
    path.write_bytes(start + hashlib.sha256(start).digest())
    with pytest.raises(CorruptError, match="its header"):
        unpack(path)


@pytest.mark.parametrize("row", ["[" * 5000, '{"epoch": Infinity}', '{"epoch": "x"}', "9" * 5000, "null"])
def test_rows_that_dnat_never_wrote(row, here, done, said):
    (done / "metrics.jsonl").write_text(f"{row}\n")
    assert progress(done) is None
    code, text = said("report", "run")
    assert code == 0
    assert "metrics.jsonl" in text


@pytest.mark.parametrize("text", ["9" * 30, "-" + "9" * 30, "[NaN]", "[-Infinity]", "[" * 70 + "]" * 70, "{", ""])
def test_json_that_dnat_never_writes(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert parse_json('{"a": [1, 2.5, "x", null], "b": {}}') == {"a": [1, 2.5, "x", None], "b": {}}


# --- control characters and markup


NAMES = ["x[/b]", "[old]", "[red]x", "a\x1b[31mb", "a\nb", "\u202eb", "\x9b1m", "[link=file:x]"]
OF_ALL = [("resume", "RUN"), ("evaluate", "RUN/nothing"), ("results", "RUN")]
OF_ONE = [
    ("report", "RUN"),
    ("draw", "RUN", "--format", "svg"),
    ("export", "RUN", "--to", "safetensors", "--no-verify"),
]


@pytest.mark.parametrize(
    ("words", "name"), [*((w, n) for w in OF_ALL for n in NAMES), *((w, n) for w in OF_ONE for n in NAMES[::3])]
)
def test_folders_of_any_name(words, name, made, here, said):
    (here / name).mkdir(parents=True)
    place = shutil.copytree(made / "done", here / name / "run")
    code, text = said(*(w.replace("RUN", str(place)) for w in words))
    assert code == (2 if "RUN/nothing" in words else 0), text
    if words[0] in ("resume", "draw", "export"):
        assert plain(name) in text


def edited(path, change):
    """A sealed table with other content, sealed again."""
    table = json.loads(path.read_text())
    change(table)
    write_json(path, sealed({k: v for k, v in table.items() if k != SEAL}))


PLACES = {
    "network": lambda t: t["job"].update(network=ESC),
    "data": lambda t: t["job"].update(data=ESC),
    "method": lambda t: t["job"].update(method=ESC),
    "label": lambda t: t["job"].update(label=ESC),
    "setting": lambda t: t["job"].update(preset=ESC),
    "new setting": lambda t: t["job"].update({ESC: ESC}),
    "metric": lambda t: t.update(metrics={ESC: "max"}),
    "finished": lambda t: t.update(finished=ESC),
    "classes": lambda t: t.update(classes=[ESC] * 10),
    "digest": lambda t: t.update(data_fingerprint=ESC),
    "seconds": lambda t: t["seconds"].update({ESC: 3.0}),
    "results": lambda t: t["results"].update({ESC: 3.0}),
}


OF_RECORDS = [(w, k) for w in (("report", "run"), ("results", "run")) for k in PLACES]
OF_RECORDS += [
    (("predict", "run", "x.png"), "classes"),
    *((("resume", "run"), k) for k in ("label", "metric", "seconds")),
]


@pytest.mark.parametrize(("words", "what"), OF_RECORDS)
def test_texts_of_records_control_no_terminal(words, what, done, here, said):
    Image.new("RGB", (8, 8)).save("x.png")
    edited(done / "record.json", lambda table: (PLACES[what](table), table.pop("files")))
    code, _ = said(*words)
    assert code in (0, 2, 65)
    for page in here.glob("report.*"):
        assert not BAD.search(page.read_text()), page


@pytest.mark.parametrize(
    ("words", "name", "key"),
    [
        (("report", "run", "other"), "status.json", "reason"),
        (("report", "run", "other"), "status.json", "state"),
        (("resume", "run"), "environment.json", "torch"),
    ],
)
def test_texts_of_side_files_control_no_terminal(words, name, key, part, made, here, said):
    shutil.copytree(made / "done", here / "other")
    edited(part / name, lambda table: table.update({key: f"{ESC} [/b]"}))
    code, text = said(*words)
    assert code == 0
    if name == "environment.json" and words[0] == "resume":
        assert line(f"{ESC} [/b]") in text
    for page in here.glob("report.*"):
        assert not BAD.search(page.read_text())


HAND_MADE = {
    "no classes": ("record.json", lambda t: t.pop("classes"), ("evaluate", "predict", "export")),
    "numbers for classes": ("record.json", lambda t: t.update(classes=[1] * 10), ("evaluate", "export")),
    "huge images": ("record.json", lambda t: t.update(image_shape=[3, 10**9, 10**9]), ("evaluate", "export")),
    "huge pictures": ("record.json", lambda t: t["preprocess"].update(size=[10**9, 10**9]), ("predict", "export")),
    "huge margin": ("record.json", lambda t: t["preprocess"].update(margin=1e12), ("predict", "export")),
    "memory": ("record.json", lambda t: t["memory"].update(before=[None]), ("resume", "report")),
    "costs": ("record.json", lambda t: t["results"].update(cost_after=3), ("resume", "report", "draw")),
    "edges": (
        "architecture.json",
        lambda t: t["commitment"].update(edges=[True]),
        ("resume", "evaluate", "export"),
    ),
    "choices": (
        "architecture.json",
        lambda t: t["commitment"]["edges"][0].update(choice=-1),
        ("resume", "evaluate"),
    ),
    "commitment": ("architecture.json", lambda t: t.pop("commitment"), ("resume", "evaluate", "draw")),
    "graphs": ("architecture.json", lambda t: t.update(graphs=[None, None]), ("draw",)),
}


@pytest.mark.parametrize(("name", "change", "commands"), HAND_MADE.values(), ids=HAND_MADE)
def test_records_that_were_made_by_hand(name, change, commands, done, said):
    """Digests tell of damage and not of forgery: whoever changes a file can seal it again."""
    Image.new("RGB", (8, 8)).save("x.png")
    table = json.loads((done / name).read_text())
    change(table)
    write_json(done / name, table)
    edited(done / "record.json", lambda record: record.pop("files"))
    more = {"predict": ("x.png",), "export": ("--to", "safetensors", "--no-verify")}
    for command in commands:
        code, text = said(command, "run", *more.get(command, ()))
        assert code in (2, 65), (command, text)
        assert name in text or "preprocess" in text, (command, text)


def test_what_is_written_out():
    assert plain("a\tb\nc é 漢 👩‍🚀") == "a\tb\nc é 漢 👩‍🚀"
    assert plain("\x00\x1b\r\x7f\x9b\u202e\u2066\ud800") == "\\x00\\x1b\\r\\x7f\\x9b\\u202e\\u2066\\ud800"
    assert line("a\nb\t") == "a\\nb\\t"


# --- where to write


def obstacles(here, ending=""):
    (here / "file").write_text("mine")
    (here / f"folder{ending}").mkdir()
    (here / f"loop{ending}").symlink_to(f"loop{ending}")
    (here / "dangling").symlink_to("nowhere/at/all")


FOLDERS = {
    "file": ("file", "is a file"),
    "through a file": ("file/run", "file is no folder"),
    "deep through a file": ("file/a/b/run", "file is no folder"),
    "long": ("x" * 300, "File name too long"),
    "long parent": ("x" * 300 + "/run", "File name too long"),
    "loop": ("loop", "Too many levels of symbolic links"),
    "through a loop": ("loop/run", "Too many levels of symbolic links"),
    "dangling": ("dangling", "is a link to what is not there"),
    "through nothing": ("dangling/run", "is a link to what is not there"),
    "back": ("new/..", "leads back through new"),
    "back and on": ("new/../run", "leads back through new"),
}


@pytest.mark.parametrize(("place", "words"), FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize(
    "command",
    [
        ("transform", "--network", "resnet8", *QUICK, "--out"),
        ("sweep", "--networks", "resnet8", "--methods", "original", "--seeds", "1", "--out"),
        ("report", "run", "--pictures"),
    ],
)
def test_places_of_no_folder(command, place, words, done, here, said):
    obstacles(here)
    before = sorted(p.name for p in here.iterdir())
    code, text = said(*command, place)
    assert code == 2
    assert words in text
    assert sorted(p.name for p in here.iterdir()) == before
    assert (here / "file").read_text() == "mine"


FILES = {k: v for k, v in FOLDERS.items() if k not in ("file", "dangling", "back")}
FILES |= {"folder": ("folder", "is a folder"), "back": ("new/..", "new")}


@pytest.mark.parametrize(("place", "words"), FILES.values(), ids=FILES)
@pytest.mark.parametrize(
    ("command", "ending"),
    [
        (("export", "run", "--to", "safetensors", "--no-verify", "--out"), ".safetensors"),
        (("report", "run", "--html"), ""),
        (("report", "run", "--markdown"), ""),
        (("results", "run", "--out"), ""),
        (("draw", "darts_v2", "--format", "svg", "--out"), ".svg"),
        (("plan", "--network", "resnet8", "--data", "digits", "--out"), ""),
    ],
)
def test_places_of_no_file(command, ending, place, words, done, here, said):
    obstacles(here, ending)
    before = sorted(p.name for p in here.iterdir())
    code, text = said(*command, place.replace("loop/", f"loop{ending}/"))
    assert code == 2
    assert words in text
    assert sorted(p.name for p in here.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ("export", "run", "--to", "safetensors", "--out", "run/network"),
        ("export", "run", "--to", "safetensors", "--out", "run/network.safetensors"),
        ("export", "run", "--to", "safetensors", "--out", "run/record"),
        ("export", "run", "--to", "safetensors", "--out", "run/../run/architecture"),
        ("export", "run", "--to", "py", "--out", "run/network"),
        ("export", "run", "--to", "py", "--out", "run/predictions.py"),
        ("report", "run", "--html", "run/record.json"),
        ("report", "run", "--markdown", "run/config.toml"),
        ("results", "run", "--out", "run/metrics.jsonl"),
        ("results", "run", "--out", "run/.lock"),
        ("plan", "--network", "resnet8", "--data", "digits", "--out", "run/record.json"),
    ],
)
def test_a_runs_own_files_are_not_written_over(words, done, said):
    before = {p.name: p.read_bytes() for p in done.iterdir()}
    code, text = said(*words)
    assert code == 2
    assert "is a file of the run or sweep itself" in text
    assert {p.name: p.read_bytes() for p in done.iterdir()} == before


def test_folders_of_pictures_are_made(here, said):
    assert said("draw", "darts_v2", "--format", "svg", "--out", "new/folder/cells")[0] == 0
    assert (here / "new" / "folder" / "cells.svg").exists()
