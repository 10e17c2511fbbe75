"""Train and evaluate any network: the architecture stage (weights and theta) and the network stage (weights).

A step of the architecture stage updates the weights on a mini-batch, then theta on the same mini-batch (DNAT,
section 3.2): a second forward pass with the weights frozen, in which batch norm uses the batch's statistics but
does not record them a second time. Nothing here draws a random number: images and their augmentation come from
`Data`, keyed by seed, epoch and index.

Where several processes train together (`dnat.distributed`), each computes its part of every batch; gradients,
counts and what is measured are summed, so that all of them take the same steps.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import is_lazy

from .answers import autocast, auxiliary_scores, in_forward, scores, wide
from .budget import Costs
from .config import Config
from .data import Data
from .distillation import Lesson, Teacher, watched
from .distributed import SyncedNorms, sum_gradients, summed, world
from .edges import NONE, ORIGINAL
from .errors import DnatError, UsageError, WrongTypeError
from .operations import set_drop_path
from .relaxation import CHOICES, RelaxedNetwork
from .seeds import Stream, torch_seed
from .selection import BEYOND, none_threshold
from .tracing import copied, frozen_modules, in_mode, in_training, kept_buffers

FASTEST_THETA = 0.1
"""The largest learning rate that is chosen for theta."""

CUTOUT = 16
"""The side of cutout's square in DARTS's recipe, in pixels (docs/methods.md A9)."""

CHECK_EVERY = 8
"""Steps between two looks at whether the loss is finite: each look waits for the device."""


class NonFiniteError(DnatError, ArithmeticError):
    """The loss or the state of a training is no longer finite."""

    exit_code = 65


@dataclass
class Progress:
    """Where a run stands: everything but tensors that a resumed run must know.

    Attributes:
        epoch: epochs that are done.
        batch: batches of the present epoch that are done.
        step: batches that are done in all.
        totals: summed loss, correct answers and images of the present epoch, on the device.
        seconds: seconds spent in each stage.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    seconds: dict[str, float] = field(default_factory=lambda: {"architecture": 0.0, "network": 0.0})


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and share of right answers over a data set."""

    loss: float
    accuracy: float


def check_usable(network: nn.Module, data: Data) -> None:
    """Refuse a network that cannot be run on images: without weights, or in another precision.

    Raises:
        ValueError: see above; the message names a weight and says what to do.
    """
    weights = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in weights:
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet: run the network once on images before it is given")
        if tensor.is_meta:
            raise UsageError(
                f"{name} of {type(network).__name__} lies on the meta device, where weights have no values: build "
                "the network outside of torch.device('meta'), or use to_empty(device='cpu') and load weights first"
            )
    other = next(((n, t) for n, t in weights if t.is_floating_point() and t.dtype != torch.float32), None)
    if other is None:
        return
    try:
        with in_mode(network, False), torch.no_grad():
            network(data.example(2).to(other[1].device))
    except Exception as error:
        kind = str(other[1].dtype).removeprefix("torch.")
        raise UsageError(
            f"{other[0]} is {kind}, but images come as float32, with which the forward fails ({error}): give "
            "network.float(); the setting amp='bf16' computes in mixed precision"
        ) from error


def check_finite(network: nn.Module) -> None:
    """Refuse weights, or statistics of norms, that hold NaN or infinity before anything is trained.

    Raises:
        ValueError: they do; the message names them.
    """
    statistics = ((n, b) for n, b in network.named_buffers() if n.endswith(("running_mean", "running_var")))
    for name, tensor in (*network.named_parameters(), *statistics):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"{name} of the network as it is given holds NaN or infinity; look at its weights")


def weight_optimizer(network: nn.Module, config: Config) -> torch.optim.SGD:
    """SGD for the weights; the learning rate is set at each step."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        name = type(network).__name__
        raise UsageError(f"{name} has no parameters to train (all are frozen, or there are none)")
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def theta_rate(config: Config, batches: int) -> float:
    """The learning rate of theta: as configured, or so that theta can move by `theta_reach` in its steps.

    It is at most `FASTEST_THETA` then: in a stage of a few steps theta would shoot past every balance between the
    loss and the cost.

    >>> theta_rate(Config(architecture_epochs=3, theta_reach=6.0, settle=0), batches=100)
    0.02
    """
    if config.lr_theta != "auto":
        return config.lr_theta
    return min(config.theta_reach / theta_steps(config, batches), FASTEST_THETA)


