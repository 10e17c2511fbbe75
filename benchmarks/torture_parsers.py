"""Every parser, with whatever its file or its flag may hold: a result or an error of dnat's, within seconds.

    python benchmarks/torture_parsers.py                        by hypothesis, 300 examples of each format
    python benchmarks/torture_parsers.py --examples 5000
    pip install atheris; python benchmarks/torture_parsers.py --fuzz 60 --only genotype

What is tried are changed originals: bytes flipped, cut out, doubled, or a value of a table replaced by an odd one.
With --fuzz, atheris (which has wheels for some Pythons on Linux, and is not installed with dnat) looks for inputs
that reach new lines of dnat's, for so many seconds for each format.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if "--fuzz-one" in sys.argv:  # before dnat is imported: its lines are counted
    import atheris

    atheris.instrument_imports(include=["dnat"]).__enter__()

import tomli_w
import torture
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from torture import QUICK, Table, command, forked

from dnat.checkpoints import pack, unpack
from dnat.errors import DnatError
from dnat.files import seal_of
from dnat.lab.cli import make_job
from dnat.lab.summary import parse_by
from dnat.lab.sweep import Sweep, parse_variant
from dnat.lab.sweep.directory import SweepFiles
from dnat.lab.sweep.settings import parse_names, parse_seeds, plan, resolve
from dnat.networks import Genotype
from dnat.networks.genotypes import published
from dnat.networks.weights import read_state
from dnat.proposal import Proposals
from dnat.proposal.budgets import parse_budget
from dnat.rundir import RECORD, RunFiles
from dnat.settings import Job
from dnat.settings.toml import parse_toml, read_toml

SECONDS = 5.0
"""What a parser may take at most."""

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 31,
    1 << 70,
    1.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "a",
    "\x1b[2J",
    "é" * 99,
]
ODD += [
    "../x",
    "none",
    "1-5",
    [],
    [[]],
    {},
    {"a": 1},
    [1, 2],
    ["a"],
    {"": None},
    "9" * 5000,
    [[[[[]]]]],
    "0.7",
    "1e9M",
]


@dataclass(frozen=True)
class Format:
    """A parser of bytes, and originals that it takes."""

    parse: Callable[[bytes], object]
    originals: tuple[bytes, ...]
    table: str = ""
    """ "json" or "toml", where values of a table can be replaced."""


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    def of_bytes(content: bytes) -> object:
        return parse(content.decode("utf-8", errors="replace"))

    return of_bytes


def _job(file: Path) -> Job:
    job = Job.from_flat(read_toml(file))
    again = Job.from_flat(parse_toml(job.to_toml()))
    assert again.flat() == job.flat(), "written and read again it is another job"
    return job


def _sweep(file: Path) -> Any:
    sweep = Sweep.from_table(read_toml(file))
    trials = len(sweep.networks) * len(sweep.methods) * len(sweep.seeds)
    return plan(resolve(sweep)) if trials < 100 else sweep


def _genotype(text: str) -> Genotype:
    genotype = Genotype.from_json(text)
    assert Genotype.from_json(genotype.to_json()) == genotype
    return genotype


def _in_file(folder: Path, name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    def of_bytes(content: bytes) -> object:
        (folder / name).write_bytes(content)
        return parse(folder)

    return of_bytes


def _sealed(folder: Path, name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    """With the right seal, so that what lies behind it is tried, too."""

    def of_bytes(content: bytes) -> object:
        with suppress(ValueError, RecursionError):
            table = json.loads(content)
            if isinstance(table, dict) and "sha256" in table:
                content = json.dumps(table | {"sha256": seal_of(table)}).encode()
        return _in_file(folder, name, parse)(content)

    return of_bytes


def formats(folder: Path) -> dict[str, Format]:
    """All of them; their originals are made in a folder."""
    for words in (command("transform", *QUICK, "--out", "run", pictures=False), command(*_PLAN)):
        ended = forked(words, folder)
        assert ended.code == 0, ended
    run = folder / "run"
    read = RunFiles(run)
    checkpoint = pack({"step": 3, "rows of the log": "", "list": [1.0]}, step=3, metrics_bytes=0, settings={})
    sweep = {"networks": ["resnet8"], "methods": ["original", "dnat-full@0.7"], "seeds": [0, 1], "lr": 0.1}
    sweep |= {"variant": {"slow": {"method": "dnat", "lr_theta": 1e-3}}, "network": {"resnet8": {"epochs": 3}}}
    known = tuple(published(name).to_json().encode() for name in ("darts_v2", "nat_darts"))
    entries = {
        "resnet8-original-seed0": {"state": "done", "attempts": 1, "exit_code": 0, "reason": "", "seconds": 1}
    }
    (folder / "sweep").mkdir(exist_ok=True)

    def status(place: Path) -> object:
        return read.why_unfinished(), read.changed_config()

    def record(place: Path) -> object:
        return read.problem(), read.record(), read.check_all()

    return {
        "config": Format(
            _in_file(folder, "a.toml", lambda f: _job(f / "a.toml")), ((run / "config.toml").read_bytes(),), "toml"
        ),
        "sweep.toml": Format(
            _in_file(folder, "a.toml", lambda f: _sweep(f / "a.toml")), (tomli_w.dumps(sweep).encode(),), "toml"
        ),
        "record": Format(_sealed(run, RECORD, record), ((run / RECORD).read_bytes(),), "json"),
        "status": Format(_sealed(run, "status.json", status), ((run / "status.json").read_bytes(),), "json"),
        "trials.json": Format(
            _in_file(folder / "sweep", "trials.json", lambda f: SweepFiles(f).read_entries()),
            (json.dumps(entries).encode(),),
            "json",
        ),
        "metrics": Format(
            _in_file(run, "metrics.jsonl", lambda f: read.rows()), ((run / "metrics.jsonl").read_bytes(),)
        ),
        "genotype": Format(_text(_genotype), known, "json"),
        "plan": Format(_text(Proposals.from_json), ((folder / "plan.json").read_bytes(),), "json"),
        "checkpoint": Format(_in_file(folder, "c.ckpt", lambda f: unpack(f / "c.ckpt")), (checkpoint,)),
        "weights": Format(
            _in_file(folder, "w.safetensors", lambda f: _weights(f / "w.safetensors")),
            ((run / "network.safetensors").read_bytes(),),
        ),
        "--set": Format(
            _text(lambda t: make_job(None, (t,), _GIVEN)), (b"lr=0.1", b"network.width=2", b"edges=['a']")
        ),
        "--budget": Format(_text(parse_budget), (b"0.7", b"120M", b"0.7 params", b"5ms")),
        "--seeds": Format(_text(parse_seeds), (b"5", b"0,3,7", b"1-5")),
        "--by": Format(_text(parse_by), (b"preset,lr",)),
        "--networks": Format(_text(parse_names), (b"resnet8,resnet20",)),
        "--variant": Format(_text(parse_variant), (b"slow=dnat,lr_theta=1e-3,search.epochs=2",)),
    }


_PLAN = ("plan", *QUICK[:6], "--images", 4, "--budget", 0.7, "--out", "plan.json")
_GIVEN = {"network": "resnet8"}


def _weights(path: Path) -> object:
    """Weights as `--weights` reads them."""
    from dnat.networks.weights import _read

    return _read(path), read_state(path)


# --- inputs


@st.composite
def _changed(draw: Any, content: bytes) -> bytes:
    """Bytes with some changes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        way = draw(st.sampled_from(("flip", "cut", "double", "insert", "number")))
        if way == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif way == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif way == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 3))
        elif way == "insert":
            data[at:at] = draw(
                st.one_of(st.binary(max_size=8), st.text(max_size=8).map(lambda t: t.encode("utf-8", "replace")))
            )
        else:
            data[at : at + 1] = draw(
                st.sampled_from((b"9" * 5000, b"[" * 3000, b"-", b"1e999", b"\x00", b"NaN", b"{"))
            )
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


