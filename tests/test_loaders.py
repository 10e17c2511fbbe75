"""Data of anything: an interrupted epoch is an uninterrupted one, workers change nothing, and what is refused."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data import get_worker_info as worker

from dnat.answers import call
from dnat.data import Data, Source, from_loaders, load, validation_split
from dnat.errors import DnatError
from dnat.sensitivity import retake_statistics, shown_batches
from dnat.tracing import tensors_of

# A test may have one core of the machine.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Noisy(Dataset):
    """Examples that are augmented with draws from all three generators."""

    def __init__(self, n=23):
        self.targets = [i % 3 for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        noise = torch.rand(2), torch.tensor([np.random.rand(), random.random()])  # noqa: NPY002
        return torch.cat([torch.tensor([float(i)]), *noise]), self.targets[i]


def collated(items):
    """Pads by a draw, as collate functions that mask or mix do."""
    x, y = zip(*items, strict=True)
    return {"x": torch.stack(x) + torch.rand(1), "labels": torch.tensor(y)}


class Lines(IterableDataset):
    """Batches of two tensors, drawn anew in each pass."""

    def __init__(self, n=6, size=4):
        self.n, self.size = n, size

    def __iter__(self):
        assert worker() is None or worker().num_workers == 1
        for i in range(self.n):
            x = torch.rand(self.size, 2) + np.random.rand()  # noqa: NPY002
            yield (x, torch.full((self.size, 1), float(i))), x.sum(1) + random.random()


def pages(seed, epoch):
    """Batches by a function; those that it draws itself come of what it is told."""
    generator = torch.Generator().manual_seed(100 * seed + epoch)
    for _ in range(5):
        yield torch.rand(4, 3, generator=generator) + torch.rand(1), np.arange(4)


def fixed(n=10):
    return TensorDataset(torch.arange(n).float()[:, None], torch.arange(n))


TEST = [(torch.zeros(4, 5), torch.zeros(4).long())]

KINDS = {
    "data set": lambda: Noisy(),
    "loader": lambda: DataLoader(Noisy(), batch_size=5, shuffle=True, collate_fn=collated),
    "in order": lambda: DataLoader(Noisy(), batch_size=5, drop_last=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=5, shuffle=True, num_workers=2, collate_fn=collated),
    "weighted": lambda: DataLoader(
        Noisy(), batch_size=5, sampler=WeightedRandomSampler([0.1] * 22 + [5.0], 20, generator=torch.Generator())
    ),
    "with replacement": lambda: DataLoader(
        Noisy(), batch_size=5, sampler=RandomSampler(range(23), replacement=True, num_samples=19)
    ),
    "batch sampler": lambda: DataLoader(Noisy(), batch_sampler=Buckets()),
    "whole batches": lambda: DataLoader(Pages(), batch_size=None, shuffle=True),
    "list": lambda: [(torch.full((4, 2), float(i)), torch.arange(4)) for i in range(6)],
    "iterable": lambda: Lines(),
    "loader of batches": lambda: DataLoader(Lines(), batch_size=None, num_workers=1),
    "function": lambda: pages,
}


class Buckets:
    """A batch sampler that draws."""

    def __iter__(self):
        order = torch.randperm(23).tolist()
        yield from (order[i : i + 4] for i in range(0, 20, 4))


class Pages(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return torch.full((4, 2), float(i)) + torch.rand(1), torch.full((4,), i)


def run(data, seed=1, epoch=2, batch_size=5, **options):
    """An epoch's batches, as lists of tensors; the world outside draws in between."""
    found = []
    for batch in data.train_batches(seed, epoch, batch_size, **options):
        found.append(tensors_of(batch))
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    return found


