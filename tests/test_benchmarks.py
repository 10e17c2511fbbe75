"""The programs that README's numbers come from still go with the library."""

import importlib
import os
import sys
import time
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


def test_reach_tells_of_a_network_that_it_gets_through_and_of_one_that_it_does_not(
    benchmark, monkeypatch, capsys, tmp_path
):
    """The rows, the table and the exit code; what is there is not run again, and what raises is a row."""
    reach = benchmark("reach")

    def broken():
        raise RuntimeError("cannot be built")

    entry = reach.zoo.ENTRIES["Gated"]
    monkeypatch.setitem(reach.zoo.ENTRIES, "broken", entry._replace(make=broken))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reach.py", "--results", str(tmp_path / "rows.jsonl"), *arguments])
        return reach.main(), capsys.readouterr().out

    status, told = run("--only", "Gated")
    (row,) = reach.kept(tmp_path / "rows.jsonl", "dnat").values()
    assert status == 0
    assert row.share <= 0.7
    assert row.removed
    assert row.apart == [0.0, 0.0]
    assert row.compared in ("to the bit", "to rounding")
    assert f"| Gated | {row.edges} | {row.changed} | {row.removed} of {row.layers} |" in told

    status, told = run("--only", "Gated", "broken")
    assert status == 1
    assert "RuntimeError: cannot be built" in told
    assert "2 networks, 1 passed, 1 failed" in told
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2


def test_a_process_that_is_not_done_in_time_or_dies_is_told(benchmark, capfd):
    """Neither stops the others, and none is taken for one that passed."""
    zoo, reach = benchmark("zoo"), importlib.import_module("reach")

    def check(row, save):
        if row.name == "slow":
            time.sleep(60)
        if row.name == "dies":
            os._exit(7)

    rows = [reach.Row(name, "dnat") for name in ("slow", "dies", "well")]
    ended = {row.name: row.failures for row in zoo.apart(rows, check, jobs=3, seconds=5, memory=10)}
    assert ended["well"] == []
    assert ended["slow"] == ["not done after 5 s"]
    assert ended["dies"][0].startswith("the process ended with 7")
