import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dnat.lab.runs import run
from dnat.lab.sweep import Options, Sweep, run_sweep
from dnat.lab.sweep.cluster import Cluster, RayError, import_ray, passed_on
from dnat.lab.sweep.trials import Attempt
from dnat.settings import Job, read_toml

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Ray on this machine, started once, as a sweep starts it."""
    pytest.importorskip("ray")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    cluster = Cluster(tmp_path_factory.mktemp("ray") / ".stop", jobs=2)
    assert {number: signal.getsignal(number) for number in before} == before
    yield cluster.ray
    cluster.close()
    assert not cluster.ray.is_initialized()


def parent_of(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("PPid")))


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_ends_with_the_same_bits(ray, tmp_path, monkeypatch, quiet):
    monkeypatch.chdir(tmp_path)
    settings = {"threads": 1, "epochs": 12, "architecture_epochs": 8, "train_limit": 100, "test_limit": 50}
    settings |= {"lr_theta": 0.5, "network_options": {"width": 2}}
    sweep = Sweep(networks=("resnet8",), methods=("dnat-full",), seeds=(3,), settings=settings)
    place = tmp_path / "s" / "resnet8-dnat-full-seed3"
    killed = []

    def watch(view):
        if not killed and (place / "metrics.jsonl").exists():
            trial = json.loads((place / ".lock").read_text())["pid"]
            worker = parent_of(trial)
            assert Path(f"/proc/{worker}/cmdline").read_bytes().startswith(b"ray::")
            os.kill(worker, signal.SIGKILL)
            killed.append(trial)

    (one,) = run_sweep(sweep, "s", Options(engine="ray", jobs=1), watch=watch)
    assert killed
    assert (one.state, one.attempts) == ("done", 2)
    assert one.record()["results"] == run(Job.from_flat(read_toml(f"s/trials/{one.name}.toml")), "twin")["results"]
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    log = one.log.read_text()
    assert "stopped after epoch" in log  # it noticed by itself that its worker was gone
    assert ray.is_initialized()  # it was there before


def test_what_becomes_of_tasks(ray, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("DNAT_DATA", "somewhere")
    cluster = Cluster(tmp_path / ".stop", jobs=4)

    def start(name, code, **more):
        log = {"log": str(tmp_path / f"{name}.log"), "program": (sys.executable, "-S", "-c")} | more
        cluster.start(name, Attempt((code,), str(tmp_path), str(tmp_path / name), **log))

    wait = "import os, time\nprint('begun', flush=True)\nwhile os.getppid() > 1: time.sleep(0.05)"
    start(
        "environment",
        "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['DNAT_DATA']); raise SystemExit(65)",
    )
    start("nowhere", "", log=str(tmp_path / "missing" / "log"))
    start("slow", wait)
    assert cluster.free()
    found = {}
    end = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < end:
        found |= dict(cluster.ended(0.2))
    assert set(found) == {"environment", "nowhere"}
    assert (found["environment"].state, found["environment"].exit_code) == ("failed", 65)
    assert found["environment"].reason == "7 somewhere"  # and not Ray's own
    assert found["nowhere"].state == "failed"
    assert "it could not be started" in found["nowhere"].reason
    assert "missing" in found["nowhere"].reason
    log = tmp_path / "slow.log"
    while not (log.exists() and "begun" in log.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    cluster.stop()  # by a file that every machine sees
    while cluster.running and time.monotonic() < end:
        found |= dict(cluster.ended(0.2))
    assert (found["slow"].state, found["slow"].exit_code) == ("interrupted", -signal.SIGTERM)
    cluster.close()


def test_variables_of_ray_are_not_those_of_trials():
    here = {"OMP_NUM_THREADS": "2", "WANDB_MODE": "offline", "HOME": "/root", "RAY_X": "1", "PYTHONPATH": "a"}
    assert passed_on(here) == {"OMP_NUM_THREADS": "2", "WANDB_MODE": "offline", "PYTHONPATH": "a"}
    assert passed_on({}) == {"OMP_NUM_THREADS": None}


def test_without_ray_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayError, match=r"pip install 'dnat\[ray\]'") as error:
        import_ray()
    assert error.value.exit_code == 2


def test_watching_a_trial_needs_no_torch():
    code = "import sys, dnat.lab.sweep.cluster; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
