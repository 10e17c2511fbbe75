"""Kills, signals and power loss, at every place: the result is that of an undisturbed run, to the bit.

    python benchmarks/torture_kills.py                              a few of each
    python benchmarks/torture_kills.py --kills 500 --signals 300    in full

- "system call": a run is killed by SIGKILL just before the k-th system call that it makes in its directory, for
  each k; then it goes on.
- "power": the calls of a run are recorded. For each place between two of them, a directory is made as a disk may
  have it after power was lost there: what was not flushed is gone, or half written, or there. It must open, and no
  checkpoint may be older than one that was acknowledged.
- "kill", "signal": whole trainings of each method are ended at random moments (SIGKILL; SIGTERM, SIGINT, SIGHUP),
  again and again, until they are done.
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torture
from torture import JOB, QUICK, Table, calls_of, command, forked, result_of, strays, system_calls

from dnat.checkpoints import unpack
from dnat.records import Records
from dnat.rundir import read_job

_FEW = {"epochs": 2, "samples": 2, "batch_size": 12, "architectures": 4, "nao_epochs": 20}
_SEARCH = [word for name, value in _FEW.items() for word in ("--set", f"search.{name}={value}")]
_CELLS = [word if word != "network.width=2" else "network.channels=2" for word in JOB]
_CELLS[_CELLS.index("resnet8")] = "resblock"
METHODS: dict[str, list[str]] = {
    "original": JOB,
    "dnat-full": JOB,
    "nat": JOB + _SEARCH,
    "nat++": JOB + _SEARCH,
    "lstm": JOB + _SEARCH,
    "max-gcn": JOB + _SEARCH,
    "nao": [
        *_CELLS,
        *_SEARCH,
        "--set",
        "network.layers=3",
        "--set",
        "search.channels=2",
        "--set",
        "search.layers=3",
    ],
    "random": JOB + _SEARCH,
    **{f"control-{how}": [*JOB, "--budget", "0.7"] for how in ("random", "uniform", "narrow")},
}
"""What each method is tried with."""
SIGNALS = {
    signal.SIGTERM: (75, 0, -signal.SIGTERM),
    signal.SIGINT: (75, 0, 130),
    signal.SIGHUP: (75, 0, -signal.SIGHUP),
}
"""Signals, and how a run may end after each: stopped, or done before it came, or before it was listened to."""


# --- at each system call


def at_calls(table: Table, folder: Path, part: str) -> None:
    """Kill a run before each of its system calls."""
    work = folder / "work"
    work.mkdir()
    begun = command("transform", *QUICK, "--out", "run", pictures=False)
    calls = calls_of(begun, work, work)
    expected = result_of(work / "run")
    for place in torture.part_of(range(len(calls)), part):
        shutil.rmtree(work / "run", ignore_errors=True)
        killed = forked(_killed_at(place, begun, work), work)
        again = forked(begun, work)
        wrong = "" if killed.code == -signal.SIGKILL else f"not killed, but {killed}"
        wrong = wrong or _differs(work / "run", again, expected)
        table.note("system call", f"{place} {calls[place]}", "equal" if not wrong else "wrong", wrong)


def _killed_at(place: int, action: Callable[[], None], work: Path) -> Callable[[], None]:
    count = [0]

    def before(call: str, path: str, content: bytes) -> None:
        if count[0] == place:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1

    def run() -> None:
        with system_calls(work, before):
            action()

    return run


def _differs(directory: Path, ended: torture.Ended, expected: Any) -> str:
    if ended.code:
        return f"exit code {ended.code}: {ended.said[-900:]}"
    if left := strays(directory):
        return f"temporary files: {left}"
    return "" if result_of(directory) == expected else "another result"


# --- power


@dataclass
class Disk:
    """A directory as a disk has it: what is in memory alone, and what has been flushed.

    Attributes:
        seen: {name: content} as programs see it.
        kept: {name: content} that is safe; a name is as of the last flush of the directory, a content as of that
            of its file.
        flushed: contents that were flushed, by the name that their file has now.
    """

    seen: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    flushed: dict[str, bytes] = field(default_factory=dict)

    def do(self, call: str, name: str, content: bytes) -> None:
        """Carry out a call."""
        if call == "open":
            self.seen.setdefault(name, b"")
            self.flushed.setdefault(name, b"")
        elif call == "write":
            self.seen[name] = self.seen.get(name, b"") + content
        elif call == "truncate":
            self.seen[name] = self.seen[name][: int(content)]
        elif call == "fsync" and name in self.seen:
            self.flushed[name] = self.seen[name]
            if name in self.kept:
                self.kept[name] = self.seen[name]
        elif call == "fsync":  # the directory
            self.kept = {n: self.flushed.get(n, b"") for n in self.seen}
        elif call in ("replace", "rename"):
            other = Path(os.fsdecode(content)).name
            self.seen[other] = self.seen.pop(name)
            self.flushed[other] = self.flushed.pop(name, b"")
        elif call == "unlink":
            self.seen.pop(name, None)
            self.flushed.pop(name, None)

    def after_loss(self, draw: random.Random) -> Iterator[tuple[str, dict[str, bytes]]]:
        """What may be there when power is back."""
        yield "all that was flushed", dict(self.kept)
        yield "all", dict(self.seen)
        yield "names without contents", {n: self.flushed.get(n, b"") for n in self.seen}
        for number in range(16):
            mixed = {n: c for n, c in self.kept.items() if n in self.seen or draw.random() < 0.5}
            for name, content in self.seen.items():
                if draw.random() < 0.5:
                    safe = self.flushed.get(name, b"")
                    keeps = content.startswith(safe)
                    at = draw.randint(len(safe), len(content)) if keeps else 0
                    mixed[name] = content[:at] if keeps else draw.choice((safe, content))
            yield f"some of it, draw {number}", mixed


def power(table: Table, folder: Path, part: str, seed: int) -> None:
    """Lose power between any two calls of a run."""
    work = folder / "power"
    work.mkdir()
    listed = folder / "trace"

    def traced() -> None:
        with open(listed, "wb") as out:

            def note(call: str, path: str, content: bytes) -> None:
                out.write(
                    json.dumps([call, os.path.basename(path), len(content)]).encode() + b"\n" + content + b"\n"
                )
                out.flush()

            with system_calls(work / "run", note):
                command("transform", *QUICK, "--out", "run", pictures=False)()

    assert forked(traced, work).code == 0
    expected = result_of(work / "run")
    job, trace = read_job(work / "run"), list(_read(listed))
    disk, acknowledged, draw = Disk(), 0, random.Random(seed)
    taken = set(torture.part_of(range(len(trace) + 1), part))
    states: set[str] = set()
    for place, (call, name, content) in enumerate([*trace, ("end", "", b"")]):
        for kind, files in list(disk.after_loss(draw)) if place in taken and "config.toml" in disk.kept else ():
            key = repr(sorted((n, hash(c)) for n, c in files.items()))
            if key in states:
                continue
            states.add(key)
            wrong = _opens(work / "lost", files, job, acknowledged)
            if not wrong and place % 40 == 7:
                again = forked(command("transform", *QUICK, "--out", "lost", pictures=False), work)
                wrong = _differs(work / "lost", again, expected)
            table.note(
                "power", f"{place} before {call} of {name}, {kind}", "opens" if not wrong else "wrong", wrong
            )
        disk.do(call, name, content)
        if call == "fsync" and name == "run":
            newest = [int(n[11:20]) for n in disk.kept if n.startswith("checkpoint-") and n.endswith(".ckpt")]
            acknowledged = max([acknowledged, *newest])


def _read(file: Path) -> Iterator[tuple[str, str, bytes]]:
    with open(file, "rb") as source:
        while line := source.readline():
            call, name, size = json.loads(line)
            content = source.read(size)
            source.read(1)
            yield call, name, content


def _opens(directory: Path, files: dict[str, bytes], job: Any, acknowledged: int) -> str:
    """What is wrong with a run directory of these files; "" if it can go on as it should."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    try:
        with Records.open(directory, job) as records:
            if records.is_done():
                records.record()
                records.check_all()
                return ""
            found = records.newest()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    step = found[0] if found else 0
    if step < acknowledged:
        return f"step {step} is older than {acknowledged}, which was acknowledged"
    for path in directory.glob("*.ckpt"):
        unpack(path)
    return ""


