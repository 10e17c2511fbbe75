"""One trial in a process of its own: started, watched, stopped, and judged by how it ended.

Every engine carries trials out by `carry_out`, so that an engine decides where a trial runs and nothing else. This
module needs no torch: a process that only watches others should be small.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ...files import parse_json
from ...locks import holder, is_held
from ...rundir import METRICS, RECORD, SEARCH_ROWS, RunFiles
from ..metrics import Measured, measured_in
from .forkserver import PARENT, ForkServer

State = Literal["pending", "running", "done", "failed", "interrupted"]

LOCK_SECONDS = 30.0
"""How long a trial waits for its directory: one whose sweep was killed just now ends after its present batch."""

_LOCKED = 73
_COMMAND = "dnat.lab.cli"
_SIGNALS = {-getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL") if hasattr(signal, name)}
_GOES_ON = {_LOCKED, 75, 130} | _SIGNALS
"""Exit codes after which the run goes on from its checkpoint: it was stopped, or the machine's disk or memory was
full, and nothing is wrong with it."""

_NOT_REASONS = re.compile(r"dnat: this is a bug of dnat|files: |--- attempt ")


@dataclass(frozen=True)
class Attempt:
    """All that is needed to start a trial, here or on another machine.

    Attributes:
        arguments: of the command `dnat`, or of `program`.
        folder: the working directory, in which users' modules and relative paths are looked for.
        directory: the run directory; absolute.
        log: the file to which what the trial prints is appended; absolute.
        number: 1 for the first attempt.
        device: as in the trial's settings.
        environment: variables beside those of the process that starts it; None takes one away.
        program: what is started; by default the dnat of the process that starts it.
    """

    arguments: tuple[str, ...]
    folder: str
    directory: str
    log: str
    number: int = 1
    device: str = "auto"
    environment: dict[str, str | None] = field(default_factory=dict)
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: done, failed or interrupted.
        exit_code: of the process; minus the signal's number if one killed it; None where there was no process.
        reason: why, unless it is done.
        seconds: how long it took.
    """

    state: State
    exit_code: int | None = None
    reason: str = ""
    seconds: float = 0.0


def trial_command(
    config: str, directory: str, *, download: bool = False, trusted: bool = False, wandb: str | None = None
) -> list[str]:
    """The arguments of the command `dnat` that carries a trial out; `trusted` as the sweep is."""
    arguments = ["transform", "--config", config, "--out", directory]
    arguments += ["--download"] if download else []
    arguments += ["--trust-code"] if trusted else []
    return arguments + (["--wandb", wandb] if wandb is not None else [])


def program() -> tuple[str, ...]:
    """How this very dnat is started."""
    return _python(_COMMAND)


def _python(module: str) -> tuple[str, ...]:
    """How a module is run: -P keeps a folder of the same name in the working directory out of it."""
    return sys.executable, "-P", "-m", module


class Process(Protocol):
    """What is waited for: a `subprocess.Popen`, or one that is forked."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


def carry_out(
    attempt: Attempt,
    stop: Callable[[], bool],
    at_once: Callable[[], bool] = lambda: False,
    server: ForkServer | None = None,
) -> Outcome:
    """Start a trial, wait for its end and judge it.

    Args:
        attempt: what to start.
        stop: asked several times a second whether the trial is to save and stop.
        at_once: whether it is to be killed.
        server: which forks the trial; without, and for a program of its own, it is a new process.
    """
    began = time.monotonic()
    while True:
        if not _wait_until(lambda: not is_held(attempt.directory), stop, LOCK_SECONDS):
            reason = (
                "stopped before it began" if stop() else f"its directory is in use by {holder(attempt.directory)}"
            )
            return Outcome("interrupted", None, reason, time.monotonic() - began)
        outcome = _once(attempt, stop, at_once, server)
        # Another process may have taken the directory while this one started.
        late = time.monotonic() - began > LOCK_SECONDS
        if outcome.exit_code != _LOCKED or "is in use by" not in outcome.reason or late:
            return outcome


def _wait_until(true: Callable[[], bool], stop: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if stop() or time.monotonic() > end:
            return False
        time.sleep(0.2)
    return not stop()


def _once(
    attempt: Attempt, stop: Callable[[], bool], at_once: Callable[[], bool], server: ForkServer | None
) -> Outcome:
    began = time.monotonic()
    with open(attempt.log, "ab") as log:
        shown = f"--- attempt {attempt.number}, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
        log.write(shown.encode())
        log.flush()
        start = log.tell()
        variables = environment(attempt.environment)
        process: Process
        if server is not None and not attempt.program:
            process = server.start(_COMMAND, attempt.arguments, attempt.folder, variables, attempt.log)
        else:
            process = _begun([*(attempt.program or program()), *attempt.arguments], attempt.folder, variables, log)
        try:
            code = waited(process, stop, at_once)
        except BaseException:
            process.kill()
            process.wait()
            raise
    text = _tail(attempt.log, start)
    return judged(code, attempt.directory, text, time.monotonic() - began)


def _begun(words: Sequence[str], folder: str, variables: Mapping[str, str], log: Any) -> Process:
    """A new process, whose output goes to an open file."""
    return subprocess.Popen(  # noqa: S603 (dnat itself)
        words,
        cwd=folder,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which tells its trials once
    )


def environment(more: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of a process that runs this very dnat, and ends when this one does."""
    source = Path(__file__).resolve().parents[3]
    environment = {k: v for k, v in {**os.environ, **more}.items() if v is not None}
    if os.name == "posix":
        environment[PARENT] = str(os.getpid())
    if source.name not in ("site-packages", "dist-packages"):  # there it is found in any case
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(source), environment.get("PYTHONPATH"))))
    return environment


