"""Processes that are forked: what they are given, how they end, and what becomes of them with their server."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dnat.lab.sweep.forkserver import THERE_ARE_FORKS, ForkServer
from dnat.lab.sweep.trials import Attempt, carry_out

pytestmark = pytest.mark.skipif(not THERE_ARE_FORKS, reason="processes are forked on Linux alone")

PROGRAM = """
import json, os, signal, sys, time
print(json.dumps([os.getcwd(), sys.argv[1:], "torch" in sys.modules, os.environ.get("COLOUR"), sys.stdin.read()]))
print("on stderr", file=sys.stderr)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waits", flush=True)
    while os.getppid() == int(os.environ["DNAT_PARENT"]):
        time.sleep(0.01)
    print("orphan", flush=True)
    sys.exit(0)
if sys.argv[1] == "raise":
    raise ValueError("as ever")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forked")
    (folder / "forked_program.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


@pytest.fixture
def started(server, folder, tmp_path):
    """Start the program by a server: the process, and the file with what it prints."""

    def start(argument, by=server, **variables):
        path = os.pathsep.join((str(folder), *filter(None, sys.path)))
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        log = tmp_path / "log"
        return by.start("forked_program", [argument, "é"], str(tmp_path), environment, str(log)), log

    return start


def wait_for(log, text):
    for _ in range(6000):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(log.read_text() if log.exists() else "nothing was printed")


def test_a_process_has_its_folder_arguments_variables_and_log(started, tmp_path):
    first, log = started("3", COLOUR="blue")
    assert first.wait(60) == 3
    printed, error = sorted(log.read_text().splitlines())[0], "on stderr"
    assert json.loads(printed) == [str(tmp_path), ["3", "é"], True, "blue", ""]
    assert error in log.read_text()
    second, _ = started("0")
    assert second.wait(60) == 0
    assert "null" in log.read_text()  # the first one's variable is not the second's


def test_an_error_is_told_and_ends_with_1(started):
    process, log = started("raise")
    assert process.wait(60) == 1
    assert "ValueError: as ever" in log.read_text()


def test_a_process_is_asked_to_end_or_killed_and_no_other_is(started):
    process, log = started("wait")
    wait_for(log, "waits\n")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.terminate()
    assert process.wait(60) == 75
    other, _ = started("wait")
    other.kill()
    assert other.wait(60) == -signal.SIGKILL
    other.kill()  # of one that has ended nothing is killed
    assert "orphan" not in log.read_text()


def test_with_a_dead_server_its_processes_end_and_another_one_is_begun(started):
    with ForkServer() as server:
        process, log = started("wait", by=server)
        wait_for(log, "waits\n")
        server._server.kill()
        assert process.wait(60) == -signal.SIGKILL  # as far as anybody can tell
        wait_for(log, "orphan\n")
        again, _ = started("0", by=server)
        assert again.wait(60) == 0


def test_a_forked_trial_has_the_bits_of_one_in_a_process_of_its_own(server, tmp_path):
    words = "transform --network resnet8 --set network.width=2 --train-limit 100 --test-limit 50 --epochs 2"
    words += " --architecture-epochs 1 --batch-size 50 --set threads=1"
    found = {}
    for name, by in (("forked", server), ("own", None)):
        directory = tmp_path / name
        arguments = (*words.split(), "--out", str(directory))
        attempt = Attempt(arguments, str(tmp_path), str(directory), str(tmp_path / f"{name}.log"))
        assert carry_out(attempt, lambda: False, server=by).state == "done", (tmp_path / f"{name}.log").read_text()
        results = json.loads((directory / "record.json").read_text())["results"]
        found[name] = {k: v for k, v in results.items() if k != "seconds"}
        wrong = carry_out(replace(attempt, arguments=("transform", "--network", "nope")), lambda: False, server=by)
        assert wrong.state == "done"  # its result is there already
    assert found["forked"] == found["own"]


TRIAL = """
import importlib, sys
from dnat.lab.cli.group import cli
from dnat.lab.sweep.forkserver import _IMPORTED
for name in _IMPORTED:
    importlib.import_module(name)
before = {*sys.modules}
cli.main(["transform", *sys.argv[1:]], standalone_mode=False)
print("imported later:", *(name for name in sys.modules if name.startswith("dnat") and name not in before))
"""


def test_a_trial_finds_all_of_dnat_imported(tmp_path):
    job = (
        "--network resnet8 --set network.width=2 --set threads=1 --train-limit 40 --test-limit 20 --batch-size 20"
    )
    words = [*job.split(), "--epochs", "2", "--architecture-epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", TRIAL, *words], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "imported later:", done.stderr
