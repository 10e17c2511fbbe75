"""Can the tests fail? Changes the core in small ways, one at a time, and counts how many changes they notice.

    python benchmarks/mutants.py                     20 mutants of seed 0
    python benchmarks/mutants.py -n 50 --seed 3      others
    python benchmarks/mutants.py --list -n 50        shows them, runs nothing

A mutant is the core with one expression or statement changed. The sample is drawn from a seed: the modules in
turn, in random order, in each a kind of change, then a place. Only the tests that `mutants.toml` names for a
module are run, one case of each function before the second of any, until one fails or `--limit` seconds of CPU
time are spent. The test that failed must pass without the mutant. What changes nothing that could be noticed
stands in `mutants.toml` with the reason, and is not counted.

Mutants live in copies of the files that git knows of; here only results are written, to `.mutants/`. What has a
result is not run again, unless its module changed, or, where it survived, the tests.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LATE = 70
"""The exit code of a test run whose time was spent before any test failed."""

COMPARISONS = {
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
ARITHMETIC = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult},
}
FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min", "sorted": "list", "reversed": "list"}
COPIES = ("clone", "detach", "copy", "contiguous", "strip", "lower")


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        module: its path within dnat.
        scope: the function or class that it stands in.
        kind: the kind of change.
        line: the first of the lines that change.
        before: those lines.
        after: the same with the change.
        source: the whole module with the change.
    """

    module: str
    scope: str
    kind: str
    line: int
    before: str
    after: str
    source: str = field(repr=False)

    @property
    def name(self) -> str:
        """What stays when lines move."""
        return f"{self.module} {self.scope}: {self.before} -> {self.after}"


