"""Transform a network while Hugging Face's Trainer trains it: `pip install 'dnat[huggingface]'`.

    arch = dnat.attach(model.train(), example, steps=500, budget=0.7)
    trainer = Trainer(model=arch, args=arguments, train_dataset=data, callbacks=[Transform(arch)])
    trainer.train()
    compact = arch.compact

The arguments need `remove_unused_columns=False`, since the Trainer cannot tell which columns `arch` takes.
"""

from typing import Any

from torch import nn

from ..attachment import Architecture
from ..errors import UsageError
from ..networks import mend_torchvision

mend_torchvision()
try:
    from transformers import TrainerCallback
except ImportError as error:
    raise UsageError(
        f"dnat.integrations.huggingface needs transformers: pip install 'dnat[huggingface]' ({error})"
    ) from error


class Transform(TrainerCallback):
    """Theta's step after each of the Trainer's, on the same batch; when the steps are done, the plain network.

    The network's outputs must have a `loss`, as those of transformers have when they are given labels.

    Args:
        architecture: from `dnat.attach`; the Trainer's model.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self._inputs: dict[str, Any] = {}
        architecture.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            self._inputs = kwargs

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Theta's step, and at the end the plain network."""
        arch, inputs = self.architecture, self._inputs
        if arch.compact is None:
            arch.step(lambda network: network(**inputs).loss)
        if arch.compact is None and not arch.steps_left:
            optimizer = others["optimizer"]
            arch.finish(getattr(optimizer, "optimizer", optimizer))
