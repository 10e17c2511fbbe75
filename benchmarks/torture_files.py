"""Damages every file of runs and of a sweep in every way, and tries every command: nothing may differ in silence.

    python benchmarks/torture_files.py                  all of them, about 3,200
    python benchmarks/torture_files.py --share 0.1      a tenth, drawn by --seed
    python benchmarks/torture_files.py --only search,control

A file is emptied, cut off, deleted, becomes a folder, has one bit flipped, or is replaced by that of another run
of the same kind. Then a command is run in this process, on a copy. It may give what it gives of the undamaged run,
refuse with an error of dnat's that names what is wrong, or say what differs. A traceback, and another result
without a word, are failures, which are listed; the exit code is 1 then.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
from PIL import Image
from safetensors import safe_open

from dnat import Config
from dnat.errors import DnatError
from dnat.lab.cli import cli
from dnat.lab.report import gather
from dnat.lab.runs import run
from dnat.lab.sweep import Sweep
from dnat.lab.sweep.directory import SweepDirectory, read
from dnat.lab.sweep.schedule import prepare
from dnat.lab.sweep.trials import Outcome
from dnat.lab.tabulation import tabulate
from dnat.rundir import LATENCY, RunFiles, read_job
from dnat.settings import Job, Search
from dnat.training import Interrupted

SEARCH: dict[str, Any] = {"epochs": 2, "samples": 2, "batch_size": 12, "architectures": 4}
TINY: dict[str, Any] = {"train_limit": 60, "test_limit": 40, "network_options": {"width": 2}, "image_size": 8}
SHORT: dict[str, Any] = {"epochs": 3, "architecture_epochs": 2, "batch_size": 30, "threads": 1, "latency_batch": 2}
ONE_ANSWER = ("empty", "cut", "deleted", "folder", "swapped")
"""Ways that need no draw, or are the worse the fewer draws they take."""


@dataclass(frozen=True)
class Place:
    """Directories of one kind: what is damaged, and another one of the same kind."""

    kind: str
    whole: Path
    other: Path

    def files(self) -> list[str]:
        """What is damaged: all but pictures, locks, and what trackers keep."""
        found = (p.relative_to(self.whole) for p in self.whole.rglob("*") if p.is_file())
        return sorted(str(p) for p in found if p.suffix not in (".png", ".svg", ".log") and p.name != ".lock")


@dataclass(frozen=True)
class Case:
    """One damage and one command; `seed` decides which bit, and where a file is cut off."""

    kind: str
    file: str
    way: str
    command: str
    seed: int


def job(**options: Any) -> Job:
    """A run that takes a second."""
    given = SHORT | {k: v for k, v in options.items() if k != "method"}
    if options.get("method") == "nat":
        given["search"] = Search(**SEARCH)
    config = Config(**given)
    return Job(network="resnet8", method=options.get("method", "dnat"), **TINY, config=config)


def places(folder: Path) -> list[Place]:
    """A finished run, an unfinished one and a sweep, and another one of each."""
    for name, lr in (("one", 0.02), ("two", 0.05)):
        record = run(job(lr=lr), folder / "done" / name)
        RunFiles(folder / "done" / name).write_latency(record["latency"] | {"alone": True})
        try:
            run(job(lr=lr), folder / "part" / name, stop=lambda progress: progress.step == 5)
        except Interrupted:
            shutil.copytree(folder / "done" / name, folder / "undisturbed" / name)
        settings: dict[str, Any] = {**TINY, **SHORT, "lr": lr}
        sweep, trials = prepare(
            Sweep(networks=("resnet8",), methods=("original", "dnat-full"), seeds=(0,), settings=settings),
            folder,
            None,
        )
        with SweepDirectory.open(folder / "sweep" / name, sweep, trials) as opened:
            for trial in trials:
                opened.begin(trial.name)
                run(trial.job, opened.path / trial.name)
                opened.end(trial.name, Outcome("done", 0, "", 1.0))
        run(job(lr=lr, method="nat"), folder / "search" / name)
        try:
            run(job(lr=lr, method="nat"), folder / "searching" / name, stop=lambda progress: progress.step == 2)
        except Interrupted:
            shutil.copytree(folder / "search" / name, folder / "undisturbed" / f"nat-{name}")
        run(job(lr=lr, method="control-narrow", budget=0.7), folder / "control" / name)
    return [Place(kind, folder / kind / "one", folder / kind / "two") for kind in COMMANDS]


def damage(place: Place, case: Case, directory: Path) -> None:
    """Do a file of a copy some harm."""
    path, draw = directory / case.file, random.Random(f"{case}")
    content = bytearray(path.read_bytes())
    path.unlink()
    if case.way == "folder":
        path.mkdir()
    elif case.way == "swapped":
        other = place.other / case.file
        if other.exists():
            shutil.copy(other, path)
    elif case.way != "deleted":
        if case.way == "flipped" and content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif case.way == "cut":
            del content[draw.randrange(len(content) + 1) :]
        path.write_bytes(b"" if case.way == "empty" else content)


def _command(*arguments: str) -> Callable[[Path], tuple[Any, str]]:
    """A command of dnat's, run in this process: its output without notes, and all that it said."""

    def carried_out(directory: Path) -> tuple[Any, str]:
        given = [a.replace("RUN", str(directory)) for a in arguments]
        result = click.testing.CliRunner().invoke(cli, given, standalone_mode=False)
        if result.exception:
            raise result.exception
        said = result.stdout.replace(str(directory), "RUN")
        lines = [line for line in said.splitlines() if not line.startswith("note: ")]
        return lines, result.output + result.stderr

    return carried_out


