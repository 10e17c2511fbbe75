"""Errors of the system at every call of saving: one line, exit code 73 or 75, and nothing is lost.

    python benchmarks/torture_system.py                 all cases
    python benchmarks/torture_system.py --part 1/8      an eighth of them

- "calls": at each system call that a command makes in its directory (open, write, fsync, replace, unlink, mkdir,
  ...), one error is raised, once or from then on: no space, no quota, an input/output error, read-only, not
  allowed, too many open files, no memory.
- "full disk": the same commands on a disk of a few kilobytes (needs root, which may mount one; skipped otherwise).
- "file size", "open files", "memory": limits of the process.
- "read-only": directories that may not be written (as root: by another user, in the process alone).
- "output": standard output is a full disk, or nobody reads it.

A case is good if nobody sees a traceback, the exit code is 73 or 75 (or 0 with the right result), a line tells
what failed, no temporary file is left, and the same command, repeated without the error, gives the bits of an
undisturbed one.
"""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torture
from safetensors import safe_open
from torture import JOB, QUICK, Ended, Table, calls_of, command, copy, forked, result_of, strays, system_calls

from dnat.lab.sweep import local, schedule
from dnat.lab.sweep.trials import Attempt, Outcome, judged
from dnat.rundir import RunFiles, read_job
from dnat.training import Interrupted

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EMFILE", "ENOMEM")
NOBODY = 65534


@dataclass(frozen=True)
class Kind:
    """A command, on a directory "run" in the folder of its case, or that makes one.

    Attributes:
        name: of the command.
        source: the directory that it is given; None where it makes one.
        action: the command; what it changes lies in the working directory.
        outcome: what must be the same afterwards.
        is_run: whether it trains, so that a rerun goes on.
    """

    name: str
    source: str | None
    action: Callable[[], None]
    outcome: Callable[[Path], Any]
    is_run: bool = False


@dataclass(frozen=True)
class Case:
    """An error for a command: its class, and what it is."""

    fault: str
    kind: str
    what: tuple[Any, ...]


def _bytes(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).read_bytes() for name in names]


def _exported(folder: Path) -> Any:
    with safe_open(folder / "run" / "exported.safetensors", "np") as file:  # its metadata have no order
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors, (folder / "run" / "exported.json").read_bytes()


def _plan(folder: Path) -> Any:
    return json.loads((folder / "plan.json").read_text())["proposals"]


def _sweep() -> None:
    """A sweep of one trial, which runs in this process: what is tried is what the sweep itself writes."""

    def in_process(attempt: Attempt, *asked: Any) -> Outcome:
        from dnat.lab.runs import run
        from dnat.settings import Job, read_toml

        job = Job.from_flat(read_toml(attempt.arguments[attempt.arguments.index("--config") + 1]))
        try:
            run(job, attempt.directory)
        except Exception as error:
            told = f"dnat: {error}"
            return judged(getattr(error, "exit_code", 1), attempt.directory, told)
        return judged(0, attempt.directory, "")

    local.carry_out = in_process  # type: ignore[assignment]
    schedule.check_networks = lambda *rest: None  # type: ignore[assignment]
    command(
        "sweep",
        "--networks",
        "resnet8",
        "--methods",
        "original",
        "--seeds",
        1,
        *JOB[2:],
        "--out",
        "run",
        pictures=False,
    )()


def kinds() -> dict[str, Kind]:
    """All commands that are tried."""
    export = ("export", "run", "--to", "safetensors", "--no-verify")
    report = ("report", "run", "--html", "run/page.html", "--markdown", "run/text.md")
    plan = ("plan", *JOB[:6], "--images", 4, "--budget", 0.7, "--out", "plan.json")
    found = (
        Kind(
            "transform",
            None,
            command("transform", *QUICK, "--out", "run", pictures=False),
            lambda f: result_of(f / "run"),
            True,
        ),
        Kind("resume", "part", command("resume", "run", pictures=False), lambda f: result_of(f / "run"), True),
        Kind("sweep", None, _sweep, lambda f: result_of(f / "run" / "resnet8-original-seed0"), True),
        Kind("draw", "done", command("draw", "run", "--format", "svg"), _bytes("run/architecture.svg")),
        Kind("export", "done", command(*export), _exported),
        Kind("report", "done", command(*report), lambda f: (f / "run" / "text.md").read_text()),
        Kind("results", "done", command("results", "run", "--out", "table.csv"), _bytes("table.csv")),
        Kind("plan", None, command(*plan), _plan),
    )
    return {kind.name: kind for kind in found}