@st.composite
def _replaced(draw: Any, content: bytes, kind: str) -> bytes:
    """A table of which a value is another one, or gone."""
    table = json.loads(content) if kind == "json" else parse_toml(content.decode())
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([*_places(table)]))
        odd = draw(st.sampled_from(ODD))
        if not path:
            table = odd if kind == "json" and draw(st.booleans()) else table
            continue
        inside = table
        for key in path[:-1]:
            inside = inside[key]
        if draw(st.booleans()):
            inside[path[-1]] = json.loads(json.dumps(odd))
        elif isinstance(inside, dict):
            inside[draw(st.sampled_from(("a", "", "epochs", "é")))] = inside.pop(path[-1])
        else:
            del inside[path[-1]]
        if not isinstance(table, dict | list):
            break
    if kind == "json":
        return json.dumps(table).encode()
    try:
        return tomli_w.dumps(_without_none(table)).encode()
    except (TypeError, AttributeError, ValueError):
        return content


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value if v is not None] if isinstance(value, list) else value


def inputs(form: Format) -> Any:
    """What a parser is given."""
    ways = [_changed(content) for content in form.originals] + [st.sampled_from(form.originals)]
    if form.table:
        ways += [_replaced(content, form.table) for content in form.originals] * 2
    elif len(form.originals[0]) < 100:
        ways += [st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))]
    return st.one_of(ways)