# --- at any moment


def at_moments(table: Table, folder: Path, kind: str, many: int, seed: int) -> None:
    """End trainings of all methods at random moments, until they are done."""
    draw = random.Random(f"{kind}{seed}")
    works = {method: folder / f"{kind}-{i}" for i, method in enumerate(METHODS)}
    expected, took = {}, {}
    for method, work in works.items():
        work.mkdir()
        began = time.monotonic()
        ended = forked(_training(method), work, timeout=300)
        if ended.code:
            table.note(kind, f"{method}, undisturbed", "wrong", f"exit code {ended.code}: {ended.said[-900:]}")
            continue
        took[method] = time.monotonic() - began
        expected[method] = result_of(work / "run")
        shutil.rmtree(work / "run")
    done = 0
    while done < many and expected:
        for method in expected:
            if done < many:
                done += _to_the_end(table, kind, method, works[method], expected[method], took[method], draw)


def _training(method: str) -> Callable[[], None]:
    return command("transform", *METHODS[method], "--method", method, "--out", "run", pictures=False)


def _to_the_end(
    table: Table, kind: str, method: str, work: Path, expected: Any, took: float, draw: random.Random
) -> int:
    """One training, ended until it is done; returns how often."""
    ends, said = 0, ""
    for _ in range(60):
        number = signal.SIGKILL if kind == "kill" else draw.choice([*SIGNALS])
        with tempfile.TemporaryFile() as log:
            process = torture.start(_training(method), work, log.fileno())
            timer = torture.threading.Timer(draw.uniform(0, took), os.kill, (process, number))
            timer.start()
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            timer.cancel()
            log.seek(0)
            said = log.read().decode(errors="replace")
        allowed = (0, -signal.SIGKILL) if kind == "kill" else SIGNALS[number]
        if code not in allowed or "Traceback" in said:
            wrong = f"exit code {code}: {said[-900:]}"
            table.note(kind, f"{method}, {signal.Signals(number).name}", str(code), wrong)
            break
        if code:
            ends += 1
            table.note(kind, method, f"ended by {signal.Signals(number).name}, exit code {code}", "")
            continue
        wrong = _differs(work / "run", torture.Ended(0, said), expected)
        table.note(f"{kind}, results", method, "equal" if not wrong else "wrong", wrong)
        break
    shutil.rmtree(work / "run", ignore_errors=True)
    return max(1, ends)


def main() -> None:
    """Try all of it, and say how it ended."""
    parser = torture.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of whole trainings, by SIGKILL")
    parser.add_argument("--signals", type=int, default=20, help="to whole trainings: SIGTERM, SIGINT, SIGHUP")
    options = parser.parse_args()
    if not hasattr(os, "fork"):
        raise SystemExit("this needs a system with fork")
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        at_calls(table, folder, options.part)
        power(table, folder, options.part, options.seed)
        at_moments(table, folder, "kill", options.kills, options.seed)
        at_moments(table, folder, "signal", options.signals, options.seed)
    torture.finish(table)


if __name__ == "__main__":
    main()
