"""What a policy sees: an architecture as a graph, with the moves that are legal on each of its edges.

B graphs (the cells of a genotype; one for a whole network), each of V nodes and R edges on which something is
decided, with K actions. The first `roots` nodes have no such edges; those of the others follow node by node, as
many for each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """An architecture as a policy sees it; see the module.

    Attributes:
        operations: (B, R) int64, what each edge computes now, as a number.
        sources, targets: (B, R) int64, the nodes that each edge reads and feeds.
        adjacency: (B, V, V), the number of edges into a row's node from a column's.
        mask: (B, R, K) booleans, which actions are legal.
        roots: nodes without edges to decide on.
        features: (B, R, F), further numbers of each edge; F may be 0.
    """

    operations: Tensor
    sources: Tensor
    targets: Tensor
    adjacency: Tensor
    mask: Tensor
    roots: int
    features: Tensor

    @property
    def edges_per_node(self) -> int:
        """How many edges each node that is no root has."""
        return self.operations.shape[1] // (self.adjacency.shape[1] - self.roots)


def messages(adjacency: Tensor, *, official: bool = False) -> Tensor:
    """By what the features of nodes are multiplied in a graph convolution: (B, V, V).

    The adjacency with self-loops, each row divided by its sum, so that a node sees itself and those that it reads.
    NAT's released code has neither (docs/methods.md A3): there a node never sees its own edges.

    Args:
        adjacency: of a `Graph`.
        official: as NAT's released code does it.

    >>> messages(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]))
    tensor([[[1.0000, 0.0000],
             [0.6667, 0.3333]]])
    """
    if official:
        return adjacency
    looped = adjacency + torch.eye(adjacency.shape[1])
    return looped / looped.sum(2, keepdim=True)
