"""NAO: better sequences of tokens by climbing a learned score in a continuous space.

Neural Architecture Optimization (Luo, Tian, Qin, Chen, Liu, NeurIPS 2018, arXiv 1808.07233), written from the
paper's description. An architecture is a sequence x of T tokens with a score s. Three parts are trained together:

    encoder    an LSTM over x; its outputs, each scaled to unit length, are the representation e = (h_1 ... h_T)
    predictor  f(e), a small feed-forward network on the mean of the h_t: the score that e promises
    decoder    an LSTM with attention over e that gives x back, token by token: P(x | e)

    loss = lambda * (s - f(e))^2 - (1 - lambda) * log P(x | e)

A better sequence than x is then looked for at e + eta * df/de, with eta growing until the greedy decoder says
something else than x. Nothing here knows what a token means: which of them may stand where is a table, and the
decoder chooses among those alone, so that whatever it says is legal.

What we took from the paper is said at each of `NaoSettings`, and what is our choice. The paper's own text was not
at hand: its values (embedding 32, hidden 96, lambda 0.9, Adam with 0.001, 1000 epochs, eta 10) are those that a
summary of its experiments gives (docs/methods.md D1). `RELEASED` is the model of the authors' code instead.

Our choices besides:

- Scores are standardised before they are learned, so that lambda means the same whatever their unit.
- The predictor has one hidden layer with tanh: its gradient exists everywhere and changes on the way.
- Attention is that of Luong et al. (2015, arXiv 1508.04025, "general", without input feeding): the LSTM's output
  asks, and a layer with tanh reads it beside what it is answered. Teacher forcing then is one pass of the LSTM.
  Without that layer the decoder gave the sequences back as well, but followed the gradient less surely.
- The decoder starts from h_T and an empty cell, so it sees only what the gradient moves.
- eta is counted in how far it moves a state, of which each has length 1 (settings `nearest`, `farthest`).
  The paper's eta = 10 holds for its own scale of scores and gradients.
- Where this gives too few sequences, the moved states are scaled back to length 1, as the decoder knows them, and
  decoded again; then small steps follow, the gradient taken anew and the states scaled back at each.

Everything is on the CPU and in float32. N is the number of sequences, T their length, V the number of tokens, S
the number of states (T, but with `NaoSettings.tokens` above 1), and H the length of a state.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...errors import UsageError


@dataclass(frozen=True)
class NaoSettings:
    """Sizes and rates. Raises ValueError for one that is out of its range."""

    embedding: int = 32
    """Length of a token's embedding in the encoder (the paper)."""
    decoder_embedding: int = 32
    """Length of a token's embedding in the decoder (our choice)."""
    tokens: int = 1
    """Tokens that a step of the encoder reads, side by side; there are so many times fewer states (the paper)."""
    hidden: int = 96
    """Length of a state, H (encoder's: the paper; decoder's: the same, because it starts from h_T)."""
    predictor_hidden: int = 96
    """Units of a hidden layer of the predictor (our choice)."""
    predictor_layers: int = 1
    """Hidden layers of the predictor (our choice)."""
    trade_off: float = 0.9
    """lambda, the share of the prediction in the loss, from 0 to 1 (the paper)."""
    lr: float = 0.001
    """Learning rate of Adam (the paper)."""
    epochs: int = 1000
    """Passes over the pairs (the paper)."""
    batch_size: int = 100
    """Pairs in a step (our choice)."""
    grad_clip: float = 5.0
    """Largest norm of the gradient of all weights together (our choice)."""
    weight_decay: float = 0.0
    """Of Adam: this share of each weight is added to its gradient (our choice: none)."""
    positions: bool = False
    """Whether a vector that is learned for each position is added to the encoder's embedding of the token there.
    False is the paper's encoder as we know it. True predicts far better where a token's worth differs by position:
    on a toy of 20 positions, 7 tokens and 600 pairs, pairwise accuracy was 1.00 instead of 0.63 after 100 epochs;
    what `improved` reached there was not better, though (our choice)."""
    nearest: float = 0.05
    """How far the smallest eta moves a state, in lengths of a state (our choice)."""
    farthest: float = 10.0
    """How far the largest eta moves a state, in lengths of a state (our choice)."""
    etas: int = 64
    """Number of etas, each larger than the one before by the same factor (our choice)."""
    steps: int = 64
    """Number of steps, each as long as the smallest eta's, with the gradient taken anew (our choice)."""
    released: bool = False
    """The form of the authors' code (docs/methods.md D1): the predictor reads the mean of the states scaled to
    length 1, through ReLU with dropout 0.1, and ends in a sigmoid; scores are scaled to [0, 1]; the decoder's loss
    is the mean over tokens; its memory begins as that mean, twice; and eta is 1, 2, ... to `etas`, the states
    scaled to length 1 after the move, with no further ways. Otherwise as this module says."""

    def __post_init__(self) -> None:
        least = ("embedding", "decoder_embedding", "tokens", "hidden", "predictor_hidden", "predictor_layers")
        for name in (*least, "epochs", "batch_size", "etas"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "grad_clip", "nearest"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if not 0 <= self.trade_off <= 1:
            raise UsageError(f"trade_off must be from 0 to 1, not {self.trade_off}")
        if not self.nearest <= self.farthest < math.inf:
            raise UsageError(f"farthest must be finite and at least nearest ({self.nearest}), not {self.farthest}")
        if self.steps < 0:
            raise UsageError(f"steps must not be negative, not {self.steps}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay must not be negative and be finite, not {self.weight_decay}")


PAPER = NaoSettings()
"""The defaults: the paper's values where it has them."""

RELEASED = NaoSettings(
    embedding=48,
    decoder_embedding=96,
    tokens=2,
    predictor_hidden=200,
    predictor_layers=3,
    trade_off=0.8,
    weight_decay=1e-4,
    etas=100,
    released=True,
)
"""The model of NAO_pytorch's V1, with the numbers of its script (docs/methods.md D1)."""


class Nao(nn.Module):
    """Encoder, predictor and decoder. The weights are drawn from torch's global generator; `ascent.fit` seeds it.

    Args:
        legal: bool (T, V): which of V tokens may stand at each of T positions.
        settings: the sizes.

    Raises:
        ValueError: if `legal` is no such table, or a position has no legal token, or T is no multiple of
            `settings.tokens`.
    """

    def __init__(self, legal: Tensor, settings: NaoSettings = PAPER) -> None:
        super().__init__()
        if legal.dim() != 2 or not legal.numel() or legal.dtype != torch.bool:
            raise UsageError(f"legal must be a bool table (T, V), not {kind_of(legal)}")
        empty = (~legal.any(1)).nonzero().flatten().tolist()
        if empty:
            raise UsageError(f"no token is legal at position {empty[0]}")
        if len(legal) % settings.tokens:
            raise UsageError(f"{len(legal)} positions cannot be read {settings.tokens} at a time")
        self.settings = settings
        self.register_buffer("legal", legal.detach().clone())
        self.legal: Tensor
        # What `fit` took from the scores: score = mean + deviation * predicted.
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))
        self.mean: Tensor
        self.deviation: Tensor
        (length, tokens), hidden = legal.shape, settings.hidden
        self.position = nn.Parameter(torch.randn(length, settings.embedding)) if settings.positions else None
        self.embedding = nn.Embedding(tokens, settings.embedding)
        self.encoder = nn.LSTM(settings.tokens * settings.embedding, hidden, batch_first=True)
        self.predictor = _predictor(settings)
        # The last embedding stands before the first token.
        self.previous = nn.Embedding(tokens + 1, settings.decoder_embedding)
        self.decoder = nn.LSTM(settings.decoder_embedding, hidden, batch_first=True)
        self.question = nn.Linear(hidden, hidden, bias=False)
        self.combination = nn.Linear(2 * hidden, hidden, bias=not settings.released)
        self.answer = nn.Linear(hidden, tokens)

    @property
    def start(self) -> int:
        """The token that the decoder is given before the first position: V, which is none of the V tokens."""
        return self.legal.shape[1]

    def encode(self, sequences: Tensor) -> Tensor:
        """The representation of sequences.

        Args:
            sequences: int64 (N, T), legal.

        Returns:
            float32 (N, S, H), every state of length 1; S = T / `settings.tokens`.

        Raises:
            ValueError: for another shape, another type, or an illegal token.
        """
        check_sequences(sequences, self.legal)
        inputs = self.embedding(sequences)
        inputs = inputs if self.position is None else inputs + self.position
        outputs, _ = self.encoder(inputs.reshape(len(inputs), len(self.legal) // self.settings.tokens, -1))
        return nn.functional.normalize(outputs, dim=2)

    def predict(self, states: Tensor) -> Tensor:
        """The score that representations promise, in units of `deviation` above `mean`, which `fit` sets.

        Args:
            states: float32 (N, S, H), of any length.

        Returns:
            float32 (N,).

        Raises:
            ValueError: for another shape.
        """
        self._check_states(states)
        return cast(Tensor, self.predictor(self._mean(states))).squeeze(1)

    def reconstruct(self, states: Tensor, sequences: Tensor) -> Tensor:
        """log P(x_t | x_1 ... x_(t-1), e) for every position t and token: the decoder is told the right past.

        Args:
            states: float32 (N, S, H), of any length.
            sequences: int64 (N, T), legal.

        Returns:
            float32 (N, T, V), in nats; -inf for illegal tokens.

        Raises:
            ValueError: for other shapes, another type, or an illegal token.
        """
        self._check_states(states)
        check_sequences(sequences, self.legal)
        if len(states) != len(sequences):
            raise UsageError(f"{len(states)} representations, but {len(sequences)} sequences")
        past = torch.cat([sequences.new_full((len(sequences), 1), self.start), sequences[:, :-1]], 1)
        outputs, _ = self.decoder(self.previous(past), self._initial(states))
        return self._answers(outputs, states, self.legal)

    def decode(self, states: Tensor) -> Tensor:
        """The sequences that the decoder finds in representations: at every position the likeliest legal token.

        Args:
            states: float32 (N, S, H), of any length.

        Returns:
            int64 (N, T), legal.

        Raises:
            ValueError: for another shape.
        """
        self._check_states(states)
        with torch.no_grad():
            memory = self._initial(states)
            token = torch.full((len(states), 1), self.start)
            tokens = []
            for legal in self.legal:
                outputs, memory = self.decoder(self.previous(token), memory)
                token = self._answers(outputs, states, legal).argmax(2)
                tokens.append(token)
            return torch.cat(tokens, 1)

    def _mean(self, states: Tensor) -> Tensor:
        mean = states.mean(1)
        return nn.functional.normalize(mean, dim=1) if self.settings.released else mean

    def _initial(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's memory before the first position: h_T, and an empty cell."""
        if self.settings.released:
            mean = self._mean(states).unsqueeze(0)
            return mean, mean
        last = states[:, -1].unsqueeze(0).contiguous()
        return last, torch.zeros_like(last)

    def _answers(self, outputs: Tensor, states: Tensor, legal: Tensor) -> Tensor:
        """log P (N, K, V) at K positions, from the decoder's outputs there (N, K, H) and what is legal (K, V)."""
        weights = torch.softmax(self.question(outputs) @ states.transpose(1, 2), 2)
        logits = self.answer(torch.tanh(self.combination(torch.cat([outputs, weights @ states], 2))))
        return torch.log_softmax(logits.masked_fill(~legal, -math.inf), 2)

    def _check_states(self, states: Tensor) -> None:
        length, hidden = len(self.legal) // self.settings.tokens, self.settings.hidden
        if states.dim() != 3 or states.shape[1:] != (length, hidden) or states.dtype != torch.float32:
            raise UsageError(f"states must be float32 (N, {length}, {hidden}), not {kind_of(states)}")


def _predictor(settings: NaoSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = settings.hidden
    for _ in range(settings.predictor_layers):
        layers.append(nn.Linear(width, settings.predictor_hidden))
        layers += [nn.ReLU(), nn.Dropout(0.1)] if settings.released else [nn.Tanh()]
        width = settings.predictor_hidden
    end = [nn.Sigmoid()] if settings.released else []
    return nn.Sequential(*layers, nn.Linear(width, 1), *end)


def check_sequences(sequences: Tensor, legal: Tensor) -> None:
    """Raise ValueError unless `sequences` is int64 (N, T) and every token is one that `legal` (T, V) allows."""
    length, tokens = legal.shape
    if sequences.dim() != 2 or sequences.shape[1] != length or sequences.dtype != torch.int64:
        raise UsageError(f"sequences must be int64 (N, {length}), not {kind_of(sequences)}")
    known = (sequences >= 0) & (sequences < tokens)
    allowed = known & legal[torch.arange(length), sequences.clamp(0, tokens - 1)]
    if not allowed.all():
        row, position = (~allowed).nonzero()[0].tolist()
        token = int(sequences[row, position])
        raise UsageError(f"token {token} is not legal at position {position} (sequence {row})")


def kind_of(tensor: Tensor) -> str:
    """Type and shape, for messages: "float32 (2, 3)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
