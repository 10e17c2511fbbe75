"""NAO's model learned from pairs of sequence and score, and better sequences by climbing what it predicts.

See `embedding` for the model, and for what is the paper's and what is our choice.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .embedding import PAPER, Nao, NaoSettings, check_sequences, kind_of


def fit(
    sequences: Tensor, scores: Tensor, legal: Tensor, seed: int, settings: NaoSettings = PAPER
) -> tuple[Nao, list[dict[str, float]]]:
    """A model that is trained from scratch on pairs of sequence and score; higher scores are better.

    torch's global random state is left as it was. The same arguments give the same weights, bit for bit, on the
    same machine with the same number of threads.

    Args:
        sequences: int64 (N, T), legal.
        scores: (N,), of any floating type and unit. Where all are equal, every one counts as 0.
        legal: bool (T, V): which of V tokens may stand at each of T positions.
        seed: of the first weights and of the order of the pairs.
        settings: sizes and rates.

    Returns:
        The model, in eval mode, and about ten rows of its history, the last epoch's among them: "epoch" (the first
        is 1) and the means over that epoch's pairs of "loss", "prediction" (squared error, in the square of the
        scores' deviation, or of their range) and "reconstruction" (negative log likelihood, in nats, of a
        sequence, or with `released` of a token).

    Raises:
        ValueError: for other shapes or types, an illegal token, fewer than two pairs, scores that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = Nao(legal, settings)
        check_sequences(sequences, model.legal)
        _check_scores(scores, len(sequences))
        wide = scores.detach().double()
        low, unit = wide.mean(), wide.std(correction=0)
        if settings.released:
            low, unit = wide.min(), wide.max() - wide.min()
        # Where all scores are equal, what rounding leaves of their differences must not be blown up.
        differ = bool(wide.min() < wide.max() and unit > 0)
        model.mean.copy_(low if differ else wide[0])
        model.deviation.copy_(unit if differ else torch.ones(()))
        history = _learn(model, sequences, ((wide - model.mean) / model.deviation).float(), generator)
    return model.eval(), history


def _learn(model: Nao, sequences: Tensor, targets: Tensor, generator: torch.Generator) -> list[dict[str, float]]:
    settings, history = model.settings, []
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    noted = {math.ceil(settings.epochs * tenth / 10) for tenth in range(1, 11)}
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(sequences), generator=generator)
        losses = [
            _step(model, optimizer, sequences[batch], targets[batch]) for batch in order.split(settings.batch_size)
        ]
        if epoch in noted:
            sums = torch.stack(losses).sum(0)
            prediction, reconstruction = (sums / len(sequences)).tolist()
            loss = settings.trade_off * prediction + (1 - settings.trade_off) * reconstruction
            row = {"loss": loss, "prediction": prediction, "reconstruction": reconstruction}
            history.append({"epoch": float(epoch), **row})
    return history


def _step(model: Nao, optimizer: torch.optim.Optimizer, sequences: Tensor, targets: Tensor) -> Tensor:
    """One step of training on a batch; the sums over it of both losses before the step, (2,)."""
    states = model.encode(sequences)
    prediction = (model.predict(states) - targets).square()
    chosen = model.reconstruct(states, sequences).gather(2, sequences.unsqueeze(2))
    reconstruction = -(chosen.mean((1, 2)) if model.settings.released else chosen.sum((1, 2)))
    share = model.settings.trade_off
    optimizer.zero_grad()
    (share * prediction + (1 - share) * reconstruction).mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), model.settings.grad_clip)
    optimizer.step()
    return torch.stack([prediction.sum(), reconstruction.sum()]).detach()


def _check_scores(scores: Tensor, wanted: int) -> None:
    if scores.shape != (wanted,) or not scores.is_floating_point():
        raise UsageError(f"scores must be floating ({wanted},), as many as sequences, not {kind_of(scores)}")
    if wanted < 2:
        raise UsageError(f"at least 2 pairs are needed, not {wanted}")
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).nonzero()[0])
        raise UsageError(f"score {first} is not finite: {float(scores[first])}")


def improved(
    model: Nao, sequence: Tensor, count: int, *, accept: Callable[[tuple[int, ...]], bool] | None = None
) -> list[tuple[int, ...]]:
    """Sequences that are reached from one by climbing the predicted score, nearest first.

    The states move along the gradient, farther and farther, and are decoded wherever they come by; what is decoded
    for the first time counts. Where that gives too few, the states are scaled back to length 1 after the move, and
    where that gives too few, the gradient is taken anew after every small step; both again from the nearest to the
    farthest. Nothing is drawn: the same arguments give the same answer.

    Args:
        model: that `fit` made.
        sequence: int64 (T,), legal: where to begin.
        count: the most sequences to return.
        accept: is asked once about each new sequence; those it refuses are left out.

    Returns:
        At most `count` different legal sequences, none the given one. Fewer where no more are reached; none where
        the predicted score does not change with the states.

    Raises:
        ValueError: for another shape or type, an illegal token, or a negative count.
    """
    if sequence.dim() != 1:
        raise UsageError(f"sequence must be int64 ({len(model.legal)},), not {kind_of(sequence)}")
    if count < 0:
        raise UsageError(f"count must not be negative, not {count}")
    with torch.no_grad():
        states = model.encode(sequence.unsqueeze(0))
    seen = {tuple(sequence.tolist())}
    found: list[tuple[int, ...]] = []
    if count == 0:
        return found
    for places in _ascent(model, states):
        for tokens in model.decode(places).tolist():
            reached = tuple(tokens)
            if reached in seen:
                continue
            seen.add(reached)
            if accept is None or accept(reached):
                found.append(reached)
                if len(found) == count:
                    return found
    return found


def _ascent(model: Nao, states: Tensor) -> Iterator[Tensor]:
    """Where states (1, S, H) come by on their way up, in batches (K, S, H), the paper's way first."""
    settings = model.settings
    if settings.released:
        etas = torch.arange(1.0, settings.etas + 1)[:, None, None]
        yield nn.functional.normalize(states + etas * _gradient(model, states), dim=2)
        return
    direction = _direction(model, states)
    if direction is None:
        return
    reaches = torch.logspace(math.log10(settings.nearest), math.log10(settings.farthest), settings.etas)
    places = states + reaches[:, None, None] * direction
    yield places
    yield nn.functional.normalize(places, dim=2)
    steps = []
    for _ in range(settings.steps):
        if direction is None:
            break
        states = nn.functional.normalize(states + settings.nearest * direction, dim=2)
        steps.append(states)
        direction = _direction(model, states)
    if steps:
        yield torch.cat(steps)


def _direction(model: Nao, states: Tensor) -> Tensor | None:
    """df/de at states (1, S, H), scaled so that it moves a state by length 1 (root of the mean over S of squares).

    None where the gradient is zero or too small to be told from it.
    """
    gradient = _gradient(model, states)
    length = gradient.double().square().sum(2).mean().sqrt()
    if not length > torch.finfo(torch.float32).tiny:
        return None
    return gradient / length


def _gradient(model: Nao, states: Tensor) -> Tensor:
    """df/de at states (1, S, H)."""
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        return torch.autograd.grad(model.predict(leaf).sum(), leaf)[0]
