"""What the torture suites share: small runs, commands in a forked process, system calls that are watched, tables.

Each `torture_*.py` is a program of its own (`make torture` runs all): it tries cases, prints how many of each kind
ended well, lists what failed, and ends with exit code 1 if anything did.
"""

import argparse
import builtins
import codecs
import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dnat.lab.runs.running
import dnat.records
from dnat.lab.cli import main
from dnat.rundir import RunFiles

JOB = ["--network", "resnet8", "--set", "network.width=2", "--image-size", "8", "--train-limit", "60"]
JOB += ["--test-limit", "40", "--set", "threads=1", "--set", "latency_batch=2", "--batch-size", "30"]
JOB += ["--epochs", "3", "--architecture-epochs", "2"]
"""A run that takes a second or two."""
QUICK = [*JOB, "--method", "original"]
"""One that saves as often, and takes less."""

for _module in (  # once, before processes are forked
    "torch._dynamo",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "scipy.stats",
    *(f"dnat.{name}" for name in ("exports", "proposal", "training", "records")),
    *(
        f"dnat.lab.{name}"
        for name in ("cli.commands", "drawing", "methods", "report", "runs", "sweep", "tabulation")
    ),
    "dnat.lab.terminal",
):
    importlib.import_module(_module)
codecs.lookup("unicode-escape")  # jinja2's; another user, as whom some cases run, may not read Python's own files

TIMES = ("seconds", "images_per_second", "memory")


# --- commands


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, or minus the signal that killed it, and what it printed."""

    code: int
    said: str


def forked(action: Callable[[], None], folder: Path | None = None, timeout: float = 120) -> Ended:
    """Run something in a forked process; its exit code is that of sys.exit, 1 for an exception."""
    with tempfile.TemporaryFile() as log:
        process = start(action, folder, log.fileno())
        timer = threading.Timer(timeout, os.kill, (process, 9))
        timer.start()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        timer.cancel()
        log.seek(0)
        return Ended(code, log.read().decode(errors="replace"))


def start(action: Callable[[], None], folder: Path | None, log: int) -> int:
    """Fork a process that does something; both its outputs go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        if folder is not None:
            os.chdir(folder)
        action()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code if code is not None else 0)


def command(*words: object, pictures: bool = True) -> Callable[[], None]:
    """A command of dnat's, as its own process would run it; a run may go without its pictures, which take time."""

    def run() -> None:
        if not pictures:
            dnat.lab.runs.running.draw = lambda *rest, **more: []
        dnat.records._code_version = lambda: None
        sys.argv = ["dnat", *map(str, words)]
        main()

    return run


# --- what runs came to


def result_of(directory: Path) -> Any:
    """What must be the same to the bit: results, rows, weights; without times."""
    files = RunFiles(directory)
    record = files.record()
    results = {k: v for k, v in record["results"].items() if k not in TIMES and "seconds" not in k}
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in files.rows()]
    return json.dumps([results, rows], sort_keys=True), files.path("network.safetensors").read_bytes()