def same(one, two):
    return len(one) == len(two) and all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, two, strict=True)
    )


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_the_same_wherever_it_begins(kind):
    data = from_loaders(KINDS[kind](), TEST)
    whole = run(data)
    assert len(whole) == data.steps(5) > 3
    assert data.train_count == sum(len(batch[0]) for batch in whole)
    torch.manual_seed(99)
    random.seed(99)
    again = from_loaders(KINDS[kind](), TEST)
    for start in (0, 1, 3):
        assert same(run(again, start=start), whole[start:])
    assert run(data, start=len(whole)) == []
    if kind not in ("list", "in order"):
        assert not same(run(data, epoch=3), whole)
        assert not same(run(data, seed=2), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_world_outside_is_left_alone(kind):
    data = from_loaders(KINDS[kind](), TEST)
    before = states()
    for _ in data.train_batches(0, 0, 5):
        pass
    data.example(), data.fingerprint(), data.train_inputs(5, 0), data.train_count
    list(data.test_batches(5))
    assert states() == before


def test_workers_change_no_bit():
    one, two = (from_loaders(KINDS[kind](), TEST) for kind in ("loader", "workers"))
    assert two.train.loading["num_workers"] == 2
    assert same(run(one), run(two))


def test_an_epoch_has_each_example_once_and_orders_of_its_own():
    data = from_loaders(DataLoader(fixed(), batch_size=4, shuffle=True), DataLoader(fixed(), shuffle=True))
    orders = [torch.cat([batch[1] for batch in run(data, epoch=epoch)]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({*map(tuple, orders)}) == 3
    bare = from_loaders(fixed(), fixed())
    assert same(run(bare, batch_size=4, epoch=1), run(data, batch_size=9, epoch=1))  # the loader's own size counts
    assert (data.batch_size, bare.batch_size, data.steps(9), bare.steps(9)) == (4, None, 3, 1)
    assert torch.cat([y for _, y in data.test_batches()]).tolist() == list(range(10))
    still = from_loaders(DataLoader(fixed(), batch_size=4), fixed())
    assert torch.cat([batch[1] for batch in run(still)]).tolist() == list(range(10))


def test_examples_have_their_own_draws_whatever_batch_they_are_in():
    data = from_loaders(Noisy(), Noisy())
    rows = [torch.cat([b[0] for b in run(data, batch_size=size)]) for size in (4, 7)]
    assert torch.equal(*rows)
    one, two = (torch.cat([x for x, _ in data.test_batches(size)]) for size in (5, 9))
    assert torch.equal(one, two)
    assert torch.equal(data.example(3), one[:3])


# The others' collate function draws for the part of a batch that it is given.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("loader", "workers")])
@pytest.mark.parametrize("size", [2, 3])
def test_parts_make_up_the_batch(kind, size):
    data = from_loaders(KINDS[kind](), TEST)
    parts = [run(data, part=(rank, size), start=1) for rank in range(size)]
    whole = run(data, start=1)
    assert [len(part) for part in parts] == [len(whole)] * size
    for i, batch in enumerate(whole):
        for k, tensor in enumerate(batch):
            assert torch.equal(torch.cat([part[i][k] for part in parts]), tensor)


def test_test_batches_are_dealt_out():
    for test in (Noisy(), KINDS["list"](), pages):
        data = from_loaders(Noisy(), test)
        whole = list(data.test_batches(4))
        dealt = [list(data.test_batches(4, part=(rank, 3))) for rank in range(3)]
        assert len(whole) > 3
        for i, batch in enumerate(whole):
            assert same([tensors_of(dealt[i % 3][i // 3])], [tensors_of(batch)])
        assert sum(map(len, dealt)) == len(whole)
        assert data.test_count == sum(len(y) for _, y in whole)


def test_a_small_batch_is_given_whole():
    data = from_loaders([(torch.ones(1, 2), torch.ones(1))], TEST)
    assert all(same(run(data, part=(rank, 2)), run(data)) for rank in range(2))


class Sum(torch.nn.Module):
    def forward(self, x, y, scale=1.0):
        return (x + y) * scale


def test_what_a_batch_may_be():
    x, y, t = torch.rand(4, 2), torch.rand(4, 2), torch.arange(4)
    for inputs in ((x, y), [x, y], {"x": x, "y": y}, (x.numpy(), y.numpy())):
        data = from_loaders([(inputs, {"a": t, "b": [t]})], TEST)
        ((found, target),) = data.train_batches(0, 0, 4)
        assert torch.equal(call(Sum(), found), x + y)
        assert torch.equal(target["b"][0], t)
    data = from_loaders([{"x": x, "y": y, "scale": torch.tensor(3.0), "label": t}], TEST)
    (found, target), *_ = data.train_batches(0, 0, 4, part=(1, 2))
    assert torch.equal(call(Sum(), found), ((x + y) * 3)[2:])
    assert torch.equal(target, t[2:])
    assert data.train_inputs(3, 0)[0]["scale"].shape == ()


def test_an_example_of_any_number():
    data = from_loaders(Noisy(), [({"x": torch.arange(3)}, torch.zeros(3))])
    assert data.example(5)["x"].tolist() == [0, 1, 2, 0, 1]
    assert data.example(2)["x"].tolist() == [0, 1]
    assert from_loaders(Noisy(), Noisy(2)).example(5)[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert data.to("meta").example(2)["x"].is_meta
    assert all(x.is_meta and y.is_meta for x, y in data.to("meta").train_batches(0, 0, 4))


def test_identity_and_content():
    one, two = (from_loaders(Noisy(), Noisy()) for _ in range(2))
    assert (one.identity(), one.content()) == (two.identity(), two.content())
    shapes, values = from_loaders(Noisy(), Noisy(22)), from_loaders(Noisy(), [(x + 1, y) for x, y in TEST])
    assert shapes.identity() != one.identity()
    assert from_loaders(Noisy(), TEST).identity() == values.identity()
    assert from_loaders(Noisy(), TEST).content() != values.content()
    assert one.fingerprint() in one.content()
    assert one.identity() != from_loaders(Noisy(), Noisy(), name="other").identity()


def test_both_kinds_of_data_are_sources():
    mine, digits = from_loaders(Noisy(), Noisy()), load("digits", train_limit=101, test_limit=50)
    for data in (mine, digits):
        assert isinstance(data, Source)
    assert (digits.train_count, digits.test_count, digits.steps(10), digits.steps(1)) == (101, 50, 10, 101)
    assert digits.steps(3) == 34
    for data in (mine, digits):
        with pytest.raises(ValueError, match=r"batch_size 500 is larger than the \d+ training"):
            data.steps(500)


def test_what_is_shown_of_training_examples():
    for data, count in ((from_loaders(Noisy(), TEST), 23), (from_loaders(Lines(), TEST), 24)):
        for wanted in (7, 100):
            shown = shown_batches(data, wanted, 3, 0)
            sizes = [len(tensors_of(batch)[0]) for batch in shown]
            assert sum(sizes) == min(wanted, count)
            assert max(sizes) <= 3
            assert same([tensors_of(b) for b in shown], [tensors_of(b) for b in shown_batches(data, wanted, 3, 0)])
    first, second = (shown_batches(from_loaders(Noisy(), TEST), 7, 7, seed)[0][:, 0].tolist() for seed in (0, 1))
    assert first != second
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(5))
    retake_statistics(norm, from_loaders(Noisy(), TEST), 0)
    assert norm[0].running_mean[0].item() == pytest.approx(11)  # of 0 to 22


class Broken(Noisy):
    def __getitem__(self, i):
        raise KeyError("a file is missing")


class Shrinking:
    def __init__(self):
        self.n = 5

    def __len__(self):
        return 5

    def __iter__(self):
        self.n -= 1
        return iter([(torch.zeros(2, 1), torch.zeros(2))] * self.n)


REFUSED = {
    "no examples": (TensorDataset(torch.zeros(0, 2)), "the training data are empty: there is no example"),
    "no batches": ([], "the training data are empty: there is no batch"),
    "no batch at all": (lambda seed, epoch: iter(()), "the training data are empty: there is no batch"),
    "an iterator": (iter([1, 2]), "can be run through only once"),
    "nothing": (None, "must be a data set, a DataLoader, .* not NoneType"),
    "a name": ("cifar10", "must be a data set, a DataLoader, .* not str"),
    "a class": (Noisy, "must be a data set, a DataLoader"),
    "a tensor alone": (
        [torch.zeros(4, 2)],
        r"must be a pair \(inputs, target\) or a dict with 'labels', not a Tensor",
    ),
    "three": ([(torch.zeros(4), torch.zeros(4), torch.zeros(4))], "not a tuple of 3"),
    "no labels": ([{"x": torch.zeros(4)}], "a dict without 'labels': it has x"),
    "no target": ([(torch.zeros(4), "cat")], "the target of a batch of the training data hold no tensors .* str"),
    "no inputs": ([({}, torch.zeros(4))], "the inputs of a batch of the training data hold no tensors"),
    "sizes": ([(torch.zeros(4, 2), torch.zeros(3))], r"different first dimensions \(4, 3\)"),
    "empty batch": ([(torch.zeros(0, 2), torch.zeros(0))], "a batch of the training data has no examples"),
    "broken": (Broken(), "the training data cannot be read: KeyError"),
    "one for each process": (
        DataLoader(fixed(), sampler=DistributedSampler(fixed(), 2, 0)),
        "have a DistributedSampler: give a loader without it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_told(case):
    given, message = REFUSED[case]
    with pytest.raises(DnatError, match=message):
        from_loaders(given, TEST)


def test_what_is_told_of_other_parts():
    with pytest.raises(DnatError, match="the test data are empty"):
        from_loaders(Noisy(), [])
    with pytest.raises(DnatError, match="the validation data are empty"):
        from_loaders(Noisy(), TEST, validation=[])
    with pytest.raises(TypeError, match="data must have a name"):
        from_loaders(Noisy(), TEST, name="")
    with pytest.raises(ValueError, match="cutout is for images"):
        next(from_loaders(Noisy(), TEST).train_batches(0, 0, 4, cutout=8))
    data = from_loaders(Shrinking(), TEST)
    with pytest.raises(ValueError, match=r"have \d batches in epoch 7, but 5 were counted"):
        list(data.train_batches(0, 7, 4))


def test_a_share_of_every_class_is_set_aside():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    y = torch.tensor([0] * 40 + [1] * 19 + [2])
    data = Data.from_tensors("mine", (x, y), (x[:3] + 1, torch.tensor([0, 1, 2])))
    found = validation_split(data, 0.1, seed=3)
    assert found.test_labels.bincount().tolist() == [4, 2]  # never the only one of a class
    assert found.train_labels.bincount().tolist() == [36, 17, 1]
    where = sorted({*range(60)} - set(found.train_index.tolist()))
    assert torch.equal(found.test_images, data.train_images[where])
    assert torch.equal(found.test_labels, data.train_labels[where])
    assert found.identity() != data.identity()
    assert found.notes == ("6 of 60 training images are set aside for validation",)
    # What stays is augmented as before.
    before = {
        tuple(b.tolist()): a for a, b in zip(data.draws(0, 1).tolist(), data.train_index[:, None], strict=True)
    }
    assert found.draws(0, 1).tolist() == [before[(i,)] for i in found.train_index.tolist()]
    assert torch.equal(validation_split(data, 0.1, seed=3).train_index, found.train_index)
    assert not torch.equal(validation_split(data, 0.1, seed=4).train_index, found.train_index)


def test_a_share_of_examples_is_set_aside():
    for train, batch in ((Noisy(60), 7), (DataLoader(Noisy(60), 7, shuffle=True, drop_last=True), 7)):
        data = from_loaders(train, Noisy(3))
        found = validation_split(data, 0.1)
        rest = torch.cat([t[0] for t in run(found, batch_size=batch)])[:, 0].tolist()
        aside = torch.cat([x for x, _ in found.test_batches()])[:, 0].tolist()
        assert not {*rest} & {*aside}
        assert found.test_count == len(aside) == 6
        assert [len([i for i in aside if i % 3 == c]) for c in range(3)] == [2, 2, 2]
        whole = {t[0].item(): t for batch in run(data, batch_size=batch) for t in batch[0]}
        for row in torch.cat([t[0] for t in run(found, batch_size=batch)]):
            if row[0].item() in whole:
                assert torch.equal(row, whole[row[0].item()])
    inner = from_loaders(Subset(fixed(), range(8)), fixed())  # has no labels to look at
    assert validation_split(inner, 0.25).test_count == 2
    labels = TensorDataset(torch.rand(20, 2), torch.tensor([0] * 10 + [1] * 10))
    target = torch.cat([y for _, y in validation_split(from_loaders(labels, labels), 0.2).test_batches()])
    assert target.bincount().tolist() == [2, 2]


def test_what_cannot_be_divided():
    own = from_loaders(Noisy(), Noisy(), validation=TEST)
    assert validation_split(own, 0).test_count == 4
    for data, share, message in (
        (own, 0.1, "has validation data of its own, but a share 0.1"),
        (from_loaders(Noisy(), Noisy()), 0, "must lie between 0 and 1, not 0"),
        (from_loaders(Noisy(), Noisy()), 1.5, "between 0 and 1, not 1.5"),
        (from_loaders(Noisy(), Noisy()), 0.01, "leaves a part without any"),
        (from_loaders(KINDS["list"](), TEST), 0.1, "give validation data to from_loaders"),
        (from_loaders(KINDS["weighted"](), TEST), 0.1, "give validation data to from_loaders"),
    ):
        with pytest.raises(ValueError, match=message):
            validation_split(data, share)


def test_a_batch_sampler_of_torch_is_no_users_own():
    sampler = BatchSampler(RandomSampler(fixed()), 4, True)
    data = from_loaders(DataLoader(fixed(), batch_sampler=sampler), fixed())
    assert (data.train.grouped, data.steps(1), data.train_count) == (False, 2, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(run(data)) == 2
