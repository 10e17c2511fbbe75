"""Where a run stands between two steps: all that a checkpoint holds, and how a run goes on from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .attachment import Architecture
from .checkpoints import Checkpoints
from .data import Source
from .distributed import from_first, gathered, world
from .errors import UsageError
from .loop import FORMAT, check_format, random_state, set_random_state
from .networks.weights import state_of
from .optimizers import load_states, states_of
from .results import Commitment
from .session import Session
from .training import Trainer


@dataclass
class RunState:
    """A run between two steps.

    Attributes:
        trainer: of its present stage.
        architecture: theta's part, in the architecture stage.
        commitment: the choices, once they are made.
    """

    trainer: Trainer
    architecture: Architecture | None = None
    commitment: Commitment | None = None

    def checkpoint(self, session: Session) -> dict[str, Any]:
        """All of it, as a checkpoint holds it; in all processes together.

        Raises:
            NonFiniteError: a weight, or what an optimizer remembers of one, is not finite any more.
        """
        trainer, architecture = self.trainer, self.architecture
        progress, own = trainer.progress, random_state()
        state: dict[str, Any] = {
            "format": FORMAT,
            **identity_of(session),
            "progress": {**asdict(replace(progress, totals=torch.zeros(0))), "totals": progress.totals.cpu()},
            "commitment": self.commitment.table() if self.commitment else None,
            "network": state_of(trainer.network),
            "optimizer": _on_cpu(states_of(trainer.optimizer, trainer.weights)),
            "ema": trainer.ema.state_dict() if trainer.ema else None,
            "architecture": architecture.get_extra_state() if architecture else None,
            "random": gathered(own),
        }
        remembered = {f"{n} ({k})": v for n, s in state["optimizer"].items() for k, v in s.items()}
        for name, tensor in (state["network"] | remembered).items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                trainer.fail(f"{name} is not finite any more")
        return state

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same stage of the same run."""
        trainer, architecture, progress = self.trainer, self.architecture, self.trainer.progress
        trainer.network.load_state_dict(checkpoint["network"])
        load_states(trainer.optimizer, trainer.weights, checkpoint["optimizer"])
        if trainer.ema:
            trainer.ema.load_state_dict(checkpoint["ema"])
        for name, value in checkpoint["progress"].items():
            setattr(progress, name, value)
        progress.totals = progress.totals.to(trainer.device, trainer.wide)
        if architecture:
            architecture.set_extra_state(checkpoint["architecture"])
            architecture.settle_again()
        here = world()
        if here.rank < len(checkpoint["random"]):  # else of a run of fewer processes: this one draws anew
            set_random_state(checkpoint["random"][here.rank])


def newest(records: Checkpoints | None, session: Session) -> Mapping[str, Any] | None:
    """The newest checkpoint of a run directory; None at the beginning.

    Raises:
        ValueError: it is of another network, other weights, or of an older dnat.
        DataError: it is of other images, and they are not to be taken.
    """
    held = from_first(lambda: records.newest() if records else None)
    if held is None:
        return None
    checkpoint: Mapping[str, Any] = held[1]
    here = identity_of(session)
    check_format(checkpoint)
    if checkpoint["fingerprint"] != here["fingerprint"]:
        raise UsageError("the run directory holds a run of another network; choose another directory")
    if checkpoint["given"] != here["given"]:
        raise UsageError("the run directory holds a run that began with other weights; choose another directory")
    if checkpoint["data"] != here["data"] or has_other_images(checkpoint, session.data):
        text = (
            "the run directory holds a run on other images (pixels, classes, labels or sizes differ); point "
            "--data-root to those that it began with, or choose another directory"
        )
        from_first(lambda: records.differs(text) if records else None)
    return checkpoint


def identity_of(session: Session) -> dict[str, str]:
    """What a checkpoint is of."""
    return {
        "fingerprint": session.program.fingerprint,
        "given": session.digest,
        "data": session.data.identity(),
        "images": session.data.content(),
    }


def has_other_images(checkpoint: Mapping[str, Any], data: Source) -> bool:
    """Whether a checkpoint is of other images, as far as that can be told without reading files again."""
    here, there = data.content(), checkpoint["images"]
    return there != here and there.partition(" ")[0] == here.partition(" ")[0]


def _on_cpu(states: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value.cpu() if isinstance(value, Tensor) else value for key, value in state.items()}
        for name, state in states.items()
    }
