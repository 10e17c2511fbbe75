import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import warnings

import numpy as np
import pytest
import torch

from dnat.data import Augmentation, Data, DataError, cifar, describe, load, names
from dnat.networks import import_torchvision


def random_data(n=20, size=8, pad=2, flip=True, classes=4):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    y = torch.arange(n) % classes
    return Data.from_tensors("random", (x, y), (x[:8], y[:8]), augmentation=Augmentation(pad, flip))


def augmented_by_hand(data, position, u, cutout):
    """One image at a time: pad with black, cut out, flip, normalize, blank a square."""
    pad, (height, width) = data.augmentation.pad, data.image_size
    image = np.pad(data.train_images[position].numpy(), ((pad, pad), (pad, pad), (0, 0)))
    top, left = int(u[0] * (2 * pad + 1)), int(u[1] * (2 * pad + 1))
    image = image[top : top + height, left : left + width]
    if data.augmentation.flip and u[2] < 0.5:
        image = image[:, ::-1]
    image = (image / 255 - np.array(data.mean)) / np.array(data.std)
    if cutout:
        row, column = int(u[3] * height) - cutout // 2, int(u[4] * width) - cutout // 2
        image[max(row, 0) : max(row + cutout, 0), max(column, 0) : max(column + cutout, 0)] = 0
    return torch.from_numpy(image.copy()).float().permute(2, 0, 1)


@pytest.mark.parametrize("cutout", [0, 3, 8])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_augmentation_equals_the_obvious_twin(pad, flip, cutout):
    data = random_data(pad=pad, flip=flip)
    draws = data.draws(1, 2)
    positions = data.order(1, 2)[:12]
    found, labels = data.train_batch(positions, draws, cutout)
    for image, label, i in zip(found, labels, positions.tolist(), strict=True):
        assert torch.allclose(image, augmented_by_hand(data, i, draws[i], cutout), atol=1e-5)
        assert label == data.train_labels[i]
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_draws_belong_to_the_image_and_not_to_the_batch_or_the_subset():
    whole, part = load("digits"), load("digits", train_limit=100)
    draws, fewer = whole.draws(5, 1), part.draws(5, 1)
    for i, index in enumerate(part.train_index.tolist()):
        assert np.array_equal(fewer[i], draws[index])
        assert torch.equal(part.train_images[i], whole.train_images[index])
    a, _ = whole.train_batch(part.train_index[[3, 7]], draws)
    b, _ = part.train_batch(torch.tensor([7, 3]), fewer)
    assert torch.equal(a, b.flip(0))


def test_seeds_and_epochs_have_draws_and_orders_of_their_own():
    data = random_data()
    for keyed in (data.draws, lambda s, e: data.order(s, e).numpy()):
        assert np.array_equal(keyed(1, 1), keyed(1, 1))
        assert not np.array_equal(keyed(1, 1), keyed(1, 2))
        assert not np.array_equal(keyed(1, 1), keyed(2, 1))
    assert sorted(data.order(1, 1).tolist()) == list(range(20))


def test_without_draws_images_are_only_normalized():
    data = random_data()
    found, _ = data.train_batch(torch.tensor([4]), None)
    by_hand = (
        data.train_images[4].permute(2, 0, 1) / 255 - torch.tensor(data.mean)[:, None, None]
    ) / torch.tensor(data.std)[:, None, None]
    assert torch.allclose(found[0], by_hand, atol=1e-6)


def test_test_images_come_whole_and_in_order():
    data = random_data()
    batches = list(data.test_batches(3))
    assert [len(y) for _, y in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.example(8))


