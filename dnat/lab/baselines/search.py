"""The search of NAT and of the methods that it was compared to: shared weights, a policy, and what they find.

In each epoch the shared weights are trained once through their part of the training images, each batch under a
random architecture; then the policy once through the rest, each batch giving one reward: the accuracy of what the
policy made of an architecture, less that architecture's own (NAT, algorithm 1; docs/methods.md A7). In the end
architectures are drawn for the network that was given, judged on the second part of the training images, and the
best is kept (docs/methods.md A8). Test images have no part in any of it.

Every draw comes from a stream of its own, so that a search that was stopped ends with the same bits.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ...data import Data, taken
from ...errors import UsageError
from ...loop import FORMAT, Listeners, Loop, check_format, random_state, row_of, set_random_state
from ...seeds import Stream, numpy_generator
from ...settings import Config
from ...training import CHECK_EVERY, Evaluation, NonFiniteError, Progress
from .candidates import Candidates
from .judging import judge, judge_as_released
from .policies import Reinforce, draw, generator_for, make_policy
from .shared import SharedWeights
from .spaces import Space

A = TypeVar("A")


@dataclass(frozen=True)
class Learner:
    """A method's way of searching.

    Attributes:
        policy: what proposes moves; of NAO, nothing does.
        final: what is judged in the end: samples of the policy, its most probable moves, or what NAO proposes.
        leaks: whether the released code judged on test images (NAT++'s did; with `official` so do we).
    """

    policy: Literal["gcn", "lstm", "random"]
    final: Literal["samples", "maximum", "nao"] = "samples"
    leaks: bool = False


@dataclass(frozen=True)
class Found(Generic[A]):
    """What a search has found.

    Attributes:
        architecture: the best.
        judged: (architecture for JSON, accuracy) of all that were judged in the end.
        shared: loss and accuracy of the best with shared weights, on the images it was judged on.
        tested: the same on test images; nothing was chosen by it.
        probabilities: (B, R, K), the policy's, of moves from the given architecture; None of NAO.
        seconds: that the search took.
        history: a row an epoch.
        notes: what else is worth knowing.
    """

    architecture: A
    judged: tuple[tuple[Any, float], ...]
    shared: Evaluation
    tested: Evaluation
    probabilities: Tensor | None
    seconds: float
    history: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


@dataclass
class SearchState:
    """What a checkpoint holds beside weights.

    Attributes:
        phase: which part of an epoch: 0 shared weights, 1 the policy.
        progress: epochs, batches of this phase, and steps that are done.
        rewards, entropies: of the policy's steps in this epoch.
        judged: loss and accuracy of architectures that were judged in the end.
        seconds, epoch_seconds: spent in all, and in this epoch.
    """

    phase: int = 0
    progress: Progress = field(default_factory=Progress)
    rewards: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    judged: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    def table(self) -> dict[str, Any]:
        """For a checkpoint."""
        plain = replace(self.progress, totals=torch.zeros(0))
        return asdict(replace(self, progress=plain)) | {
            "progress": {**asdict(plain), "totals": self.progress.totals.cpu()},
            "judged": {key: list(value) for key, value in self.judged.items()},
        }

    def restore(self, table: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in ("phase", "rewards", "entropies", "seconds", "epoch_seconds"):
            setattr(self, name, table[name])
        self.judged = {key: (loss, accuracy) for key, (loss, accuracy) in table["judged"].items()}
        totals = self.progress.totals
        for name, value in table["progress"].items():
            setattr(self.progress, name, value)
        self.progress.totals = self.progress.totals.to(totals.device, totals.dtype)


class SearchRun(Generic[A]):
    """A search that may be stopped and go on.

    Args:
        space: what is searched in.
        learner: how.
        data: on the device of the run; its training images are divided here.
        config: the run's settings.
        identity: what must be equal for a checkpoint to be gone on from.
        listeners: who hears of it.

    Raises:
        ValueError: too few training images.
    """

    def __init__(
        self,
        space: Space[A],
        learner: Learner,
        data: Data,
        config: Config,
        identity: str,
        listeners: Listeners | None = None,
    ) -> None:
        heard = listeners or Listeners()
        self.listeners = replace(heard, records=heard.records.of_search() if heard.records else None)
        self.space, self.learner, self.config, self.identity, self.data = space, learner, config, identity, data
        self.parts = divided(data, config)
        first = space.graph(space.given)
        policy = make_policy(learner.policy, first, space.operations, config.search, config.seed)
        self.reinforce = Reinforce(policy, config.search)
        self.shared = SharedWeights(space, config, data.train_labels.device)
        self.state = SearchState()
        self.state.progress.totals = torch.zeros(3, dtype=self.shared.wide, device=self.shared.device)
        learns = policy.learns and learner.final != "nao"
        self.batches = [part.steps(config.search.batch_size) for part in self.parts[: 1 + learns]]
        self.loop = Loop(self.listeners, self._save)

    def to_end(self) -> Found[A]:
        """Search; go on where the newest checkpoint stands.

        Raises:
            Interrupted: it was asked to stop; the state is saved.
            NonFiniteError: the loss is not finite any more.
        """
        self._restore()
        while self.state.progress.epoch < self.config.search.epochs:
            self._epoch()
        return self._best()

    def _epoch(self) -> None:
        state, config = self.state, self.config
        self.listeners.tracker.epoch("search", state.progress, sum(self.batches), config.search.epochs)
        started, before = time.monotonic(), state.epoch_seconds
        while state.phase < len(self.batches):
            step = (self._train_weights, self._train_policy)[state.phase]
            batches = self.parts[state.phase].train_batches(
                config.seed, state.progress.epoch, config.search.batch_size, start=state.progress.batch
            )
            with closing(batches):
                while state.progress.batch < self.batches[state.phase]:
                    images, labels = next(batches)
                    step(images if self.shared.channels_last else images.contiguous(), labels)
                    state.progress.batch += 1
                    state.progress.step += 1
                    state.epoch_seconds = before + time.monotonic() - started
                    if state.progress.step % CHECK_EVERY == 0:
                        _check_loss(self.state.progress, self.config)
                    self.listeners.tracker.batch(state.progress)
                    where = f"search epoch {state.progress.epoch}, batch {state.progress.batch}"
                    self.loop.pause(state.progress, where)
            state.phase, state.progress.batch = state.phase + 1, 0
        _check_loss(self.state.progress, self.config)
        self._close_epoch()

    def _close_epoch(self) -> None:
        state = self.state
        loss, images, correct = state.progress.totals.tolist()
        state.progress.epoch += 1
        state.phase = 0
        sizes = zip(self.batches, self.parts, strict=False)
        seen = sum(min(n * self.config.search.batch_size, len(part.train_labels)) for n, part in sizes)
        trained = Evaluation(loss / images, {"accuracy": correct / images})
        row = row_of(state.progress, "search", self.config.search.lr, trained=trained)
        if state.rewards:
            row |= {
                "reward": sum(state.rewards) / len(state.rewards),
                "baseline": self.reinforce.baseline,
                "entropy": sum(state.entropies) / len(state.entropies),
            }
        row |= {
            "seconds": round(state.epoch_seconds, 3),
            "images_per_second": round(seen / max(state.epoch_seconds, 1e-9), 1),
        }
        state.seconds += state.epoch_seconds
        state.epoch_seconds, state.rewards, state.entropies = 0.0, [], []
        state.progress.totals.zero_()
        self.loop.log(row, self.listeners.tracker.searched)

    def _place(self) -> tuple[int, int, int]:
        return self.state.progress.epoch, self.state.phase, self.state.progress.batch

    def _random(self, *keys: int | str) -> Any:
        return numpy_generator(self.config.seed, Stream.POLICY, *keys)

    def _train_weights(self, images: Tensor, labels: Tensor) -> None:
        architecture = self.space.sample(self._random("weights", *self._place()))
        self.state.progress.totals += self.shared.step(architecture, images, labels)

    def _train_policy(self, images: Tensor, labels: Tensor) -> None:
        asked = self.space.asked(self._random("policy", *self._place()))
        graph = self.space.graph(asked)
        drawn = draw(self.reinforce.probabilities(graph), generator_for(self.config.seed, "moves", *self._place()))
        moved, still = (
            self.shared.accuracy(architecture, images, labels)
            for architecture in (self.space.moved(asked, drawn.actions), asked)
        )
        self.reinforce.learn(drawn, moved - still)
        self.state.rewards.append(moved - still)
        self.state.entropies.append(float(drawn.entropy.detach()))

    def _best(self) -> Found[A]:
        """Judge what is proposed in the end; the best of it."""
        started, before = time.monotonic(), self.state.seconds
        self.listeners.tracker.epoch("search", self.state.progress, sum(self.batches), self.config.search.epochs)
        proposals = Candidates(self.space, self.config, lambda a, i, of: self._judged(a, i, of)[1])
        probabilities = None
        if self.learner.final == "nao":
            candidates = proposals.proposed()
        else:
            with torch.no_grad():
                probabilities = self.reinforce.probabilities(self.space.graph(self.space.given))
            final = {"samples": proposals.drawn, "maximum": proposals.most_probable}[self.learner.final]
            candidates = final(probabilities)
        if not candidates:
            proposals.notes.append("nothing that was proposed can be used: the network stays as it was given")
            candidates = [self.space.given]
        judged = [(c, self._judged(c, i, len(candidates))) for i, c in enumerate(candidates)]
        best, (loss, accuracy) = max(judged, key=lambda pair: pair[1][1])  # max takes the first of equals
        self.space.choose(best)
        return Found(
            best,
            tuple((self.space.to_json(c), a) for c, (_, a) in judged),
            Evaluation(loss, {"accuracy": accuracy}),
            judge(self.shared.network, self.parts[0], self.data, self.config),
            probabilities,
            before + time.monotonic() - started,
            tuple(self.loop.history),
            tuple(proposals.notes),
        )

    def _judged(self, architecture: A, number: int, of: int) -> tuple[float, float]:
        """Loss and accuracy with shared weights on held-out images; each architecture is judged once."""
        key = json.dumps(self.space.to_json(architecture))
        if key not in self.state.judged:
            started = time.monotonic()
            self.space.choose(architecture)
            result = self._judge()
            self.state.judged[key] = result.loss, result.accuracy
            self.state.seconds += time.monotonic() - started
            self.loop.pause(self.state.progress, f"{number + 1} of {of} architectures judged")
        self.listeners.tracker.judged(number + 1, of)
        return self.state.judged[key]

    def _judge(self) -> Evaluation:
        config, network = self.config, self.shared.network
        if not config.search.official:
            return judge(network, *self.parts, config)
        if self.learner.leaks:
            return judge_as_released(network, self.data.test_batches(config.search.batch_size), config)
        batches = self.parts[1].train_batches(config.seed, config.search.epochs, config.search.batch_size)
        return judge_as_released(network, _whole(batches, self.batches[-1]), config)

    def _save(self) -> None:
        records = self.listeners.records
        if not records:
            return
        _check_loss(self.state.progress, self.config)
        state = self.state.table() | {
            "format": FORMAT,
            "identity": self.identity,
            "shared": self.shared.checkpoint(),
            "reinforce": self.reinforce.state(),
            "random": random_state(),
        }
        # Judging takes no step: the number of the file goes on all the same.
        records.save(self.state.progress.step + len(self.state.judged), state)

    def _restore(self) -> None:
        newest = self.listeners.records.newest() if self.listeners.records else None
        if newest is None:
            return
        state = newest[1]
        check_format(state)
        check_identity(state, self.identity)
        self.shared.restore(state["shared"])
        self.reinforce.restore(state["reinforce"])
        self.state.restore(state)
        set_random_state(state["random"])
        self.loop.goes_on()


def _check_loss(progress: Progress, config: Config) -> None:
    if not torch.isfinite(progress.totals[0]):
        raise NonFiniteError(
            f"the loss of the shared weights is not finite any more, in epoch {progress.epoch + 1}: "
            f"lower search.lr ({config.search.lr:g}), or look for broken images or labels"
        )


def check_identity(found: Mapping[str, Any], identity: str) -> None:
    """Whether a file of a search, or its result, belongs to this network with these weights, on these images.

    Raises:
        ValueError: it does not.
    """
    if found["identity"] != identity:
        raise UsageError(
            "the run directory holds a search for another network, with other weights, or on other images; "
            "choose another directory"
        )


def divided(data: Data, config: Config) -> tuple[Data, Data]:
    """The training images in two: to train shared weights on, and to judge architectures by (docs/methods.md A7).

    The second part stands in for the test images of both: nothing that is chosen here may see those.

    Raises:
        ValueError: a part that has fewer images than a batch.
    """
    search, count = config.search, len(data.train_labels)
    first = round(search.split * count)
    for name, part in (("shared weights", first), ("the policy", count - first)):
        if part < search.batch_size:
            raise UsageError(
                f"search.batch_size {search.batch_size} is larger than the {part} training images that "
                f"search.split {search.split:g} leaves for {name}"
            )
    order = torch.from_numpy(numpy_generator(config.seed, Stream.POLICY, "split").permutation(count))
    parts = order[:first].sort().values, order[first:].sort().values
    images, labels, index = (
        [taken(held, part) for part in parts] for held in (data.train_images, data.train_labels, data.train_index)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that have no image in a part
        one, two = (
            replace(
                data,
                train_images=images[i],
                train_labels=labels[i],
                train_index=index[i],
                test_images=images[1],
                test_labels=labels[1],
            )
            for i in range(2)
        )
    return one, two


def _whole(batches: Any, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    with closing(batches):
        for _ in range(count):
            yield next(batches)