def theta_steps(config: Config, batches: int) -> int:
    """The steps in which theta is trained: those of the architecture stage before the choices settle.

    >>> theta_steps(Config(architecture_epochs=3, settle=0.5), batches=100)
    150
    """
    steps = config.architecture_epochs * batches
    return max(steps - round(config.settle * steps), 1)


def theta_optimizer(relaxed: RelaxedNetwork, config: Config, batches: int) -> torch.optim.Optimizer:
    """Adam or SGD for theta, without weight decay: it would pull theta_original, and nothing else, to 0."""
    rate = theta_rate(config, batches)
    if config.theta_optimizer == "sgd":
        return torch.optim.SGD(relaxed.thetas(), lr=rate, momentum=config.theta_betas[0])
    return torch.optim.Adam(relaxed.thetas(), lr=rate, betas=config.theta_betas)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """The weights' learning rate at a step: one cosine from `config.lr` to 0 over all steps of both stages.

    In the first `config.warm_up` epochs it is lower: in proportion to the steps that are done, of all in them.

    >>> [round(learning_rate(Config(lr=1.0), step, 4), 2) for step in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    >>> [round(learning_rate(Config(lr=1.0, epochs=2, warm_up=1), step, 4), 2) for step in range(5)]
    [0.5, 0.85, 0.5, 0.15, 0.0]
    """
    rising = config.warm_up * steps / config.epochs
    return config.lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / max(rising, 1.0))


def batches_per_epoch(images: int, config: Config) -> int:
    """Steps of an epoch; a last batch of one image is left out, since batch norm has no use for it.

    Raises:
        ValueError: fewer images than one batch holds.
    """
    if config.batch_size > images:
        raise UsageError(f"batch_size {config.batch_size} is larger than the {images} training images")
    if config.batch_size == 1:
        return images
    return images // config.batch_size + (images % config.batch_size > 1)


def drop_path(config: Config, stage: str, epoch: int) -> float:
    """The probability of drop-path in an epoch: off in the architecture stage, then linear in the epochs (DARTS).

    >>> drop_path(Config(epochs=10, drop_path=0.2), "network", 5)
    0.1
    """
    return config.drop_path * epoch / config.epochs if stage == "network" else 0.0


def cutout_side(config: Config, network: nn.Module, data: Data) -> int:
    """The side in pixels of cutout's square for a network, as it was given; 0 for none.

    >>> from dnat.networks.cells import CellNetwork
    >>> images = (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = Data.from_tensors("black", images, images)
    >>> cutout_side(Config(preset="paper"), CellNetwork("darts_v2", channels=2, layers=3), data)
    16
    """
    if config.cutout != "searched":
        return config.cutout
    return CUTOUT if getattr(network, "searched", False) is True and min(data.image_size) >= 32 else 0


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, no gradients are computed for these parameters."""
    switched = [p for p in parameters if p.requires_grad]
    for parameter in switched:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in switched:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within, norms in train mode use the batch's statistics as ever, but do not record them, and what other
    modules write into their buffers is lost at the end: a step's second pass must not count twice."""
    norms = [m for m in network.modules() if m.training and getattr(m, "track_running_stats", False) is True]
    others = set(network.modules()) - set(norms)
    for norm in norms:
        norm.track_running_stats = False  # type: ignore[assignment]
    try:
        with kept_buffers(m for m in network.modules() if m in others):
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]