def prepare(folder: Path) -> None:
    """A finished and an unfinished run."""
    folder.mkdir()
    ended = forked(command("transform", *QUICK, "--out", "done", pictures=False), folder)
    assert ended.code == 0, ended

    def stopped() -> None:
        from dnat.lab.runs import run

        try:
            run(read_job("done"), "part", stop=lambda progress: progress.step == 5)
        except Interrupted:
            return

    assert forked(stopped, folder).code == 0


# --- faults


def cases(sources: Path, work: Path, found: dict[str, Kind]) -> Iterator[Case]:  # noqa: C901 (a list)
    """All of them."""
    number = 0
    for name, kind in found.items():
        begin(kind, sources, work)
        for place, (call, file) in enumerate(calls_of(kind.action, work, work)):
            if file == ".lock" and call == "read":
                continue
            error = "EMFILE" if call == "read" else ERRORS[number % len(ERRORS)]
            lasting = number // len(ERRORS) % 2 == 1
            number += 1
            yield Case("calls", name, (place, call, file, error, lasting))
    for size in (0, 4, 12, 24, 40, 60, 90, 130, 200, 300):
        for name in ("transform", "resume", "draw", "export", "report", "results", "sweep"):
            yield Case("full disk", name, (size,))
    for size in (0, 100, 1000, 4000, 10_000, 20_000, 60_000):
        for name in ("transform", "resume", "draw", "export", "report", "results"):
            yield Case("file size", name, (size,))
    for more in (0, 1, 2, 3):
        for name in ("transform", "resume", "draw", "export", "report", "results"):
            yield Case("open files", name, (more,))
    for more in (1, 4, 16, 48):
        for name in ("transform", "resume", "export"):
            yield Case("memory", name, (more,))
    for name in found:
        yield Case("read-only", name, ())
    for name in ("transform", "draw", "export", "report", "results"):
        for where in ("full", "nobody"):
            yield Case("output", name, (where,))


def begin(kind: Kind, sources: Path, work: Path) -> None:
    """The folder of a case, anew."""
    for left in list(work.iterdir()):
        torture.shutil.rmtree(left) if left.is_dir() else left.unlink()
    if kind.source:
        copy(sources / kind.source, work / "run")


def raising(case: Case, kind: Kind, work: Path) -> Callable[[], None]:
    """A command at one of whose system calls an error is raised."""
    place, _, _, error, lasting = case.what
    number, count = getattr(errno, error), [0]

    @torture._hidden
    def before(call: str, path: str, content: bytes) -> None:
        here = count[0]
        count[0] += 1
        spared = lasting and call in ("unlink", "rmdir", "read")  # what makes room, or needs none
        # Python 3.11's tempfile tries for ever to delete a folder that may not be opened.
        spared = spared or (call == "open directory" and number == errno.EACCES and here > place)
        if here == place or (lasting and here > place and not spared):
            torture.fail(errno.EMFILE if call == "read" else number, path)

    def run() -> None:
        with system_calls(work, before):
            kind.action()

    return run


def limited(limit: int, size: int, action: Callable[[], None]) -> Callable[[], None]:
    """An action within a limit of its process."""

    def run() -> None:
        resource.setrlimit(limit, (size, resource.getrlimit(limit)[1]))
        action()

    return run


def _used() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def disturbed(case: Case, kind: Kind, work: Path) -> Ended:
    """Run a command with its fault."""
    if case.fault == "calls":
        return forked(raising(case, kind, work), work)
    (what,) = case.what or (None,)
    if case.fault == "file size":
        return _with_file_limit(what, kind, work)
    if case.fault == "open files":
        return forked(
            lambda: limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1 + what, kind.action)(),
            work,
        )
    if case.fault == "memory":
        return forked(lambda: limited(resource.RLIMIT_AS, _used() + (what << 20), kind.action)(), work)
    if case.fault == "read-only":
        return forked(_as_nobody(kind, work), work)

    def run() -> None:
        if what == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        else:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        kind.action()

    return forked(run, work)


def _with_file_limit(size: int, kind: Kind, work: Path) -> Ended:
    """What a process prints goes into a pipe here: a file would be limited, too."""
    read, write = os.pipe()
    process = torture.start(limited(resource.RLIMIT_FSIZE, size, kind.action), work, write)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        text = said.read().decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text)


