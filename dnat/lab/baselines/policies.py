"""Policies: from a graph to the probabilities of the moves on its edges, and how they learn from rewards.

One interface, `Policy`: NAT's graph convolutions, an LSTM, and one that knows nothing (random search). Policies
live on the CPU, whatever computes the networks, so that their draws are the same everywhere.

Shapes as in `graphs`: B graphs, R edges, K actions.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...moves import masked_softmax
from ...seeds import Stream, torch_generator, torch_seed
from ...settings import Search
from .graphs import Graph, messages

EMBEDDING = 100
"""Width of an operation's embedding (docs/methods.md A3; the LSTM's sizes are ours, docs/methods.md A10)."""
PROJECTED = 1024
"""Width of a node's features before the first graph convolution (docs/methods.md A3)."""
HIDDEN = 100
"""Width of both graph convolutions, and of the LSTM (docs/methods.md A3, A10)."""


class Policy(nn.Module):
    """Scores the actions on each edge of an architecture.

    Attributes:
        learns: whether it has anything to learn.
    """

    learns = True

    def forward(self, graph: Graph) -> Tensor:
        """Logits (B, R, K); those of illegal actions do not count."""
        raise NotImplementedError


class RandomPolicy(Policy):
    """All legal actions alike: random search."""

    learns = False

    def forward(self, graph: Graph) -> Tensor:
        """Zeros."""
        return torch.zeros(graph.mask.shape)


class GraphConvolution(nn.Module):
    """Kipf and Welling's layer: A (H W) + b, W and b uniform within 1 / sqrt(width) at first (docs/methods.md A3).

    Shape:
        - Inputs: (B, V, width_in), (B, V, V)
        - Output: (B, V, width_out)
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_out)
        self.weight = nn.Parameter(torch.empty(width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width_out).uniform_(-bound, bound))

    def forward(self, features: Tensor, spread: Tensor) -> Tensor:
        """The nodes' new features; `spread` is what `graphs.messages` gives."""
        return spread @ (features @ self.weight) + self.bias


