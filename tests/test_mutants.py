"""The program that changes the core to see whether tests notice (benchmarks/mutants.py)."""

import ast
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


SOURCE = '''"""What this is: 1."""

NAMES = ("a", "b")


def total(xs: list[int], least: int = 0) -> int:
    """The sum; 2 < 3."""
    assert least >= 0, "never below 0"
    if not xs or len(xs) < 1:
        raise ValueError(f"{xs} is empty: {1 + 1}")
    found = sum(x * 2 for x in xs if x > least)
    xs.clear()
    return -found if any(xs) else max(found, 7)
'''


def test_each_mutant_is_other_code_that_python_reads(mutants):
    found = mutants.mutants("x.py", SOURCE)
    whole = ast.dump(ast.parse(SOURCE))
    for mutant in found:
        assert ast.dump(ast.parse(mutant.source)) != whole, mutant
        assert sum(a != b for a, b in zip(SOURCE.splitlines(), mutant.source.splitlines(), strict=True)) == 1 or (
            mutant.after.endswith("pass")
        )
    assert Counter(m.kind for m in found) == {
        "number": 4,  # the default, 1, 2, 7, and not those of texts, invariants and types
        "comparison": 2,
        "condition dropped": 2,
        "and, or": 1,
        "sign": 2,
        "statement dropped": 2,
        "arithmetic": 1,
        "filter dropped": 1,
        "branches swapped": 1,
        "function": 2,
    }
    wanted = "return (found) if any(xs) else max(found, 7)"
    assert [m.after for m in found if m.kind == "sign"] == ["if (xs) or len(xs) < 1:", wanted]
    assert len({m.name for m in found}) == len(found)


def test_a_sample_belongs_to_its_seed_and_goes_through_the_modules(mutants):
    sources = {name: SOURCE for name in ("a.py", "b.py", "c.py")}
    one, same, other = (mutants.sample(sources, 12, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert Counter(m.module for m in one) == dict.fromkeys(sources, 4)
    everything = mutants.sample(sources, 999, 0)
    assert len(everything) == len({m.name for m in everything}) == 3 * len(mutants.mutants("a.py", SOURCE))


def test_the_core_and_its_tests_are_where_the_table_says(mutants):
    tests, equivalent = mutants.table()
    assert len(tests) >= 20
    modules = {name.split()[0] for name in equivalent}
    every = {m.name for module in modules for m in mutants.mutants(module, (ROOT / "dnat" / module).read_text())}
    assert equivalent.keys() <= every
    assert all(equivalent.values())


@pytest.mark.slow
def test_a_mutant_is_tested_in_a_copy(mutants, tmp_path):
    """One that a test notices, and one that none can."""
    path = ROOT / "dnat" / "seeds.py"
    before = path.read_text()
    tree = mutants.Tree(tmp_path)
    found = mutants.mutants("seeds.py", before)
    noticed = next(m for m in found if (m.scope, m.kind) == ("sequence", "branches swapped"))
    outcome, test = mutants.verdict(tree, noticed, ["tests/test_data.py"], 60)
    assert (outcome, "::" in test) == ("killed", True)
    assert mutants.verdict(tree, noticed, ["tests/test_tree.py"], 60) == ("survived", "")
    assert path.read_text() == before == (tree.root / "dnat" / "seeds.py").read_text()
