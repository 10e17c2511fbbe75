"""What a step of the architecture stage costs, as a ratio to a step of the plain network in the same round.

python benchmarks/steps.py                        ResNet20, MobileNetV2, DARTS, and ResNet20 with null edges
python benchmarks/steps.py resnet20 --rounds 11   one network, more rounds
python benchmarks/steps.py --out FILE             the rows as JSON, with the machine
python benchmarks/steps.py resnet20 --compile     all but the naive mixture compiled by torch.compile
python benchmarks/steps.py --device cuda          on a GPU, in batches of 512; --amp bf16 with autocast

One thread, fp32, channels last; CPU time of the process, on a GPU the time until all is done there. Variants are
interleaved round by round, and each ratio is the median over rounds, with its quartiles. Images are noise: no
number here depends on what is learned. Theta is random (identity 0.10 +- 0.05, original 0.90 +- 0.05), since at
its start much of the work is left out.

plain     a step of the network itself
weights   the relaxed network's weights alone
theta     theta alone: the weights are frozen
pair      both, one after the other, as DNAT has it
single    both from one pass (`single_pass`)
naive     the pair with every edge spelled as theta_none * 0 + theta_identity * x + theta_original * f(x)

saved     bytes that are kept for the backward pass, without parameters, over those of the plain network
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import dnat
from dnat.lab.cli.__main__ import _keep_memory
from dnat.relaxation import RelaxedNetwork, attaching, hooks, relax
from dnat.training import Progress, Trainer


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, its batch, and the settings of its architecture stage."""

    network: str
    options: dict[str, Any]
    batch: int
    settings: dict[str, Any]
    device: str = "cpu"


SUBJECTS = {
    "resnet20": Subject("resnet20", {}, 64, {"preset": "paper"}),
    "resnet20 sigmoid": Subject("resnet20", {}, 64, {"preset": "improved"}),
    "resnet20 null": Subject("resnet20", {"skips": True}, 64, {"preset": "paper"}),
    "resnet20 nat++": Subject("resnet20", {}, 64, {"preset": "improved", "space": "nat++"}),
    "mobilenet_v2": Subject("mobilenet_v2", {}, 32, {"preset": "paper"}),
    "darts": Subject("darts_v2", {"channels": 16, "layers": 8, "skips": False}, 32, {"preset": "paper"}),
}


def config(subject: Subject, **more: Any) -> dnat.Config:
    """The settings: one thread, many epochs, so that nothing settles."""
    given = {"epochs": 100, "architecture_epochs": 90, "batch_size": subject.batch, "threads": 1}
    return dnat.Config(**given, **subject.settings, **more, device=subject.device)


