"""Two processes on the CPU (gloo), started by hand and by torchrun, against one process."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dnat.distributed import World, anyone, from_first, gathered, joined, sum_gradients, summed, world
from dnat.lab.runs import run
from dnat.settings import Config, Job

HERE = Path(__file__).resolve().parent
WORKER = HERE / "distributed_worker.py"

# The second process dies in the second epoch, the first time that it gets there.
TINY_NETWORK = """
import os, pathlib, signal
from torch import nn
from dnat import build

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build("resnet8", seed=0, width=4)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        mark = pathlib.Path("killed")
        if os.environ.get("RANK") == "1" and os.environ.get("KILL") and self.calls > 12 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)

def make():
    return Tiny()
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "tiny_network.py").write_text(TINY_NETWORK)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What two processes say, each of which holds a part of every batch."""
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", WORKER, folder],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def worker():
    """The worker's functions, for this process alone."""
    argv, sys.argv = sys.argv, ["worker", "."]
    try:
        spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
    return module


def test_alone_nothing_is_shared():
    assert world() == World(0, 1)
    assert world().first
    x = torch.ones(2)
    assert summed(x) is x
    assert gathered(3) == [3]
    assert anyone(True, False) == [True, False]
    assert from_first(lambda: 5) == 5
    parameter = nn.Parameter(x)
    sum_gradients([parameter])
    assert parameter.grad is None
    with joined("cpu") as here:
        assert here.size == 1


def test_a_device_that_only_one_can_have_is_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", 2), ("RANK", 0), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", 1234)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="2 processes cannot share the device 'cuda:1'"), joined("cuda:1"):
        pass


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(found):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
    out = norm(x)
    factors = torch.tensor([0, 1, 2, 0, 1, 2, 3], dtype=torch.float64)
    (out.sin() * factors[:, None, None, None]).sum().backward()
    got = found["norms"]
    for name, wanted in (("out", out), ("x", x.grad)):
        torch.testing.assert_close(
            torch.tensor([*got[name][0], *got[name][1]], dtype=torch.float64), wanted, rtol=0, atol=1e-12
        )
    for name, wanted in (("weight", norm.weight.grad), ("mean", norm.running_mean), ("var", norm.running_var)):
        torch.testing.assert_close(torch.tensor(got[name], dtype=torch.float64), wanted, rtol=0, atol=1e-12)


def test_gradients_that_some_lack_count_as_zero(found):
    assert found["gradients"] == [[1.0, 2.0], None, [3.0, 3.0]]


def test_values_and_errors_of_the_first_arrive_everywhere(found):
    assert found["from_first"] == {"value": [0, 0], "error": ["division by zero"] * 2, "any": [True]}


@pytest.mark.parametrize("name", ["dnat", "dnat single", "nat++"])
def test_steps_of_two_processes_are_those_of_one(found, worker, name):
    """The same batch: the same weights and thetas in both, to the bit; those of one process but for rounding."""
    got = found["steps"][name]
    alone = worker.steps(name.split()[0], name.endswith("single"))
    assert len(got["digests"]) == 3  # the last batch would have one image, and is left out
    for first, second in got["digests"]:
        assert first == second
    assert len({first for first, _ in got["digests"]}) == 3
    # What other operations learn is divided by the size of their target, in each process by that of its images.
    tolerance = 3e-3 if name == "nat++" else 1e-6
    for ours, theirs in zip(got["gradients"], alone["gradients"], strict=True):
        assert {str(k) for k in ours} == {str(k) for k in theirs}
        assert ours
        for key, gradient in theirs.items():
            apart = (torch.tensor(ours[str(key)]) - torch.tensor(gradient)).abs().max()
            assert apart <= tolerance, f"{key} {apart}"
    torch.testing.assert_close(torch.tensor(got["thetas"][0]), torch.tensor(alone["thetas"][0]), rtol=0, atol=1e-6)
    assert got["totals"][0] == got["totals"][1]
    assert got["totals"][0] == pytest.approx(alone["totals"][0], rel=1e-5)
    if name == "nat++":
        first, second = got["distances"]
        assert first == second
        assert torch.tensor(first).any()


def test_a_run_of_two_goes_on_to_the_same_bits(found):
    """Only one of them hears the signal; drop-path draws in both."""
    resumed = found["resumed"]
    assert resumed["stops"] == 2
    results = [*resumed["alone"], *resumed["resumed"]]
    assert all(result == results[0] for result in results[1:])


def test_a_run_of_two_is_nearly_that_of_one(found, folder, worker, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    alone = run(worker.JOB, folder / "alone")["results"]
    first, second = found["records"]
    assert first == second
    assert first["choices"] == alone["choices"]
    assert first["cost_after"] == alone["cost_after"]
    assert abs(first["test_loss"] - alone["test_loss"]) < 1e-3
    notes = json.loads((folder / "undisturbed" / "environment.json").read_text())
    assert notes["processes"] == 2


def test_torchrun_goes_on_after_a_process_was_killed(found, folder, worker):
    """The result of the command is that of the run that was left alone, to the bit."""
    settings = folder / "job.toml"
    settings.write_text(worker.JOB.to_toml())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--max-restarts", "1", "--no-python", Path(sys.executable).with_name("dnat")),
        *("transform", "--config", settings, "--trust-code", "--out", "killed-once"),
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"KILL": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "killed").exists()
    records = [json.loads((folder / name / "record.json").read_text()) for name in ("undisturbed", "killed-once")]
    assert records[0]["results"] == records[1]["results"]
    assert json.loads((folder / "killed-once" / "status.json").read_text())["attempts"] == 2
    assert done.stdout.count("test accuracy  ") == 1  # one of them tells


def test_searching_methods_train_in_one_process(monkeypatch, tmp_path):
    job = Job(network="darts_v2", method="nat", config=Config(epochs=1))
    monkeypatch.setattr("dnat.lab.runs.running.joined", lambda device: _two())
    with pytest.raises(ValueError, match="method 'nat' trains in one process"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _two:
    def __enter__(self):
        return World(0, 2)

    def __exit__(self, *error):
        pass
