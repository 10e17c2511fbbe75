"""Tasks against the metrics of scikit-learn, losses against their definitions, and what does not fit."""

import math
import sys
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import images, small
from sklearn import metrics as oracle
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

import dnat
from dnat.answers import call
from dnat.distillation import Teacher
from dnat.errors import DnatError
from dnat.relaxation import relax
from dnat.sensitivity import Judge
from dnat.tasks import TASKS, Classification, MultiLabel, Regression, Segmentation, Task, task_of
from dnat.tasks.task import is_whole


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(high, *shape, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def in_parts(task, output, target, sizes=(5, 1, 7)):
    """Metrics of sums over batches of different sizes."""
    sizes = (*sizes, len(target) - sum(sizes))
    pairs = zip(output.split(sizes), target.split(sizes), strict=True)
    return task.values(torch.stack([task.statistics(o, t).double() for o, t in pairs]).sum(0))


def test_classification_is_what_it_always_was():
    output, labels = drawn(20, 4), whole(4, 20)
    task = Classification()
    assert torch.equal(task.loss(output, labels), cross_entropy(output, labels))
    assert task.statistics(output, labels).tolist() == [(output.argmax(1) == labels).sum(), 20]
    assert in_parts(task, output, labels) == {"accuracy": oracle.accuracy_score(labels, output.argmax(1))}
    half = output.bfloat16()
    assert torch.equal(task.loss(half, labels), cross_entropy(half.float(), labels))
    wrapped = namedtuple("Output", ["logits", "aux"])(output, output * 2)
    assert torch.equal(task.loss(wrapped, labels), task.loss(output, labels))


def test_smooth_labels_by_their_definition():
    output, labels, share = drawn(6, 4), whole(4, 6), 0.3
    smooth = torch.full((6, 4), share / 4)
    smooth[torch.arange(6), labels] += 1 - share
    wanted = -(smooth * output.log_softmax(1)).sum(1).mean()
    assert Classification(share).loss(output, labels).item() == pytest.approx(wanted.item(), rel=1e-6)
    both = Segmentation(label_smoothing=share).loss(output[..., None], labels[:, None])
    assert both.item() == pytest.approx(wanted.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in 0 to below 1, not 1\.5"):
        Classification(1.5)


def test_labels_of_an_example():
    output, target = drawn(30, 5), whole(2, 30, 5, seed=1)
    output[:9] = (target[:9] - 0.5) * output[:9].abs()  # some examples are all right
    found = in_parts(MultiLabel(), output, target)
    given = (output > 0).int()
    assert found["f1"] == pytest.approx(oracle.f1_score(target, given, average="micro"), rel=1e-12)
    assert found["exact"] == pytest.approx(oracle.accuracy_score(target, given), rel=1e-12)
    assert found["exact"] >= 0.3
    p = output.double().sigmoid()
    wanted = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert MultiLabel().loss(output, target).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert MultiLabel().values(torch.zeros(5)) == {"f1": 0.0, "exact": 0.0}


@pytest.mark.parametrize("size", [(), (1,), (3,), (3, 4, 5)])
def test_regression(size):
    target = drawn(30, *size) * 3 + 50
    output = target + drawn(30, *size, seed=1)
    found = in_parts(Regression(), output, target)
    rows = [
        t.reshape(30, size[0] if size else 1, -1).movedim(1, 2).flatten(0, 1).double() for t in (target, output)
    ]
    assert found["r2"] == pytest.approx(oracle.r2_score(*rows), rel=1e-9)
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(*rows), rel=1e-9)
    assert found["mse"] == pytest.approx(oracle.mean_squared_error(*rows), rel=1e-9)
    assert Regression().loss(output, target).item() == pytest.approx(found["mse"], rel=1e-5)


def test_regression_of_one_number_in_a_column_and_of_a_constant():
    output, target = drawn(8, 1), drawn(8, seed=1)
    Regression().check(output, target)
    assert torch.equal(Regression().loss(output, target), mse_loss(output[:, 0], target))
    assert in_parts(Regression(), output, target, (3,)) == in_parts(Regression(), output[:, 0], target, (3,))
    constant = torch.ones(4)
    for given in (constant, constant + 1):
        found = Regression().values(Regression().statistics(given, constant))["r2"]
        assert found == oracle.r2_score(constant, given)


@pytest.mark.parametrize("ignored", [None, 255])
def test_classes_of_pixels(ignored):
    output, target = drawn(15, 4, 6, 5), whole(3, 15, 6, 5)  # class 3 occurs in no label
    output[:, 3] -= 100  # and is seen nowhere
    if ignored is not None:
        target[drawn(15, 6, 5, seed=2) > 0.5] = ignored
    task = Segmentation(ignored)
    task.check(output, target)
    found = in_parts(task, output, target)
    seen, true = output.argmax(1)[target != 255].numpy(), target[target != 255].numpy()
    each = [oracle.jaccard_score(true == c, seen == c) for c in range(3)]
    assert found == pytest.approx(
        {"miou": np.mean(each), "accuracy": oracle.accuracy_score(true, seen)}, rel=1e-12
    )
    wanted = cross_entropy(output, target, ignore_index=255)
    assert task.loss(output, target).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_nothing_but_ignored_pixels():
    output, target = drawn(2, 3, 4, 4).requires_grad_(), torch.full((2, 4, 4), 255)
    loss = Segmentation().loss(output, target)
    loss.backward()
    assert loss.item() == 0
    assert not output.grad.any()
    assert Segmentation().values(Segmentation().statistics(output, target)) == {"miou": 0.0, "accuracy": 0.0}
    assert Segmentation().loss({"aux": output * 2, "out": output}, target.zero_()).item() > 0


def divergence(task, output, other, temperature=1.0):
    return task.divergence(task.answers(other, temperature), task.answers(output, temperature)).item()


def test_answers_are_compared_by_kl():
    one, two = drawn(6, 5), drawn(6, 5, seed=1)
    wanted = kl_divergence(Categorical(logits=one / 2), Categorical(logits=two / 2))
    assert divergence(Classification(), one, two, 2.0) == pytest.approx(wanted.mean().item(), rel=1e-5)
    wanted = kl_divergence(Bernoulli(logits=one / 2), Bernoulli(logits=two / 2)).sum(1)
    assert divergence(MultiLabel(), one, two, 2.0) == pytest.approx(wanted.mean().item(), rel=1e-5)
    one, two = drawn(6, 5, 3, 2), drawn(6, 5, 3, 2, seed=1)
    wanted = kl_divergence(*(Categorical(logits=t.movedim(1, -1)) for t in (one, two)))
    assert divergence(Segmentation(), one, two) == pytest.approx(wanted.mean().item(), rel=1e-5)
    wanted = (one - two).square().mean() / one.var(unbiased=False)
    assert divergence(Regression(), one, two, 7.0) == pytest.approx(wanted.item(), rel=1e-6)
    extreme = torch.tensor([[300.0, -300.0]])
    assert divergence(MultiLabel(), extreme, -extreme) == pytest.approx(600, rel=1e-6)
    for task in TASKS.values():
        same = one if task is Segmentation else one[..., 0, 0]
        assert divergence(task(), same, same) == 0


WRONG = {
    "a label too many": (Classification(), (4, 3), [0, 1, 2, 3], "tells 3 classes apart, but there is a label 3"),
    "a negative label": (Classification(), (4, 3), [0, 1, 2, -1], "from 0, but there is a label -1"),
    "labels with a point": (Classification(), (4, 3), [0.0, 1, 2, 1], r"whole numbers from 0, not \(4,\) float32"),
    "one hot": (Classification(), (2, 2), [[0, 1], [1, 0]], r"labels \(N,\), whole numbers from 0, not \(2, 2\)"),
    "fewer labels": (Classification(), (4, 3), [0, 1], "scores of 4 examples for 2 labels"),
    "one class": (Classification(), (2, 1), [0, 0], "at least 2 are needed"),
    "scores of pixels": (Classification(), (2, 3, 4), [0, 0], "must return class scores"),
    "classes for labels": (MultiLabel(), (4, 3), [0, 1, 2, 1], "targets of that shape"),
    "no yes or no": (MultiLabel(), (2, 2), [[0, 2], [1, 0]], "0 or 1"),
    "a column too few": (MultiLabel(), (2, 3), [[0, 1], [1, 0]], r"not \(2, 3\) float32 and \(2, 2\) int64"),
    "numbers of others": (Regression(), (4, 2), [1.0, 2, 3, 4], "the same shape"),
    "a number for all": (Regression(), (4,), 1.0, "the same shape"),
    "small scores": (Segmentation(), (1, 2, 2, 2), [[[0] * 4] * 4], "let the network resize"),
    "a class for all": (Segmentation(), (2, 3), [0, 1], "let the network resize"),
    "a pixel too many": (Segmentation(), (1, 2, 1, 2), [[[2, 255]]], "2 classes apart, but there is a label 2"),
    "colours": (Segmentation(), (1, 2, 1, 2), [[[0.0, 1.0]]], "whole number for each pixel"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told(case):
    task, shape, target, message = WRONG[case]
    with pytest.raises(DnatError, match=message):
        task.check(drawn(*shape), torch.tensor(target))


def test_a_target_that_is_no_tensor():
    for task in TASKS.values():
        with pytest.raises(ValueError, match="list"):
            task().check(drawn(2, 3), [0, 1])
    with pytest.raises(TypeError, match="must return a tensor, but returns str"):
        Regression().check("scores", torch.zeros(2))
    assert is_whole(torch.zeros(1, dtype=torch.uint8))
    assert not is_whole(torch.zeros(1, dtype=torch.bool))


def test_a_task_of_functions():
    def worst(output, target):
        return (output - target).abs().max()

    task = Task.of(mse_loss, {"worst": (worst, "min"), "mae": (l1_loss, "min")}, name="mine")
    output, target = drawn(20, 3), drawn(20, 3, seed=1)
    assert torch.equal(task.loss(output, target), mse_loss(output, target))
    found = in_parts(task, output.requires_grad_(), target)
    sizes = (5, 1, 7, 7)
    wanted = sum(
        worst(o, t).item() * len(t) for o, t in zip(output.split(sizes), target.split(sizes), strict=True)
    )
    assert found == pytest.approx({"worst": wanted / 20, "mae": l1_loss(output, target).item()}, rel=1e-6)
    assert (task.name, task.first, task.merit(found)) == ("mine", "worst", -found["worst"])
    task.check(output, target)
    with pytest.raises(ValueError, match=r"loss must be a tensor without dimensions .* shape \(20, 3\)"):
        Task.of(lambda output, target: output - target).check(output, target)
    with pytest.raises(TypeError, match="metric 'mae' must be a pair"):
        Task.of(mse_loss, {"mae": l1_loss})
    with pytest.raises(ValueError, match="'mae' of mse_loss: what is better must be 'max' or 'min', not 'less'"):
        task_of(Task.of(mse_loss, {"mae": (l1_loss, "less")}))


def test_a_task_by_name(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dnat.tasks import Regression, Task\nfrom torch.nn.functional import mse_loss\n"
        "SQUARES = Task.of(mse_loss)\ndef make():\n    return Regression()\nNUMBER = 3\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's
    assert task_of() == Classification()
    assert {name: type(task_of(name)) for name in TASKS} == TASKS
    assert task_of("mine:SQUARES").name == "mse_loss"
    assert task_of("mine:make") == task_of("mine:Regression") == Regression()
    task = MultiLabel()
    assert task_of(task) is task
    for name, message in {
        "regresion": "unknown task 'regresion'; did you mean 'regression'",
        "mine:SQUARE": "unknown task of mine 'SQUARE'; did you mean 'SQUARES'",
        "mine.py:SQUARES": "cannot be imported",
        "mi-ne:SQUARES": "is not the name of a module",
        "mine:NUMBER": "must be a dnat.Task or the name of one, not int",
    }.items():
        with pytest.raises(DnatError, match=message):
            task_of(name)
    with pytest.raises(TypeError, match=r"give Regression\(\)"):
        task_of(Regression)
    with pytest.raises(ValueError, match="needs a name and at least one metric"):
        task_of(Task())
    for missing in (lambda t: t.loss(0, 0), lambda t: t.statistics(0, 0), lambda t: t.values(torch.zeros(1))):
        with pytest.raises(NotImplementedError, match="Task needs"):
            missing(Task())


class Pair(nn.Module):
    """Two tensors, as a dict."""

    def __init__(self):
        super().__init__()
        self.net = small("residual")

    def forward(self, pixels, weigh=1.0):
        return {"logits": self.net(pixels) * weigh, "other": pixels.mean((1, 2, 3))}


def test_any_task_judges_what_choices_do():
    relaxed = relax(small("residual"), dnat.find_edges(dnat.trace(small("residual"), images())), "full")
    by_default = Judge(relaxed, (images(6),)).alone()
    assert Judge(relaxed, (images(6),), Classification()).alone() == by_default
    for task in (MultiLabel(), Regression()):
        judge = Judge(relaxed, (images(6),), task)
        assert not judge.sees_classes
        found = judge.alone()
        assert found != by_default
        key, choice = next((g, c) for g, row in found.damages.items() for c, d in row.items() if d > 0)
        with torch.no_grad():
            own = judge.own[0][0]
        with judge._changed({}), relaxed.trying(key, choice):
            other = task.answers(relaxed(images(6)))
        assert found.damages[key][choice] == pytest.approx(task.divergence(other, own).item(), rel=1e-6)


def test_one_tensor_of_several_is_judged_by_a_task():
    network = Pair().eval()
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images())), "full")
    assert not Judge(relaxed, (images(6),)).sees_classes
    judge = Judge(relaxed, ({"pixels": images(6)},), MultiLabel())
    assert [tuple(t.shape) for t in judge.own[0]] == [(6, 5)]
    assert math.isfinite(judge.damage({}))


@pytest.mark.parametrize("task", [Classification(), MultiLabel(), Regression()])
def test_a_teacher_of_any_task(task):
    config = dnat.Config(distillation=0.25, distillation_temperature=2.0)
    torch.manual_seed(3)
    teacher, student = Pair().eval(), Pair().eval()
    inputs = {"pixels": images(), "weigh": torch.tensor(2.0)}
    taught = Teacher(teacher, student, config.training, task)
    with torch.no_grad():
        theirs, ours = call(teacher, inputs)["logits"], call(student, inputs)["logits"]
        own = SimpleNamespace(logits=ours)
        loss = taught.loss(torch.tensor(1.5), own, taught.lesson(inputs), {})
    scale = 4 if task.tempered else 1
    wanted = 0.75 * 1.5 + 0.25 * scale * divergence(task, theirs, ours, 2.0)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


def test_a_network_is_called_with_what_a_batch_is():
    network = nn.Bilinear(2, 3, 1)
    x, y = drawn(4, 2), drawn(4, 3)
    assert torch.equal(call(network, (x, y)), call(network, {"input1": x, "input2": y}))
    assert torch.equal(call(nn.ReLU(), x), x.relu())