def test_digits_are_sklearns():
    from sklearn.datasets import load_digits

    raw = load("digits", image_size=8)
    bunch = load_digits()
    assert len(raw.train_labels) + len(raw.test_labels) == 1797
    wanted = {
        (image.tobytes(), int(y))
        for image, y in zip((bunch.images * 255 / 16).round().astype(np.uint8), bunch.target, strict=True)
    }
    found = {
        (x[:, :, 0].contiguous().numpy().tobytes(), int(y))
        for images, labels in ((raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels))
        for x, y in zip(images, labels, strict=True)
    }
    assert found == wanted
    counts = raw.test_labels.bincount()
    assert counts.min() >= 41
    assert counts.max() <= 42
    large = load("digits")
    assert large.image_size == (16, 16)
    one = torch.nn.functional.interpolate(
        raw.train_images[:1, :, :, :1].permute(0, 3, 1, 2).float(), (16, 16), mode="bilinear"
    )
    assert (large.train_images[0, :, :, 0].float() - one[0, 0]).abs().max() <= 1.0
    assert raw.fingerprint() == load("digits", image_size=8).fingerprint() != large.fingerprint()


def test_limits_take_the_first_of_each_class():
    data, part = load("digits"), load("digits", train_limit=25, test_limit=10)
    assert part.train_labels.bincount().tolist() == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]
    zeros = (data.train_labels == 0).nonzero().flatten()[:3]
    assert part.train_index[part.train_labels == 0].tolist() == zeros.tolist()
    assert part.train_index.tolist() == sorted(part.train_index.tolist())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_limit": 5}, "5 images are too few for 10 classes"),
        ({"test_limit": 5000}, "5000 would take 500 images of class 0, which has 42"),
        ({"image_size": 7}, "digits can be 8 to 64 pixels wide, not 7"),
    ],
)
def test_impossible_sizes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        load("digits", **options)


def test_names():
    assert names() == tuple(d.name for d in describe())
    assert set(names()) == {"digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder"}
    with pytest.raises(ValueError, match="unknown data set 'cifar'; did you mean 'cifar10'"):
        load("cifar")
    for d in describe():
        if d.name == "digits":
            data = load("digits")
            assert (d.train, d.test, d.size) == (len(data.train_labels), len(data.test_labels), data.image_size[0])


x, y = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ((x.index_fill(0, torch.tensor([2]), float("nan")), y), "training image 2 holds NaN"),
        ((x + 255, y), "must lie in 0 to 1, not 255 to 255"),
        ((x.permute(0, 2, 3, 1), y), "move the channels to the front"),
        ((x[:, :2], y), r"must be \(N, 1 or 3, H, W\)"),
        ((x, y[:3]), "4 training images, but 3 labels"),
        ((x[:0], y[:0]), "has no training images"),
        ((x, y.float()), "integer class numbers"),
        ((x, y - 1), "training image 0 has label -1; classes are 0 to 1"),
        ((x, y * 7), "image 1 has label 7; classes are 0 to 1"),
        ((x[:, :, :4], y), "training images are .*, test images"),
    ],
)
def test_broken_data_are_refused(train, words):
    with pytest.raises(DataError, match=words):
        Data.from_tensors("mine", train, (x, y), classes=("a", "b"))


def test_arrays_and_lists_are_tensors():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 3
    wanted = Data.from_tensors("mine", *[(torch.from_numpy(pixels), torch.from_numpy(labels))] * 2)
    locked = pixels.copy()
    locked.setflags(write=False)
    for images, numbers in (
        (pixels, labels.astype(np.int32)),
        (pixels[::-1][::-1], labels.astype(">i4")),
        (locked, labels.astype(np.uint64)),
        ((pixels / 255).tolist(), labels.tolist()),
        (list(pixels), list(labels)),
        (list(torch.from_numpy(pixels)), tuple(torch.from_numpy(labels))),
        (pixels / 255, labels.astype(np.uint16)),
        (torch.from_numpy(pixels), labels),
    ):
        found = Data.from_tensors("mine", (images, numbers), [images, numbers])
        assert found.fingerprint() == wanted.fingerprint()
        assert (found.mean, found.std) == (wanted.mean, wanted.std)