def _export(directory: Path) -> tuple[Any, str]:
    out = directory.parent / "exported"
    _, said = _command("export", "RUN", "--to", "safetensors", "--no-verify", "--out", str(out))(directory)
    with safe_open(out.with_suffix(".safetensors"), "np") as file:
        return {**(file.metadata() or {}), **{k: file.get_tensor(k).tobytes() for k in file.keys()}}, said  # noqa: SIM118


def _draw(directory: Path) -> tuple[Any, str]:
    _, said = _command("draw", "RUN", "--format", "svg")(directory)
    return (directory / "architecture.svg").read_bytes(), said


def _resume(directory: Path) -> tuple[Any, str]:
    told: list[str] = []
    try:
        record = run(read_job(directory), directory, notify=told.append)
    except DnatError as error:
        raise type(error)("\n".join([*told, str(error)])) from error
    files = RunFiles(directory)
    times = ("seconds", "images_per_second", "memory")
    rows = [{k: v for k, v in row.items() if k not in times} for row in files.rows()]
    return json.loads(json.dumps([record["results"], record["job"], rows])), "\n".join(told)


def _report(directory: Path) -> tuple[Any, str]:
    report = gather([directory])
    left = [(u.name, u.state) for u in report.unfinished]
    told = [*report.notes, *(f"{u.name}: {u.reason}" for u in report.unfinished)]
    shown = [(r.record, r.metrics, r.architecture, r.environment) for r in report.runs]
    return json.loads(json.dumps([shown, left])), "\n".join(told)


def _results(directory: Path) -> tuple[Any, str]:
    table = tabulate([directory])
    place = table.columns.index("directory")
    reasons = [str(dict(zip(table.columns, row, strict=True)).get("reason") or "") for row in table.rows]
    return [row[:place] for row in table.rows], "\n".join([*table.notes, *reasons])


def _sweep(directory: Path) -> tuple[Any, str]:
    """What `dnat sweep --out` does before it starts trials: how they stand decides what is trained again."""
    told: list[str] = []
    sweep, trials = prepare(Sweep(), directory, None)
    with SweepDirectory.open(directory, sweep, trials, told.append) as opened:
        found = opened.standings()
    told += [f"{s.name}: {s.reason}" for s in found]
    assert [s.state for s in read(directory)] == [s.state for s in found]
    return [(s.name, s.state) for s in found], "\n".join(told)