# --- judging


class TooLong(BaseException):
    """A parser that does not come to its end."""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def judged(form: Format, content: bytes) -> str:
    """ "taken" or "refused"; else what is wrong."""
    try:
        with _limited():
            form.parse(content)
    except DnatError:
        return "refused"
    except TooLong:
        return f"more than {SECONDS} s"
    except Exception as error:
        step = error.__traceback__
        while step and step.tb_next:
            step = step.tb_next
        place = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}" if step else ""
        return f"{type(error).__name__}: {str(error)[:200]} ({place})"
    return "taken"


def run(folder: Path, examples: int, seed: int, only: tuple[str, ...] = ()) -> Table:
    """Try all formats by hypothesis."""
    table = Table()
    for name, form in formats(folder).items():
        if not only or name in only:
            _tried(table, name, form, examples, seed)
    return table


def _tried(table: Table, name: str, form: Format, examples: int, seed: int) -> None:
    seen: set[str] = set()

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(form))
    def attempt(content: bytes) -> None:
        end = judged(form, content)
        wrong = "" if end in ("taken", "refused") else end
        kind = wrong.partition(":")[0] + wrong.rpartition("(")[2]
        if not (wrong and kind in seen):  # the same fault is told once
            seen.add(kind)
            table.note(name, repr(content[:300]), "wrong" if wrong else end, wrong)

    attempt()


def fuzz(seconds: int, only: tuple[str, ...], seed: int) -> None:
    """Let atheris look for inputs, each format in a process of its own."""
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        for form in only or tuple(formats(Path(name))):
            words = [sys.executable, "-W", "ignore", __file__, "--fuzz-one", form, str(seconds), str(seed)]
            done = subprocess.run(words, capture_output=True, text=True, cwd=name, timeout=seconds + 300)
            runs = [
                line for line in done.stderr.splitlines() if line.startswith(("#", "stat::number_of_executed"))
            ]
            table.note(
                form,
                f"{seconds} s",
                runs[-1].split("\t")[0] if runs else "",
                done.stderr[-1500:] if done.returncode else "",
            )
    torture.finish(table)


def _fuzz_one(name: str, seconds: str, seed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        form = formats(Path(folder))[name]
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(form.originals):
            (corpus / str(number)).write_bytes(content)

        def attempt(content: bytes) -> None:
            end = judged(form, content)
            if end not in ("taken", "refused"):
                raise RuntimeError(f"{end}: {content!r}")

        longest = str(4 * max(map(len, form.originals)) + 64)
        flags = [
            f"-max_total_time={seconds}",
            f"-seed={int(seed) + 1}",
            f"-max_len={longest}",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/", str(corpus)], attempt)
        atheris.Fuzz()


def main() -> None:
    """Try all formats."""
    if "--fuzz-one" in sys.argv:
        _fuzz_one(*sys.argv[2:5])
        return
    parser = torture.parser(__doc__)
    parser.add_argument("--examples", type=int, default=300, help="of each format")
    parser.add_argument("--only", default="", metavar="FORMAT,...", help="only these formats")
    parser.add_argument("--fuzz", type=int, default=0, metavar="SECONDS", help="look for inputs by atheris")
    options = parser.parse_args()
    only = tuple(filter(None, options.only.split(",")))
    if options.fuzz:
        fuzz(options.fuzz, only, options.seed)
    number, _, of = options.part.partition("/")
    seed = options.seed * 1000 + int(number)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        table = run(Path(folder), max(1, options.examples // int(of)), seed, only)
    print(f"{time.monotonic() - began:.0f} s")
    torture.finish(table)


if __name__ == "__main__":
    main()
