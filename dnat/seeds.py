"""Independent random streams, all derived from a run's one seed.

The same seed gives every method the same initial weights, the same order of images and the same
augmentation, so that methods can be compared pairwise. Streams are derived without state
(`SeedSequence(seed, spawn_key=...)`): asking twice gives the same stream, asking in another order
changes nothing, and streams of different seeds do not collide as `seed + k` would.

numpy and torch are imported where they are used: settings, seeds among them, are checked without waiting for them.
"""

import zlib
from enum import IntEnum
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch


class Stream(IntEnum):
    """What a stream is drawn for. The numbers are part of every run's identity: never renumber."""

    WEIGHTS = 0
    """Initial weights of the network."""
    ORDER = 1
    """Order of the training images, one stream an epoch."""
    AUGMENTATION = 2
    """Crops, flips and cutouts, one stream an epoch."""
    TRAINING = 3
    """Randomness inside the network while it trains (dropout)."""
    CANDIDATES = 4
    """Initial weights of operations that the relaxation adds to an edge."""
    POLICY = 5
    """Decisions of a policy learner."""
    PROBE = 6
    """What choices are worth where it is looked whether the best set within a budget can be found."""


def check_seed(seed: object) -> int:
    """The seed, if it is one: an integer from 0 to 2**32 - 1.

    Raises:
        ValueError: for anything else (torch would take -1, 1.5 and True, each in its own way).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        given = f"one of {seed.bit_length()} bits" if isinstance(seed, int) and abs(seed) >= 2**64 else repr(seed)
        raise UsageError(f"seed must be an integer from 0 to {2**32 - 1}, not {given}")
    return seed


def sequence(seed: int, stream: Stream, *keys: int | str) -> "np.random.SeedSequence":
    """The seed sequence of one stream; `keys` (an epoch, a name) select a part of the stream."""
    import numpy as np

    numbers = (zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys)
    return np.random.SeedSequence(check_seed(seed), spawn_key=(int(stream), *numbers))


def numpy_generator(seed: int, stream: Stream, *keys: int | str) -> "np.random.Generator":
    """A NumPy generator (Philox, counter-based) for one stream.

    >>> a, b = (numpy_generator(1, Stream.ORDER, 0).permutation(5).tolist() for _ in range(2))
    >>> a == b
    True
    """
    import numpy as np

    return np.random.Generator(np.random.Philox(sequence(seed, stream, *keys)))


def torch_seed(seed: int, stream: Stream, *keys: int | str) -> int:
    """An integer for `torch.manual_seed` that is derived from one stream."""
    import numpy as np

    return int(sequence(seed, stream, *keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, stream: Stream, *keys: int | str) -> "torch.Generator":
    """A torch CPU generator for one stream."""
    import torch

    return torch.Generator().manual_seed(torch_seed(seed, stream, *keys))
