"""The programs that README's numbers come from still go with the library."""

import importlib
import sys
from pathlib import Path

import pytest

import dnat

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a program, which may import others beside it, and forgets them all in the end."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_program_is_imported(benchmark, name):
    assert benchmark(name).__doc__


@pytest.mark.slow
def test_blocks_are_chosen_by_theta_and_without(benchmark):
    """Every way to choose that depth_truth.py judges gives a set of the size that is asked for."""
    depth_truth = benchmark("depth_truth")
    data = dnat.load("digits", train_limit=256, test_limit=100)
    network = dnat.build("resnet20", seed=0, width=4).eval()
    free = set(depth_truth.blocks_of(network))
    sets = depth_truth.criteria(network, data)
    sets |= {how: depth_truth.by_theta(network, data, 0, how) for how in ("theta", "warmed", "from D")}
    for name, choose in sets.items():
        for k in (1, 3):
            assert len(choose(k)) == k, name
            assert choose(k) <= free
