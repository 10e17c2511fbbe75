import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from dnat.lab import sweep as sweeps
from dnat.lab.cli import cli, exit_code
from dnat.lab.labels import label
from dnat.lab.metrics import ACCURACY, Measured
from dnat.lab.runs import run
from dnat.lab.sweep import (
    Options,
    Standing,
    Sweep,
    View,
    parse_names,
    parse_seeds,
    plan,
    read,
    remaining,
    run_sweep,
    schedule,
)
from dnat.lab.sweep import local as local_engine
from dnat.lab.sweep import trials as trial_module
from dnat.lab.sweep.directory import SweepDirectory
from dnat.lab.sweep.schedule import Live
from dnat.lab.sweep.settings import joined, resolve, trial_name
from dnat.lab.sweep.trials import Attempt, carry_out, is_held, judged, reason_in
from dnat.lab.terminal.sweep import SweepScreen, sweep_table, troubles_text
from dnat.records import LockedError, check_name
from dnat.settings import Job, read_toml

ROOT = Path(__file__).resolve().parent.parent


def table(**settings):
    return {"networks": ["resnet8"], "methods": ["original", "dnat-full"], "seeds": 2} | settings


def planned(**settings):
    return plan(resolve(Sweep.from_table(table(**settings))))


# --- what a sweep is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("5", (0, 1, 2, 3, 4)),
        (2, (0, 1)),
        ("0,3,7", (0, 3, 7)),
        ("1-3", (1, 2, 3)),
        ("7,", (7,)),
        ([4, 2], (4, 2)),
    ],
)
def test_seeds_are_a_number_a_list_or_a_range(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "a", "1.5", "3,3", "1-3,2", "5-1", "4294967296,", [True], [-1], 0]
)
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="seed"):
        parse_seeds(text)


def test_names_are_a_list_without_doubles():
    assert parse_names(" resnet8, torchvision:resnet18 ,") == ("resnet8", "torchvision:resnet18")
    with pytest.raises(ValueError, match="name 'a' is given twice"):
        parse_names("a,b,a")


@pytest.mark.parametrize(
    "network", ["../../etc:x", "a" * 300, "genotype:cells/my net.json", "..:..", "CON:x", "é:é"]
)
@pytest.mark.parametrize("method", ["nat++", "dnat-full@0.7"])
def test_every_trial_has_a_name_that_a_run_may_have(network, method):
    assert check_name(trial_name(network, method, 4294967295)).endswith("-seed4294967295")
    assert trial_name("a" * 300, method, 0) != trial_name("a" * 301, method, 0)


def test_a_trial_gets_common_settings_then_its_networks_then_its_methods():
    settings = {
        "lr": 0.1,
        "epochs": 7,
        "search": {"layers": 3},
        "network": {"resnet20": {"lr": 0.2, "network_options": {"width": 8}}},
        "method": {"dnat-full": {"lr": 0.3}, "dnat-full@0.7": {"epochs": 9}, "nat": {"search": {"samples": 2}}},
        "network_options": {"skips": True},
    }
    methods = ["original", "dnat-full", "dnat-full@0.7", "nat"]
    found = {
        (t.network, t.method): t.job
        for t in planned(networks=["resnet8", "resnet20"], methods=methods, seeds=1, **settings)
    }
    assert found["resnet8", "original"].config.training.lr == 0.1
    assert found["resnet20", "original"].config.training.lr == 0.2
    assert found["resnet20", "dnat-full"].config.training.lr == 0.3
    assert found["resnet20", "dnat-full"].config.training.epochs == 7
    assert (
        found["resnet20", "dnat-full@0.7"].config.training.lr,
        found["resnet20", "dnat-full@0.7"].config.training.epochs,
    ) == (
        0.3,
        9,
    )
    assert found["resnet20", "dnat-full"].network_options == {"skips": True, "width": 8}
    assert found["resnet8", "dnat-full"].network_options == {"skips": True}
    assert found["resnet8", "nat"].config.search.layers == 3
    assert found["resnet8", "nat"].config.search.samples == 2
    assert found["resnet8", "original"].config.search.layers == 8  # not for it


def test_flags_beat_all_tables_of_a_file():
    file = table(lr=0.1, network={"resnet8": {"lr": 0.2, "search": {"layers": 2, "samples": 3}}})
    sweep = Sweep.from_table(file, {"lr": 0.5, "seeds": "3,", "search": {"layers": 5}})
    assert (sweep.settings["lr"], sweep.seeds) == (0.5, (3,))
    assert sweep.of_network == {"resnet8": {"search": {"samples": 3}}}


def test_settings_without_use_are_not_given():
    """So that the baseline's label is "original", whatever limits the others."""
    jobs = {
        (t.network, t.method): t.job
        for t in planned(
            networks=["resnet8", "darts_v2"],
            methods=["original", "dnat-full", "dnat-cell@120M", "nat"],
            seeds=1,
            budget=0.7,
            judge="loss",
            edges=["layer1.*"],
        )
    }
    assert {label(j.flat()) for (_, m), j in jobs.items() if m == "original"} == {"original"}
    assert label(jobs["resnet8", "dnat-full"].flat()) == "dnat-full 0.7"
    assert label(jobs["resnet8", "dnat-cell@120M"].flat()) == "dnat-cell 120M"
    assert label(jobs["resnet8", "nat"].flat()) == "nat 0.7"  # on its edges
    assert label(jobs["darts_v2", "nat"].flat()) == "nat"  # on its genotype there is no budget
    assert jobs["darts_v2", "nat"].config.relaxation.edges is None
    assert jobs["darts_v2", "dnat-full"].config.relaxation.edges == ("layer1.*",)


