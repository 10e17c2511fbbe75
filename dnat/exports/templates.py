"""What every written file may hold, as text: the classes and functions that are the same for all networks."""

PARTS = '''\
class Parts(nn.Module):
    """Holds modules, parameters and buffers under the names that it is given."""

    def __init__(self, /, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
'''

STOCHASTIC_DEPTH = '''\
class StochasticDepth(nn.Module):
    """In train mode drops its input with probability p: of each image ("row") or of the whole batch ("batch")."""

    def __init__(self, p, mode, scale=True):
        super().__init__()
        self.p, self.mode, self.scale = p, mode, scale

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        kept = 1 - self.p
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.ndim - 1)
        noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(kept)
        if self.scale and kept > 0:
            noise.div_(kept)
        return x * noise
'''

EXPECT = '''\
def expect(holds, what="size"):
    """Refuses inputs for which the network's own code would have gone another way."""
    if not holds:
        raise ValueError(f"this file was made for inputs of another {what}")
'''

OUTPUT = '''\
class Output(OrderedDict):
    """What a network gives: by name, as an attribute, or by place."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self):
        return tuple(self.values())
'''

LOADING = '''\
def read(path):
    """The tensors of a safetensors file by name: 8 bytes of length, a JSON header, then all bytes."""
    # Read by hand, so that this file needs torch only, and no pickle.
    types = {TYPES}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = bytearray(file.read())
    same = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = types[entry["dtype"]]
        flat = torch.frombuffer(content[begin:end], dtype=kind) if end > begin else torch.empty(0, dtype=kind)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors | {name: tensors[other] for name, other in same.items() if other in tensors}


def load(path=None):
    """The network with its weights, in eval mode; they are read from beside this file if no path is given."""
    network = NETWORK()
    beside = os.path.splitext(os.path.abspath(__file__))[0]
    network.load_state_dict(read(path or f"{beside}.safetensors"))
    return network.eval()
'''

CONSTANTS = """\
    # Tensors that the network needs and its state dict leaves out.
    buffers = dict(network.named_buffers(remove_duplicate=False))
    for name, constant in read(f"{beside}.constants.safetensors").items():
        buffers[name].copy_(constant)
"""