class GraphPolicy(Policy):
    """NAT's policy: two graph convolutions over the nodes of an architecture (docs/methods.md A3).

    A node's features are the embeddings of the operations on its edges, side by side; roots have embeddings of
    their own. Its output holds the logits of its edges, in their order.

    Args:
        operations: how many there are.
        actions: how many there are.
        roots, edges_per_node, features: of the graphs; see `Graph`.
        official: messages as in the released code, without self-loops (`graphs.messages`), so that the logits of
            an edge do not depend on what the edge computes.
    """

    def __init__(
        self,
        operations: int,
        actions: int,
        *,
        roots: int,
        edges_per_node: int,
        features: int = 0,
        official: bool = False,
    ) -> None:
        super().__init__()
        self.official, self.actions = official, actions
        width = edges_per_node * (EMBEDDING + features)
        self.operation = nn.Embedding(operations, EMBEDDING)
        self.root = nn.Embedding(roots, width)
        self.project = nn.Linear(width, PROJECTED)
        self.first = GraphConvolution(PROJECTED, HIDDEN)
        self.second = GraphConvolution(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, edges_per_node * actions)

    def forward(self, graph: Graph) -> Tensor:
        """Logits (B, R, K)."""
        count, edges = graph.operations.shape
        own = torch.cat([self.operation(graph.operations), graph.features], 2)
        nodes = own.reshape(count, edges // graph.edges_per_node, -1)
        nodes = torch.cat([self.root.weight.expand(count, -1, -1), nodes], 1)
        spread = messages(graph.adjacency, official=self.official)
        hidden = self.second(torch.relu(self.first(self.project(nodes), spread)), spread)
        logits: Tensor = self.head(hidden[:, graph.roots :])
        return logits.reshape(count, edges, self.actions)


class SequencePolicy(Policy):
    """An LSTM that reads the edges one after the other, and says of each what to do (docs/methods.md A10).

    Args:
        operations: how many there are.
        actions: how many there are.
        nodes: how many there are in a graph.
        features: of the graphs; see `Graph`.
    """

    def __init__(self, operations: int, actions: int, *, nodes: int, features: int = 0) -> None:
        super().__init__()
        self.operation = nn.Embedding(operations, EMBEDDING)
        self.source, self.target = (nn.Embedding(nodes, EMBEDDING // 2) for _ in range(2))
        self.lstm = nn.LSTM(2 * EMBEDDING + features, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, actions)

    def forward(self, graph: Graph) -> Tensor:
        """Logits (B, R, K)."""
        places = (self.operation(graph.operations), self.source(graph.sources), self.target(graph.targets))
        read, _ = self.lstm(torch.cat([*places, graph.features], 2))
        logits: Tensor = self.head(read)
        return logits


def make_policy(
    kind: Literal["gcn", "lstm", "random"], graph: Graph, operations: int, search: Search, seed: int
) -> Policy:
    """A policy for graphs like one, with initial weights from the run's seed.

    Args:
        kind: "gcn", "lstm" or "random".
        graph: an example.
        operations: how many operations there are.
        search: the settings.
        seed: of the run.
    """
    actions, features = graph.mask.shape[2], graph.features.shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Stream.POLICY, "policy"))
        if kind == "gcn":
            return GraphPolicy(
                operations,
                actions,
                roots=graph.roots,
                edges_per_node=graph.edges_per_node,
                features=features,
                official=search.official,
            )
        if kind == "lstm":
            return SequencePolicy(operations, actions, nodes=graph.adjacency.shape[1], features=features)
        return RandomPolicy()


@dataclass(frozen=True)
class Draw:
    """Actions that were drawn, with what learning from them needs.

    Attributes:
        actions: (B, R) int64.
        log_probability: of all of them together, 0-dim, with a gradient.
        entropy: summed over edges and graphs, 0-dim, with a gradient.
    """

    actions: Tensor
    log_probability: Tensor
    entropy: Tensor


def draw(probabilities: Tensor, generator: torch.Generator) -> Draw:
    """Draw an action for each edge.

    Args:
        probabilities: (B, R, K); they need not sum to 1.
        generator: where the draws come from.
    """
    actions = torch.multinomial(probabilities.detach().flatten(0, 1), 1, generator=generator)
    return judged(probabilities, actions.reshape(probabilities.shape[:2]))


def judged(probabilities: Tensor, actions: Tensor) -> Draw:
    """What learning needs to know of given actions.

    Args:
        probabilities: (B, R, K).
        actions: (B, R).
    """
    chosen = probabilities.gather(2, actions[..., None]).squeeze(2)
    # An illegal action has probability 0, and no part in the entropy.
    entropy = torch.special.entr(probabilities.clamp(min=torch.finfo(torch.float32).tiny))
    return Draw(actions, chosen.log().sum(), (entropy * (probabilities > 0)).sum())


def policy_loss(drawn: Draw, advantage: float, entropy_weight: float) -> Tensor:
    """What REINFORCE descends: -log p * advantage - entropy_weight * H (NAT, equation 4; docs/methods.md A7).

    Its expected gradient is that of -(the expected reward + entropy_weight * H), whatever baseline that does not
    depend on the actions the advantage has.
    """
    return -drawn.log_probability * advantage - entropy_weight * drawn.entropy


class Reinforce:
    """A policy and how it learns: REINFORCE with a moving average of rewards as its baseline.

    Args:
        policy: what learns.
        search: rates and weights.

    Attributes:
        baseline: the moving average; None before the first reward.
    """

    def __init__(self, policy: Policy, search: Search) -> None:
        self.policy, self.search = policy, search
        self.baseline: float | None = 0.0 if search.official else None
        self.adam = (
            torch.optim.Adam(
                policy.parameters(),
                lr=search.lr_policy,
                betas=search.betas_policy,
                weight_decay=search.weight_decay_policy,
            )
            if policy.learns
            else None
        )

    def probabilities(self, graph: Graph) -> Tensor:
        """Of every action on every edge: (B, R, K), 0 for those that are not legal."""
        return masked_softmax(self.policy(graph), graph.mask, official=self.search.official)

    def learn(self, drawn: Draw, reward: float) -> None:
        """One step from one reward."""
        assert self.adam is not None
        before = reward if self.baseline is None else self.baseline
        self.adam.zero_grad(set_to_none=True)
        policy_loss(drawn, reward - before, self.search.entropy).backward()
        self.adam.step()
        # The released code averages the advantages, so that a constant reward is halved (docs/methods.md A7).
        newest = reward - before if self.search.official else reward
        self.baseline = self.search.decay * before + (1 - self.search.decay) * newest

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold."""
        adam = self.adam.state_dict() if self.adam else None
        return {"policy": self.policy.state_dict(), "adam": adam, "baseline": self.baseline}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.policy.load_state_dict(state["policy"])
        if self.adam:
            self.adam.load_state_dict(state["adam"])
        self.baseline = state["baseline"]


def generator_for(seed: int, *keys: int | str) -> torch.Generator:
    """The draws of a policy at one place of a run."""
    return torch_generator(seed, Stream.POLICY, *keys)