def test_tables_of_networks_that_are_left_out_are_no_mistake():
    """A file for many networks, and a command for one; docs/baselines.md has one for benchmarks/methods.toml."""
    table = {
        "networks": ["resnet8", "resnet20"],
        "methods": ["nat@0.5", "dnat"],
        "seeds": 1,
        "network": {"resnet20": {"epochs": 3}},
        "method": {"nat": {"epochs": 4}, "dnat": {"epochs": 5}},
    }
    few = Sweep.from_table(table, {"networks": "resnet8", "methods": "nat@0.7"})
    assert (few.of_network, few.of_method) == ({}, {"nat": {"epochs": 4}})
    plan(resolve(few))
    assert Sweep.from_table(table).of_network == {"resnet20": {"epochs": 3}}
    misspelt = table | {"network": {"resnet02": {"epochs": 3}}}
    with pytest.raises(ValueError, match=r"\[network.resnet02\]: unknown network of this sweep"):
        plan(resolve(Sweep.from_table(misspelt, {"networks": "resnet8"})))


def test_every_mistake_is_found_before_anything_is_started():
    given = Sweep.from_table(
        {
            "networks": ["resent8", "proxyless_cpu", "nowhere.at.all:make", "darts_v2", "resnet8", "vgg16"],
            "methods": ["original", "dnat-cell", "dnta", "original@0.5", "nat@0.5", "nat@much", "dnat"],
            "seeds": 2,
            "mode": "cell",
            "method": {"nao": {"lr": 1}},
            "network": {
                "resnet20": {},
                "vgg16": {"data": "digit"},
                "darts_v2": {"network_options": {"wdith": 2}},
            },
        }
    )
    with pytest.raises(ValueError, match="nothing was started") as error:
        plan(resolve(given))
    for words in (
        "unknown network 'resent8'; did you mean 'resnet8'?",
        "there is no module 'nowhere'",
        "unknown method 'dnta'; did you mean 'dnat'?",
        "unknown data set 'digit'; did you mean 'digits'?",
        "proxyless_cpu has no mode 'cell'",
        "'original' changes nothing and keeps no budget",
        "'much' is not a budget",
        "darts_v2 has no option 'wdith'",
        "[method.nao]: unknown method of this sweep 'nao'",
        "[network.resnet20]: unknown network of this sweep",
        "resnet8-dnat-cell-seed0 and resnet8-dnat-seed0 would be the same entry",
    ):
        assert words in str(error.value), words
    with pytest.raises(ValueError, match="nat knows no budget on genotypes: leave it out for darts_v2"):
        planned(networks=["darts_v2"], methods=["nat@0.5"])
    for missing in ("networks", "methods", "seeds"):
        with pytest.raises(ValueError, match=f"no {missing} given: add --{missing}"):
            resolve(Sweep.from_table({k: v for k, v in table().items() if k != missing}))
    for words, wrong in (("a list of networks", {"network": "resnet8"}), ("takes seeds", {"seed": 1})):
        with pytest.raises(ValueError, match=words):
            Sweep.from_table(table(**wrong))


def test_a_sweeps_file_is_its_configuration_also_without_the_genotypes_file(tmp_path):
    from dnat.networks.genotypes import published

    file = tmp_path / "mine.json"
    file.write_text(published("darts_v2").to_json())
    sweep = resolve(
        Sweep.from_table(table(networks=[f"genotype:{file}"], method={"dnat-full": {"lr": 0.2}}, lr=0.1)), jobs=2
    )
    file.unlink()
    (tmp_path / "sweep.toml").write_text(sweep.to_toml())
    again = resolve(Sweep.from_table(read_toml(tmp_path / "sweep.toml")), jobs=1)  # threads stay
    assert again == sweep
    assert plan(again) == plan(sweep)
    assert [t.job.config.training.lr for t in plan(sweep)] == [0.1, 0.2, 0.1, 0.2]


def test_threads_are_the_cores_of_a_trial_and_part_of_the_sweep(monkeypatch):
    monkeypatch.setattr("dnat.lab.sweep.settings.cores", lambda: 8)
    for jobs, threads in ((1, 8), (3, 2), (100, 1)):
        assert resolve(Sweep.from_table(table()), jobs).settings["threads"] == threads
    assert resolve(Sweep.from_table(table(threads=5)), 4).settings["threads"] == 5


def test_joined_tables_keep_what_they_do_not_share():
    assert joined({"search": {"a": 1}, "x": 1}, {"search": {"b": 2}}, {"x": 2}) == {
        "search": {"a": 1, "b": 2},
        "x": 2,
    }


# --- GPUs, logs, times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("jobs", range(1, 9))
def test_gpus_are_shared_evenly_and_none_is_idle(gpus, jobs):
    names = [f"GPU-{i}" for i in range(gpus)]
    shares = [share.split(",") for share in local_engine.gpu_shares(names, jobs)]
    used = [name for share in shares for name in share]
    assert len(shares) == jobs
    assert set(used) == set(names)
    assert max(used.count(n) for n in names) - min(used.count(n) for n in names) <= 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_visible_gpus_are_read_as_cuda_does():
    for text, found in (
        ("0,2", ["0", "2"]),
        ("", []),
        ("-1", []),
        ("1,-1,2", ["1"]),
        ("GPU-ab, MIG-1", ["GPU-ab", "MIG-1"]),
    ):
        assert local_engine.visible_gpus({"CUDA_VISIBLE_DEVICES": text}) == found
    assert local_engine.visible_gpus({}) == [str(i) for i in range(torch.cuda.device_count())]
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epoch 1\ndnat: loss is not finite\n", "loss is not finite"),
        (
            "Traceback\nKeyError: 'x'\ndnat: this is a bug of dnat; please report it with the lines above\n",
            "KeyError: 'x'",
        ),
        ("dnat: stopped after epoch 1; the same command goes on with it\n", "stopped after epoch 1"),
        ("\x1b[31mred\x1b[0m\x00\n\n  \n", "red"),
        ("", ""),
    ],
)
def test_the_reason_is_the_line_that_says_it(text, reason):
    assert reason_in(text) == reason


