"""What one of two processes does in tests/test_distributed.py: `python distributed_worker.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from dnat import Config, build, find_edges, relax, trace
from dnat.data import load
from dnat.distributed import SyncedNorms, anyone, from_first, gathered, joined, sum_gradients
from dnat.lab.runs import run
from dnat.records import Records
from dnat.session import weights_digest
from dnat.settings import Job
from dnat.training import Interrupted, Progress, Trainer
from dnat.transformation import transform

FOLDER = Path(sys.argv[1])
JOB = Job(
    network="tiny_network:make",
    train_limit=100,
    test_limit=60,
    config=Config(epochs=3, architecture_epochs=2, batch_size=32, threads=1, lr_theta=1.0),
)


def norms(here):
    """Batch norm over both processes, in double precision: what comes out, and all gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 4, generator=generator, dtype=torch.float64)
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
    part = x[:3] if here.rank == 0 else x[3:]
    part = part.clone().requires_grad_()
    with SyncedNorms():
        out = norm(part)
    (out.sin() * torch.arange(len(x), dtype=torch.float64)[: len(part), None, None, None]).sum().backward()
    sum_gradients(norm.parameters())
    return {
        "out": gathered(out.detach().tolist()),
        "x": gathered(part.grad.tolist()),
        "weight": norm.weight.grad.tolist(),
        "mean": norm.running_mean.tolist(),
        "var": norm.running_var.tolist(),
    }


def gradients(here):
    """A parameter that one process has a gradient of, one that none has, one that both have."""
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    if here.rank == 1:
        first.grad = torch.tensor([1.0, 2.0])
    third.grad = torch.full((2,), float(here.rank + 1))
    sum_gradients([first, second, third])
    return [p.grad.tolist() if p.grad is not None else None for p in (first, second, third)]


def from_the_first(here):
    """Values and errors of the first process arrive in the other."""
    try:
        from_first(lambda: 1 / 0)
    except ZeroDivisionError as error:
        text = str(error)
    return {
        "value": gathered(from_first(lambda: here.rank)),
        "error": gathered(text),
        "any": anyone(here.rank == 1),
    }


def steps(space, single_pass):
    """Some steps of the architecture stage: gradients of the first one, and what both hold after each."""
    data = load("digits", train_limit=100, test_limit=60)
    network = build("resnet8", seed=0, width=4)
    program = trace(network, data.example(2))
    relaxed = relax(network, find_edges(program, space), seed=0)
    config = Config(epochs=2, batch_size=33, lr_theta=0.05, space=space, single_pass=single_pass, settle=0)
    trainer = Trainer(relaxed, data, config, Progress())
    found = {"digests": [], "thetas": [], "gradients": None}
    for _ in trainer.epoch():
        if found["gradients"] is None:
            found["gradients"] = [
                {n: p.grad.flatten()[:50].tolist() for n, p in part if p.grad is not None}
                for part in (trainer.weights.named_parameters(), enumerate(relaxed.thetas()))
            ]
        found["digests"].append(gathered(weights_digest(relaxed)))
        found["thetas"].append([p.tolist() for p in relaxed.thetas()])
    found["distances"] = gathered(relaxed.architecture.distance.tolist()) if space == "nat++" else []
    found["totals"] = gathered(trainer.progress.totals.tolist())
    return found


def stopped_and_resumed(here):
    """A run that the second process's signal stops in mid-epoch, and one that is left alone: their results."""
    data = load("digits", train_limit=100, test_limit=60)
    network = build("resblock", seed=1, channels=4, layers=3)  # with drop-path: random numbers inside the network
    config = Config(epochs=3, architecture_epochs=1, batch_size=40, threads=1, lr_theta=0.5, auxiliary=0)
    job = Job(network="resblock", network_options={"channels": 4, "layers": 3}, config=config)
    alone = transform(network, data, config).results()

    def go(stop):
        records = Records.open(FOLDER / "stopped", job) if here.first else None
        try:
            return transform(network, data, config, records=records, stop=stop)
        finally:
            if records:
                records.close()

    stops = 0
    for at in (2, 7):
        try:
            go(lambda progress, at=at: here.rank == 1 and progress.step == at)
        except Interrupted:
            stops += 1
    return {"alone": gathered(alone), "resumed": gathered(go(None).results()), "stops": stops}


def main():
    """Everything, once."""
    with joined("cpu") as here:
        found = {
            "norms": norms(here),
            "gradients": gradients(here),
            "from_first": from_the_first(here),
            "steps": {
                name: steps(*name.split()[:1], name.endswith("single"))
                for name in ("dnat", "dnat single", "nat++")
            },
            "resumed": stopped_and_resumed(here),
        }
        found["records"] = gathered(run(JOB, FOLDER / "undisturbed")["results"])
    if here.first:
        (FOLDER / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
