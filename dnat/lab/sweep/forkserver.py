"""Processes that need not import what others have: forked from one that holds torch and dnat, and does no more.

Of a short trial most of the time is imports: forked it takes less than half of the CPU time, with the same
bits. A sweep writes a line of JSON for each process that it wants, and for each signal; the server tells how
each ended. It is a process of its own, since a fork takes over the locks of threads, but not the threads: here are
none. It touches no GPU, so that each trial may. When its input ends, because the sweep is gone, it ends as well,
by which its processes know that they are to stop.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

THERE_ARE_FORKS = sys.platform == "linux"
"""Elsewhere a fork of a process with torch in it is not safe (macOS), or there is none."""

PARENT = "DNAT_PARENT"
"""Environment variable with the process without which a trial stops: whatever ends a sweep ends its trials."""

_IMPORTED = (
    *("dnat.lab.cli.running", "dnat.lab.runs", "dnat.lab.drawing", "dnat.lab.prediction"),
    *("dnat.lab.summary", "dnat.lab.terminal.tracker", "dnat.lab.terminal.tables"),
    *("matplotlib.figure", "torch._dynamo"),
)
"""What a trial imports; torch's optimizers ask for its compiler."""

_PAUSE = 0.05
"""Seconds between two looks at what has ended."""

_Server: TypeAlias = "subprocess.Popen[str]"


class Forked:
    """A process that the server started; it is waited for and stopped as a `subprocess.Popen` is."""

    def __init__(self, server: _Server, lock: threading.Lock, number: int, what: str) -> None:
        self._server, self._lock, self._number, self._what = server, lock, number, what
        self._code = 0
        self._has_ended = threading.Event()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; minus the signal's number if one killed it.

        Raises:
            subprocess.TimeoutExpired: it has not ended after so many seconds.
        """
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired(self._what, timeout or 0)
        return self._code

    def terminate(self) -> None:
        """Ask it to end."""
        self.tell(signal=signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.tell(signal=signal.SIGKILL)

    def tell(self, **message: Any) -> None:
        """Send the server a message about this process; a server that is gone has none any more."""
        assert self._server.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._server.stdin.write(json.dumps({"number": self._number, **message}) + "\n")
            self._server.stdin.flush()

    def end(self, code: int) -> None:
        """Note how it ended."""
        self._code = code
        self._has_ended.set()


class ForkServer:
    """The server as a sweep sees it; started with the first process. Use it as a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._listener: threading.Thread | None = None
        self._running: dict[int, Forked] = {}
        self._count = 0

    def start(
        self, module: str, arguments: Sequence[str], folder: str, environment: Mapping[str, str], log: str
    ) -> Forked:
        """Run a module as a program in a process of its own.

        Args:
            module: its full name.
            arguments: of the program.
            folder: its working directory.
            environment: its variables; `PARENT` becomes the server.
            log: the file to which what it prints is appended.
        """
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._end()
                self._server, self._running = _begun(environment), {}
                self._listener = threading.Thread(target=_listen, args=(self._server, self._running), daemon=True)
                self._listener.start()
            self._count += 1
            forked = Forked(self._server, self._lock, self._count, module)
            self._running[self._count] = forked
        forked.tell(module=module, arguments=[*arguments], folder=folder, log=log, environment=dict(environment))
        return forked

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
            self._server.wait()
            assert self._listener
            self._listener.join()


def _begun(environment: Mapping[str, str]) -> _Server:
    return subprocess.Popen(  # noqa: S603 (dnat itself)
        [sys.executable, "-P", "-m", __name__],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which tells its trials once
    )


def _listen(server: _Server, running: dict[int, Forked]) -> None:
    """Take a server's answers until it is gone, and with it what it started."""
    assert server.stdout is not None
    with server.stdout:
        for line in server.stdout:
            told = json.loads(line)
            running.pop(told["number"]).end(told["code"])
    for forked in running.values():
        forked.end(-signal.SIGKILL)


def _serve() -> None:
    """Fork what is asked for on stdin, and answer on stdout how each process ended, until stdin ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    for name in _IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Numpy's threads bear forks.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    running: dict[int, int] = {}
    unread = b""
    while True:
        if select.select([0], [], [], _PAUSE)[0]:
            part = os.read(0, 1 << 16)
            if not part:
                os._exit(0)  # nothing is to be done at the end
            *lines, unread = (unread + part).split(b"\n")
            for told in map(json.loads, lines):
                if "signal" not in told:
                    running[told["number"]] = _fork(told, answers)
                elif told["number"] in running:
                    os.kill(running[told["number"]], told["signal"])
        for number, pid in [*running.items()]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[number]
                answer = {"number": number, "code": os.waitstatus_to_exitcode(status)}
                os.write(answers, (json.dumps(answer) + "\n").encode())


def _fork(asked: Mapping[str, Any], answers: int) -> int:
    """Start what is asked for; returns its process. In that process it does not return."""
    server = os.getpid()
    if pid := os.fork():
        return pid
    os.setsid()
    os.close(answers)
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"] | {PARENT: str(server)})
    os.chdir(asked["folder"])
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    _serve()
