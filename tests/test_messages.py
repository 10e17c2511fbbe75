"""What users are told when something is wrong: the thing itself, by name, before anything else is done."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import config, tiny_data
from torch import nn

import dnat
from dnat import locks, settings
from dnat.errors import UserCodeError
from dnat.lab import cli as module
from dnat.lab.runs import network_and_images, run
from dnat.lab.sweep import parse_seeds
from dnat.networks import Genotype, fitting
from dnat.records import CorruptError, LockedError, Records, check_name
from dnat.settings import Config, Job, directory_name, parse_setting, read_toml, run_name
from dnat.training import Interrupted

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--network", "resnet8", "--set", "network.width=2", "--train-limit", "100", "--test-limit", "50"]
SHORT = ["--epochs", "2", "--architecture-epochs", "1", "--batch-size", "50", "--set", "threads=1"]


@pytest.fixture
def dnat_here(tmp_path, monkeypatch, capsys):
    """The command, in this process and in a folder of its own: (exit code, what it printed, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAT_DATA", "")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["dnat", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        code = 0
        try:
            module.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            for name in [n for n in sys.modules if n == "mine" or n.startswith("mine_")]:
                del sys.modules[name]
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err, printed.err
        return code, printed.out, printed.err

    return command


SWEEP = ["--networks", "resnet8", "--methods", "original", "--seeds", "1", "--out", "s"]

# --- settings

WRONG = [
    (["--epochs", "-3"], "epochs must be at least 1, not -3"),
    (["--budget", "150%"], "'150%' is not a budget"),
    (["--device", "tpu"], "device must be auto, cpu, cuda, cuda:1, mps, not 'tpu'"),
    (["--device", "cpu:7"], "device must be"),
    (["--method", "original", "--budget", "0.5"], "'original' changes nothing and keeps no budget"),
    (["--set", "lr=1e300"], "lr must be a number of at most 1e+30, not 1e+300"),
    (["--set", "weight_decay=1e300"], "weight_decay must be a number of at most 1e+30"),
    (["--set", "threads=100000"], "threads must be from 1 to 1024, not 100000"),
    (["--set", f"threads={2**40}"], "threads must be from 1 to 1024"),
    (["--set", "epochs=" + "9" * 5000], "--set epochs: it holds an integer of more than 64 bits"),
    (["--set", "epochs=0x" + "f" * 50], "--set epochs: it holds an integer of more than 64 bits"),
    (["--set", "edges=" + "[" * 3000 + "]" * 3000], "--set edges: its lists or tables are nested too deeply"),
    (["--set", "lr=0.1\nseed=5"], "--set takes one key=value"),
    (["--set", "lr"], "--set takes key=value, not 'lr'"),
    (["--image-size", "1000000"], "image_size must be from 1 to 8192"),
    (["--workers", "-1"], "workers must be from 0 to 256"),
    (["--set", "lrr=1"], "unknown setting 'lrr'; did you mean 'lr'?"),
]


def test_settings_are_checked_without_torch():
    """In one process in which torch cannot be imported."""
    code = "import sys, json, io, contextlib\nsys.modules['torch'] = None\nfrom dnat.lab import cli\n"
    code += "for arguments in json.loads(sys.stdin.read()):\n"
    code += "    sys.argv = ['dnat', 'transform', '--network', 'resnet8', *arguments]\n    said = io.StringIO()\n"
    code += "    with contextlib.redirect_stderr(said):\n        try: cli.main()\n"
    code += "        except SystemExit as ended: code = ended.code\n"
    code += "    print(json.dumps([code, said.getvalue()]))\n"
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([arguments for arguments, _ in WRONG]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(lines) == len(WRONG), found.stderr
    for (arguments, words), (exit_code, said) in zip(WRONG, lines, strict=True):
        assert exit_code == 2, (arguments, said)
        assert said.startswith("dnat: ")
        assert words in said
        assert len(said) < 300
        assert "'seed'" not in said  # a list of all settings beside the one that was meant


@pytest.mark.parametrize(
    "text",
    [
        "lr = " + "9" * 5000,
        "edges = " + "[" * 3000 + "]" * 3000,
        "edges = " + "[" * 100 + "]" * 100,
        "[transitions]\na = 99999999999999999999",
        "a = ",
        "\x00",
    ],
)
def test_files_that_no_settings_are_in(text, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=r"x\.toml: not a TOML file: ") as error:
        read_toml(tmp_path / "x.toml")
    assert isinstance(error.value, dnat.DnatError)


@pytest.mark.parametrize(
    "options", [{"epochs": 10**5000}, {"seed": 10**5000}, {"lr": 10**400}, {"budget": 10**5000}]
)
def test_numbers_beyond_measure(options):
    with pytest.raises(dnat.DnatError) as error:
        Config(**options)
    assert len(str(error.value)) < 200


def test_genotypes_beyond_measure():
    for text in ("[" * 100_000, '{"normal": ' + "9" * 5000 + "}"):
        with pytest.raises(dnat.DnatError, match="a genotype must be JSON"):
            Genotype.from_json(text)
    node = [{"operation": "sep_conv_3x3", "input": 0}]
    cell = {"nodes": [node] * 3000, "concat": [2]}
    with pytest.raises(dnat.DnatError, match="3000 nodes, more than 100"):
        Genotype.from_json(json.dumps({"normal": cell, "reduce": cell}))


@pytest.mark.parametrize(
    "text", ["0-99999999999", "99999999999", "0-999999999", "1,,2", "1,2,,", ",", "9" * 5000, "1-2-3"]
)
def test_what_are_no_seeds(text):
    with pytest.raises(dnat.DnatError, match=r"are no seeds|is no seed|more than 10000|seed must be") as error:
        parse_seeds(text)
    assert len(str(error.value)) < 300


def test_values_over_several_lines_are_values():
    assert parse_setting('edges=[\n "a",\n "b"\n]') == ("edges", ["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edges", "--network", "resnet8", "--set", "lr=3"], "--set takes network.OPTION=VALUE here: 'lr' is"),
        (["networks", "resnet8", "--set", "lr=3"], "'lr' is a setting of a run"),
        (["networks", "--set", "network.width=8"], "are for networks that are named"),
        (["sweep", "--set", "network=resnet8", *SWEEP], "write networks = "),
        (["sweep", "--set", "method=nat", *SWEEP], "write methods = "),
        (["edges", "--network", "resnet8", "--image-size", "0"], "0 is not in the range"),
        (["edges", "--network", "resnet8", "--image-size", "-5"], "-5 is not in the range"),
        (["edges", "--network", "resnet8", "--image-size", "1000000"], "1000000 is not in the range"),
        (["edges", "--network", "resnet8", "--batch-size", "0"], "0 is not in the range"),
        (["edges", "--network", "resnet8", "--data-root", "x"], "--data-root needs --data"),
        (["export", "no-run", "--to", "onyx"], "unknown form 'onyx'; did you mean 'onnx'?"),
        (["sweep", *SWEEP, "--seeds", "0-99999999999"], "99999999999' are 100000000000 seeds, more than"),
    ],
)  # fmt: skip
def test_what_would_be_of_no_use_is_refused(arguments, words, dnat_here, tmp_path):
    code, _, said = dnat_here(*arguments)
    assert code == 2
    assert words in said
    assert not list(tmp_path.iterdir())


