"""Pictures that are decoded while the network trains: the same bits, whoever decodes them, wherever one starts."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_folders import encoded, pixels, write_set, zipped
from test_training import config
from test_transform import at
from torch import nn

import dnat
from dnat.data import Augmentation, DataError, ImageFiles, load, normalized, streaming, validation_split
from dnat.data.pictures import random_box
from dnat.records import Records
from dnat.settings import Job
from dnat.training import Interrupted, Progress, Trainer

COUNT = 29  # pictures a class and split, so that the last batch is short


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures") / "set"
    write_set(root, count=COUNT, side=24)
    return root


@pytest.fixture(scope="module")
def archive(folder):
    return zipped(folder, folder.parent / "set.zip")


def equal(found, wanted):
    pairs = list(zip(found, wanted, strict=True))
    assert len(pairs) > 0
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_streamed_batches_are_those_of_memory(folder, archive, workers):
    held = load("folder", folder, image_size=16, streaming=False)
    streamed = load("folder", archive, image_size=16, streaming=True, workers=workers)
    assert isinstance(held.train_images, torch.Tensor)
    assert isinstance(streamed.train_images, ImageFiles)
    for epoch in (0, 1):
        wanted = list(held.train_batches(3, epoch, 8, cutout=5))
        assert [len(y) for _, y in wanted] == [8] * 7 + [2]
        assert equal(streamed.train_batches(3, epoch, 8, cutout=5), wanted)
        for start in (1, 6, 7):
            assert equal(streamed.train_batches(3, epoch, 8, start=start, cutout=5), wanted[start:])
            assert equal(held.train_batches(3, epoch, 8, start=start, cutout=5), wanted[start:])
        assert equal(streamed.test_batches(7), held.test_batches(7))
        assert list(streamed.train_batches(3, epoch, 8, start=8)) == []
    # Left half way, with tests in between, and taken up again.
    batches = streamed.train_batches(3, 0, 8)
    first = next(batches)
    assert equal(streamed.test_batches(7), held.test_batches(7))
    assert equal([first, *batches], held.train_batches(3, 0, 8))
    batches = streamed.train_batches(3, 1, 8)
    next(batches)
    batches.close()
    assert equal(streamed.train_batches(3, 0, 8), held.train_batches(3, 0, 8))
    assert torch.equal(streamed.example(5), held.example(5))


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_of_a_batch_are_the_batch(folder, parts):
    """As several processes take them; the last batch, of 2 images, is given whole to each of three."""
    for data in (load("folder", folder, image_size=16, streaming=s, workers=0) for s in (False, True)):
        whole = list(data.train_batches(3, 1, 8, start=5, cutout=5))
        taken = [list(data.train_batches(3, 1, 8, start=5, cutout=5, part=(i, parts))) for i in range(parts)]
        for (images, labels), *mine in zip(whole, *taken, strict=True):
            if len(labels) < parts:
                assert equal(mine, [(images, labels)] * parts)
            else:
                assert max(len(y) for _, y in mine) - min(len(y) for _, y in mine) <= 1
                assert equal(
                    [(torch.cat([x for x, _ in mine]), torch.cat([y for _, y in mine]))], [(images, labels)]
                )
        tests = [list(data.test_batches(30, part=(i, parts))) for i in range(parts)]
        assert [len(found) for found in tests] == [1, 1, 0][:parts]
        assert equal([batch for found in tests for batch in found], data.test_batches(30))


def test_where_shared_memory_is_short_batches_go_through_a_pipe(folder, monkeypatch):
    held = load("folder", folder, image_size=16, streaming=False)
    data = load("folder", folder, image_size=16, streaming=True, workers=1)
    batch = 8 * 16 * 16 * 3
    for free, shares in ((6 * batch, False), (6 * batch + 1, True)):
        monkeypatch.setattr(streaming, "_shared_memory", lambda free=free: free)
        assert equal(data.train_batches(3, 0, 8), held.train_batches(3, 0, 8))
        assert data._decoder.tasks.shares is shares


def test_batches_in_memory_are_those_of_single_calls():
    data = load("digits", train_limit=100)
    order, draws = data.order(4, 2), data.draws(4, 2)
    wanted = [data.train_batch(order[i : i + 32], draws, 3) for i in range(0, 100, 32)]
    assert equal(data.train_batches(4, 2, 32, cutout=3), wanted)


def by_hand(files, i, u, data, cutout):
    """A random crop of the original picture, resized, flipped, normalized, a square blanked."""
    with Image.open(files.root / files.name(i)) as image:
        crop = image.crop(random_box(*image.size, u)).resize((files.side, files.side), Image.Resampling.BILINEAR)
    out = np.asarray(crop)[:, ::-1] if u[2] < 0.5 else np.asarray(crop)
    out = (out / 255 - np.array(data.mean)) / np.array(data.std)
    row, column = int(u[3] * files.side) - cutout // 2, int(u[4] * files.side) - cutout // 2
    out[max(row, 0) : max(row + cutout, 0), max(column, 0) : max(column + cutout, 0)] = 0
    return torch.from_numpy(out.copy()).float().permute(2, 0, 1)


def test_resized_crops_are_those_made_by_hand_whoever_decodes(folder):
    data = load("folder", folder, image_size=16, augmentation=Augmentation(resized=True), workers=0)
    order, draws = data.order(1, 1), data.draws(1, 1)
    assert draws.shape == (2 * COUNT, 25)
    wanted = [by_hand(data.train_images, i, draws[i], data, 4) for i in order.tolist()]
    found = list(data.train_batches(1, 1, 10, cutout=4))
    assert torch.allclose(torch.cat([x for x, _ in found]), torch.stack(wanted), atol=1e-5)
    assert torch.cat([y for _, y in found]).tolist() == data.train_labels[order].tolist()
    assert equal(replace(data, workers=2).train_batches(1, 1, 10, cutout=4), found)
    assert equal([data.train_batch(order[20:30], draws, 4)], found[2:3])
    plain, _ = data.train_batch(order[:2], None)
    assert torch.equal(plain, normalized(data.train_images[order[:2]].pixels(), data.mean, data.std))
    # The middle 14 sixteenths of a test picture, 21 of 24 pixels.
    with Image.open(data.test_images.root / data.test_images.name(3)) as image:
        middle = image.resize((16, 16), Image.Resampling.BILINEAR, (1.5, 1.5, 22.5, 22.5))
    assert np.array_equal(data.test_images.read(3), np.asarray(middle))


def test_a_subset_sees_the_same_pixels(folder):
    whole = load("folder", folder, image_size=16, augmentation=Augmentation(resized=True), workers=0)
    part = load("folder", folder, image_size=16, augmentation=Augmentation(resized=True), workers=0, train_limit=9)
    assert part.train_labels.bincount().tolist() == [5, 4]
    pixels_ = torch.cat([x for x, _ in whole.train_batches(2, 0, 20)])
    everything = dict(zip(whole.order(2, 0).tolist(), pixels_, strict=True))
    seen = torch.cat([x for x, _ in part.train_batches(2, 0, 4)])
    for image, i in zip(seen, part.order(2, 0).tolist(), strict=True):
        assert torch.equal(image, everything[int(part.train_index[i])])


class Small(nn.Module):
    """Draws random numbers while it trains, and has a branch to lose."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + self.conv(self.dropout(x))).mean((2, 3)))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Small()


