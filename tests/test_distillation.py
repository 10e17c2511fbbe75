"""What a network learns from another one, against its definition; and that nothing of it stays."""

import copy
import functools
import math

import pytest
import torch
from reference import images, small
from torch import nn

import dnat
from dnat.distillation import Lesson, Teacher, distance, watched
from dnat.relaxation import relax
from dnat.training import Progress, Trainer


def tiny_data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (24, 3, 8, 8), generator=generator, dtype=torch.uint8)
    y = torch.arange(24) % 5
    return dnat.Data.from_tensors("tiny", (x, y), (x[:10], y[:10]))


def config(**options):
    defaults = {"epochs": 4, "batch_size": 8, "threads": 1}
    return dnat.Config(**(defaults | options))


def residual(seed=0):
    torch.manual_seed(seed)
    return small("residual").eval()


def test_answers_are_learned_beside_the_labels():
    """Against the definition: (1 - w) CE + w T^2 sum p log(p / q) with p (the teacher's), q at temperature T."""
    temperature, weight = 3.0, 0.3
    teacher, student = residual(1), residual(2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter))
    x, y = images(), torch.tensor([0, 1, 2, 3])
    taught = Teacher(teacher, student, config(distillation=weight, distillation_temperature=temperature).training)
    with torch.no_grad():
        output = student(x)
        loss = taught.loss(nn.functional.cross_entropy(output, y), output, taught.lesson(x), {})
        ours, theirs = output.tolist(), teacher(x).tolist()

    def shares(row, temperature=1.0):
        parts = [math.exp(score / temperature) for score in row]
        return [part / sum(parts) for part in parts]

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    labels = -sum(math.log(shares(row)[label]) for row, label in zip(ours, y.tolist(), strict=True)) / len(ours)
    pairs = [(shares(t, temperature), shares(o, temperature)) for t, o in zip(theirs, ours, strict=True)]
    apart = sum(kl(p, q) for p, q in pairs) / len(pairs)
    assert apart > 0.01
    assert abs(apart - sum(kl(q, p) for p, q in pairs) / len(pairs)) > 0.01  # the direction matters here
    wanted = (1 - weight) * labels + weight * temperature**2 * apart
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


class Chain(nn.Module):
    """Two branches of one tensor, a norm, a layer that keeps its shape, and a classifier."""

    def __init__(self, wide=6):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, wide, 1)
        self.right = nn.Conv2d(4, wide, 1)
        self.same = nn.Conv2d(wide, wide, 1)
        self.last = nn.Linear(wide, 5)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(self.same(self.left(x) + self.right(x)).mean((2, 3)))


def chains(wide=6):
    torch.manual_seed(0)
    return Chain().eval(), Chain(wide).eval()


def test_what_layers_are_given_is_learned():
    """By hand: `first` is given the same images; `left` and `right` share a tensor; `same` keeps its shape."""
    teacher, student = chains()
    x, weight = torch.randn(6, 3, 5, 5), 7.0
    taught = Teacher(teacher, student, config(distillation=0.0, feature_distillation=weight).training)
    lesson = taught.lesson(x)
    assert list(lesson.given) == ["first", "left", "last"]
    with watched(student, tuple(lesson.given)) as given:
        output = student(x)
    start = torch.tensor(2.0)
    found = taught.loss(start, output, lesson, given)

    def ends(network):
        middle = network.norm(network.first(x))
        return middle, network.same(network.left(middle) + network.right(middle)).mean((2, 3))

    apart = [
        ((a - b) ** 2).mean() / ((b - b.mean()) ** 2).mean()
        for a, b in zip(ends(student), ends(teacher), strict=True)
    ]
    assert found.item() == pytest.approx(2.0 + weight * sum(apart).item() / 3, rel=1e-5)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.first.weight.grad.abs().sum() > 0