# --- directories


@pytest.mark.parametrize("done", [False, True])
def test_a_wrong_setting_is_told_before_the_directory_is_looked_at(done, dnat_here, tmp_path):
    with Records.open(tmp_path / "run", Job(network="resnet8", config=Config(seed=7))):
        pass
    if done:
        (tmp_path / "run" / "record.json").write_text("{}")
    for arguments, words in (
        (["--device", "cuda:77"], "there is no device 'cuda:77' here"),
        (["--budget", "70"], "the budget cannot be kept"),
        (["--batch-size", "5000"], "batch_size 5000 is larger than the 100 training images"),
        (["--weights", "nothere.pt"], "there is no file of weights at nothere.pt"),
        (["--set", "lr=0.5"], "holds a run with other settings: "),
    ):
        code, _, said = dnat_here("transform", *TINY, *SHORT[:-2], "--out", "run", *arguments)
        assert code == 2
        assert words in said, arguments


LEGAL = [
    "genotype:../cells.json",
    "genotype:cells/my net.json",
    "a" * 120 + ":make",
    "nasbench201:|nor_conv_3x3~0|+|none~0|",
    "ä.ö:ü",
    ".hidden:net",
]


@pytest.mark.parametrize("network", LEGAL)
def test_every_network_has_a_directory(network):
    names = {
        run_name(Job(network=network, config=Config(lr=lr, seed=seed))) for lr in (0.1, 0.2) for seed in (0, 1)
    }
    assert len(names) == 4
    assert all(check_name(name) == name for name in names)