@pytest.mark.usefixtures("quiet")
def test_a_training_has_the_same_bits_streamed_and_taken_up_again(folder, archive, tmp_path):
    settings = config(epochs=3, architecture_epochs=1, cutout=3)
    job = Job(network="test:small", config=settings)
    held = load("folder", folder, image_size=16, streaming=False)
    wanted = dnat.transform(network(), held, settings)
    streamed = {n: load("folder", archive, image_size=16, streaming=True, workers=n) for n in (0, 2)}
    assert dnat.transform(network(), streamed[2], settings).results() == wanted.results()
    # Stopped in the middle of epochs, gone on with by another number of workers.
    for step, workers in ((3, 2), (11, 0), (18, 2)):
        with Records.open(tmp_path / "run", job) as records, pytest.raises(Interrupted):
            dnat.transform(network(), streamed[workers], settings, records=records, stop=at(step))
    with Records.open(tmp_path / "run", job) as records:
        found = dnat.transform(network(), streamed[2], settings, records=records)
    assert found.results() == wanted.results()
    for key, tensor in wanted.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[key], tensor)
    assert dnat.evaluate(found.network, streamed[0]) == dnat.evaluate(found.network, held)


def test_an_epoch_without_its_last_image_leaves_no_decoder_at_work(folder):
    data = load("folder", folder, image_size=16, streaming=True, workers=1)
    trainer = Trainer(network(), data, config(batch_size=19), Progress())
    assert [p.batch for p in trainer.epoch()] == [1, 2, 3]  # of 58 images one is left over
    assert not data._decoder.is_busy
    trainer.progress.batch = 0
    batches = trainer.epoch()
    next(batches)
    assert data._decoder.is_busy
    batches.close()
    assert not data._decoder.is_busy


def test_no_global_state_is_touched(folder):
    handler = signal.getsignal(signal.SIGCHLD)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    data = load("folder", folder, image_size=16, streaming=True, workers=1)
    list(data.train_batches(0, 0, 16))
    list(data.test_batches())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert sys.modules["__main__"].__name__ == "__main__"
    # Neither copies nor pickles take the workers along.
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data)), replace(data, workers=0)):
        assert "_decoder" not in vars(twin)
        assert twin.fingerprint() == data.fingerprint()
    assert data.to("cpu") is data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_by_a_plain_error(tmp_path, workers):
    write_set(tmp_path, count=4)
    bad = tmp_path / "train/bee/2.jpg"
    bad.write_bytes(encoded(pixels(40, 40), "JPEG")[:-300])
    data = load("folder", tmp_path, image_size=12, streaming=True, workers=workers)
    with pytest.raises(DataError) as error:
        list(data.train_batches(0, 0, 4))
    assert str(bad.relative_to(tmp_path)) in str(error.value)
    assert "truncated" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert error.value.exit_code == 65
    bad.write_bytes(encoded(pixels(40, 40), "JPEG"))  # the workers are still there
    assert [len(y) for _, y in data.train_batches(0, 0, 4)] == [4, 4, 1]