COMMANDS: dict[str, dict[str, Callable[[Path], tuple[Any, str]]]] = {
    "done": {
        "resume": _resume,
        "evaluate": _command("evaluate", "RUN"),
        "export": _export,
        "predict": _command("predict", "RUN", "RUN/../picture.png"),
        "draw": _draw,
        "report": _report,
        "results": _results,
        "compare": _command("compare", "RUN"),
    },
    "part": {"resume": _resume, "results": _results},
    "search": {"resume": _resume, "report": _report, "export": _export, "draw": _draw},
    "searching": {"resume": _resume, "results": _results},
    "control": {"resume": _resume, "report": _report, "export": _export, "evaluate": _command("evaluate", "RUN")},
    "sweep": {"sweep": _sweep, "report": _report, "results": _results, "compare": _command("compare", "RUN")},
}


def cases(found: list[Place], flips: int, cuts: int) -> Iterator[Case]:
    """All of them: every file, every way, every command."""
    for place in found:
        for file in place.files():
            ways = [(way, 0) for way in ONE_ANSWER] + [("flipped", i) for i in range(flips)]
            ways += [("cut", 1 + i) for i in range(cuts)]
            for way, seed in ways:
                if (file, way) == (LATENCY, "deleted"):
                    continue  # it comes later than the record, which has times of its own, not measured "alone"
                for command in COMMANDS[place.kind]:
                    yield Case(place.kind, file, way, command, seed)


def outcome(place: Place, case: Case, expected: Any, folder: Path) -> str:
    """ "equal", "refused" or "told"; else what is wrong."""
    directory = folder / place.whole.name
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(place.whole, directory)
    damage(place, case, directory)
    name = Path(case.file).name.removesuffix(".toml")
    try:
        result, said = COMMANDS[case.kind][case.command](directory)
    except DnatError as error:
        return "refused" if name in str(error) else f"refused, but {name} is not named: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    if result == expected:
        return "equal"
    return "told" if name in said else f"another result without a word (said: {said[-300:]!r})"


def torture(
    folder: Path, flips: int, cuts: int, share: float = 1.0, seed: int = 0, only: Sequence[str] = ()
) -> tuple[Counter[str], list[str]]:
    """Try the cases, or a share of them; returns how many ended how, and what failed."""
    found, counted, failed = places(folder), Counter[str](), list[str]()
    expected: dict[tuple[str, str], Any] = {}
    work = folder / "work"
    work.mkdir()
    Image.new("RGB", (9, 9), (200, 30, 90)).save(work / "picture.png")
    draw = random.Random(seed)
    by_kind = {place.kind: place for place in found}
    for case in cases([place for place in found if not only or place.kind in only], flips, cuts):
        if draw.random() >= share:
            continue
        place = by_kind[case.kind]
        if (case.kind, case.command) not in expected:
            expected[case.kind, case.command] = _undamaged(place, case.command, work)
        end = outcome(place, case, expected[case.kind, case.command], work)
        counted[end.partition(":")[0] if end not in ("equal", "refused", "told") else end] += 1
        if end not in ("equal", "refused", "told"):
            failed.append(f"{case.kind} {case.file} {case.way} {case.seed}, {case.command}: {end}")
            print(failed[-1], flush=True)
    return counted, failed


def _undamaged(place: Place, command: str, work: Path) -> Any:
    """What a command gives of the run as it is; of one that is not finished, that of an undisturbed one."""
    source = place.whole
    if place.kind in ("part", "searching") and command == "resume":
        name = place.whole.name if place.kind == "part" else f"nat-{place.whole.name}"
        source = place.whole.parent.parent / "undisturbed" / name
    directory = work / source.name
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    return COMMANDS[place.kind][command](directory)[0]


def main() -> None:
    """Try all cases, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=6, help="bits of each file that are flipped, one at a time")
    parser.add_argument("--cuts", type=int, default=2, help="places where each file is cut off, beside one")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases that are tried, drawn by --seed")
    parser.add_argument("--part", metavar="N/M", help="one of so many in place of --share: the N-th draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND,...", default="", help=f"of {', '.join(COMMANDS)}")
    options = parser.parse_args()
    if options.part:
        number, many = map(int, options.part.split("/"))
        options.share, options.seed = 1 / many, options.seed + number
    with tempfile.TemporaryDirectory() as folder:
        only = tuple(filter(None, options.only.split(",")))
        counted, failed = torture(Path(folder), options.flips, options.cuts, options.share, options.seed, only)
    print(f"{sum(counted.values())} cases: " + ", ".join(f"{n} {what}" for what, n in counted.most_common()))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
