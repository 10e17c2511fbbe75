"""Sound: a network of 1-d convolutions hears which notes a chord has, several of eight at once.

    python examples/sound.py

Many labels for one example, AdamW, and a loop of one's own: `dnat.attach` does what is theta's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import dnat
from dnat.tasks import MultiLabel

NOTES, SAMPLES, RATE = 8, 512, 4000.0


def chords(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Waves (count, 1, 512), and which notes they have (count, 8)."""
    draws = torch.Generator().manual_seed(seed)
    has = (torch.rand(count, NOTES, generator=draws) < 0.3).float()
    time = torch.arange(SAMPLES) / RATE
    frequencies = 220.0 * 2 ** (torch.arange(NOTES) * 2 / 12)
    phases = 2 * math.pi * torch.rand(count, NOTES, 1, generator=draws)
    waves = torch.sin(2 * math.pi * frequencies[:, None] * time + phases) * has[:, :, None]
    return waves.sum(1, keepdim=True) + 0.1 * torch.randn(count, 1, SAMPLES, generator=draws), has


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv1d(channels, channels, 9, padding=4, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 9, padding=4, bias=False),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, samples) to the same."""
        return torch.relu(x + self.branch(x))


def listener(channels: int = 24) -> nn.Module:
    """Waves to eight logits."""
    stem = [nn.Conv1d(1, channels, 33, stride=4, padding=16), nn.BatchNorm1d(channels), nn.ReLU()]
    blocks = [Block(channels) for _ in range(4)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, NOTES))


def f1(network: nn.Module, waves: Tensor, notes: Tensor) -> float:
    """The F1 score over all notes."""
    task = MultiLabel()
    with torch.no_grad():
        return task.values(task.statistics(network.eval()(waves), notes).double())["f1"]


def main() -> None:
    """Train in a plain loop, transform, and print."""
    torch.manual_seed(0)
    waves, notes = chords(1000, seed=1)
    unheard = chords(400, seed=2)
    network, epochs, size = listener(), 12, 50
    steps = epochs // 2 * len(waves) // size
    arch = dnat.attach(network.train(), waves[:2], steps=steps, budget=0.6)
    optimizer = torch.optim.AdamW(arch.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    for _ in range(epochs):
        arch.train()
        for batch in torch.randperm(len(waves)).split(size):
            x, y = waves[batch], notes[batch]
            loss = binary_cross_entropy_with_logits(arch(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if arch.steps_left:
                arch.step(lambda net, x=x, y=y: binary_cross_entropy_with_logits(net(x), y))
                if not arch.steps_left:
                    arch.finish(optimizer)
    compact = arch.finish()
    print(arch.report)
    print(f"multiply-adds {dnat.cost(network, waves[:2])} -> {dnat.cost(compact, waves[:2])}")
    print(f"F1 on other chords {f1(compact, *unheard):.3f}")


if __name__ == "__main__":
    main()
