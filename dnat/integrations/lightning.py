"""Transform a network while Lightning trains it: `pip install 'dnat[lightning]'`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..attachment import Architecture, attach
from ..errors import UsageError
from ..networks import mend_torchvision

mend_torchvision()
try:
    import lightning.pytorch as lightning
except ImportError as error:
    raise UsageError(
        f"dnat.integrations.lightning needs Lightning: pip install 'dnat[lightning]' ({error})"
    ) from error


class Transform(lightning.Callback):
    """Puts theta on one network of a `LightningModule` before its optimizers are made, and takes it away again.

    The module's own `training_step` is the loss of theta's step, too; what it logs there is not logged twice. When
    the steps are done, the attribute holds the plain network, and the optimizer goes on with it. Checkpoints of
    Lightning's, written before that, hold all that is theta's; one written afterwards is the plain network's.

    Args:
        attribute: the name under which the module holds the network.
        example: inputs for the network; see `dnat.trace`.
        steps: optimizer steps of the architecture stage.
        budget, settings: see `dnat.attach`.

    Attributes:
        architecture: theta's part, once the fit has begun.
    """

    def __init__(
        self, attribute: str, example: Any, *, steps: int, budget: str | float | None = None, **settings: Any
    ) -> None:
        self.attribute, self.example = attribute, example
        self.settings = {"steps": steps, "budget": budget, **settings}
        self.architecture: Architecture | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Relax the network; Lightning makes the optimizers after this."""
        if stage == "fit" and self.architecture is None:
            network = getattr(pl_module, self.attribute, None)
            if not isinstance(network, nn.Module):
                raise UsageError(f"{type(pl_module).__name__} has no network named {self.attribute!r}")
            self.architecture = attach(network.train(), self.example, **self.settings)
            setattr(pl_module, self.attribute, self.architecture)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Theta's step, when the optimizer has taken its own; at the end the plain network."""
        arch = self.architecture
        accumulated = trainer.fit_loop.epoch_loop._should_accumulate()
        if arch is None or arch.compact is not None or accumulated:
            return
        with _silent(pl_module):
            arch.step(lambda network: _loss(pl_module.training_step(batch, batch_idx)))
        if not arch.steps_left:
            if len(trainer.optimizers) != 1:
                raise UsageError(f"dnat carries one optimizer on, and the module has {len(trainer.optimizers)}")
            setattr(pl_module, self.attribute, arch.finish(trainer.optimizers[0]))


def _loss(outputs: Any) -> Tensor:
    loss: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs
    return loss


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    """Within, a module logs nothing."""
    nothing: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    object.__setattr__(module, "log", nothing)
    object.__setattr__(module, "log_dict", nothing)
    try:
        yield
    finally:
        object.__delattr__(module, "log")
        object.__delattr__(module, "log_dict")