def test_a_directory_is_that_of_its_settings(monkeypatch):
    base = {"network": "resnet8"}
    others = [
        {"lr": 0.1},
        {"epochs": 3},
        {"weights": "a.pt"},
        {"train_limit": 9},
        {"network_options": {"width": 2}},
    ]
    names = [run_name(Job.from_flat(base | other)) for other in [{}, *others]]
    assert names[0] == "resnet8-digits-dnat-seed0"
    assert len(set(names)) == len(names)
    assert all(name.startswith("resnet8-digits-dnat-seed0-") for name in names[1:])
    folders = [run_name(Job.from_flat(base | {"data": "folder", "data_root": root})) for root in ("a", "b")]
    assert folders[0] != folders[1]
    # On another machine the same command finds its run, whether or not it names the threads.
    for given in ({}, {"threads": 3}):
        found = set()
        for n in (1, 3, 8):
            monkeypatch.setattr("dnat.settings.config.cores", lambda n=n: n)
            found.add(run_name(Job.from_flat(base | given), with_threads=bool(given)))
        assert len(found) == 1
    assert run_name(Job.from_flat(base | {"threads": 3}), with_threads=True) not in names


def test_commands_with_other_settings_do_not_meet(dnat_here, tmp_path):
    """And each finds its own run again."""
    for _ in range(2):
        for arguments in ([], ["--set", "lr=0.1"]):
            code, said, errors = dnat_here("transform", *TINY, *SHORT, "--method", "original", *arguments)
            assert code == 0, errors
            assert ("is done already" in said) == (len(list((tmp_path / "runs").iterdir())) == 2 and _ == 1)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_goes_on_where_there_are_other_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("dnat.settings.job.cores", lambda: 2)
    begun = Job(network="resnet8", config=Config(threads=4, epochs=3))
    with Records.open(tmp_path / "run", begun):
        pass
    here = begun.but(config=begun.config.but(threads=2))  # what two cores give by themselves
    told = []
    with Records.open(tmp_path / "run", here, notify=told.append) as records:
        assert records.job.config.machine.threads == 4  # sums over four threads go on, to the bit
    assert told == ["threads = 4 stays, as the run began with it: results depend on it"]
    asked = begun.but(config=begun.config.but(threads=3))
    with pytest.raises(ValueError, match=r"threads 4 .there. / 3 .now."):
        Records.open(tmp_path / "run", asked)


@pytest.mark.parametrize("damage", ["config.toml"])
def test_an_error_gives_the_lock_back(damage, tmp_path):
    job = Job(network="resnet8")
    with Records.open(tmp_path / "run", job):
        pass
    whole = (tmp_path / "run" / damage).read_text()
    (tmp_path / "run" / damage).write_text("{")
    with pytest.raises(ValueError):  # noqa: PT011 -- which one is not the point
        Records.open(tmp_path / "run", job)
    (tmp_path / "run" / damage).write_text(whole)
    with Records.open(tmp_path / "run", job):
        pass