def beside(
    module: str, arguments: Sequence[str], stop: Callable[[], bool], server: ForkServer | None = None
) -> tuple[int, str]:
    """Run a module of dnat's in a process of its own, in which users' modules are found where the user stands.

    Args:
        module: its full name.
        arguments: of it.
        stop: asked several times a second whether the process is to end.
        server: which forks it; without, it is a new process.

    Returns:
        Its exit code, and what it printed.
    """
    with tempfile.NamedTemporaryFile(prefix="dnat-") as log:
        process: Process
        if server is not None:
            process = server.start(module, arguments, os.getcwd(), environment({}), log.name)
        else:
            process = _begun([*_python(module), *arguments], os.getcwd(), environment({}), log)
        code = waited(process, stop, lambda: False)
        log.seek(0)
        return code, log.read().decode(errors="replace")


def waited(process: Process, stop: Callable[[], bool], at_once: Callable[[], bool]) -> int:
    """The exit code of a process that is asked to end when `stop` says so, and killed when `at_once` does."""
    asked = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)
        if at_once():
            process.kill()
        elif stop() and not asked:
            asked = True
            process.terminate()


def judged(code: int, directory: str | Path, text: str, seconds: float = 0.0) -> Outcome:
    """What an exit code and a run directory mean.

    Args:
        code: of the process; minus the signal's number if one killed it.
        directory: the run directory. A result there is what counts: it is written last.
        text: what the trial printed.
        seconds: it took.
    """
    last = reason_in(text)
    if RunFiles(directory).is_done():
        problem = RunFiles(directory).problem()
        return Outcome("failed" if problem else "done", code, problem, seconds)
    if code == 0:
        return Outcome("failed", code, f"it ended without a result (exit code 0, no {RECORD})", seconds)
    if code < 0:
        last = f"killed by {_signal(-code)}" + (f" after: {last}" if last else "")
    state: State = "interrupted" if code in _GOES_ON else "failed"
    return Outcome(state, code, last or f"exit code {code}", seconds)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def reason_in(text: str) -> str:
    """The line of a log that says why it ended: the last one, or what stands above our request to report a bug.

    >>> reason_in("epoch 1\\ndnat: the loss is not finite any more\\n\\n")
    'the loss is not finite any more'
    """
    lines = [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", line).strip() for line in text.splitlines()
    ]
    found = next((line for line in reversed(lines) if line and not _NOT_REASONS.match(line)), "")
    return found.removeprefix("dnat: ").removesuffix("; the same command goes on with it")[:400]


def _tail(path: str, start: int, most: int = 1 << 16) -> str:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - most))
        return file.read().decode("utf-8", errors="replace")


def progress(directory: str | Path) -> tuple[str, int, Measured | None] | None:
    """Stage, epochs done and what the last of them came to, of a run; None at first.

    Rows are read from the end of metrics.jsonl, or of search.jsonl while there are no metrics.
    """
    for name in (METRICS, SEARCH_ROWS):
        path = RunFiles(directory).path(name)
        for row in _rows_from_the_end(path) if path.is_file() else ():
            if isinstance(row.get("epoch"), int):
                return str(row.get("stage", "search")), int(row["epoch"]), measured_in(row)
    return None


def _rows_from_the_end(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = _tail(str(path), 0).splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # cut off at the front, or not written to its end yet
            row = parse_json(line)
            if isinstance(row, dict):
                yield row