@pytest.mark.parametrize(
    ("train", "error", "words"),
    [
        ((x,), TypeError, r"the training data must be a pair \(images, labels\), not a tuple of 1"),
        (x, TypeError, "must be a pair .* not Tensor"),
        ([(x, y), (x, y), (x, y)], TypeError, "not a list of 3"),
        (torch.utils.data.TensorDataset(x, y), TypeError, "not TensorDataset; take its images and labels out"),
        ((x, {0: 1}), TypeError, "training labels must be a tensor, a NumPy array or a list of such, not dict"),
        ((x, "0101"), TypeError, "not str"),
        (((x + 1).int().tolist(), y), DataError, "training images must be uint8 or floating point, not .* int64"),
        ((x, ["a", "b", "a", "b"]), DataError, "array of <U1, which no tensor holds.*number the classes from 0"),
        ((x, np.array([0, 1, None, 1])), DataError, "array of object"),
        (([x[0], x[1, :, :4]], y), DataError, "different shapes"),
        ((x, [[0, 1], [1]]), DataError, "training labels make no array"),
        ((x, np.array([0, 1, 2**64 - 1, 1], np.uint64)), DataError, "has label|array of uint64"),
        ((x.to("meta"), y), DataError, "training images: the tensor lies on the meta device"),
        ((x.to_sparse(), y), DataError, "has the layout torch.sparse_coo"),
        ((torch.zeros(4, 3, 0, 0), y), DataError, "training images have 0 x 0 pixels"),
        ((x[:, :, :, :0], y), DataError, "training images have 8 x 0 pixels"),
    ],
)
def test_what_is_no_pair_of_images_and_labels(train, error, words):
    with pytest.raises(error, match=words):
        Data.from_tensors("mine", train, (x, y), classes=("a", "b"))