def test_layers_of_another_shape_or_kind_are_left_out():
    teacher, student = chains(wide=8)
    student.left = nn.ConvTranspose2d(4, 8, 1)
    taught = Teacher(teacher, student, config(distillation=0.0, feature_distillation=1.0).training)
    x = torch.randn(2, 3, 5, 5)
    lesson = taught.lesson(x)
    assert list(lesson.given) == ["first", "right", "last"]  # `left` is another kind here
    with watched(student, tuple(lesson.given)) as given:
        output = student(x)
    assert given["last"].shape == (2, 8)
    found = taught.loss(torch.tensor(0.0), output, lesson, given)
    middles = [n.norm(n.first(x)) for n in (student, teacher)]
    apart = (middles[0] - middles[1]).square().mean() / middles[1].var(unbiased=False)
    assert found.item() == pytest.approx(apart.item() / 2, rel=1e-5)  # the mean over `first` and `right`


def test_the_teacher_itself_has_nothing_to_learn():
    teacher = residual()
    student = copy.deepcopy(teacher)
    taught = Teacher(teacher, student, config(distillation=1.0, feature_distillation=3.0).training)
    x = images()
    lesson = taught.lesson(x)
    with watched(student, tuple(lesson.given)) as given:
        output = student(x)
    loss = taught.loss(torch.tensor(5.0), output, lesson, given)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert max(p.grad.abs().max().item() for p in student.parameters() if p.grad is not None) < 1e-4


def test_nothing_stays_on_the_networks():
    teacher, student = chains()
    with pytest.raises(RuntimeError, match="stop"), watched(student, ("first", "last")):
        raise RuntimeError("stop")
    taught = Teacher(teacher, student, config(feature_distillation=1.0).training)
    taught.lesson(torch.zeros(2, 3, 5, 5))
    for network in (teacher, student):
        assert not any(m._forward_hooks for m in network.modules())


def loss_of(trainer, x, y, lesson, net):
    return trainer._loss(net, x, y, lesson)[0]


def test_theta_does_not_feel_what_layers_are_given():
    """The gradient of theta's own step, with hints and without."""
    gradients = []
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        network, data = small("residual"), tiny_data()
        settings = config(distillation=0.5, feature_distillation=weight)
        relaxed = relax(network, dnat.find_edges(dnat.trace(network, data.example(2)))).train()
        trainer = Trainer(relaxed, data, settings, Progress(), teacher=copy.deepcopy(network).eval())
        x, y = next(data.train_batches(0, 0, 8))
        assert trainer.teacher
        lesson = trainer.teacher.lesson(x)
        trainer.stage.gradient(functools.partial(loss_of, trainer, x, y, lesson))
        gradients.append(next(relaxed.thetas()).grad.clone())
        before = trainer._loss(relaxed, x, y, Lesson(lesson.answers), hints=True)[0].item()
        after = trainer._loss(relaxed, x, y, lesson, hints=True)[0].item()
        assert (after > before) is (weight > 0)
    assert torch.equal(*gradients)


def test_hints_bring_layers_nearer_than_answers_alone():
    """A block is dropped; after the same steps, what the next layer is given is nearer to the teacher's."""
    torch.manual_seed(0)
    data = tiny_data()
    network = dnat.train(dnat.build("resnet8", width=4, num_classes=5), data, config(epochs=3)).network
    apart = []
    for weight in (0.0, 10.0):
        settings = config(
            preset="fine-tune",
            epochs=3,
            choices={"layer1.0.conv2>layer1.0.bn2": "none"},
            feature_distillation=weight,
        )
        made = dnat.transform(network, data, settings).network
        x = data.example(24)
        with (
            torch.no_grad(),
            watched(made, ("layer2.0.conv1",)) as ours,
            watched(network, ("layer2.0.conv1",)) as own,
        ):
            made(x), network(x)
        apart.append(distance(ours["layer2.0.conv1"], own["layer2.0.conv1"]).item())
    assert apart[1] < apart[0]