def take_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let batch norms record the statistics of what the network computes now, as the plain mean over batches.

    Norms that are frozen (in eval mode within a network in train mode) keep theirs.

    Args:
        network: is changed in its norms' buffers alone.
        batches: of images (N, C, H, W).
    """
    still = frozen_modules(network)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m not in still]
    norms = [m for m in norms if m.track_running_stats]
    momenta = [m.momentum for m in norms]
    others = [m for m in network.modules() if m not in set(norms)]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        # Dropout may draw: not from the run's own stream.
        with (
            in_mode(network, True),
            kept_buffers(others),
            torch.no_grad(),
            torch.random.fork_rng(devices=list(devices)),
        ):
            torch.manual_seed(0)
            for images in batches:
                network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def images_last(network: nn.Module, config: Config, device: torch.device) -> bool:
    """Whether images and kernels are to be laid out channels last: if it is asked for, and safe.

    On a CPU with more than one thread oneDNN (of torch 2.13) writes past its memory in the weights' gradient of a
    1x1 convolution with a stride and fewer than 16 input channels, if they lie last, and the process dies.
    Reductions of null edges and of cells hold such convolutions.
    """
    narrow = (
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
        for m in network.modules()
    )
    return config.channels_last and not (device.type == "cpu" and config.threads > 1 and any(narrow))


class ArchitectureLoss:
    """What is added to the loss for theta's sake: `cost_weight * expected cost - zero_one_weight * distance`.

    The expected cost is what would remain of the cost that choices can take away, if each group chose by a
    softmax of its scores (`Theta.scores`) over its legal choices (none counts with its threshold), at a
    temperature of 1/4. It compares choices, so it also works where a gate alone means nothing because a norm
    undoes every scale; an operation inside a block or before a dropped branch counts as gone with it. Only what
    lies above the limit is charged. The distance is the sum over free gates (no shares of other operations) of
    (g - 1/2)^2, which pulls gates to 0 or 1 (FairDARTS takes its mean; with a sum a gate feels the same pull in
    any network).

    Args:
        relaxed: the network.
        config: with the weights.
        costs: what choices cost; by default their multiply-adds.
        limit: in the unit of the costs, nothing below it is charged; by default `config.cost_target` of all.
    """

    TEMPERATURE = 0.25

    def __init__(
        self, relaxed: RelaxedNetwork, config: Config, costs: Costs | None = None, limit: float | None = None
    ) -> None:
        self.relaxed, self.config = relaxed, config
        theta = next(relaxed.thetas())
        self.columns = relaxed.columns
        legal = torch.zeros(*theta.shape, dtype=torch.bool)
        for row, group in enumerate(relaxed.groups):
            legal[row] = torch.tensor([choice in relaxed.choices_of(group) for choice in self.columns])
        self.illegal = ~legal.to(theta.device)
        column = torch.arange(len(self.columns))
        free = legal & (column != CHOICES.index(NONE))
        skips = torch.tensor([relaxed.members(group)[0].kind == "skip" for group in relaxed.groups])
        free[skips, CHOICES.index(ORIGINAL)] = False  # of a null edge: it weighs nothing
        free[:, len(CHOICES) :] = False  # shares begin closed, and would never leave it
        self.free = free.to(theta)
        self.none = (column == CHOICES.index(NONE)).to(theta.device)
        self.null = (skips[:, None] & (column == CHOICES.index(ORIGINAL))).to(theta.device)
        self._tabulate(costs or Costs(relaxed.edges), limit, theta)

    def _tabulate(self, costs: Costs, limit: float | None, theta: Tensor) -> None:
        groups = self.relaxed.by_group()
        legal = {group: self.relaxed.choices_of(group) for group in groups}
        table = costs.expectation(groups, legal)
        place = {group: row for row, group in enumerate(groups)}
        self.killers = torch.zeros(len(table.shares), *theta.shape)
        for i, (_, pairs) in enumerate(table.shares):
            for group, choice, part in pairs:
                self.killers[i, place[group], self.columns.index(choice)] += part
        added = torch.zeros(*theta.shape)
        for group, choice, amount in table.added:
            added[place[group], self.columns.index(choice)] = amount
        changeable = max(table.total - table.fixed, 1e-30)
        self.killers = self.killers.to(theta)
        self.shares = torch.tensor([share / changeable for share, _ in table.shares]).to(theta)
        self.added = (added / changeable).to(theta)
        limit = self.config.cost_target * table.total if limit is None else limit
        self.free_of_charge = max(limit - table.fixed, 0.0) / changeable

    def __call__(self) -> Tensor:
        """The loss of theta as it is now, 0-dim."""
        gates = self.relaxed.architecture.open_gates()
        zero_one = ((gates - 0.5) ** 2 * self.free).sum()
        charged = (self.expected_cost() - self.free_of_charge).clamp(min=0)
        return self.config.cost_weight * charged - self.config.zero_one_weight * zero_one

    def expected_cost(self) -> Tensor:
        """The expected share of the changeable cost that is kept, 0-dim; from 0 to 1, or more with reductions."""
        scores = self.relaxed.worths()
        scores = torch.where(self.none, none_threshold(self.relaxed), scores)
        scores = torch.where(self.null, self.config.skip_threshold, scores)
        chances = (scores / self.TEMPERATURE).masked_fill(self.illegal, -torch.inf).softmax(1)
        kept = (1 - (self.killers * chances).sum(2)).prod(1)
        return (self.shares * kept).sum() + (self.added * chances).sum()


class Interrupted(DnatError):
    """A run was asked to stop and has saved where it stands."""

    exit_code = 75


class Trainer:
    """The steps of a training: one network, its optimizers, and where it stands. Knows of no files.

    Attributes:
        network: a `RelaxedNetwork` in the architecture stage, a plain network in the network stage.
        optimizer: SGD for the weights.
        theta: the optimizer of theta; None in the network stage.
        progress: where the run stands.
        architecture_loss: what theta pays for; without a limit by default.
        teacher: what is learned from beside the labels; None where there is nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        config: Config,
        progress: Progress,
        architecture_loss: ArchitectureLoss | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.network, self.data, self.config, self.progress = network, data, config, progress
        self.relaxed = network if isinstance(network, RelaxedNetwork) else None
        self.weights = self.relaxed.network if self.relaxed else network
        self.optimizer = weight_optimizer(self.weights, config)
        self.batches = batches_per_epoch(len(data.train_labels), config)
        self.theta = theta_optimizer(self.relaxed, config, self.batches) if self.relaxed else None
        self.architecture_loss = architecture_loss
        self.teacher = Teacher(teacher, self.weights, config) if teacher else None
        if self.relaxed and architecture_loss is None:
            self.architecture_loss = ArchitectureLoss(self.relaxed, config)
        self.steps = self.batches * config.epochs
        # What other operations learn must not shorten the network's own steps.
        added = {id(p) for p in self.relaxed.added_parameters()} if self.relaxed else set()
        own = [p for p in self.weights.parameters() if id(p) not in added]
        self._clipped = [p for p in (own, [p for p in self.weights.parameters() if id(p) in added]) if p]
        self.lesson: Tensor | None = None
        self.device = data.train_labels.device
        self.channels_last = images_last(self.network, config, self.device)
        if config.channels_last and not self.channels_last:
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.world = world()
        # Apple's GPUs have no double precision.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        progress.totals = progress.totals.to(self.device, self.wide)

    @property
    def stage(self) -> str:
        """ "architecture" or "network"."""
        return "architecture" if self.relaxed else "network"

    def epoch(self) -> Iterator[Progress]:
        """Train to the end of the present epoch, from where it stands; yields after each batch.

        Raises:
            NonFiniteError: the loss is not finite any more.
        """
        progress, config = self.progress, self.config
        in_training(self.network)
        set_drop_path(self.network, drop_path(config, self.stage, progress.epoch))
        batches = self.data.train_batches(
            config.seed,
            progress.epoch,
            config.batch_size,
            start=progress.batch,
            cutout=cutout_side(config, self.weights, self.data),
            part=(self.world.rank, self.world.size),
        )
        with closing(batches):
            while progress.batch < self.batches:
                images, labels = next(batches)
                rate = learning_rate(config, progress.step, self.steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.step(images, labels)
                progress.batch += 1
                progress.step += 1
                if progress.batch % CHECK_EVERY == 0 or progress.batch == self.batches:
                    self._check_loss()
                yield progress

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One mini-batch: the weights, then, in the architecture stage, theta.

        Args:
            images: (N, C, H, W); of several processes each gives its own.
            labels: (N,) class numbers.
        """
        images = images if self.channels_last else images.contiguous()
        share = self._share(labels)
        settling = self.settle(self.progress.step + 1)
        if self.relaxed and self.config.paths == "two":
            self.relaxed.sample(self.config.seed, self.progress.step)
        single = self.relaxed is not None and self.config.single_pass and not settling
        lesson = self.teacher.lesson(images) if self.teacher else None
        thetas = list(self.relaxed.thetas()) if self.relaxed else []
        with frozen([] if single else thetas):
            loss, correct = self._loss(images, labels, lesson)
            total = loss
            if self.lesson is not None:
                total, self.lesson = total + self.lesson, None
            total = total * share
            if single and self.architecture_loss:
                total = total + self.architecture_loss() / self.world.size
            self.optimizer.zero_grad(set_to_none=True)
            if self.theta:
                self.theta.zero_grad(set_to_none=True)
            total.backward()
        sum_gradients([p for p in self.weights.parameters() if p.requires_grad] + (thetas if single else []))
        if self.config.grad_clip:
            for parameters in self._clipped:
                nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            n = labels.new_tensor(len(labels)).to(self.wide)
            self.progress.totals += summed(
                torch.stack([loss.detach().to(self.wide) * n, correct.to(self.wide), n])
            )
        if self.theta and not settling:
            if not single:
                self._theta_gradient(images, labels, lesson, share)
            self.theta.step()
        if self.relaxed:
            self.relaxed.architecture.confine()
            self.relaxed.sample_all()

    def settle(self, step: int) -> bool:
        """Put the gates where they are at a step, if they settle; says whether they do."""
        if self.relaxed is None or not self.relaxed.is_settling:
            return False
        first, last = theta_steps(self.config, self.batches), self.batches * self.config.architecture_epochs
        self.relaxed.settle_to(min(max(step - first, 0) / max(last - first, 1), 1.0))
        return True

    def _share(self, labels: Tensor) -> Tensor | float:
        """The share of the batch's images that this process has."""
        if self.world.size == 1:
            return 1.0
        mine = labels.new_tensor(len(labels)).to(self.wide)
        return mine / summed(mine)

    def _theta_gradient(
        self, images: Tensor, labels: Tensor, lesson: Lesson | None, share: Tensor | float = 1.0
    ) -> None:
        assert self.architecture_loss is not None
        assert self.relaxed is not None
        if any(edge.reentrant for edge in self.relaxed.edges):
            images = (
                images.detach().requires_grad_()
            )  # or nothing that goes into a checkpoint would need gradients
        with frozen(self.weights.parameters()), frozen_statistics(self.weights):
            loss, _ = self._loss(images, labels, lesson)
            # What theta pays for is the same in all processes, whose gradients are summed.
            (loss * share + self.architecture_loss() / self.world.size).backward()
        sum_gradients(self.relaxed.thetas())

    def _loss(self, images: Tensor, labels: Tensor, lesson: Lesson | None) -> tuple[Tensor, Tensor]:
        """Mean loss and the number of right answers.

        Auxiliary heads add their cross entropy, weighed by `config.auxiliary` (DARTS, GoogLeNet).
        With a teacher it is the loss of `dnat.distillation`; theta learns from its answers alone.
        """
        together = SyncedNorms() if self.world.size > 1 else nullcontext()
        precise, named = autocast(self.config, images.device), in_forward(self.weights, images)
        hints = watched(self.weights, self._hints(lesson))
        with precise, together, named, self._taught() as distances, hints as given:
            found = self.network(images)
        output = wide(scores(found))
        loss = cross_entropy(output, labels)
        if distances:
            every = torch.stack([d for found in distances.values() for d in found])
            # Summed: each operation has a task of its own. A broken one must not break the loss.
            self.lesson = self.config.matching * torch.where(every.isfinite(), every, 0.0).sum()
            assert self.relaxed
            self.relaxed.architecture.learned(_shared(distances))
        for other in auxiliary_scores(found) if self.config.auxiliary else ():
            loss = loss + self.config.auxiliary * cross_entropy(wide(other), labels)
        if lesson and self.teacher:
            loss = self.teacher.loss(loss, output, lesson, given)
        return loss, (output.detach().argmax(1) == labels).sum()

    def _hints(self, lesson: Lesson | None) -> tuple[str, ...]:
        """The layers of which the teacher told what they are given; none in theta's step."""
        return tuple(lesson.given) if lesson and self._learns else ()

    @property
    def _learns(self) -> bool:
        """Whether this is the weights' step, and not theta's."""
        return any(p.requires_grad for p in self.weights.parameters())

    def _taught(self) -> AbstractContextManager[dict[tuple[int, int], list[Tensor]]]:
        """While choices are open: other operations learn what the originals compute."""
        relaxed = self.relaxed
        if relaxed is None or not self._learns or relaxed.is_settling:
            return nullcontext({})
        return relaxed.taught()

    def _check_loss(self) -> None:
        if not math.isfinite(self.progress.totals[0].item()):
            self.fail("the loss is not finite any more")

    def fail(self, what: str) -> NoReturn:
        """Give up, saying where and what to try."""
        where = f"epoch {self.progress.epoch + 1}, at most {CHECK_EVERY} batches before {self.progress.batch}"
        raise NonFiniteError(
            f"{what} ({where}): lower lr ({self.config.lr:g}) or the rate of theta "
            f"({theta_rate(self.config, self.batches):g}), or look for "
            "broken images or labels; the last checkpoint is good"
        )

    def close_epoch(self) -> Evaluation:
        """Count the epoch as done; returns its mean training loss and accuracy."""
        loss, correct, images = self.progress.totals.tolist()
        self.progress.epoch += 1
        self.progress.batch = 0
        self.progress.totals.zero_()
        return Evaluation(loss / images, correct / images)


def _shared(distances: dict[tuple[int, int], list[Tensor]]) -> dict[tuple[int, int], list[Tensor]]:
    """Distances of other operations, as the mean over all processes."""
    if world().size == 1:
        return distances
    means = summed(torch.stack([torch.stack(found).mean() for found in distances.values()]).detach())
    return {place: [mean] for place, mean in zip(distances, means / world().size, strict=True)}


@dataclass(frozen=True)
class Burden:
    """What a step of the architecture stage takes, as multiples of a step of the plain network.

    Attributes:
        time: as measured here, on a few images.
        memory: what its forward passes keep for the backward pass, the larger of the two; each tensor counts once,
            and no weights.
    """

    time: float
    memory: float

    def __str__(self) -> str:
        return (
            f"a step of the architecture stage takes {self.time:.1f} times as long as one of the plain network, "
            f"and keeps {self.memory:.1f} times as much in memory"
        )


def burden(plain: nn.Module, relaxed: RelaxedNetwork, data: Data, config: Config) -> Burden:
    """Measure what a step of the architecture stage takes; both networks are left as they are.

    The first of up to 16 images, the same for both; of three steps the fastest counts.
    """
    batch = data.train_batches(config.seed, 0, config.batch_size, cutout=cutout_side(config, plain, data))
    with closing(batch):
        images, labels = (t[:16] for t in next(batch))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    seconds, kept = [], []
    for network in (plain, relaxed):
        twin = in_training(copied(network))
        trainer = Trainer(twin, data, config, Progress())
        taken = []
        with torch.random.fork_rng(devices=list(devices)):
            for _ in range(4):  # the first one to warm up
                with _Kept(twin) as memory:
                    begun = time.perf_counter()
                    trainer.step(images, labels)
                    float(trainer.progress.totals[0])  # waits for the device
                    taken.append(time.perf_counter() - begun)
        seconds.append(min(taken[1:]))
        kept.append(memory.most)
    return Burden(seconds[1] / seconds[0], kept[1] / max(kept[0], 1))


class _Kept:
    """Within, counts the bytes that forward passes keep; `most` is the largest of them."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.found: dict[int, int] = {}
        self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return x

    def _unpack(self, x: Tensor) -> Tensor:
        if self.found:  # the backward pass has begun
            self.most = max(self.most, sum(self.found.values()))
            self.found = {}
        return x

    def __enter__(self) -> "_Kept":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


@torch.no_grad()
def effects(relaxed: RelaxedNetwork, data: Data, config: Config, epoch: int) -> list[list[float]]:
    """What each choice of each group would do to the loss if it alone were made now, by trying it.

    The mean cross entropy with the group's gates as they are, less that with the choice in force, on the first
    `config.trial_batches` batches of an epoch of training images; norms use the batch's statistics. (Wang et al.
    2021, DARTS-PT, choose operations by what their removal does to the accuracy.)

    Returns:
        A row for each group in the order of theta's columns; 0 for what a group cannot become.
    """
    side = cutout_side(config, relaxed.network, data)
    batches = data.train_batches(config.seed, epoch, config.batch_size, cutout=side)
    with closing(batches):
        shown = [
            next(batches)
            for _ in range(min(config.trial_batches, batches_per_epoch(len(data.train_labels), config)))
        ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()

    def loss() -> float:
        total = torch.zeros((), dtype=torch.float64)
        # The same draws for all (dropout), and none missing from the run's own.
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(torch_seed(config.seed, Stream.TRAINING, "effects", epoch))
            for images, labels in shown:
                with autocast(config, images.device):
                    output = scores(relaxed(images if config.channels_last else images.contiguous()))
                total += cross_entropy(wide(output), labels).double().cpu()
        return float(total) / len(shown)

    found = []
    with in_mode(relaxed, True), frozen_statistics(relaxed):
        now = loss()
        if not math.isfinite(now):
            raise NonFiniteError("the loss is not finite any more: lower lr or the rate of theta")
        for group in relaxed.groups:
            tried = dict.fromkeys(relaxed.columns, 0.0)
            for choice in relaxed.choices_of(group):
                with relaxed.trying(group, choice):
                    worth = now - loss()
                tried[choice] = worth if math.isfinite(worth) else -BEYOND
            found.append(list(tried.values()))
    return found


def evaluate(
    network: nn.Module,
    data: Data,
    config: Config | None = None,
    batch_size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Evaluation:
    """Mean loss and accuracy on the test images, in batches of 500, or fewer if they are larger than 64 x 64.

    Runs in eval mode without gradients; afterwards every module is in the mode in which it was, and no buffer has
    changed.

    Args:
        network: whose outputs are class scores.
        data: with the test images.
        config: for its precision.
        batch_size: images a batch.
        classes: names of the network's outputs, in order (of the data that it was trained on: `Data.classes`). The
            images' classes are found among them by name; by default they are the first outputs, in their order.

    Raises:
        ValueError: a network without weights, in another precision than images, or with too few outputs.
        DataError: classes that are not among those of the network.
        TypeError: arguments of another type.
    """
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    if not isinstance(data, Data):
        raise WrongTypeError(f"data must be a dnat.Data, not {type(data).__name__}: see dnat.load")
    check_usable(network, data)
    data = data if classes is None else data.numbered(classes)
    batch_size = batch_size or usual_batch(data.image_size)
    here = world()
    batches = data.test_batches(batch_size, part=(here.rank, here.size))
    with in_mode(network, False), kept_buffers(network.modules()), torch.inference_mode():
        return measured(network, batches, config or Config(), together=True)


def usual_batch(size: tuple[int, int]) -> int:
    """How many images of a height and width are tested at a time: 500, or fewer of more than 64 x 64 pixels."""
    return max(1, min(500, 500 * 64**2 // (size[0] * size[1])))


def measured(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: Config, together: bool = False
) -> Evaluation:
    """Mean loss and accuracy on batches of images and labels, in the mode in which the network is.

    With `together` the batches of all processes count, each of which has its own.
    """
    loss, correct, images = 0.0, 0, 0
    for batch, labels in batches:
        with autocast(config, batch.device), in_forward(network, batch):
            output = scores(network(batch)).float()
        if int(labels.max()) >= output.shape[1]:
            raise UsageError(
                f"the network tells {output.shape[1]} classes apart, but there is a label {int(labels.max())}"
            )
        loss += cross_entropy(output, labels, reduction="sum").double().item()
        correct += int((output.argmax(1) == labels).sum())
        images += len(labels)
    if together:
        loss, correct, images = summed(torch.tensor([loss, correct, images], dtype=torch.float64)).tolist()
    return Evaluation(loss / images, correct / images)


def is_dead(network: nn.Module, data: Data, images: int = 64) -> bool:
    """Whether a network gives every image the same answer, so that it cannot be better than chance.

    That is what a network does in which nothing leads from the images to the scores: of NAT's published runs,
    those with 10 % accuracy on CIFAR-10 (docs/methods.md C4). Scores of the first test images are compared, to
    the rounding of their type.
    """
    with in_mode(network, False), torch.inference_mode():
        found = scores(network(data.example(images))).float()
    largest = float(found.abs().max())
    return len(found) > 1 and float((found - found[0]).abs().max()) <= 1e-6 * largest