def mutant(module: str, source: str, scope: str, kind: str, node: ast.expr | ast.stmt, other: ast.AST) -> Mutant:
    """The module with `other` in the place of a node."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # ast counts bytes
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    text = ast.unparse(other) if isinstance(node, ast.stmt) else f"({ast.unparse(other)})"
    place = lines[first][: node.col_offset] + text.encode() + lines[last - 1][node.end_col_offset :]
    before, after = b"".join(lines[first:last]), place
    whole = b"".join([*lines[:first], place, *lines[last:]])
    shown, new = (" ".join(code.decode().split()) for code in (before, after))
    return Mutant(module, scope, kind, node.lineno, shown, new, whole.decode())


def expressions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The other forms of a condition or a sum, each with the kind of change."""
    match node:
        case ast.Compare(ops=[operation]) if type(operation) in COMPARISONS:
            yield "comparison", changed(node, ops=[COMPARISONS[type(operation)]()])
        case ast.BoolOp(op=operation, values=parts):
            yield "and, or", changed(node, op=ast.Or() if isinstance(operation, ast.And) else ast.And())
            for i in range(len(parts)):
                rest = [v for j, v in enumerate(parts) if j != i]
                yield "condition dropped", changed(node, values=rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "sign", operand
        case ast.BinOp(op=operation) if type(operation) in ARITHMETIC:
            yield "arithmetic", changed(node, op=ARITHMETIC[type(operation)]())
        case ast.IfExp(body=body, orelse=other):
            yield "branches swapped", changed(node, body=other, orelse=body)


def values(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The other forms of a constant, a call or a comprehension."""
    match node:
        case ast.Constant(value=bool() as value):
            yield "switch", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value) if not 0 < value < 1e-5:  # which guards a division
            yield "number", ast.Constant(value * 2 if isinstance(value, float) and value else value + 1)
        case ast.Call():
            yield from calls(node)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            for i, loop in enumerate(node.generators):
                if loop.ifs:
                    all_but = [changed(g, ifs=[]) if j == i else g for j, g in enumerate(node.generators)]
                    yield "filter dropped", changed(node, generators=all_but)


def calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    """The other forms of a call."""
    match node.func:
        case ast.Name(id=name) if name in FUNCTIONS:
            yield "function", changed(node, func=ast.Name(FUNCTIONS[name]))
        case ast.Attribute(value=value, attr=name) if name in COPIES and not node.args:
            yield "copy dropped", value
    for keyword in node.keywords:
        if keyword.arg and not invariant(keyword):
            yield "argument dropped", changed(node, keywords=[k for k in node.keywords if k is not keyword])


def statements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The other forms of a statement."""
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise(exc=ast.Call()):
            yield "statement dropped", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement dropped", ast.Pass()
        case ast.Continue():
            yield "statement: loop", ast.Break()
        case ast.Break():
            yield "statement: loop", ast.Continue()


def changed(node: Any, **fields: Any) -> Any:
    """A copy of a node with other fields."""
    twin = copy.copy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module that are other code."""
    found: list[Mutant] = []

    def walk(node: ast.AST, scope: tuple[str, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = (*scope, node.name)
        for kind, other in [*expressions(node), *values(node), *statements(node)]:
            if isinstance(node, ast.expr | ast.stmt) and ast.unparse(node) != ast.unparse(other):
                found.append(mutant(module, source, ".".join(scope) or "the module", kind, node, other))
        for child in looked_at(node):
            walk(child, scope)

    walk(ast.parse(source), ())
    return found


def looked_at(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node in which a change can matter: not types, texts, invariants, or what an error says."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr) or invariant(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def invariant(node: ast.AST) -> bool:
    """Whether a node is `strict=True`, which says what is known to hold, as an assert does."""
    return isinstance(node, ast.keyword) and node.arg == "strict"


def sample(sources: dict[str, str], count: int, seed: int) -> list[Mutant]:
    """Mutants of all modules in turn: a module, a kind of change that it offers, a place, each by chance."""
    generator = random.Random(seed)
    pools: dict[str, dict[str, list[Mutant]]] = {}
    for module, source in sources.items():
        for one in mutants(module, source):
            pools.setdefault(module, {}).setdefault(one.kind, []).append(one)
    chosen: list[Mutant] = []
    while len(chosen) < count and pools:
        for module in generator.sample(sorted(pools), len(pools)):
            kinds = pools[module]
            kind = generator.choice(sorted(kinds))
            chosen.append(kinds[kind].pop(generator.randrange(len(kinds[kind]))))
            if not kinds[kind]:
                del kinds[kind]
            if not kinds:
                del pools[module]
    return chosen[:count]


# --- running tests ---


class Tree:
    """A copy of the files that git knows of, in which a mutant is tested."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "dnat-mutated"
        self.sound: set[str] = set()
        """Tests that passed without a mutant."""
        self.unsound: set[str] = set()
        """Tests that failed without one."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        # The code looks for its version, so the copy has one.
        known = ["-c", "user.name=mutants", "-c", "user.email=mutants", "-c", "commit.gpgsign=false"]
        for command in (["init", "-q"], ["add", "-A"], [*known, "commit", "-q", "--no-verify", "-m", "the core"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)
        if (ROOT.parent / "shared").exists():
            (folder / "shared").symlink_to(ROOT.parent / "shared")

    def test(self, tests: list[str], limit: float) -> tuple[int, str]:
        """Run tests until one fails: the exit code, and the test that failed, where one did.

        What takes twice its time, in one test, or stands still for long, is ended, as if that had failed.
        """
        paths = os.pathsep.join([str(self.root), str(self.root / "benchmarks")])
        here = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--tb=no",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
        ]
        with tempfile.TemporaryDirectory() as scratch:
            command += ["-p", "mutants", "-m", "not slow", f"--basetemp={scratch}/tests", *tests]
            command += [f"--deselect={test}" for test in self.unsound]
            here |= {"MUTANTS_LIMIT": str(limit), "TMPDIR": scratch}
            try:
                done = subprocess.run(
                    command, cwd=self.root, env=here, capture_output=True, text=True, timeout=60 + 20 * limit
                )
            except subprocess.TimeoutExpired:
                return 1, ""
        lines = done.stdout.splitlines()
        failed = [line.split(" ", 1)[1].split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
        return done.returncode, failed[0] if failed else ""


def verdict(tree: Tree, mutant: Mutant, tests: list[str], limit: float) -> tuple[str, str]:
    """What the tests say of a mutant, "killed" or "survived", and which test. What fails anyway is left out."""
    path = tree.root / "dnat" / mutant.module
    source = path.read_text()
    path.write_text(mutant.source)
    try:
        code, test = tree.test(tests, limit)
    finally:
        path.write_text(source)
    if code in (0, LATE):
        return "survived", "within its time" if code else ""
    if "::" in test and test not in tree.sound:
        if tree.test([test], limit)[0] not in (0, LATE):
            print(f"without a mutant, too, fails {test}: it is left out", file=sys.stderr, flush=True)
            tree.unsound.add(test)
            return verdict(tree, mutant, tests, limit)
        tree.sound.add(test)
    return "killed", test or "by its time, or before any test ran"


def pytest_configure() -> None:
    """As a plugin of pytest: ends the process where a test does not end."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (2 * int(float(os.environ["MUTANTS_LIMIT"])),) * 2)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin of pytest: one case of each test function before the second of any."""
    seen: Counter[str] = Counter()
    turn = {}
    for item in items:
        function = item.nodeid.partition("[")[0]
        turn[item], seen[function] = seen[function], seen[function] + 1
    items.sort(key=turn.__getitem__)


def pytest_runtest_logfinish() -> None:
    """As a plugin of pytest: ends the run when its time is spent."""
    import pytest

    if sum(os.times()[:4]) > float(os.environ["MUTANTS_LIMIT"]):
        pytest.exit("no more time", returncode=LATE)


# --- results ---


def digest(*paths: Path) -> str:
    """Of what stands in files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


class Results:
    """What was found of mutants, in a file; old results count as long as nothing changed that they depend on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        self.tests = digest(*sorted((ROOT / "tests").glob("*.py")))

    def of(self, mutant: Mutant) -> tuple[str, str] | None:
        """What is known of a mutant."""
        known = self.found.get(mutant.name)
        if known is None or known["module"] != digest(ROOT / "dnat" / mutant.module):
            return None
        counts = known["verdict"] == "killed" or known["tests"] == self.tests
        return (known["verdict"], known["test"]) if counts else None

    def add(self, mutant: Mutant, found: tuple[str, str]) -> None:
        """Keep what was found."""
        module = digest(ROOT / "dnat" / mutant.module)
        self.found[mutant.name] = {"verdict": found[0], "test": found[1], "module": module, "tests": self.tests}
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1))
        part.replace(self.path)