def strays(folder: Path) -> list[str]:
    """Temporary files that were left."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(".tmp")]


# --- system calls


Before = Callable[[str, str, bytes], None]
"""Is told of a call before it is done: its name, the file, and what is written."""


@contextlib.contextmanager
def system_calls(folder: Path, before: Before) -> Iterator[None]:  # noqa: C901 (one call after the other)
    """Within, `before` is told of each system call that changes, or opens to read, what lies in a folder.

    What it raises is raised by the call. Its frames, and those here, count as Python's own.
    """
    inside, paths = str(folder.resolve()), dict[int, str]()
    real = {name: getattr(os, name) for name in ("open", "fsync", "fdopen", "truncate", *_OF_TWO, *_OF_ONE)}
    real_open = builtins.open

    def ours(path: Any) -> bool:
        return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(inside)

    @_hidden
    def os_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if not ours(path):
            return real["open"](path, flags, *rest, **more)
        is_directory = flags & os.O_DIRECTORY or os.path.isdir(path)
        before("open directory" if is_directory else "open", os.fsdecode(path), b"")
        number = real["open"](path, flags, *rest, **more)
        paths[number] = os.fsdecode(path)
        return number

    @_hidden
    def fsync(number: int) -> None:
        if number in paths:
            before("fsync", paths[number], b"")
        real["fsync"](number)

    @_hidden
    def fdopen(number: int, *rest: Any, **more: Any) -> Any:
        file = real["fdopen"](number, *rest, **more)
        return _File(file, paths[number], before) if number in paths else file

    @_hidden
    def opened(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not ours(path):
            return real_open(path, mode, *rest, **more)
        writes = any(letter in mode for letter in "wax+")
        before("open" if writes else "read", os.fsdecode(path), b"")
        file = real_open(path, mode, *rest, **more)
        if not writes or os.path.basename(os.fsdecode(path)) == ".lock":
            return file
        paths[file.fileno()] = os.fsdecode(path)
        return _File(file, os.fsdecode(path), before)

    def plain(name: str) -> Callable[..., Any]:
        @_hidden
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if ours(path):
                what = os.fsencode(rest[0]) if name in _OF_TWO else str(rest[0] if rest else "").encode()
                before(name, os.fsdecode(path), what)
            return real[name](path, *rest, **more)

        return call

    patched = {"open": os_open, "fsync": fsync, "fdopen": fdopen}
    patched |= {name: plain(name) for name in ("truncate", *_OF_TWO, *_OF_ONE)}
    try:
        for name, function in patched.items():
            setattr(os, name, function)
        builtins.open = io.open = opened
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        builtins.open = io.open = real_open


_OF_TWO = ("replace", "rename")
_OF_ONE = ("unlink", "mkdir", "rmdir")


def _hidden(function: Any) -> Any:
    """A function whose frames count as those of Python, not of a user: see `dnat.errors`."""
    function.__code__ = function.__code__.replace(co_filename="<system>")
    return function


class _File:
    """An open file that tells what is written to it."""

    def __init__(self, file: Any, path: str, before: Before) -> None:
        self.file, self.path, self.before = file, path, before

    @_hidden
    def write(self, content: Any) -> Any:
        data = content.encode() if isinstance(content, str) else bytes(content)
        try:
            self.before("write", self.path, data)
        except OSError:
            self.file.write(content[: len(content) // 2])  # as a disk does that becomes full
            self.file.flush()
            raise
        written = self.file.write(content)
        self.file.flush()
        return written

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@_hidden
def fail(number: int, path: str) -> None:
    """Raise an error of the system's."""
    raise OSError(number, os.strerror(number), path)


def calls_of(action: Callable[[], None], folder: Path, place: Path | None = None) -> list[tuple[str, str]]:
    """The system calls of something that is done in a forked process: name and file's name, in order."""
    listed = folder.parent / "calls.jsonl"
    listed.unlink(missing_ok=True)

    def watched() -> None:
        with open(listed, "w", buffering=1) as out:

            def note(call: str, path: str, content: bytes) -> None:
                print(json.dumps([call, os.path.basename(path)]), file=out)

            with system_calls(folder, note):
                action()

    ended = forked(watched, place)
    assert ended.code == 0, ended
    return [tuple(json.loads(line)) for line in listed.read_text().splitlines()]


# --- suites


def copy(source: Path, target: Path) -> Path:
    """A directory anew."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


class Table:
    """Cases by kind, how many failed, and how; printed at the end."""

    def __init__(self) -> None:
        self.tried, self.bad, self.ends = Counter[str](), Counter[str](), dict[str, Counter[str]]()
        self.failures: list[str] = []

    def note(self, kind: str, case: str, end: str, wrong: str) -> None:
        """Note a case: how it ended, and what is wrong; "" where nothing is."""
        self.tried[kind] += 1
        self.ends.setdefault(kind, Counter())[end] += 1
        if wrong:
            self.bad[kind] += 1
            self.failures.append(f"{kind}: {case}: {wrong}")
            print(self.failures[-1], flush=True)

    def __str__(self) -> str:
        wide = max(map(len, ["kind", *self.tried]))
        lines = [f"{'kind':{wide}}  cases  failures  ends"]
        for kind, many in self.tried.items():
            ends = ", ".join(f"{end} x {n}" for end, n in self.ends[kind].most_common())
            lines.append(f"{kind:{wide}}  {many:5}  {self.bad[kind]:8}  {ends}")
        return "\n".join([*lines, f"{'all':{wide}}  {self.tried.total():5}  {self.bad.total():8}"])


def part_of(cases: Sequence[Any], part: str) -> list[Any]:
    """The N-th of M parts of the cases, each M-th of them: "2/4"."""
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise SystemExit(f"--part takes N/M, as 1/4, not {part!r}")
    return list(cases[int(number) - 1 :: int(of)])


def parser(description: str) -> argparse.ArgumentParser:
    """With what all suites take."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--part", default="1/1", metavar="N/M", help="only the N-th of M parts of the cases")
    found.add_argument("--seed", type=int, default=0)
    return found


def finish(table: Table) -> None:
    """Print the table; exit code 1 if anything failed."""
    print(table)
    sys.exit(bool(table.failures))
