"""Data and networks by the names that a job has for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Augmentation, Data, Source, from_loaders, load
from ...errors import UsageError, users_code
from ...naming import imported
from ...networks import accepts, build, check_mode, definition, fitting, load_weights, usual_size
from ...settings import SEARCHING, Job
from ..baselines import Family, family_of


def load_data(job: Job, *, download: bool = False, notify: Callable[[str], None] = lambda text: None) -> Source:
    """The data set that a job names, or what a function of the user's gives.

    Args:
        job: with the data set's name.
        download: fetch the data set if it is missing.
        notify: is given what is worth knowing of the data (an incomplete set, a split that was made).
    """
    if ":" in job.data:
        return _made(job)
    data = load(
        job.data,
        job.data_root,
        image_size=job.image_size,
        train_limit=job.train_limit,
        test_limit=job.test_limit,
        download=download,
        streaming=job.config.machine.streaming,
        workers=job.config.machine.workers,
        skip_broken=bool(job.skip_broken),
        augmentation=_augmentation(job),
    )
    for note in data.notes:
        notify(note)
    return data


def _made(job: Job) -> Source:
    """What a function of the user's gives: data, or (train, test[, validation]) for `from_loaders`."""
    given = imported("data", job.data)
    with users_code(f"data {job.data!r} cannot be made"):
        data = given() if callable(given) else given
    if isinstance(data, tuple) and len(data) in (2, 3):
        data = from_loaders(*data[:2], validation=data[2] if len(data) == 3 else None, name=job.data)
    if not isinstance(data, Source):
        kind = type(data).__name__
        raise UsageError(f"data {job.data!r} must give a dnat.Data, or (train, test) for from_loaders, not {kind}")
    return data


def network_for(job: Job, data: Source, **options: Any) -> nn.Module:
    """The network that a job names, for its data; see `build_network`."""
    if isinstance(data, Data):
        shape = (data.channels, *data.image_size)
        return build_network(job, data.num_classes, shape, names=data.classes, **options)
    if job.weights is not None:
        raise UsageError(f"weights are loaded for images by name; let {job.network} load its own")
    return build(job.network, seed=job.config.seed, **job.network_options)


def _augmentation(job: Job) -> Augmentation | None:
    """What a job asks for where it is not the data set's own way."""
    if job.crop == "resized":
        return Augmentation(resized=True)
    if job.crop == "padded" and job.data == "imagenet":  # all others are cropped so in any case
        return Augmentation(pad=(job.image_size or 224) // 8)
    return None


def build_network(
    job: Job,
    classes: int,
    image_shape: tuple[int, ...],
    *,
    names: Sequence[str] | None = None,
    download: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """The network that a job names, for its data, with initial weights from its seed or trained ones.

    Args:
        job: with the network's name and options.
        classes: classes to tell apart.
        image_shape: (C, H, W) of the images.
        names: of the classes, for trained weights that were made for others.
        download: whether trained weights may be fetched.
        notify: is given what the user should know.

    Raises:
        ValueError: an unknown network or option, a mode that it does not have, weights that do not fit.
    """
    known = definition(job.network)
    check_mode(job.network, job.config.relaxation.mode)
    options = _options(job, classes, image_shape) | job.network_options
    network = build(job.network, seed=job.config.seed, **options)
    if job.weights is not None:
        name = f"torchvision:{known.torchvision}" if known and known.torchvision else job.network
        for note in load_weights(network, job.weights, name, download=download, classes=names):
            notify(note)
    return network


def family(job: Job, classes: int, image_shape: tuple[int, ...]) -> Family:
    """How a job's network is made with fewer channels, from its seed.

    Raises:
        ValueError: its constructor has no argument for that.
    """

    def made(**widths: Any) -> nn.Module:
        return build_network(narrower(job, widths), classes, image_shape)

    return family_of(job.network, job.network_options, made)


def narrower(job: Job, widths: Mapping[str, Any]) -> Job:
    """The job for a network with fresh weights and other options."""
    return job.but(weights=None, network_options={**job.network_options, **widths})


def _options(job: Job, classes: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of a network's constructor that follow from the data and the method's settings."""
    channels, size = image_shape[0], min(image_shape[1:])
    wanted: dict[str, Any] = {}
    known = definition(job.network)
    if known is not None:
        # Twice as large images are brought to the usual size by the stem (docs/methods.md C4).
        stride = 2 if known.image_size == 32 and size >= 64 else 1
        if stride > 1:
            wanted["stem_stride"] = stride
        # NAT connects null edges: its genotypes have them, and so have the networks that it transforms.
        wanted["skips"] = job.config.relaxation.skips or job.method in SEARCHING
        if job.config.training.drop_path:
            wanted["drop_path"] = job.config.training.drop_path
        # The head's pools need as many pixels as small images have.
        if job.config.training.auxiliary and size // stride >= 32:
            wanted["auxiliary"] = True
    found = {name: value for name, value in wanted.items() if accepts(job.network, name)}
    return fitting(job.network, classes, channels) | found


def network_and_images(job: Job, *, with_data: bool) -> tuple[nn.Module, Tensor]:
    """The network of a job, and two images for it.

    Args:
        job: with the network's name and options.
        with_data: whether images, their size and the number of classes are those of the job's data set. Without,
            the images are black, of the size and for the number of classes that the network is meant for.
    """
    if with_data:
        data = load_data(job)
        return network_for(job, data), data.example(2)
    size = job.image_size or usual_size(job.network)
    return build(job.network, seed=0, **job.network_options), torch.zeros(2, 3, size, size)