def standing(name, state="pending", network="a", method="m", seconds=0.0, **more):
    return Standing(name, network, method, 0, Path(name), state, seconds=seconds, **more)


def test_the_time_left_is_that_of_trials_alike():
    done = [
        standing("1", "done", seconds=10),
        standing("2", "done", seconds=20),
        standing("3", "done", "b", seconds=70),
    ]
    assert remaining(View((standing("x"),), {}, 1)) is None
    assert remaining(View((*done,), {}, 1)) == 0
    assert remaining(View((*done, standing("4")), {}, 1)) == 15  # its own network and method
    assert remaining(View((*done, standing("4", network="b", method="n")), {}, 1)) == 70  # its network
    assert remaining(View((*done, standing("4", network="c")), {}, 1)) == pytest.approx(100 / 3)  # all
    some = (*done, standing("4"), standing("5"), standing("6"))
    assert remaining(View(some, {}, 3)) == 15
    assert remaining(View(some, {}, 2)) == 22.5
    running = (*done, standing("4", "running"), standing("5", "running", network="b"))
    live = {"4": Live(5.0, 9), "5": Live(99.0, 9)}
    assert remaining(View(running, live, 2)) == 10  # the other is late already


# --- trials in processes: a stand-in does in milliseconds what a trial does in seconds -------------------------


STAND_IN = """
import json, os, pathlib, signal, sys, time, tomllib
assert sys.argv[1::2][:2] == ["transform", sys.argv[3]], sys.argv
job = tomllib.loads(pathlib.Path(sys.argv[3]).read_text())
out = pathlib.Path(sys.argv[5])
out.mkdir(exist_ok=True)
(out / "config.toml").touch()
(out / "starts").open("a").write("x")
kind, starts = job["network"].partition(":")[2], len((out / "starts").read_text())
(out / "seen.json").write_text(json.dumps({"sid": os.getsid(0) == os.getpid(), **os.environ}))
print("epoch 1/2", flush=True)
(out / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "stage": "network", "test_accuracy": 0.5}) + "\\n")
if kind == "nan":
    sys.exit("dnat: the loss is not finite any more") if starts > 1 else (print("dnat: not finite"), sys.exit(65))
if kind == "refused":
    print("dnat: network 'mine:refused' cannot be imported: no")
    sys.exit(2)
if kind == "crash":
    raise KeyError("what nobody thought of")
if kind == "memory":
    raise MemoryError
if kind == "segv":
    os.kill(os.getpid(), signal.SIGSEGV)
if kind == "vanish":
    sys.exit(0)
if kind == "killed" and starts == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "preempted" and starts == 1:
    sys.exit(75)
if kind == "evicted" and starts < 9:
    sys.exit(75)
if kind == "slow":
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (out / "ready").touch()
    while not asked and os.getppid() == int(os.environ["DNAT_PARENT"]):
        time.sleep(0.02)
    print("dnat: stopped after epoch 1")
    sys.exit(75)
cost = {"params": 1, "madds": 1}
results = {"test_accuracy": 0.5, "cost_before": cost, "cost_after": cost}
(out / "record.json").write_text(json.dumps({"results": results, "job": job, "seconds": {"network": 1.0}}))
"""

