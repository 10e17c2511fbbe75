"""Where the modules and tensors of a recorded network stand, and how each module is to be written."""

from collections.abc import Iterable

from torch import Tensor, nn

from ..tracing.literals import text
from ..tracing.steps import Body, unified
from .classes import designs
from .construction import is_leaf, is_sequence
from .expressions import is_identifier
from .recording import Recording


class Structure:
    """The modules of a recorded network.

    Args:
        network: the network that was recorded.
        recording: what it does.

    Attributes:
        paths: {module: its first path}.
        first: {id of a tensor: its first path}.
        kinds: {module: "leaf", a container of torch's, "class" with a forward, or "parts"}.
        designs: how each module of the kind "class" is written.
    """

    def __init__(self, network: nn.Module, recording: Recording) -> None:
        self.network, self.recording = network, recording
        self.paths: dict[nn.Module, str] = {m: p for p, m in network.named_modules()}
        self.first: dict[int, str] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            for name in self.own(module):
                self.first.setdefault(id(getattr(module, name)), f"{path}.{name}".lstrip("."))
        self.kinds = {m: self._kind(m) for m in self.paths}
        self.designs = designs({m: self._bodies(m) for m, kind in self.kinds.items() if kind == "class"}, network)

    def _kind(self, module: nn.Module) -> str:
        if module is not self.network and is_leaf(module):
            return "leaf"
        if is_sequence(module):
            return "Sequential"
        if self.paths[module] in self.recording.bodies:
            return "class"
        containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
        return next((cls.__name__ for cls in containers if isinstance(module, cls)), "parts")

    def _bodies(self, module: nn.Module) -> tuple[Body, ...]:
        """One body, or that of train and that of eval mode."""
        train, evaluation = self.recording.bodies[self.paths[module]]
        if train is None or evaluation is None:
            return tuple(b for b in (train, evaluation) if b is not None)
        one = unified(train, evaluation)
        return (one,) if one else (train, evaluation)

    def own(self, module: nn.Module) -> list[str]:
        """Names of the tensors that are direct attributes of a module."""
        constants = [p for p in sorted(self.recording.constants) if holder(self.network, p) is module]
        held = {**module._parameters, **module._buffers}
        return [*(n for n, t in held.items() if t is not None), *(p.rpartition(".")[2] for p in constants)]

    def locate(self, path: str, root: nn.Module) -> str:
        """Source for what stands at a path in a module, seen from its forward."""
        source, place = "self", root
        for part in path.split(".") if path else ():
            kind = self.kinds[place]
            if kind in ("ModuleList", "ParameterList") or (kind == "Sequential" and is_counted(place._modules)):
                source += f"[{part}]"
            elif kind in ("ModuleDict", "ParameterDict"):
                source += f"[{text(part)}]"
            else:
                source = f"{source}.{part}" if is_identifier(part) else f"getattr({source}, {text(part)})"
            place = place._modules.get(part, place)  # type: ignore[assignment]
        return source


def is_counted(names: Iterable[str]) -> bool:
    """Whether names are 0, 1, 2 and so on."""
    return all(name == str(i) for i, name in enumerate(names))


def holder(network: nn.Module, path: str) -> nn.Module:
    """The module that holds the tensor at a path."""
    return network.get_submodule(path.rpartition(".")[0])


def constants(network: nn.Module, recording: Recording) -> dict[str, Tensor]:
    """Tensors that a network needs and its state dict leaves out."""
    state = network.state_dict().keys()
    buffers = {n: b for n, b in network.named_buffers(remove_duplicate=False) if n not in state}
    return buffers | {p: getattr(holder(network, p), p.rpartition(".")[2]) for p in sorted(recording.constants)}