def children():
    return {process.pid for process in multiprocessing.active_children()}


def test_a_worker_that_was_killed_is_a_plain_error_and_is_replaced(folder):
    before = children()
    data = load("folder", folder, image_size=16, streaming=True, workers=1)
    batches = data.train_batches(0, 0, 1)
    next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match="a process that decodes images ended"):
        list(batches)
    assert len(list(data.train_batches(0, 0, 16))) == 4
    del data, batches
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() <= before


SCRIPT = """
import multiprocessing, signal, sys
from dnat.data import load
heard = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda n, frame: heard.append(n))
data = load("folder", sys.argv[1], image_size=16, streaming=True, workers=2)
held = load("folder", sys.argv[1], image_size=16, streaming=False)
batches, wanted = data.train_batches(0, 0, 2), held.train_batches(0, 0, 2)
total = (next(batches)[0] - next(wanted)[0]).abs().sum().item()
print("workers", *(p.pid for p in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
for (x, _), (y, _) in zip(batches, wanted, strict=True):
    total += (x - y).abs().sum().item()
print("heard", sorted(heard), "apart by", total, flush=True)
"""


@pytest.fixture
def started(folder, tmp_path):
    """A plain script, without a guard, in a process group of its own, and its workers' ids.

    It waits for a line after its first batch.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, script, folder], start_new_session=True, **pipes)
    line = process.stdout.readline()
    assert line.startswith("workers"), process.stderr.read()
    workers = list(map(int, line.split()[1:]))
    assert len(workers) == 2
    yield process, workers
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def gone(workers, seconds):
    deadline = time.monotonic() + seconds
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_running, workers))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")


@linux
def test_ctrl_c_and_sigterm_for_the_whole_group_leave_the_workers_at_work(started):
    process, workers = started
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    out, errors = process.communicate("go\n", timeout=60)
    assert out == "heard [2, 15] apart by 0.0\n", errors
    assert errors == ""
    assert process.returncode == 0
    assert gone(workers, 1)  # also where the script does not end them


@linux
def test_workers_of_a_killed_process_end(started):
    process, workers = started
    process.kill()
    process.wait()
    assert gone(workers, 10)


def test_what_identifies_files(folder, archive, tmp_path):
    data = load("folder", folder, image_size=16, streaming=True)
    found = {
        load("folder", folder, image_size=16, streaming=True, workers=0).fingerprint(): "the same",
        data.fingerprint(): "the same",
        load("folder", archive, image_size=16, streaming=True).fingerprint(): "with CRCs",
        load("folder", folder, image_size=20, streaming=True).fingerprint(): "of another size",
        replace(data, train_labels=data.train_labels.flip(0)).fingerprint(): "with other labels",
        data.subset(train_limit=10).fingerprint(): "a part",
    }
    assert len(found) == 5


def test_files_behave_like_a_tensor_where_it_matters(archive):
    files = load("folder", archive, image_size=16, streaming=True).train_images
    everything = files.pixels()
    assert files.shape == everything.shape == (2 * COUNT, 16, 16, 3)
    assert torch.equal(files[3:9].pixels(), everything[3:9])
    where = torch.tensor([7, 1, 1])
    assert torch.equal(files[where].pixels(threads=2), everything[where])
    assert torch.equal(pickle.loads(pickle.dumps(files)).pixels(threads=3), everything)


def test_splits_may_be_held_differently(folder):
    held = load("folder", folder, image_size=16, streaming=False)
    streamed = load("folder", folder, image_size=16, streaming=True, workers=0)
    mixed = replace(streamed, test_images=held.test_images)
    assert equal(mixed.train_batches(0, 0, 16), held.train_batches(0, 0, 16))
    assert equal(mixed.test_batches(), held.test_batches())
    with pytest.raises(DataError, match=r"58 training images, but 57 labels"):
        replace(streamed, train_labels=streamed.train_labels[1:])
    with pytest.raises(DataError, match="these images are in memory"):
        replace(held, augmentation=Augmentation(resized=True))
    with pytest.raises(DataError, match="has no test images"):
        replace(streamed, test_images=streamed.test_images[:0], test_labels=streamed.test_labels[:0])


def test_a_validation_part_of_files_is_the_one_of_memory(folder):
    held, streamed = (
        validation_split(load("folder", folder, image_size=16, streaming=s), 0.25, seed=2) for s in (False, True)
    )
    assert isinstance(streamed.test_images, ImageFiles)
    assert equal(streamed.test_batches(5), held.test_batches(5))
    assert equal(streamed.train_batches(1, 0, 8), held.train_batches(1, 0, 8))
    other = replace(streamed.train_images, margin=1.5)
    zoomed = validation_split(replace(streamed, train_images=other), 0.25, seed=2)
    assert zoomed.test_images.margin == streamed.test_images.margin != 1.5