def table() -> tuple[dict[str, list[str]], dict[str, str]]:
    """From mutants.toml: the test files of each module, and why mutants are equivalent, by name."""
    found = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text())
    tests = {module: [f"tests/test_{name}.py" for name in names] for module, names in found["tests"].items()}
    missing = [p for ts in tests.values() for p in ts if not (ROOT / p).exists()]
    missing += [f"dnat/{m}" for m in tests if not (ROOT / "dnat" / m).exists()]
    if missing:
        sys.exit(f"mutants.toml names what is not there: {', '.join(sorted(set(missing)))}")
    return tests, {
        f"{e['module']} {e['scope']}: {e['before']} -> {e['after']}": e["why"] for e in found.get("equivalent", [])
    }


def main() -> None:
    """Test a sample of mutants and print the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at a time")
    parser.add_argument("--limit", type=float, default=75, help="seconds of CPU time for the tests of a mutant")
    parser.add_argument("--list", action="store_true", help="show the sample and run nothing")
    options = parser.parse_args()
    tests, equivalent = table()
    chosen = sample({m: (ROOT / "dnat" / m).read_text() for m in tests}, options.n, options.seed)
    if options.list:
        for one in chosen:
            print(f"{one.module}:{one.line} {one.scope} ({one.kind})\n  - {one.before}\n  + {one.after}")
        return
    results = Results(ROOT / ".mutants" / "results.json")
    began = time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees: SimpleQueue[Tree] = SimpleQueue()
        for i in range(options.jobs):
            trees.put(Tree(Path(folder) / str(i)))

        def judged(one: Mutant) -> tuple[str, str]:
            if one.name in equivalent:
                return "equivalent", equivalent[one.name]
            tree = trees.get()
            try:
                return results.of(one) or verdict(tree, one, tests[one.module], options.limit)
            finally:
                trees.put(tree)

        for one, found in zip(chosen, pool.map(judged, chosen), strict=True):
            if found[0] != "equivalent":
                results.add(one, found)
            counts[found[0]] += 1
            print(f"{found[0]:10} {one.module}:{one.line} {one.scope}: {found[1]}", flush=True)
            if found[0] == "survived":
                print(f"           - {one.before}\n           + {one.after}", flush=True)
    counted = counts["killed"] + counts["survived"]
    print(
        f"{counts['killed']} of {counted} noticed ({counts['killed'] / max(counted, 1):.0%}); "
        f"{counts['equivalent']} equivalent; {(time.monotonic() - began) / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
