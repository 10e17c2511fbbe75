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
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...answers import autocast, scores
from ...config import Config
from ...data import Data, taken
from ...errors import UsageError
from ...networks.weights import state_of
from ...records import Records
from ...seeds import Stream, numpy_generator
from ...tracking import Tracker
from ...training import (
    CHECK_EVERY,
    Evaluation,
    Interrupted,
    NonFiniteError,
    Progress,
    batches_per_epoch,
    frozen_statistics,
    images_last,
)
from ...transformation import SAVE_SECONDS
from .ascent import fit, improved
from .embedding import PAPER, RELEASED, Nao, NaoSettings
from .judging import judge, judge_as_released
from .policies import Reinforce, draw, generator_for, make_policy
from .spaces import GenotypeSpace, Space

A = TypeVar("A")

DRAWS = 20
"""So many draws are made for each architecture that is wanted, before fewer will do."""

STEPS = 4
"""NAO proposes so many architectures for each that is judged: those of which it expects most."""


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
class _State:
    """What a checkpoint holds beside weights."""

    phase: int = 0
    progress: Progress = field(default_factory=Progress)
    rewards: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    judged: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class SearchRun(Generic[A]):
    """A search that may be stopped and go on.

    Args:
        space: what is searched in.
        learner: how.
        data: on the device of the run; its training images are divided here.
        config: the run's settings.
        identity: what must be equal for a checkpoint to be gone on from.
        records: of the run's directory; None keeps nothing.
        tracker: is told of progress.
        stop: asked after each batch whether to save and stop.

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
        *,
        records: Records | None = None,
        tracker: Tracker | None = None,
        stop: Callable[[Progress], bool] | None = None,
    ) -> None:
        self.space, self.learner, self.config, self.identity = space, learner, config, identity
        self.records = records.of_search() if records else None
        self.tracker, self.stop = tracker or Tracker(), stop
        self.data = data
        self.weights_data, self.policy_data = divided(data, config)
        first = space.graph(space.given)
        self.reinforce = Reinforce(
            make_policy(learner.policy, first, space.operations, config.search, config.seed), config.search
        )
        device = data.train_labels.device
        self.network: nn.Module = space.network.to(device)
        self.channels_last = images_last(self.network, config, data.device)
        if self.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=config.search.lr,
            momentum=config.search.momentum,
            weight_decay=config.search.weight_decay,
        )
        self.device = device
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self.state = _State()
        self.state.progress.totals = torch.zeros(3, dtype=self.wide, device=device)
        self.history: list[dict[str, Any]] = []
        parts = (self.weights_data, self.policy_data) if self._learns else (self.weights_data,)
        sized = replace(config, batch_size=config.search.batch_size)
        self.batches = [batches_per_epoch(len(part.train_labels), sized) for part in parts]
        self.saved_at = time.monotonic()

    @property
    def _learns(self) -> bool:
        return self.reinforce.policy.learns and self.learner.final != "nao"

    def to_end(self) -> Found[A]:
        """Search; go on where the newest checkpoint stands.

        Raises:
            Interrupted: `stop` said yes; the state is saved.
            NonFiniteError: the loss is not finite any more.
        """
        self._restore()
        self.saved_at = time.monotonic()
        while self.state.progress.epoch < self.config.search.epochs:
            self._epoch()
        return self._find()

    def _epoch(self) -> None:
        state, config = self.state, self.config
        self.tracker.epoch("search", state.progress, sum(self.batches), config.search.epochs)
        started, before = time.monotonic(), state.epoch_seconds
        while state.phase < len(self.batches):
            part = (self.weights_data, self.policy_data)[state.phase]
            step = (self._train_weights, self._train_policy)[state.phase]
            batches = part.train_batches(
                config.seed, state.progress.epoch, config.search.batch_size, start=state.progress.batch
            )
            with closing(batches):
                while state.progress.batch < self.batches[state.phase]:
                    images, labels = next(batches)
                    step(images if self.channels_last else images.contiguous(), labels)
                    state.progress.batch += 1
                    state.progress.step += 1
                    state.epoch_seconds = before + time.monotonic() - started
                    if state.progress.step % CHECK_EVERY == 0:
                        self._check_loss()
                    self.tracker.batch(state.progress)
                    self._pause(f"search epoch {state.progress.epoch}, batch {state.progress.batch}")
            state.phase, state.progress.batch = state.phase + 1, 0
        self._check_loss()
        self._close_epoch()

    def _close_epoch(self) -> None:
        state = self.state
        loss, correct, images = state.progress.totals.tolist()
        state.progress.epoch += 1
        state.phase = 0
        parts = zip(self.batches, (self.weights_data, self.policy_data), strict=False)
        seen = sum(min(n * self.config.search.batch_size, len(part.train_labels)) for n, part in parts)
        row: dict[str, Any] = {
            "epoch": state.progress.epoch,
            "stage": "search",
            "step": state.progress.step,
            "lr": self.config.search.lr,
            "train_loss": loss / images,
            "train_accuracy": correct / images,
        }
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
        self.history.append(row)
        if self.records:
            self.records.log(row)
        self.tracker.searched(row)
        self._save()

    def _random(self, *keys: int | str) -> Any:
        return numpy_generator(self.config.seed, Stream.POLICY, *keys)

    def _place(self) -> tuple[int, int, int]:
        return self.state.progress.epoch, self.state.phase, self.state.progress.batch

    def _train_weights(self, images: Tensor, labels: Tensor) -> None:
        self.space.choose(self.space.sample(self._random("weights", *self._place())))
        self.network.train()
        with autocast(self.config, images.device):
            output = scores(self.network(images))
        output = output.float()
        loss = cross_entropy(output, labels)
        # With zeros for gradients weights go on moving; without any they rest.
        self.optimizer.zero_grad(set_to_none=not self.config.search.moves_unused)
        loss.backward()
        self.optimizer.step()
        correct, n = (output.detach().argmax(1) == labels).sum(), labels.new_tensor(len(labels)).to(self.wide)
        with torch.no_grad():
            self.state.progress.totals += torch.stack([loss.detach().to(self.wide) * n, correct.to(self.wide), n])

    def _train_policy(self, images: Tensor, labels: Tensor) -> None:
        given = self.space.asked(self._random("policy", *self._place()))
        graph = self.space.graph(given)
        drawn = draw(self.reinforce.probabilities(graph), generator_for(self.config.seed, "moves", *self._place()))
        accuracies = [
            self._accuracy(architecture, images, labels)
            for architecture in (self.space.moved(given, drawn.actions), given)
        ]
        reward = accuracies[0] - accuracies[1]
        self.reinforce.learn(drawn, reward)
        self.state.rewards.append(reward)
        self.state.entropies.append(float(drawn.entropy.detach()))

    @torch.no_grad()
    def _accuracy(self, architecture: A, images: Tensor, labels: Tensor) -> float:
        """On one batch, by its statistics; the released code lets the running ones drift (docs/methods.md A7)."""
        self.space.choose(architecture)
        self.network.train()
        drifting = nullcontext() if self.config.search.official else frozen_statistics(self.network)
        with drifting, autocast(self.config, images.device):
            output = scores(self.network(images))
        return float((output.argmax(1) == labels).double().mean())

    def _find(self) -> Found[A]:
        started, before = time.monotonic(), self.state.seconds
        self.tracker.epoch("search", self.state.progress, sum(self.batches), self.config.search.epochs)
        graph = self.space.graph(self.space.given)
        notes: list[str] = []
        probabilities = None
        if self.learner.final == "nao":
            candidates = self._proposed(notes)
        else:
            with torch.no_grad():
                probabilities = self.reinforce.probabilities(graph)
            candidates = self._drawn(probabilities) if self.learner.final == "samples" else []
            if self.learner.final == "maximum":
                most = self.space.legal(self.space.moved(self.space.given, probabilities.argmax(2)), probabilities)
                candidates = [] if most is None else [most]
        if not candidates:
            notes.append("nothing that was proposed can be used: the network stays as it was given")
            candidates = [self.space.given]
        scored = [(c, self._judged(c, i, len(candidates))) for i, c in enumerate(candidates)]
        best, (loss, accuracy) = max(scored, key=lambda pair: pair[1][1])  # max takes the first of equals
        self.space.choose(best)
        tested = judge(self.network, self.weights_data, self.data, self.config)
        return Found(
            best,
            tuple((self.space.to_json(c), a) for c, (_, a) in scored),
            Evaluation(loss, accuracy),
            tested,
            probabilities,
            before + time.monotonic() - started,
            tuple(self.history),
            tuple(notes),
        )

    def _drawn(self, probabilities: Tensor) -> list[A]:
        """Different legal architectures, as many as are wanted; the released code takes what comes."""
        wanted, official = self.config.search.samples, self.config.search.official
        generator = generator_for(self.config.seed, "final")
        found: dict[str, A] = {}
        for number in range(wanted if official else DRAWS * wanted):
            if len(found) == wanted:
                break
            moves = draw(probabilities, generator).actions
            architecture = self.space.legal(self.space.moved(self.space.given, moves), probabilities)
            if architecture is not None:
                key = json.dumps(self.space.to_json(architecture))
                found.setdefault(f"{number}" if official else key, architecture)
        return list(found.values())

    def _proposed(self, notes: list[str]) -> list[A]:
        """What NAO makes of the given architecture, having learned from random ones."""
        wanted = self.config.search.architectures
        seen: dict[str, A] = {}
        for number in range(DRAWS * wanted):
            if len(seen) == wanted:
                break
            architecture = self.space.legal(self.space.sample(self._random("nao", number)), None)
            if architecture is not None:
                seen.setdefault(json.dumps(self.space.to_json(architecture)), architecture)
        known = list(seen.values())
        if len(known) < 2:
            notes.append("NAO needs two different architectures to learn from, and there are not as many")
            return []
        accuracies = [self._judged(a, i, len(known))[1] for i, a in enumerate(known)]
        sequences = torch.tensor([self.space.sequence(a) for a in known])
        model, _ = fit(
            sequences, torch.tensor(accuracies), self.space.tokens, self._nao_seed(), self._nao_settings()
        )
        return self._steps(model)

    def _nao_settings(self) -> NaoSettings:
        epochs = self.config.search.nao_epochs
        if not self.config.search.official:
            # What an operation is worth depends on its edge: without positions the predictor sees little of that.
            return replace(PAPER, epochs=epochs, positions=True)
        # An edge of a genotype has two tokens, its input and its operation; other edges have one.
        return replace(RELEASED, epochs=epochs, tokens=2 if isinstance(self.space, GenotypeSpace) else 1)

    def _nao_seed(self) -> int:
        return int(self._random("nao").integers(2**31))

    def _steps(self, model: Nao) -> list[A]:
        space = self.space

        legal: dict[tuple[int, ...], A | None] = {}

        def fine(tokens: tuple[int, ...]) -> bool:
            legal[tokens] = space.legal(space.architecture(tokens), None)
            return legal[tokens] is not None

        given, wanted = torch.tensor(space.sequence(space.given)), self.config.search.samples
        found = improved(model, given, STEPS * wanted, accept=fine)
        if len(found) > wanted:  # the first are the nearest, and not the best
            with torch.no_grad():
                promised = model.predict(model.encode(torch.tensor(found))).tolist()
            order = sorted(range(len(found)), key=lambda i: -promised[i])
            found = [found[i] for i in order[:wanted]]
        return [a for a in map(legal.__getitem__, found) if a is not None]

    def _judged(self, architecture: A, number: int, of: int) -> tuple[float, float]:
        """Loss and accuracy with shared weights on held-out images; each architecture is judged once."""
        key = json.dumps(self.space.to_json(architecture))
        if key not in self.state.judged:
            started = time.monotonic()
            self.space.choose(architecture)
            found = self._judge()
            self.state.judged[key] = found.loss, found.accuracy
            self.state.seconds += time.monotonic() - started
            self._pause(f"{number + 1} of {of} architectures judged")
        self.tracker.judged(number + 1, of)
        return self.state.judged[key]

    def _judge(self) -> Evaluation:
        config = self.config
        if not config.search.official:
            return judge(self.network, self.weights_data, self.policy_data, config)
        if self.learner.leaks:
            return judge_as_released(self.network, self.data.test_batches(config.search.batch_size), config)
        batches = self.policy_data.train_batches(config.seed, config.search.epochs, config.search.batch_size)
        return judge_as_released(self.network, _whole(batches, self.batches[-1]), config)

    def _pause(self, where: str) -> None:
        if self.stop and self.stop(self.state.progress):
            self._save()
            raise Interrupted(f"stopped after {where}")
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self._save()

    def _check_loss(self) -> None:
        if not torch.isfinite(self.state.progress.totals[0]):
            epoch = self.state.progress.epoch + 1
            raise NonFiniteError(
                f"the loss of the shared weights is not finite any more, in epoch {epoch}: "
                f"lower search.lr ({self.config.search.lr:g}), or look for broken images or labels"
            )

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if not self.records:
            return
        self._check_loss()
        progress = self.state.progress
        plain = replace(progress, totals=torch.zeros(0))
        state = asdict(replace(self.state, progress=plain)) | {
            "progress": {**asdict(plain), "totals": progress.totals.cpu()},
            "judged": {key: list(value) for key, value in self.state.judged.items()},
            "identity": self.identity,
            "network": state_of(self.network),
            "optimizer": self.optimizer.state_dict(),
            "used": [name for name, p in self.network.named_parameters() if p.grad is not None],
            "reinforce": self.reinforce.state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        # Judging takes no step: the number of the file goes on all the same.
        self.records.save(progress.step + len(self.state.judged), state)

    def _restore(self) -> None:
        newest = self.records.newest() if self.records else None
        if newest is None or self.records is None:
            return
        state = newest[1]
        check_identity(state, self.identity)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        used = frozenset(state["used"])
        for name, parameter in self.network.named_parameters():
            parameter.grad = torch.zeros_like(parameter) if name in used else None
        self.reinforce.restore(state["reinforce"])
        for name in ("phase", "rewards", "entropies", "seconds", "epoch_seconds"):
            setattr(self.state, name, state[name])
        self.state.judged = {key: (loss, accuracy) for key, (loss, accuracy) in state["judged"].items()}
        for name, value in state["progress"].items():
            setattr(self.state.progress, name, value)
        self.state.progress.totals = self.state.progress.totals.to(self.device, self.wide)
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.history = self.records.metrics()


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
