"""Text: a small BERT, built from a configuration of `transformers`, learns which of two words comes first.

    python examples/text.py

A batch is a dict of what the network takes and "labels", as Hugging Face's loaders give it. The loop is dnat's.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dnat
from dnat.networks import mend_torchvision

WORDS, LENGTH = 40, 12


class Sentences(Dataset):
    """Sentences of random words, the words 1 and 2 among them; the label says whether 1 comes first."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(self.first + i)
        words = torch.randint(3, WORDS, (LENGTH,), generator=draws)
        places = torch.randperm(LENGTH, generator=draws)[:2]
        words[places] = torch.tensor([1, 2])
        label = int(places[0] < places[1])
        return {
            "input_ids": words,
            "attention_mask": torch.ones(LENGTH, dtype=torch.int64),
            "labels": torch.tensor(label),
        }


def classifier() -> nn.Module:
    """Four layers of 64, two classes."""
    mend_torchvision()  # transformers asks for it
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=2, **sizes))


def main() -> None:
    """Train, transform, and print."""
    torch.manual_seed(0)
    data = dnat.from_loaders(Sentences(0, 1600), Sentences(10_000, 400), name="sentences")
    config = dnat.Config(
        epochs=8, architecture_epochs=3, batch_size=50, optimizer="adamw", lr=2e-3, budget=0.6, threads=1
    )
    result = dnat.transform(classifier(), data, config)
    print(f"multiply-adds {result.cost_before} -> {result.cost_after}")
    print(f"accuracy untrained {result.before.accuracy:.3f}, now {result.test.accuracy:.3f}")


if __name__ == "__main__":
    main()
