"""What the machine cannot do is told in one line and loses nothing; a part of each suite in benchmarks/."""

import errno
import importlib
import os
import signal
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

from dnat import Config
from dnat.errors import DnatError, MachineError, UserCodeError, is_of_memory, of_machine, users_code
from dnat.lab import cli as module
from dnat.lab.cli.signals import stop_on_signals
from dnat.lab.runs import run, running
from dnat.lab.sweep import Sweep
from dnat.lab.sweep.directory import SweepDirectory, SweepFiles
from dnat.lab.sweep.local import Local
from dnat.lab.sweep.schedule import prepare
from dnat.lab.sweep.settings import parse_names, parse_seeds
from dnat.lab.sweep.trials import Attempt, judged
from dnat.locks import Lock, LockedError
from dnat.records import Records
from dnat.rundir import RunFiles, read_job
from dnat.settings import Job, read_toml
from dnat.training import Interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore:lr_theta"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = {"network_options": {"width": 2}, "train_limit": 60, "test_limit": 40, "image_size": 8}
SHORT = {"epochs": 2, "architecture_epochs": 1, "batch_size": 30, "threads": 1, "latency_batch": 2}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """They take most of the time of so short a run."""
    monkeypatch.setattr(running, "draw", lambda *rest, **more: [])


def job(**options):
    return Job(network="resnet8", method="original", **TINY, config=Config(**SHORT | options))


def refuse(number, *, name="fsync", after=0):
    """Within, a function of `os` fails with an error, but for its first calls."""
    real, left = getattr(os, name), [after]

    def call(*arguments, **more):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    call.__code__ = call.__code__.replace(co_filename="<system>")  # as if the system itself refused
    return mock.patch.object(os, name, call)


# --- which errors are the machine's


def test_errors_of_the_machine_are_told_from_those_of_code():
    told = of_machine(OSError(errno.ENOSPC, "No space left on device", "runs/a/status.json"))
    assert str(told) == "runs/a/status.json: No space left on device: make room on the disk"
    assert (told.exit_code, told.errno, told.filename) == (73, errno.ENOSPC, "runs/a/status.json")
    assert isinstance(told, OSError)
    assert isinstance(told, DnatError)
    assert "there is not enough memory" in str(of_machine(MemoryError()))
    assert of_machine(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).errno == errno.ENOMEM
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        assert is_of_memory(error)  # noqa: PT017 (torch decides which class it is)
    for other in (ValueError("x"), KeyError("x"), OSError("no number"), LockedError("in use"), RuntimeError("x")):
        assert of_machine(other) is None


def test_an_error_of_the_system_in_code_of_the_users_is_theirs_but_for_memory():
    def forward(error):
        raise error

    told = r"forward failed: FileNotFoundError: .*test_torture.py:\d+"
    with pytest.raises(UserCodeError, match=told), users_code("forward failed"):
        forward(FileNotFoundError(errno.ENOENT, "No such file", "mine.txt"))
    with pytest.raises(MemoryError), users_code("forward failed"):
        forward(MemoryError())
    with pytest.raises(OSError, match=r"mine\.txt") as caught:
        forward(OSError(errno.ENOSPC, "No space left on device", "mine.txt"))
    assert of_machine(caught.value) is None


# --- runs