def test_a_file_system_without_locks_is_not_called_another_process(tmp_path, monkeypatch):
    def lockf(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with pytest.raises(LockedError, match=r"cannot be locked \(No locks available\)") as error:
        locks.Lock(tmp_path)
    assert "in use" not in str(error.value)
    (tmp_path / ".lock").touch()
    assert not locks.is_held(tmp_path)


# --- damaged checkpoints


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def test_a_run_does_not_begin_again_by_itself(tmp_path):
    j = Job(network="resnet8", network_options={"width": 2}, train_limit=100, test_limit=50, method="original")
    j = j.but(config=Config(epochs=3, architecture_epochs=1, batch_size=50, threads=1))
    folder, told = tmp_path / "run", []
    whole = run(j, tmp_path / "whole")["results"]
    with pytest.raises(Interrupted):
        run(j, folder, stop=lambda progress: progress.step == 3)
    newest, _ = sorted(folder.glob("*.ckpt"), reverse=True)
    cut(newest)
    with pytest.raises(Interrupted):  # an older one is left: it is told before anything is trained
        run(j, folder, notify=told.append, stop=lambda progress: True)
    assert "an older checkpoint is used" in told[0]
    assert told[1].startswith("goes on after step ")
    rows = (folder / "metrics.jsonl").read_bytes()
    for path in folder.glob("*.ckpt"):
        cut(path)
    for _ in range(2):  # also when it is asked again
        with pytest.raises(CorruptError, match=r"no checkpoint is whole .*--begin-again") as error:
            run(j, folder)
        assert module.exit_code(error.value) == 65
    assert (folder / "metrics.jsonl").read_bytes() == rows
    told.clear()
    assert run(j, folder, notify=told.append, anew=True)["results"] == whole
    assert told == ["no checkpoint is whole: the run begins again at its first epoch"]
    assert not list(folder.glob("*.corrupt"))


def test_a_checkpoint_that_cannot_be_read_at_all_is_a_damaged_one(tmp_path):
    with Records.open(tmp_path / "run", Job(network="resnet8")) as records:
        records.save(1, {"a": 1})
        (tmp_path / "run" / "checkpoint-000000002.ckpt").mkdir()
        assert records.newest() == (1, {"a": 1})
        assert "Is a directory; an older checkpoint is used" in records.notices[0]


# --- code of the user's

NETWORK = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Linear(4, num_classes)
    def forward(self, x):
        {forward}
        x = self.a(x)
        return self.c((x + self.b(x)).mean((2, 3)))

def make(num_classes):
    {factory}
    return Net(num_classes)

{module}
"""


@pytest.mark.parametrize(
    ("where", "line", "words"),
    [
        ("module", "sys.exit(0)", "cannot be imported: it calls sys.exit(0)"),
        ("module", "1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("module", "def broken(:", "cannot be imported: SyntaxError: "),
        ("module", "import nothing_like_that", "cannot be imported: ModuleNotFoundError: "),
        ("factory", "raise KeyError('width')", "cannot be built with num_classes=10: KeyError: 'width'"),
        ("factory", "sys.exit('bad luck')", "it calls sys.exit('bad luck')"),
        ("forward", "raise RuntimeError('never')", "Net's forward failed on the example"),
        ("forward", "sys.exit(3)", "it calls sys.exit(3)"),
        ("forward", "assert not self.training, 'eval alone'", "in train mode: AssertionError: eval alone"),
        ("forward", "x = x.view(2, 3, 16, 16)", "forward failed on images of shape (50, 3, 16, 16) in eval"),
        ("forward", "assert len(x) in (1, 2, 64)", "forward failed on images of shape (50, 3, 16, 16) in eval"),
        ("forward", "assert len(x) <= 2 or not self.training", "on images of shape (50, 3, 16, 16) in train mode"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["dnat", "original"])
def test_the_place_in_the_users_code_is_named(where, line, words, method, dnat_here, tmp_path):
    code = NETWORK.format(**{part: line if part == where else "pass" for part in ("forward", "factory", "module")})
    (tmp_path / "mine.py").write_text(code)
    number = (
        code.splitlines().index(f"{'' if where == 'module' else ' ' * (8 if where == 'forward' else 4)}{line}") + 1
    )
    arguments = ["--train-limit", "100", "--test-limit", "50", *SHORT, "--method", method, "--out", "run"]
    code, _, said = dnat_here("transform", "--network", "mine:make", *arguments)
    assert code == 2, said
    assert words in said
    assert f"{tmp_path / 'mine.py'}:{number}" in said
    assert "bug of dnat" not in said
    assert not (tmp_path / "run").exists()


def test_a_bug_of_ours_in_a_relaxed_network_is_no_fault_of_the_users(monkeypatch):
    """The user's forward calls layers, and in them stands code of ours."""
    place = str(Path(dnat.__file__).with_name("theta.py"))
    parts = {}
    exec(compile("def broken(*arguments, **options): raise ZeroDivisionError('ours')", place, "exec"), parts)
    monkeypatch.setattr("dnat.relaxation.passes.ForwardPasses.row", parts["broken"])
    data = tiny_data()
    with pytest.raises(ZeroDivisionError, match="ours"):
        dnat.transform(dnat.build("resnet8", width=2, num_classes=5, seed=0), data, config(lr_theta=0.5))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":x", "'' is not the name of a module"),
        ("../x:y", "'../x' is not the name of a module"),
        (".:y", "'.' is not the name of a module"),
        ("a b:c", "'a b' is not the name of a module"),
        ("mine.py:make", "cannot be imported"),
        ("mine/make:net", "'mine/make' is not the name of a module"),
        ("os:", "names no function: write package.module:factory"),
        ("os.path:jion", "os.path:jion' is refused"),
    ],
)
def test_names_that_no_function_has(name, words):
    with pytest.raises(dnat.DnatError) as error:
        dnat.build(name)
    assert words in str(error.value)
    assert module.exit_code(error.value) == 2


