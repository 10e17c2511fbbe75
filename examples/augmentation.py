"""A DataLoader with augmentations of one's own, and a split for choices that leaves the test images alone.

    python examples/augmentation.py

The augmentations draw from torch's own generator, as they would in any training. dnat sets it from the seed, the
epoch and the number of the image, so that the run has the same bits again, stopped and resumed or not.
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import dnat


class Digits(Dataset):
    """The digits that come along, shifted, scaled and blurred by chance while they are trained on."""

    def __init__(self, train: bool) -> None:
        digits = dnat.load("digits")
        self.train = train
        self.images = digits.train_images if train else digits.test_images
        self.labels = digits.train_labels if train else digits.test_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i].permute(2, 0, 1).float() / 255
        if self.train:
            image = torch.roll(image, torch.randint(-1, 2, (2,)).tolist(), dims=(1, 2))
            image = image * (0.8 + 0.4 * torch.rand(())) + 0.05 * torch.randn_like(image)
        return (image - 0.3) / 0.4, int(self.labels[i])


def main() -> None:
    """Train, transform, and print."""
    train, test = DataLoader(Digits(True), batch_size=64, shuffle=True), DataLoader(Digits(False), batch_size=200)
    data = dnat.from_loaders(train, test, name="my digits")
    config = dnat.Config(epochs=8, architecture_epochs=4, budget=0.6, validation=0.1)
    result = dnat.transform(dnat.build("resnet8", width=8, seed=0), data, config)
    print(f"multiply-adds {result.cost_before} -> {result.cost_after}")
    print(f"accuracy untrained {result.before.accuracy:.3f}, now {result.test.accuracy:.3f}")


if __name__ == "__main__":
    main()