@pytest.mark.parametrize("label", [10**9, 2**62, 255, -1])
def test_labels_that_are_no_class_numbers_are_refused_at_once(label):
    labels = torch.tensor([0, 1, label, 1])
    for pair in ((labels, y), (y, labels)):
        split = "training" if pair[0] is labels else "test"
        with pytest.raises(DataError, match=rf"mine: {split} image 2 has label {label}; labels are class numbers"):
            Data.from_tensors("mine", (x, pair[0]), (x, pair[1]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"classes": "ab"}, TypeError, "classes must be names, a text for each class, not ab"),
        ({"classes": 2}, TypeError, "classes must be names"),
        ({"classes": (0, 1)}, TypeError, "classes must be names"),
        ({"classes": ("a", "a")}, DataError, "the class 'a' is named twice"),
        ({"augmentation": "flip"}, TypeError, "augmentation must be a dnat.data.Augmentation, not str"),
        ({"augmentation": ()}, TypeError, "augmentation must be a dnat.data.Augmentation, not tuple"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        Data.from_tensors("mine", (x, y), (x, y), **options)
    if "augmentation" in options:
        with pytest.raises(error, match=words):
            load("digits", **options)


def test_augmentations_that_cannot_be():
    for options, words in (
        ({"pad": -1}, "at least 0"),
        ({"pad": 1.5}, "whole"),
        ({"flip": "yes"}, "True or False"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            Augmentation(**options)


def test_data_of_arrays_are_refused_in_words():
    held = {"train_index": torch.arange(4), "mean": (0.5,) * 3, "std": (0.5,) * 3, "test_labels": y}
    pixels = x.permute(0, 2, 3, 1).to(torch.uint8)
    with pytest.raises(TypeError, match="training images must be a tensor, not ndarray"):
        Data("mine", ("a", "b"), pixels.numpy(), y, test_images=pixels, **held)
    with pytest.raises(TypeError, match="training labels must be a tensor, not list"):
        Data("mine", ("a", "b"), pixels, y.tolist(), test_images=pixels, **held)


def test_a_class_without_an_example_is_warned_of():
    with pytest.warns(UserWarning, match="mine: no training image of class c"):
        Data.from_tensors("mine", (x, y), (x, y), classes=("a", "b", "c"))


def test_one_class_is_no_classification():
    with pytest.raises(DataError, match="1 class"):
        Data.from_tensors("mine", (x, y * 0), (x, y * 0))


@pytest.mark.data
def test_cifar10_is_read_as_torchvision_reads_it(cifar10_root):
    data = load("cifar10", cifar10_root)
    tv = import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tv.datasets.CIFAR10(cifar10_root, train=True)
        tests = tv.datasets.CIFAR10(cifar10_root, train=False)
    assert np.array_equal(theirs.data, data.train_images.numpy())
    assert theirs.targets == data.train_labels.tolist()
    assert np.array_equal(tests.data, data.test_images.numpy())
    assert list(data.classes) == theirs.classes
    scaled = data.train_images.float().flatten(0, 2) / 255
    assert torch.allclose(scaled.mean(0), torch.tensor(data.mean), atol=2e-3)
    assert torch.allclose(scaled.std(0), torch.tensor(data.std), atol=2e-3)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAT_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        load("cifar10")
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in str(error.value)
    assert all(word in str(error.value) for word in ("--data-root", "DNAT_DATA", "--download", "c99cafc1"))


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def small_archive(monkeypatch):
    """The published files' names with tiny contents, and their checksums in place of the real ones."""
    generator = np.random.default_rng(0)
    batch = {"data": generator.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
    contents = {name: pickle.dumps(batch) for name in cifar.FILES}
    contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in [*contents.items(), ("../../escaped", b"!")]:
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar, "FILES", {n: hashlib.md5(c).hexdigest() for n, c in contents.items()})
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(archive.getvalue()).hexdigest())
    return archive.getvalue(), contents


@pytest.fixture
def served(monkeypatch):
    """A loopback server in place of the data set's; the archive can be exchanged."""
    archive, contents = small_archive(monkeypatch)
    sent = {"archive": archive}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(sent["archive"])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
    yield sent | {"contents": contents}, sent
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_writes_the_files_and_nothing_else(served, tmp_path):
    with pytest.raises(DataError):
        load("cifar10", tmp_path / "data")  # nothing is fetched unless it is asked for
    assert not (tmp_path / "data").exists()
    data = load("cifar10", tmp_path / "data", download=True)
    assert len(data.train_labels) == 50
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == sorted(f"data/cifar-10-batches-py/{name}" for name in cifar.FILES)
    assert torch.equal(load("cifar10", tmp_path / "data").train_images, data.train_images)


def test_a_damaged_download_is_not_written(served, tmp_path):
    served[1]["archive"] = served[1]["archive"][:-7]
    with pytest.raises(DataError, match=r"is damaged: .* expected"):
        load("cifar10", tmp_path, download=True)
    assert not list(tmp_path.rglob("*"))


def test_no_network_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(DataError, match=r"cannot be fetched: .*by hand"):
        load("cifar10", tmp_path, download=True)


def test_a_truncated_file_is_found(served, tmp_path):
    load("cifar10", tmp_path, download=True)
    path = tmp_path / cifar.FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3 is damaged: \d+ bytes with MD5 [0-9a-f]{32}, expected"):
        load("cifar10", tmp_path)


def test_a_pickle_that_would_run_code_does_not(served, tmp_path, monkeypatch):
    load("cifar10", tmp_path, download=True)
    content = pickle.dumps(Malicious())
    (tmp_path / cifar.FOLDER / "test_batch").write_bytes(content)
    monkeypatch.setitem(cifar.FILES, "test_batch", hashlib.md5(content).hexdigest())
    with pytest.raises(DataError, match=r"it asks for builtins.exec"):
        load("cifar10", tmp_path)


def test_mean_and_deviation_are_those_of_the_pixels():
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 9, 7), generator=draws, dtype=torch.uint8)
    images[:, 1] = 7  # a channel of one value, whose deviation is clamped
    data = Data.from_tensors("x", (images, torch.arange(50) % 2), (images, torch.arange(50) % 2))
    scaled = images.double().transpose(0, 1).flatten(1) / 255
    assert data.mean == pytest.approx(scaled.mean(1).tolist(), rel=1e-12)
    assert data.std == pytest.approx(scaled.std(1).clamp(min=1e-3).tolist(), rel=1e-10)