HOLD = """
import fcntl, sys, time
with open(sys.argv[1] + "/.lock", "a+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

KINDS = ("fine", "nan", "crash", "memory", "segv", "vanish", "killed", "preempted", "last")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder with networks of one's own, in which every trial is a stand-in and nothing is tried before."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "mine.py").write_text("raise RuntimeError('only trials import users modules')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "THERE_ARE_FORKS", False)
    monkeypatch.setattr(schedule, "check_networks", lambda trials, *rest: None)
    monkeypatch.setattr(schedule, "measure", lambda directories, *rest: "")
    monkeypatch.setattr(trial_module, "program", lambda: (sys.executable, "-SE", str(tmp_path / "stand_in.py")))
    return tmp_path


def of_kinds(*kinds, methods=("original",), seeds=(0,), **settings):
    return Sweep(
        networks=tuple(f"mine:{k}" for k in kinds),
        methods=methods,
        seeds=seeds,
        settings={"threads": 1} | settings,
    )


def states(found):
    return {s.network.partition(":")[2]: s.state for s in found}


def starts(folder):
    return {p.parent.name.split("-")[1]: len(p.read_text()) for p in sorted(folder.glob("*/starts"))}


def test_each_kind_of_end_is_told_from_the_others_and_stops_no_other_trial(stand_in):
    found = run_sweep(of_kinds(*KINDS), "s", Options(jobs=3))
    went_wrong = dict.fromkeys(("nan", "crash", "memory", "segv", "vanish"), "failed")
    assert (
        states(found)
        == {"fine": "done", "last": "done", "killed": "interrupted", "preempted": "interrupted"} | went_wrong
    )
    reasons = {s.network.partition(":")[2]: (s.exit_code, s.reason) for s in found}
    assert reasons["nan"] == (65, "not finite")
    assert reasons["crash"] == (1, "KeyError: 'what nobody thought of'")
    assert reasons["memory"] == (1, "MemoryError")
    assert reasons["segv"] == (-11, "killed by SIGSEGV after: epoch 1/2")
    assert reasons["vanish"] == (0, "it ended without a result (exit code 0, no record.json)")
    assert reasons["killed"][0] == -9
    assert reasons["preempted"][0] == 75
    assert read("s") == found
    assert "epoch 1/2" in found[0].log.read_text()

    before = {
        k: (stand_in / "s" / f"mine-{k}-original-seed0" / "record.json").stat().st_mtime_ns
        for k in ("fine", "last")
    }
    again = run_sweep(Sweep(), "s")  # goes on with what the directory holds
    assert states(again) == dict.fromkeys(("fine", "last", "killed", "preempted"), "done") | went_wrong
    assert starts(stand_in / "s") == {k: 2 if k in ("killed", "preempted") else 1 for k in KINDS}
    assert [s.attempts for s in again] == [starts(stand_in / "s")[k] for k in KINDS]
    for kind, when in before.items():
        assert (stand_in / "s" / f"mine-{kind}-original-seed0" / "record.json").stat().st_mtime_ns == when
    log = (stand_in / "s" / "logs" / "mine-killed-original-seed0.log").read_text()
    assert [line.split(",")[0] for line in log.splitlines() if line.startswith("---")] == [
        "--- attempt 1",
        "--- attempt 2",
    ]

    third = run_sweep(Sweep(), "s", Options(retry_failed=True, jobs=2))
    assert states(third) == states(again)
    assert starts(stand_in / "s") == {k: 1 if k in ("fine", "last") else 2 for k in KINDS}
    assert next(s for s in third if "nan" in s.name).reason == "the loss is not finite any more"
    assert all(s.seconds > 0 for s in third)


def test_what_was_interrupted_goes_on_at_once_if_asked(stand_in):
    found = run_sweep(of_kinds("killed", "preempted", "vanish"), "s", Options(retries=1))
    assert states(found) == {"killed": "done", "preempted": "done", "vanish": "failed"}
    assert starts(stand_in / "s") == {"killed": 2, "preempted": 2, "vanish": 1}


def test_what_is_always_interrupted_is_not_started_for_ever(stand_in):
    found = run_sweep(of_kinds("evicted", "last"), "s", Options(retries=2))
    assert states(found) == {"evicted": "interrupted", "last": "done"}
    assert starts(stand_in / "s") == {"evicted": 3, "last": 1}


def test_what_is_refused_at_one_seed_is_not_started_at_others(stand_in):
    """Nine trials of a network that cannot be built: one attempt for each method, and one line."""
    methods = ("original", "dnat-full", "dnat-cell")
    sweep = of_kinds("refused", "nan", methods=methods, seeds=(0, 1, 2))
    found = run_sweep(sweep, "s", Options(jobs=1))
    assert {s.state for s in found} == {"failed"}
    refused = [s for s in found if "refused" in s.network]
    assert [s.attempts for s in refused] == [1] * 3 + [0] * 6
    assert [s.attempts for s in found if "nan" in s.network] == [1] * 9  # another seed may well do better
    assert {(s.exit_code, s.reason) for s in refused} == {(2, "network 'mine:refused' cannot be imported: no")}
    assert read("s") == found
    lines = str(troubles_text(refused)).splitlines()
    assert lines[0].endswith("mine-refused-dnat-cell-seed0 and 6 more: failed")
    assert len(lines) == 3
    again = run_sweep(Sweep(), "s", Options(retry_failed=True, jobs=1))  # once mended, all of them are tried
    assert [s.attempts for s in again if "refused" in s.network] == [2] * 3 + [0] * 6


def test_a_sweep_grows_but_changes_in_nothing_else(stand_in, monkeypatch):
    run_sweep(of_kinds("fine"), "s")
    run_sweep(of_kinds("fine", "last", seeds=(0, 1), methods=("original", "dnat-full")), "s", Options(jobs=4))
    assert len(read("s")) == 8
    assert {s.state for s in read("s")} == {"done"}
    assert set(starts(stand_in / "s").values()) == {1}
    run_sweep(Sweep(seeds=(0, 1, 2)), "s")  # the rest is as it was
    assert len(read("s")) == 12
    files = {p: p.read_bytes() for p in (stand_in / "s").rglob("*") if p.is_file()}
    for words, other in (
        (
            "lr 0.025 .there. / 0.5 .now.",
            of_kinds("fine", "last", seeds=(0, 1, 2), methods=("original", "dnat-full"), lr=0.5),
        ),
        (
            "threads 1 .there. / 2 .now.",
            of_kinds("fine", "last", seeds=(0, 1, 2), methods=("original", "dnat-full"), threads=2),
        ),
        ("also has the seeds 2", Sweep(seeds=(0, 1))),
        ("also has the networks mine:last", Sweep(networks=("mine:fine",))),
        ("no such|unknown network", Sweep(networks=("mine:fine", "mine:last", "resent8"))),
    ):
        with pytest.raises(ValueError, match=words):
            run_sweep(other, "s")
    assert {p: p.read_bytes() for p in (stand_in / "s").rglob("*") if p.is_file()} == files
    monkeypatch.setattr("dnat.lab.sweep.schedule.cores", lambda: 8)
    notes = []
    run_sweep(Sweep(settings={"data_root": "elsewhere"}), "s", Options(jobs=2), notify=notes.append)
    assert notes == ["threads = 1 stays for each trial, as the sweep began with it: results depend on it"]
    assert Job.from_flat(read_toml("s/trials/mine-fine-original-seed0.toml")).data_root == "elsewhere"


def test_a_result_counts_whoever_made_it_and_a_lost_one_is_made_again(stand_in):
    run_sweep(of_kinds("fine", "vanish"), "s")
    (stand_in / "s/mine-fine-original-seed0/record.json").rename("record.json")
    Path("record.json").rename("s/mine-vanish-original-seed0/record.json")
    assert states(read("s")) == {"fine": "interrupted", "vanish": "done"}
    assert states(run_sweep(Sweep(), "s")) == {"fine": "done", "vanish": "done"}
    (stand_in / "s/trials.json").unlink()
    assert states(read("s")) == {"fine": "done", "vanish": "done"}


def test_a_directory_is_for_one_sweep_at_a_time(stand_in):
    sweep = resolve(of_kinds("fine"))
    with SweepDirectory.open("s", sweep, plan(sweep)):
        assert read("s")[0].state == "pending"  # and looking does not give the lock back
        code = "import sys; from dnat.lab.sweep.trials import is_held; sys.exit(is_held('s'))"
        assert (
            subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
            == 1
        )
        with pytest.raises(LockedError, match="in use by this very process"):
            run_sweep(Sweep(), "s")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, "s", "60"], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    with pytest.raises(LockedError, match="is in use by pid") as error:
        run_sweep(Sweep(), "s")
    assert exit_code(error.value) == 73
    holder.kill()
    holder.communicate()
    (stand_in / "other").mkdir()
    (stand_in / "other" / "file").touch()
    with pytest.raises(ValueError, match="is not empty and not a sweep's directory"):
        run_sweep(of_kinds("fine"), "other")
    with pytest.raises(ValueError, match="cannot name a run"):
        run_sweep(of_kinds("fine"), "a b")
    with pytest.raises(ValueError, match="'ss'; did you mean 's'"):
        read("ss")


def test_a_trial_waits_for_its_directory(stand_in):
    """As after a sweep that was killed: its trials end by themselves a moment later."""
    Path("d").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, "d", "0.7"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        assert is_held("d")
        attempt = Attempt(("-c", "print('dnat: begun'); exit(65)"), ".", "d", "log", program=(sys.executable,))
        outcome = carry_out(attempt, lambda: False)
    assert (outcome.exit_code, outcome.reason) == (65, "begun")
    assert outcome.seconds < 30
    assert process.wait() == 0
    assert judged(73, "d", "dnat: d is in use by pid 1\n").state == "interrupted"
    assert judged(73, "d", "dnat: d cannot be written: No space left\n").state == "interrupted"
    assert judged(65, "d", "dnat: d is damaged\n").state == "failed"
    assert carry_out(attempt, lambda: True).reason == "stopped before it began"


def test_stopped_trials_save_and_the_rest_waits(stand_in):
    asked = threading.Event()
    seen = []

    def watch(view):
        seen.append(view)
        if len(list(stand_in.glob("s/*/ready"))) == 2:
            asked.set()

    found = run_sweep(
        of_kinds("slow", seeds=(0, 1, 2, 3)), "s", Options(jobs=2, retries=5), watch=watch, stop=asked.is_set
    )
    assert [s.state for s in found] == ["interrupted", "interrupted", "pending", "pending"]
    assert {s.reason for s in found[:2]} == {"stopped after epoch 1"}
    assert max(len(view.live) for view in seen) == 2
    environment = json.loads((found[0].directory / "seen.json").read_text())
    assert environment["DNAT_PARENT"] == str(os.getpid())
    assert environment["sid"]  # a terminal's Ctrl-C does not reach it


def test_a_second_interrupt_ends_all_at_once(stand_in):
    def watch(view):
        if list(stand_in.glob("s/*/ready")):
            raise KeyboardInterrupt

    code = trial_module.program()
    script = Path(code[-1])
    script.write_text(script.read_text().replace("asked.append(1)", "None"))  # deaf
    with pytest.raises(KeyboardInterrupt):
        run_sweep(of_kinds("slow"), "s", watch=watch)
    assert [s.state for s in read("s")] == ["interrupted"]
    assert not is_held("s")


def test_gpus_go_to_trials_by_slot(stand_in, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    sweep = of_kinds("fine", "slow", "last")
    asked = threading.Event()

    def watch(view):
        if (stand_in / "s/mine-slow-original-seed0/ready").exists():
            asked.set()

    run_sweep(sweep, "s", Options(jobs=2), watch=watch, stop=asked.is_set)
    given = {}
    for kind in ("fine", "slow"):
        given[kind] = json.loads((stand_in / f"s/mine-{kind}-original-seed0/seen.json").read_text())[
            "CUDA_VISIBLE_DEVICES"
        ]
    assert given == {"fine": "4", "slow": "5"}
    run_sweep(of_kinds("fine", device="cpu"), "t", Options(jobs=2))
    seen = json.loads((stand_in / "t/mine-fine-original-seed0/seen.json").read_text())
    assert seen["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_what_is_shown_without_a_terminal_and_with_one(stand_in):
    plain = Console(file=io.StringIO(), width=120, soft_wrap=True)
    screen = SweepScreen(plain)
    run_sweep(of_kinds("fine", "nan"), "s", watch=screen.show)
    screen.finish()
    lines = plain.file.getvalue().splitlines()
    assert [line.rstrip() for line in lines if "done" not in line] == [
        "0/2  mine-fine-original-seed0: running",
        "1/2  mine-nan-original-seed0: running",
        "1/2  mine-nan-original-seed0: failed  not finite",
    ]
    assert any(line.startswith("1/2  mine-fine-original-seed0: done  accuracy 50.00%, ") for line in lines)

    long = "a reason that is longer than the terminal is wide, which must not take a second line there"
    view = View(
        (*read("s"), standing("wide", "failed", reason=long), standing("x", "running")),
        {"x": Live(75.0, 9, "network", 3, Measured(ACCURACY, 0.25))},
        1,
    )
    wide = Console(file=io.StringIO(), width=70, soft_wrap=True, force_terminal=True, color_system=None)
    wide.print(sweep_table(view, {"mine-fine-original-seed0": Measured(ACCURACY, 0.5)}, 3.0))
    shown = wide.file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 70 for line in shown), shown
    text = "\n".join(shown)
    for words in (
        "4 trials   1 done   1 running   2 failed",
        "3/9",
        "25.00%",
        "1:15 min",
        "1 of 1",
        "a reason that is longer",
    ):
        assert words in text, words


def test_options_are_checked():
    for words, wrong in (
        ("jobs must be at least 1", {"jobs": 0}),
        ("retries must be at least 0", {"retries": -1}),
        ("engine must be local or ray", {"engine": "slurm"}),
        ("is for engine ray", {"address": "auto"}),
    ):
        with pytest.raises(ValueError, match=words):
            Options(**wrong)
    assert (
        Options().resumed_at_once,
        Options(engine="ray").resumed_at_once,
        Options(retries=2).resumed_at_once,
    ) == (0, 3, 2)
    with pytest.raises(AttributeError, match="no attribute 'raed'"):
        _ = sweeps.raed


def test_the_command_ends_with_the_code_of_what_is_missing(stand_in):
    def command(*arguments):
        return CliRunner().invoke(cli, ["sweep", "--out", "s", *arguments])

    first = command(
        "--networks",
        "mine:fine,mine:vanish,mine:preempted",
        "--methods",
        "original",
        "--seeds",
        "0,",
        "--set",
        "threads=1",
    )
    assert exit_code(first.exception) == 75
    assert "dnat sweep --out s" in str(first.exception)
    second = command()
    assert exit_code(second.exception) == 70
    assert "log: s/logs/mine-vanish-original-seed0.log" in second.output
    assert "--retry-failed" in str(second.exception)
    assert "mine:fine on digits" in second.output  # what there is, is summarized
    other = command("--set", "lr=0.5")
    assert exit_code(other.exception) == 2
    assert "lr 0.025 (there) / 0.5 (now)" in str(other.exception)
    fine = CliRunner().invoke(
        cli,
        ["sweep", "--networks", "mine:fine", "--methods", "original", "--seeds", "2", "--out", "t"],
        catch_exceptions=False,
    )
    assert fine.exit_code == 0
    assert "dnat report t" in fine.output


# --- real trials ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_bits_and_its_plan_does_the_same(tmp_path, monkeypatch, quiet):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.toml").write_text(
        'networks = ["resnet8"]\nmethods = ["original", "dnat-full"]\nseeds = [3]\nthreads = 1\nepochs = 12\n'
        "architecture_epochs = 8\nbatch_size = 100\ntrain_limit = 100\ntest_limit = 50\nlr_theta = 0.5\n"
        "[network_options]\nwidth = 2\n"
    )
    command = [sys.executable, ROOT / "cli.py", "sweep", "--config", "given.toml", "--out", "s"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    first, end = tmp_path / "s" / "resnet8-original-seed3", time.monotonic() + 120
    while not (first / "metrics.jsonl").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while is_held(first):  # the trial notices by itself
        assert time.monotonic() < end
        time.sleep(0.02)
    assert json.loads((first / "status.json").read_text())["reason"].startswith("Interrupted: stopped after")
    assert [s.state for s in read("s")] == ["interrupted", "pending"]

    result = CliRunner().invoke(cli, ["sweep", "--out", "s", "--plan"], catch_exceptions=False)
    lines = [shlex.split(line) for line in result.output.splitlines()]
    assert [line[:3] for line in lines] == [["dnat", "transform", "--config"]] * 2
    assert CliRunner().invoke(cli, lines[1][1:], catch_exceptions=False).exit_code == 0
    assert [s.state for s in read("s")] == ["interrupted", "done"]

    found = run_sweep(Sweep(), "s")
    assert [(s.state, s.attempts) for s in found] == [("done", 2), ("done", 0)]  # the second is the plan's
    undisturbed = run(Job.from_flat(read_toml(f"s/trials/{found[0].name}.toml")), "twin")
    assert found[0].record()["results"] == undisturbed["results"]
    rows = [[json.loads(line) for line in (s.directory / "metrics.jsonl").read_text().splitlines()] for s in found]
    assert [row["epoch"] for row in rows[0]] == list(range(1, 13))
    firsts = [rows[0][0], rows[1][0]]
    # An epoch is one step here: its loss is that of the same images, cropped alike, through equal weights.
    assert [row["step"] for row in firsts] == [1, 1]
    assert firsts[0]["train_loss"] == firsts[1]["train_loss"]
    assert [label(s.record()["job"]) for s in found] == ["original", "dnat-full"]


def test_a_network_of_ones_own_that_fails_is_told_of_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Bad(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.mean((2, 3))) * (torch.inf if self.training else 1.0)\n\n"
        "def bad(num_classes):\n    return Bad(3, num_classes)\n"
    )
    (one,) = run_sweep(
        Sweep(networks=("mine:bad",), methods=("original",), seeds=(0,), settings={"epochs": 1}), "s"
    )
    assert (one.state, one.exit_code) == ("failed", 65)
    assert "not finite any more" in one.reason


def test_data_and_tasks_of_ones_own_are_looked_for_and_not_imported(stand_in):
    assert planned(data="mine:drawn", task="regression")
    assert planned(data="mine:drawn", task="mine:TASK")
    with pytest.raises(
        ValueError, match="data set 'nowhere:drawn' cannot be imported: there is no module 'nowhere'"
    ):
        planned(data="nowhere:drawn")
    with pytest.raises(ValueError, match="data set 'mine:' names no function"):
        planned(data="mine:")
    with pytest.raises(ValueError, match="unknown task 'regresion'; did you mean 'regression'"):
        planned(task="regresion")


# --- variants ---------------------------------------------------------------------------------------------------


def test_a_variant_is_its_method_with_settings_that_beat_all_others():
    tables = {
        "method": {"dnat-full": {"lr": 0.3, "momentum": 0.5}, "dnat-full@0.7": {"weight_decay": 0.25}},
        "network": {"resnet8": {"cost_weight": 0.1, "search": {"layers": 3}}},
        "variant": {
            "slow": {"method": "dnat-full", "lr": 0.4},
            "small": {"method": "dnat-full@0.7", "cost_weight": 0.2},
            "timed": {"method": "dnat", "latency_budget": 0.5},
            "searched": {"method": "nat", "search": {"samples": 2}},
        },
    }
    methods = ["original", "slow", "slow@0.5"]
    found = {t.method: t for t in planned(methods=methods, seeds=1, epochs=9, budget=0.9, **tables)}
    assert list(found) == [*methods, "small", "timed", "searched"]  # naming the table is enough
    jobs = {name: trial.job for name, trial in found.items()}
    assert {name: job.label for name, job in jobs.items()} == {
        **{"original": None, "slow": "slow", "slow@0.5": "slow 0.5"},
        **{name: name for name in ("small", "timed", "searched")},
    }
    assert [label(job.flat()) for job in jobs.values()] == ["original"] + [
        j.label for j in list(jobs.values())[1:]
    ]
    slow, small, searched = (jobs[name].config for name in ("slow", "small", "searched"))
    assert (slow.training.lr, slow.training.momentum, slow.limit.budget) == (0.4, 0.5, 0.9)
    assert (small.training.lr, small.training.weight_decay, small.limit.budget) == (0.3, 0.25, "0.7")
    assert (slow.relaxation.cost_weight, small.relaxation.cost_weight) == (0.1, 0.2)
    assert jobs["slow@0.5"].config.limit.budget == "0.5"
    assert (jobs["timed"].config.limit.budget, jobs["timed"].config.limit.latency_budget) == (None, 0.5)
    assert (searched.search.layers, searched.search.samples) == (3, 2)
    assert all(job.config.training.epochs == 9 for job in jobs.values())
    assert found["slow@0.5"].name == "resnet8-slow-0.5-seed0"


def test_which_variants_take_part():
    file = table(variant={"slow": {"method": "dnat"}, "fast": {"method": "dnat", "epochs": 3}})
    both = ("original", "dnat-full", "slow", "fast")
    assert Sweep.from_table(file).methods == both
    assert Sweep.from_table({k: v for k, v in file.items() if k != "methods"}).methods == both[2:]
    few = Sweep.from_table(file, {"methods": "fast@0.5,original"})
    assert (few.methods, list(few.of_variant)) == (("fast@0.5", "original"), ["fast"])
    more = Sweep.from_table(file, {"methods": "original", "epochs": 2}, {"mine": {"method": "nat"}})
    assert more.methods == ("original", "mine")
    # What a variant is for is not what a flag takes from it; and its table on the command line beats the file's.
    again = Sweep.from_table(file, {"epochs": 2}, {"slow": {"method": "nat"}})
    assert again.of_variant == {"slow": {"method": "nat"}, "fast": {"method": "dnat", "epochs": 3}}
    assert Sweep.from_table(tomllib.loads(again.to_toml())) == again


def test_the_settings_of_variants_do_not_reach_others():
    """Two variants side by side are what each is alone."""
    tables = {"slow": {"method": "dnat", "lr": 0.01}, "long": {"method": "dnat", "epochs": 20}}
    both = {t.name: t.job for t in planned(variant=tables, epochs=8)}
    for name, own in tables.items():
        alone = {t.name: t.job for t in planned(variant={name: own}, epochs=8)}
        assert alone.items() <= both.items()
    assert len(both) == 8


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"nat": {"method": "dnat"}}, "variant 'nat' is named like a method"),
        ({"dnat-full": {"method": "dnat"}}, "named like a method"),
        ({"a@b": {"method": "dnat"}}, "a label is up to 40 letters"),
        ({"<b>": {"method": "dnat"}}, "a label is up to 40 letters"),
        ({"x" * 41: {"method": "dnat"}}, "a label is up to 40 letters"),
        ({"slow": "dnat"}, "variant 'slow' must be a table"),
        ({"slow": {"lr": 0.1}}, r"\[variant.slow\] needs a method"),
        ({"slow": {"method": "dnta"}}, r"\[variant.slow\]: unknown method 'dnta'; did you mean 'dnat'"),
        ({"a": {"method": "dnat"}, "b": {"method": "a"}}, "variant 'b' is one of variant 'a'"),
        ({"slow": {"method": "dnat", "seed": 1}}, r"\[variant.slow\] sets seed"),
        ({"slow": {"method": "dnat", "label": "x"}}, r"\[variant.slow\] sets label"),
        ({"slow": {"method": "dnat", "lr_thta": 1}}, "unknown setting 'lr_thta'; did you mean 'lr_theta'"),
        ({"slow": {"method": "original", "budget": 0.5}}, "keeps no budget"),
        ({"a": {"method": "dnat", "lr": 0.5}, "b": {"method": "dnat", "lr": 0.5}}, "would be the same run"),
        ({"a": {"method": "dnat"}}, "resnet8-dnat-full-seed0 and resnet8-a-seed0 would be the same run"),
        ({"a": {"method": "dnat", "lr": 0.5}, "b": {"method": "nat"}, "lr": 0.3}, "variant 'lr' must be a table"),
        ("slow", r"variant must be tables: \[variant.NAME\]"),
    ],
)
def test_variants_that_are_none_are_refused(variant, words):
    with pytest.raises(ValueError, match=words):
        planned(variant=variant)


def test_the_variants_of_the_guide_are_some():
    guide = (ROOT / "docs" / "results.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", guide, re.S)
    jobs = {t.method: t.job for t in plan(resolve(Sweep.from_table(tomllib.loads(text)))) if t.seed == 0}
    assert list(jobs) == ["original", "dnat", "slow", "paper"]
    assert (jobs["slow"].config.relaxation.lr_theta, jobs["paper"].config.limit.budget) == (0.001, "0.7")
    (line,) = re.findall(r"^    dnat (sweep .*--variant slow.* --variant .*)$", guide, re.M)
    words = shlex.split(line)
    variants = [sweeps.parse_variant(b) for a, b in itertools.pairwise(words) if a == "--variant"]
    assert dict(variants) == {"slow": {"method": "dnat", "lr_theta": 0.001}, "half": {"method": "dnat@0.5"}}


def test_names_that_are_no_variants_are_refused():
    variants = {"slow": {"method": "dnat", "lr": 0.5}}
    with pytest.raises(ValueError, match="unknown method or variant 'slwo'; did you mean 'slow'"):
        planned(methods=["slwo"], variant=variants)
    with pytest.raises(ValueError, match=r"\[method.slow\]: unknown method of this sweep 'slow'"):
        planned(variant=variants, method={"slow": {"lr": 1.0}})
    with pytest.raises(ValueError, match="a label is of one method alone"):
        planned(label="mine")
    with pytest.raises(ValueError, match="'dnat, 50 images': --methods divides names at commas"):
        planned(variant={"dnat, 50 images": {"method": "dnat"}})


@pytest.mark.parametrize(
    "text", ["slow", "slow=", "=dnat", "slow=lr=0.1", "slow=dnat,lr=0.1,lr=0.2", "slow=dnat,search.a=1,search.a=2"]
)
def test_variants_of_the_command_line_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="variant"):
        sweeps.parse_variant(text)


@pytest.mark.parametrize(
    "table",
    [
        {"method": "dnat"},
        {"method": "nat@0.5", "lr": 0.5, "gate": "raw", "nesterov": True, "search": {"epochs": 2, "layers": 3}},
        {"method": "dnat", "space": "dnat,width", "edges": ["a=1,b=2", "c"], "network_options": {"width": 4}},
        {"method": "dnat", "skips": [0.1, 2], "budget": "0.7 params", "space": "dnat"},
    ],
)
def test_a_variant_of_the_command_line_is_one_of_a_file(table):
    """Each setting as one writes it behind --set."""
    words = [table["method"]]
    for key, value in table.items():
        group = {"network_options": "network"}.get(key, key)
        inner = {f"{group}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        words += [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in inner.items() if k != "method"]
    assert sweeps.parse_variant(f"it={','.join(words)}") == ("it", table)


def test_variants_of_the_command_line_take_part(stand_in):
    words = ["sweep", "--networks", "resnet8", "--seeds", "1", "--epochs", "9", "--plan", "--out", "s"]
    more = ["--variant", "slow=dnat,lr_theta=1e-3,epochs=2", "--variant", "wide=dnat@0.7,space=dnat,width"]
    done = CliRunner().invoke(cli, [*words, *more], catch_exceptions=False)
    assert done.exit_code == 0
    slow, wide = (read_toml(stand_in / "s" / "trials" / f"resnet8-{name}-seed0.toml") for name in ("slow", "wide"))
    assert (slow["label"], slow["lr_theta"], slow["epochs"]) == ("slow", 0.001, 2)  # a flag takes nothing from it
    assert (wide["label"], wide["budget"], wide["space"], wide["epochs"]) == ("wide", "0.7", "dnat,width", 9)
    twice = CliRunner().invoke(cli, [*words, *more, "--variant", "slow=nat"])
    assert "variant 'slow' is given twice" in str(twice.exception)


def test_a_sweep_grows_by_a_variant_alone(stand_in):
    """Nothing else has to be said again."""
    run_sweep(of_kinds("done", seeds=(0,)), "s", Options())
    assert [s.method for s in read("s")] == ["original"]
    more = Sweep.from_table({}, {}, {"slow": {"method": "dnat", "lr": 0.01}})
    found = run_sweep(more, "s", Options())
    assert [(s.method, s.state) for s in found] == [("original", "done"), ("slow", "done")]
    with pytest.raises(ValueError, match=r"other settings: lr 0\.01"):
        run_sweep(Sweep.from_table({}, {}, {"slow": {"method": "dnat", "lr": 0.02}}), "s", Options())
