"""Segmentation: torchvision's LR-ASPP, from random weights, learns drawn shapes and loses what it does not need.

    python examples/segmentation.py

The pictures are drawn when they are asked for, each from its number. The loss is that of every pixel, the metric
the mean intersection over union: `dnat.tasks.Segmentation`. Prints what was measured before and after.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dnat
from dnat.networks import import_torchvision
from dnat.tasks import Segmentation

SIDE = 32


class Shapes(Dataset):
    """Pictures (3, 32, 32) of a disc and a square on noise, and each pixel's class: ground, disc or square."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(self.first + i)
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        centres = torch.randint(6, SIDE - 6, (2, 2), generator=draws)
        radii = torch.randint(4, 9, (2,), generator=draws)
        disc = (rows - centres[0, 0]) ** 2 + (columns - centres[0, 1]) ** 2 <= radii[0] ** 2
        square = ((rows - centres[1, 0]).abs() <= radii[1]) & ((columns - centres[1, 1]).abs() <= radii[1])
        classes = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        classes[disc], classes[square & ~disc] = 1, 2
        colours = torch.rand(3, 3, generator=draws)
        picture = colours[classes].permute(2, 0, 1) + 0.1 * torch.randn(3, SIDE, SIDE, generator=draws)
        return picture, classes


class Dense(nn.Module):
    """LR-ASPP's scores of each pixel, without the dict around them."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models.segmentation import lraspp_mobilenet_v3_large

        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes, H, W)."""
        scores: Tensor = self.network(pictures)["out"]
        return scores


def main() -> None:
    """Train, transform, and print."""
    torch.manual_seed(0)
    data = dnat.from_loaders(Shapes(0, 200), Shapes(10_000, 60), name="shapes")
    config = dnat.Config(epochs=4, architecture_epochs=2, batch_size=20, lr=0.05, budget=0.7, lr_theta=0.1)
    result = dnat.transform(Dense(), data, config, task=Segmentation())
    print(f"multiply-adds {result.cost_before} -> {result.cost_after}")
    print(f"mean IoU untrained {result.before.metrics['miou']:.3f}, now {result.test.metrics['miou']:.3f}")


if __name__ == "__main__":
    main()