def _as_nobody(kind: Kind, work: Path) -> Callable[[], None]:
    def run() -> None:
        for path in (work, *work.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        kind.action()

    return run


# --- judging


def problem(case: Case, kind: Kind, ended: Ended, work: Path, expected: Any) -> str:
    """What is wrong with how a case ended; "" if nothing is."""
    if "Traceback" in ended.said or "bug of dnat" in ended.said or "Exception ignored" in ended.said:
        return f"a traceback: {ended.said[-1500:]}"
    quiet = case.what[-1:] == ("nobody",)
    if ended.code not in (0, 73, 75) and not (quiet and ended.code == 141):
        return f"exit code {ended.code}: {ended.said[-600:]}"
    if ended.code in (73, 75) and not _last_line(ended.said).startswith("dnat: "):
        return f"exit code {ended.code} without a word: {ended.said[-600:]}"
    if case.fault != "read-only":
        if left := [s for s in strays(work) if not _cannot_be_deleted(case)]:
            return f"temporary files: {left}"
        if kind.is_run and (wrong := _status(work, ended, _lasts(case))):
            return wrong
    again = _again(kind, work) if ended.code else ended
    if again.code:
        return f"repeated: exit code {again.code}: {again.said[-900:]}"
    try:
        if (case.fault != "read-only" or ended.code) and kind.outcome(work) != expected:
            return "another result"
    except Exception as error:
        return f"no result: {error}"
    return ""


def _last_line(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.strip()), "")


def _again(kind: Kind, work: Path) -> Ended:
    for path in (work, *work.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return forked(kind.action, work)


def _cannot_be_deleted(case: Case) -> bool:
    return case.fault == "calls" and case.what[1] == "unlink"


def _lasts(case: Case) -> bool:
    return case.fault != "calls" or case.what[-1]


def _status(work: Path, ended: Ended, lasting: bool) -> str:
    """What is wrong with the states of runs, which are not said to have failed."""
    for config in work.rglob("config.toml"):
        files = RunFiles(config.parent)
        if not files.is_done():
            state = files.why_unfinished()[0]
            if state == "failed" or (not lasting and ended.code == 75 and state != "interrupted"):
                return f"{config.parent.name} is said to be {state!r}, after exit code {ended.code}"
    trials = work / "run" / "trials.json"
    if trials.exists() and '"state": "failed"' in trials.read_text():
        return f"the sweep says that a trial failed: {trials.read_text()}"
    return ""


def torment(case: Case, kind: Kind, sources: Path, work: Path, expected: Any) -> tuple[str, str]:
    """How a case ended, and what is wrong with that."""
    begin(kind, sources, work)
    if case.fault != "full disk":
        ended = disturbed(case, kind, work)
        return str(ended.code), problem(case, kind, ended, work, expected)
    given, left = copy(work, work.parent / "given"), work.parent / "left"
    here = sum(p.stat().st_size + 4096 for p in work.rglob("*")) >> 10
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={here + 8 + case.what[0]}k", "dnat", work], check=True)
    try:
        torture.shutil.copytree(given, work, dirs_exist_ok=True)
        ended = forked(kind.action, work)
        copy(work, left)
    finally:
        subprocess.run(["umount", work], check=True)
    torture.shutil.rmtree(work)  # what is repeated has room
    torture.shutil.copytree(left, work)
    return str(ended.code), problem(case, kind, ended, work, expected)


def mounts(folder: Path) -> bool:
    """Whether a disk can be mounted here."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "dnat", folder], capture_output=True).returncode:
        return False
    return not subprocess.run(["umount", folder], check=True).returncode


def run(folder: Path, part: str = "1/1", only: tuple[str, ...] = ()) -> Table:
    """Try the cases, or a part of them."""
    table, found, sources, work = Table(), kinds(), folder / "sources", folder / "work"
    prepare(sources)
    work.mkdir()
    expected = {}
    for name, kind in found.items():
        if only and name not in only:
            continue
        begin(kind, sources, work)
        ended = forked(kind.action, work)
        assert ended.code == 0, ended
        expected[name] = kind.outcome(work)
    skipped = set() if mounts(folder / "disk") else {"full disk"}
    listed = [c for c in cases(sources, work, {k: v for k, v in found.items() if k in expected})]
    if os.geteuid() == 0:
        for path in (folder, folder.parent):
            path.chmod(0o755)
    for case in torture.part_of([c for c in listed if c.kind in expected], part):
        if case.fault in skipped:
            continue
        end, wrong = torment(case, found[case.kind], sources, work, expected[case.kind])
        table.note(f"{case.fault}, {case.kind}", str(case.what), end, wrong)
    if skipped:
        print("skipped: full disk (only root may mount one)")
    return table


def main() -> None:
    """Try all cases, and say how they ended."""
    parser = torture.parser(__doc__)
    parser.add_argument("--only", default="", metavar="COMMAND,...", help="only these commands")
    options = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("this needs Linux")
    with tempfile.TemporaryDirectory() as folder:
        torture.finish(run(Path(folder), options.part, tuple(filter(None, options.only.split(",")))))


if __name__ == "__main__":
    main()