def data(batch: int, size: int = 32) -> dnat.Data:
    """One batch of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(batch) % 10
    return dnat.Data.from_tensors("noise", (images, labels), (images, labels))


def relaxed(network: nn.Module, images: Tensor, gate: str, space: Any = "dnat") -> RelaxedNetwork:
    """The network with random theta."""
    return drawn(relax(network, dnat.find_edges(dnat.trace(network, images), space), gate=gate), seed=1)


def drawn(relaxed: RelaxedNetwork, seed: int) -> RelaxedNetwork:
    """The same network with a theta as it is in the middle of a run."""
    noise = torch.randn(len(relaxed.groups), 3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        (theta,) = relaxed.thetas()
        theta[:, :3] = torch.tensor([0.0, 0.1, 0.9]) + 0.05 * noise
    return relaxed


def naive(terms: list[tuple[Tensor, Tensor]], slope: Tensor | None = None) -> Tensor:
    """The relaxed edge as one would write it down."""
    (y, original), *others = terms
    out = y * original + torch.zeros_like(y) * (1 - original)
    for x, gate in others:
        out = out + x * gate
    return out


@contextmanager
def spelled(mix: Callable[..., Tensor]) -> Iterator[None]:
    """Within, edges are mixed by another function, and in networks that are relaxed here norms are not weighed."""
    own = hooks.mix, attaching.WEIGHED
    hooks.mix, attaching.WEIGHED = mix, ()  # type: ignore[assignment]
    try:
        yield
    finally:
        hooks.mix, attaching.WEIGHED = own


def saved(step: Callable[[], Any], without: Iterator[Tensor]) -> int:
    """Bytes that a step keeps for its backward passes, at most in one of them."""
    own = {p.untyped_storage().data_ptr() for p in without}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(kept.values())


class Steps:
    """The variants of a step of one subject, each a function without arguments."""

    def __init__(self, subject: Subject, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        own = config(subject, compile=compiled)
        self.source = data(subject.batch).to(torch.device(subject.device))
        images = self.source.example(2)
        gate, space = config(subject).relaxation.gate, subject.settings.get("space", "dnat")

        def network() -> nn.Module:
            built = dnat.build(subject.network, seed=0, **subject.options)
            return built.to(device=subject.device, memory_format=torch.channels_last)

        whole = Trainer(network(), self.source, own, Progress())
        pair = Trainer(relaxed(network(), images, gate, space), self.source, own, Progress())
        single = Trainer(
            relaxed(network(), images, gate, space), self.source, own.but(single_pass=True), Progress()
        )
        with spelled(naive):
            written = Trainer(relaxed(network(), images, gate, space), self.source, config(subject), Progress())
        for trainer in (whole, pair, single, written):
            trainer.network.train()
        self.inputs, self.target = next(iter(self.source.train_batches(0, 0, subject.batch)))
        assert pair.stage
        self.trainers = (whole, pair, single, written)
        stage, end = pair.stage, pair.stage.end

        def weights() -> None:
            stage.end = lambda loss_of, scale=1.0: None  # type: ignore[method-assign]
            try:
                pair.step(self.inputs, self.target)
            finally:
                stage.end = end  # type: ignore[method-assign]

        def theta() -> None:
            end(lambda net: pair._loss(net, self.inputs, self.target, None)[0])

        def as_written() -> None:
            with spelled(naive):
                written.step(self.inputs, self.target)

        self.variants: dict[str, Callable[[], None]] = {
            "plain": lambda: whole.step(self.inputs, self.target),
            "weights": weights,
            "theta": theta,
            "pair": lambda: pair.step(self.inputs, self.target),
            "single": lambda: single.step(self.inputs, self.target),
            "naive": as_written,
        }

    def kept(self) -> dict[str, float]:
        """What each variant keeps for its backward pass, over the plain network."""
        own = [*(p for t in self.trainers for p in t.network.parameters())]
        sizes = {n: saved(self.variants[n], iter(own)) for n in ("plain", "weights", "theta", "single", "naive")}
        return {name: size / sizes["plain"] for name, size in sizes.items() if name != "plain"}


def clock(device: str) -> float:
    """Seconds of the process, or on a GPU those until all that was asked of it is done."""
    if device == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure(subject: Subject, rounds: int, *, compiled: bool = False) -> dict[str, Any]:
    """The row of a subject."""
    steps = Steps(subject, compiled=compiled)
    for step in steps.variants.values():  # what torch does once
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps.variants}
    for _ in range(rounds):
        for name, step in steps.variants.items():
            begun = clock(subject.device)
            step()
            seconds[name].append(clock(subject.device) - begun)
    ratios = {
        name: statistics.quantiles([a / b for a, b in zip(times, seconds["plain"], strict=True)], n=4)
        for name, times in seconds.items()
        if name != "plain"
    }
    return {
        "network": subject.network,
        "options": subject.options,
        "batch": subject.batch,
        "settings": subject.settings | ({"compile": True} if compiled else {}),
        "rounds": rounds,
        "plain_seconds": statistics.median(seconds["plain"]),
        "ratios": {name: {"median": q[1], "quartiles": [q[0], q[2]]} for name, q in ratios.items()},
        "saved": steps.kept(),
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": model,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    """Print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=[*SUBJECTS], metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--compile", action="store_true", help="the subjects that are named, compiled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", help="bf16 or fp16: with autocast")
    parser.add_argument("--out", type=Path, help="file to write the rows to, as JSON")
    given = parser.parse_args()
    if unknown := {*given.subjects} - {*SUBJECTS}:
        parser.error(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    torch.set_num_threads(1)
    _keep_memory()  # as the command does
    names = ("weights", "theta", "pair", "single", "naive")
    print(
        f"{'':18}{'plain ms':>9}" + "".join(f"{name:>20}" for name in names) + "   saved by weights, theta, single"
    )
    rows = {}
    for name in given.subjects:
        subject = SUBJECTS[name]
        more = {"amp": given.amp} if given.amp else {}
        batch = subject.batch if given.device == "cpu" else 512
        subject = replace(subject, batch=batch, device=given.device, settings=subject.settings | more)
        row = rows[name] = measure(subject, given.rounds, compiled=given.compile)
        cells = "".join(
            f"{r['median']:8.3f} [{r['quartiles'][0]:.2f}-{r['quartiles'][1]:.2f}]".rjust(20)
            for r in (row["ratios"][n] for n in names)
        )
        kept = "  ".join(f"{row['saved'][n]:.2f}" for n in ("weights", "theta", "single"))
        print(f"{name:18}{row['plain_seconds'] * 1e3:9.1f}{cells}   {kept}", flush=True)
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(given.device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
