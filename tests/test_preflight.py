"""What a sweep does before its first trial and after its last: networks are tried, and times measured alone."""

import json
import os
from pathlib import Path

import pytest
import torch

from dnat.errors import UsageError
from dnat.files import read_sealed
from dnat.lab.runs import restore
from dnat.lab.sweep import Options, Sweep, plan, run_sweep
from dnat.lab.sweep.directory import SweepDirectory
from dnat.lab.sweep.schedule import _new
from dnat.lab.sweep.settings import resolve
from dnat.lab.sweep.trials import Outcome
from dnat.rundir import LATENCY, RunFiles

MINE = """
from torch import nn

def fine(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def broken():
    raise ValueError("there is no table of widths")

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))

def dying():
    import os
    os.abort()
"""
SHORT = {"threads": 1, "epochs": 1, "train_limit": 50, "test_limit": 20, "batch_size": 25}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with networks of one's own."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep(*networks, seeds=(0,), methods=("original",), **settings):
    return Sweep(networks=networks, methods=methods, seeds=seeds, settings=SHORT | settings)


def test_what_is_wrong_with_networks_is_told_once_and_nothing_is_started(here):
    wanted = sweep("mine:fine", "mine:broken", "mine:narrow", seeds=(0, 1, 2), methods=("original", "dnat-full"))
    with pytest.raises(UsageError) as told:
        run_sweep(wanted, "s")
    text = str(told.value)
    assert text.count("there is no table of widths") == 1
    assert "mine:broken on digits: 6 of 18 trials" in text
    assert "mine:narrow on digits: 6 of 18 trials" in text
    assert "mine:fine" not in text
    assert not Path("s").exists()
    with pytest.raises(UsageError, match=r"nothing was started: .*nowhere.*mine:fine on folder: 1 of 1 trials"):
        run_sweep(sweep("mine:fine", data="folder", data_root="nowhere"), "s")
    assert not Path("s").exists()


def test_a_network_that_kills_its_process_is_left_to_its_trial(here):
    found = run_sweep(sweep("mine:fine", "mine:dying"), "s")
    assert [s.state for s in found] == ["done", "failed"]
    assert "SIGABRT" in found[1].reason


def test_networks_of_which_a_trial_began_are_not_tried_again(here):
    trials = plan(resolve(sweep("mine:fine", "mine:narrow", seeds=(0, 1))))
    with SweepDirectory.open("s", sweep("mine:fine", "mine:narrow", seeds=(0, 1)), trials) as opened:
        opened.begin(trials[0].name)
        opened.end(trials[0].name, Outcome("failed"))
    assert {t.network for t in _new(trials, "s")} == {"mine:narrow"}
    assert _new(trials, "nowhere") == list(trials)


def test_times_are_measured_again_when_no_trial_runs(here):
    wanted = sweep("resnet8", methods=("original", "dnat-full@0.7"), architecture_epochs=1, latency_batch=3)
    found = run_sweep(wanted, "s", Options(jobs=2))
    assert [s.state for s in found] == ["done", "done"]
    for standing in found:
        files = RunFiles(standing.directory)
        measured, own = files.record()["latency"], json.loads(files.path("record.json").read_text())["latency"]
        kept = read_sealed(files.path(LATENCY))
        assert kept.pop("of") == json.loads(files.path("record.json").read_text())["sha256"]
        assert measured == kept
        for when in ("before", "after"):
            assert measured[when]["alone"] is True
            assert measured[when]["batch"] == own[when]["batch"] == 3
            assert 0 < measured[when]["seconds"] < 5
            assert measured[when]["seconds"] != own[when]["seconds"]
        restore(standing.directory)[0](torch.zeros(1, 3, 16, 16))  # nothing else of the run changed
    first = os.stat(found[0].directory / LATENCY).st_mtime_ns
    run_sweep(wanted, "s", Options(jobs=2))
    assert os.stat(found[0].directory / LATENCY).st_mtime_ns == first