def test_what_is_documented_is_given_to_factories(dnat_here, tmp_path, monkeypatch):
    """Classes and channels, also where those are three; and nothing that a factory does not name."""
    (tmp_path / "mine_f.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            seen = []
            def net(num_classes, in_channels=1):
                seen.append((num_classes, in_channels))
                return nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4),
                    nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(4, num_classes))
            def any(**options):
                seen.append(options)
                return net(options["num_classes"], options.get("in_channels", 3))
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine_f

    c = config(epochs=1, architecture_epochs=1)
    dnat.train("mine_f:net", tiny_data(), c)
    assert mine_f.seen == [(5, 3)]
    built, images = network_and_images(Job(network="mine_f:net", image_size=12), with_data=True)
    assert mine_f.seen[-1] == (10, 3)
    assert images.shape == (2, 3, 12, 12)
    assert built(images).shape == (2, 10)
    assert fitting("mine_f:any", 5, 3) == {"num_classes": 5}
    assert fitting("mine_f:any", 5, 1) == {"num_classes": 5, "in_channels": 1}
    assert fitting("resnet8", 5, 1) == {"num_classes": 5, "in_channels": 1}
    code, said, errors = dnat_here("edges", "--network", "mine_f:net", "--data", "digits")
    assert code == 0, errors
    assert "images of 3x16x16" in " ".join(said.split())


def test_edges_are_counted_at_the_size_of_the_data(dnat_here):
    """Half the side, a quarter of the multiply-adds."""
    for arguments, saves in (([], "2,359,296"), (["--data", "digits"], "589,824")):
        assert saves in dnat_here("edges", "--network", "resnet8", *arguments)[1]


# --- wrappers


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net."]
)
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_weights_under_a_prefix_are_read(prefix, key, tmp_path):
    from dnat.networks import load_weights

    source, network = (dnat.build("resnet8", width=2, seed=seed) for seed in (5, 1))
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({key: state} if key else state, tmp_path / "w.pt")
    assert load_weights(network, str(tmp_path / "w.pt")) == []
    wrapped = torch.compile(dnat.build("resnet8", width=2, seed=1), backend="eager")
    assert load_weights(wrapped, str(tmp_path / "w.pt")) == []
    parallel = nn.DataParallel(dnat.build("resnet8", width=2, seed=1))
    if prefix == "module.":
        assert load_weights(parallel, str(tmp_path / "w.pt")) == []
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
        assert torch.equal(wrapped.state_dict()[f"_orig_mod.{name}"], value)


