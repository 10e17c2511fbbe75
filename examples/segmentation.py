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

SIDE = 64


class Shapes(Dataset):
    """Pictures (3, 64, 64) of a disc and a square on dark ground, and the class of each pixel: 0, 1 or 2."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(self.first + i)
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        centres = torch.randint(12, SIDE - 12, (2, 2), generator=draws)
        radii = torch.randint(8, 17, (2,), generator=draws)
        disc = (rows - centres[0, 0]) ** 2 + (columns - centres[0, 1]) ** 2 <= radii[0] ** 2
        square = ((rows - centres[1, 0]).abs() <= radii[1]) & ((columns - centres[1, 1]).abs() <= radii[1])
        classes = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        classes[disc], classes[square & ~disc] = 1, 2
        colours = torch.rand(3, 3, generator=draws) / 2 + torch.tensor([[0.0], [0.5], [0.5]])
        picture = colours[classes].permute(2, 0, 1) + 0.1 * torch.randn(3, SIDE, SIDE, generator=draws)
        return picture, classes


class Stages(nn.Module):
    """MobileNetV3's features at a quarter of the side, and the last ones, as LR-ASPP takes them."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v3_small

        # With torchvision's own norms, whose means follow too slowly for so few steps, it would not be ready.
        features = mobilenet_v3_small(weights=None, width_mult=0.5, norm_layer=nn.BatchNorm2d).features
        self.early, self.late = features[:2], features[2:]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to (N, 8, H / 4, W / 4) and (N, 288, H / 32, W / 32)."""
        low = self.early(pictures)
        return {"low": low, "high": self.late(low)}


def segmenter() -> nn.Module:
    """Pictures to {"out": the scores (N, 3, H, W) of three classes}."""
    import_torchvision()
    from torchvision.models.segmentation import LRASPP

    return LRASPP(Stages(), low_channels=8, high_channels=288, num_classes=3, inter_channels=32)


def main() -> None:
    """Train, transform, and print."""
    torch.manual_seed(0)
    data = dnat.from_loaders(Shapes(0, 300), Shapes(10_000, 60), name="shapes")
    config = dnat.Config(
        epochs=10, architecture_epochs=3, batch_size=10, optimizer="adamw", lr=0.01, budget=0.8, threads=1
    )
    result = dnat.transform(segmenter(), data, config, task=Segmentation())
    print(f"multiply-adds {result.cost_before} -> {result.cost_after}")
    print(f"mean IoU untrained {result.before.metrics['miou']:.3f}, now {result.test.metrics['miou']:.3f}")


if __name__ == "__main__":
    main()