def test_a_disk_that_is_full_stops_a_run_that_goes_on_to_the_same_bits(tmp_path):
    run(job(), tmp_path / "whole")
    with refuse(errno.ENOSPC, after=9), pytest.raises(MachineError, match="No space left on device") as error:
        run(job(), tmp_path / "run")
    assert error.value.exit_code == 75
    assert Path(error.value.filename).parent == tmp_path / "run"
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.endswith(".tmp")]
    assert RunFiles(tmp_path / "run").why_unfinished()[0] == "running"  # which could not be written any more
    run(job(), tmp_path / "run")
    weights = [tmp_path / name / "network.safetensors" for name in ("run", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_status_says_interrupted_where_it_can_be_written(tmp_path):
    real = Records.save
    too_much = mock.patch.object(Records, "save", lambda *a: [real(*a), torch.empty(1 << 60)])
    with too_much, pytest.raises(MachineError, match="there is not enough memory"):
        run(job(), tmp_path / "run")
    state, reason = RunFiles(tmp_path / "run").why_unfinished()
    assert state == "interrupted"
    assert reason.startswith("there is not enough memory")


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_a_run_that_could_not_begin_leaves_nothing(after, tmp_path):
    """config.toml, environment.json, status.json: each is flushed, and the directory after it."""
    with refuse(errno.EDQUOT, after=after), pytest.raises(LockedError, match="cannot be written") as error:
        Records.open(tmp_path / "run", job())
    assert error.value.exit_code == 73
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(tmp_path):
    with pytest.raises(Interrupted):
        run(job(), tmp_path / "run", stop=lambda progress: progress.step == 3)
    before = sorted(p.name for p in tmp_path.glob("run/*.ckpt*"))
    real = Path.read_bytes

    def read_bytes(path):
        if path.suffix == ".ckpt":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path)

    read_bytes.__code__ = read_bytes.__code__.replace(co_filename="<system>")
    with (
        mock.patch.object(Path, "read_bytes", read_bytes),
        pytest.raises(MachineError, match="Too many open files"),
    ):
        run(job(), tmp_path / "run")
    with mock.patch("torch.load", side_effect=MemoryError), pytest.raises(MachineError, match="not enough memory"):
        run(job(), tmp_path / "run")
    assert sorted(p.name for p in tmp_path.glob("run/*.ckpt*")) == before
    run(read_job(tmp_path / "run"), tmp_path / "run")


# --- sweeps


def test_a_trial_that_the_machine_stopped_has_not_failed(tmp_path):
    found = judged(73, tmp_path, "dnat: runs/a: No space left on device: make room on the disk\n")
    assert (found.state, found.exit_code) == ("interrupted", 73)
    assert judged(-signal.SIGHUP, tmp_path, "").state == "interrupted"
    assert judged(1, tmp_path, "KeyError: 'x'").state == "failed"


def test_a_trial_that_could_not_be_started_for_want_of_handles_has_not_failed(tmp_path):
    attempt = Attempt(arguments=(), folder=str(tmp_path), directory=str(tmp_path / "a"), log=str(tmp_path / "log"))
    for error, state in ((OSError(errno.EMFILE, "Too many open files"), "interrupted"), (KeyError("x"), "failed")):
        with mock.patch("dnat.lab.sweep.local.carry_out", side_effect=error):
            engine = Local(1)
            engine.start("a", attempt)
            ((name, outcome),) = engine.ended(60)
        assert (name, outcome.state) == ("a", state)


def test_whoever_comes_second_to_a_new_sweep_is_told_who_works_there(tmp_path):
    sweep, trials = prepare(Sweep(networks=("resnet8",), methods=("original",), seeds=(0,)), tmp_path / "s", None)
    (tmp_path / "s" / "trials").mkdir(parents=True)  # what the first has made so far
    with pytest.raises(ValueError, match="is not empty and not a sweep's directory"):
        SweepDirectory.open(tmp_path / "s", sweep, trials)
    lock = Lock(tmp_path / "s")
    with pytest.raises(LockedError, match="is in use by") as error:
        SweepDirectory.open(tmp_path / "s", sweep, trials)
    assert error.value.exit_code == 73
    lock.close()


def test_a_sweep_whose_directory_was_not_made_to_its_end_goes_on(tmp_path):
    given = Sweep(networks=("resnet8",), methods=("original",), seeds=(0, 1))
    for after in range(6):
        place = tmp_path / f"s{after}"
        sweep, trials = prepare(given, place, None)
        with refuse(errno.EIO, after=after), pytest.raises(LockedError, match="cannot be written"):
            SweepDirectory.open(place, sweep, trials)
        SweepDirectory.open(place, sweep, trials).close()
        assert SweepFiles(place).read().seeds == (0, 1)
        assert len(list(place.glob("trials/*.toml"))) == 2


def test_a_list_that_is_a_number_is_refused():
    for parse in (parse_names, parse_seeds):
        with pytest.raises(TypeError, match=r"must be a list or a text with commas, not 1\.5"):
            parse(1.5)
    with pytest.raises((ValueError, TypeError), match="method"):
        Job.from_flat({"network": "resnet8", "method": [["original"]]})


# --- the command


def command(*words, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *rest: None)
    monkeypatch.setattr(sys, "argv", ["dnat", *map(str, words)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of 2 processes, but RANK, MASTER_ADDR"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not what torchrun sets"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is not what torchrun sets"),
        ({"WORLD_SIZE": "2", "RANK": "abc", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=abc is not what"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "a number from 0 to 1"),
        ({"DNAT_PARENT": "abc"}, "DNAT_PARENT=abc is no process"),
    ],
)
def test_variables_that_no_program_sets_are_refused_before_anything_is_written(
    variables, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = command("transform", "--network", "resnet8", "--epochs", 1, "--out", "run", monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert code == 2
    assert words in said
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_the_command_is_loaded_is_no_traceback(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    loading = types.ModuleType("commands")
    loading.__getattr__ = interrupt
    monkeypatch.setitem(sys.modules, "dnat.lab.cli.group", loading)
    assert command("networks", monkeypatch=monkeypatch) == 130
    assert capsys.readouterr().err == "dnat: stopped at once\n"


def test_ctrl_c_while_torch_is_loaded_ends_at_once(suite, tmp_path):
    """torch's C++ aborts at an exception."""

    def loading():
        from dnat.lab.cli import _interrupt

        torch.__spec__._initializing = True
        _interrupt(signal.SIGINT, None)

    assert suite("torture").forked(loading, tmp_path) == suite("torture").Ended(130, "dnat: stopped at once\n")
    with pytest.raises(KeyboardInterrupt):
        module._interrupt(signal.SIGINT, None)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_closed_terminal_stops_a_run_and_one_under_nohup_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with stop_on_signals() as stop:
            assert not stop(None)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop(None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop(None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- the suites


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    if not hasattr(os, "fork") or sys.platform != "linux":
        pytest.skip("the suites need Linux")
    return importlib.import_module


def test_whoever_reads_no_further_or_a_full_disk_behind_a_pipe_is_no_fault(suite, tmp_path):
    """`dnat networks | head -1`, and `dnat networks > /full/disk`."""
    torture = suite("torture")

    def unread():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        torture.command("networks")()

    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        torture.command("networks")()

    assert torture.forked(unread, tmp_path) == torture.Ended(141, "")
    ended = torture.forked(full, tmp_path)
    assert ended.code == 73
    assert ended.said.startswith("dnat: ")
    assert ended.said.endswith("No space left on device: make room on the disk\n")


def test_errors_at_system_calls(suite, tmp_path):
    table = suite("torture_system").run(tmp_path, part="3/30", only=("resume",))
    assert table.failures == []
    assert table.tried.total() > 2


def test_kills_at_system_calls_and_power_loss(suite, tmp_path):
    kills = suite("torture_kills")
    table = suite("torture").Table()
    kills.at_calls(table, tmp_path, "17/40")
    kills.power(table, tmp_path, "1/6", 0)
    assert table.failures == []
    assert table.tried["system call"] > 1
    assert table.tried["power"] > 10


def test_parsers_take_or_refuse_whatever_they_are_given(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = suite("torture_parsers").run(tmp_path, examples=12, seed=3)
    assert table.failures == []
    assert len(table.tried) == 16


def test_settings_that_may_not_be_read_are_no_wrong_settings(tmp_path, monkeypatch):
    """A trial whose own file cannot be read for the moment has not failed."""
    (tmp_path / "c.toml").write_text('network = "resnet8"\n')
    opened = os.open

    def refused(path, *rest, **more):
        if str(path).endswith("c.toml"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_toml(tmp_path / "c.toml")