def test_what_else_stands_beside_weights_is_named(tmp_path):
    from dnat.networks import load_weights

    source, network = (dnat.build("resnet8", width=2, seed=seed) for seed in (5, 1))
    state = {f"student.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(10)}}, tmp_path / "w.ckpt")
    notes = load_weights(network, str(tmp_path / "w.ckpt"))
    assert notes == [
        f"of {tmp_path / 'w.ckpt'} what does not begin with 'student.' is no part of the network: loss.weight"
    ]
    assert torch.equal(network.fc.weight, source.fc.weight)
    state |= {f"teacher.{name}": value for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"several networks' weights, under 'student.', 'teacher.': keep one"):
        load_weights(network, str(tmp_path / "two.pt"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: torch.compile(n, backend="eager")])
def test_a_wrapped_network_is_written_without_its_wrapper(wrap, tmp_path):
    inside = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    wrapped = wrap(inside)
    found = dnat.export(wrapped, torch.zeros(2, 3, 8, 8), "py", tmp_path / "x")
    assert f"the network inside {type(wrapped).__name__} is written" in found.notes[0]
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "x.safetensors")) == set(inside.state_dict())


def test_recording_leaves_the_random_numbers_alone(tmp_path):
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) * np.random.rand()  # noqa: NPY002

    np.random.seed(1)  # noqa: NPY002
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    with pytest.raises(dnat.DnatError, match="random numbers of Python or numpy decide"):
        dnat.export(Drawing(), torch.ones(1, 2), "py", tmp_path / "x")
    assert np.array_equal(np.random.rand(3), expected)  # noqa: NPY002


# --- the rest


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
    ],
)
def test_only_a_process_of_several_is_silent(environment, first):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    code = "from dnat.lab.cli.group import FIRST; print(FIRST)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(first)


def test_what_a_run_meant_is_saved_whatever_becomes_of_the_presets(tmp_path, monkeypatch):
    (tmp_path / "x.toml").write_text(Job(network="resnet8").to_toml())
    monkeypatch.setitem(settings.PRESETS["improved"], "lr_theta", 0.123)
    assert Job.from_flat(read_toml(tmp_path / "x.toml")).config.relaxation.lr_theta == "auto"
    assert Config(preset="paper", lr_theta="auto").relaxation.lr_theta == "auto"
    assert Config(preset="paper", lr_theta="auto").but(seed=1).relaxation.lr_theta == "auto"
    with pytest.raises(TypeError, match="lr_theta must be a number or 'auto', not the text 'fast'"):
        Config(lr_theta="fast")


def test_times_are_taken_as_the_run_will_take_them(monkeypatch):
    """A latency budget is tried with the threads of the run, not with those that torch has by itself."""
    from dnat import planning
    from dnat.session import check

    seen, measure = [], planning.operation_seconds

    def watched(*arguments):
        seen.append(torch.get_num_threads())
        return measure(*arguments)

    monkeypatch.setattr(planning, "operation_seconds", watched)
    torch.set_num_threads(2)
    network = dnat.build("resnet8", width=2, num_classes=5, seed=0)
    check(network, tiny_data(), config(latency_budget=1.0, threads=1), transforming=True)
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_markup_in_a_path_is_text(dnat_here, tmp_path, monkeypatch):
    (tmp_path / "x[/b]").mkdir(parents=True)
    code, said, errors = dnat_here("transform", *TINY, *SHORT, "--method", "original", "--out", "x[/b]/run")
    assert code == 0, errors
    assert "files: x[/b]/run/" in said


def test_directory_names_hold_what_is_needed():
    assert directory_name("a" * 200, "-seed0") != directory_name("a" * 201, "-seed0")


def test_errors_of_the_users_code_are_chained():
    class Net(nn.Module):
        def forward(self, x):
            return self.nothing(x)

    with pytest.raises(
        UserCodeError, match=r"Net's forward failed on the example .*AttributeError.*test_messages"
    ) as e:
        dnat.trace(Net(), torch.zeros(2, 3, 8, 8))
    assert isinstance(e.value.__cause__, AttributeError)
