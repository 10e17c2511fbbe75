"""Theta in a loop of the user's own: the same bits as `transform`, saved and loaded, under all that loops do."""

import copy
import subprocess
import sys

import pytest
import torch
from reference import small
from test_training import tiny_data
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import dnat
from dnat.budget import Costs
from dnat.errors import UsageError
from dnat.session import reproducible, weights_digest
from dnat.training import images_last, learning_rate


def batches_of(data, epochs, size=8):
    return [batch for epoch in range(epochs) for batch in data.train_batches(0, epoch, size)]


def trained(arch, optimizer, batches):
    """A plain loop over batches."""
    arch.train()
    for x, y in batches:
        loss = cross_entropy(arch(x), y) + arch.matching
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        arch.step(lambda net, x=x, y=y: cross_entropy(net(x), y))


@pytest.mark.parametrize(
    "options", [{}, {"budget": 0.7}, {"space": "nat++", "budget": 0.8}, {"space": "dnat,width"}]
)
def test_a_loop_of_ones_own_equals_transform_to_the_bit(options):
    """ResNet8 on the digits: SGD, cosine and clipping written out; the rest is `attach`."""
    data = dnat.load("digits", train_limit=200, test_limit=60)
    settings = {"lr_theta": 0.2, "seed": 3, **options}
    config = dnat.Config(epochs=3, architecture_epochs=2, batch_size=50, threads=1, **settings)
    result = dnat.transform(dnat.build("resnet8", seed=3, width=8), data, config)

    network = dnat.build("resnet8", seed=3, width=8).to(memory_format=torch.channels_last)
    with reproducible(config):
        arch = dnat.attach(network.train(), data.example(2), steps=8, **settings)
        if not images_last(arch, config.machine, torch.device("cpu")):  # candidates with a stride and few channels
            arch.to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(arch.parameters(), lr=config.training.lr, momentum=0.9, weight_decay=3e-4)
        step = 0
        for epoch in range(3):
            for x, y in data.train_batches(3, epoch, 50):
                optimizer.param_groups[0]["lr"] = learning_rate(config.training, step, 12)
                optimizer.zero_grad()
                now = arch if step < 8 else arch.compact
                x = x if images_last(now, config.machine, torch.device("cpu")) else x.contiguous()
                (cross_entropy(arch(x), y) + (arch.matching if step < 8 else 0)).backward()
                weights = arch.weights()
                for part in weights:
                    nn.utils.clip_grad_norm_(part, 5.0)
                optimizer.step()
                step += 1
                if step <= 8:
                    arch.step(lambda net, x=x, y=y: cross_entropy(net(x), y))
                if step == 8:
                    arch.finish(optimizer)
    assert arch.report.choices == result.choices
    assert weights_digest(arch.compact.eval()) == weights_digest(result.network)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [2, 5])
def test_saved_and_loaded_in_the_middle_it_goes_on_with_the_same_bits(name, at, tmp_path):
    """At step 2 theta is trained, at step 5 the choices settle."""
    data, make = tiny_data(), OPTIMIZERS[name]
    batches = batches_of(data, 2)

    def started():
        arch = dnat.attach(small("residual").train(), data.example(2), steps=6, lr_theta=0.2, budget=0.9)
        return arch, make(arch.parameters())

    whole, optimizer = started()
    trained(whole, optimizer, batches)
    first, optimizer = started()
    trained(first, optimizer, batches[:at])
    torch.save({"arch": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "middle.pt")

    saved = torch.load(tmp_path / "middle.pt", weights_only=True)
    second, optimizer = started()
    second.load_state_dict(saved["arch"])
    optimizer.load_state_dict(saved["optimizer"])
    assert second.is_settling is first.is_settling is (at == 5)
    trained(second, optimizer, batches[at:])
    assert weights_digest(second.finish()) == weights_digest(whole.finish())
    assert second.report == whole.report


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_with_what_it_knew(name):
    data = tiny_data()
    arch = dnat.attach(small("resnet8").train(), data.example(2), steps=4, budget=0.6, space="dnat,width")
    optimizer = OPTIMIZERS[name](arch.parameters())
    trained(arch, optimizer, batches_of(data, 1)[:3])
    before = {n: dict(optimizer.state[p]) for n, p in arch.relaxed.network.named_parameters()}
    compact = arch.finish(optimizer)
    named = dict(compact.named_parameters())
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in compact.parameters()]
    kept = 0
    for name_, parameter in named.items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept += before[name_][key].shape == parameter.shape
                if before[name_][key].shape == parameter.shape:
                    assert torch.equal(value, before[name_][key])
            else:
                assert value == before[name_][key]
    assert kept
    x, y = batches_of(data, 1)[0]
    old = copy.deepcopy(compact.state_dict())
    cross_entropy(arch(x), y).backward()
    optimizer.step()
    assert any(not torch.equal(old[k], v) for k, v in compact.state_dict().items())


def test_gradients_are_accumulated_and_losses_scaled():
    data = tiny_data()
    arch = dnat.attach(small("residual").train(), data.example(2), steps=3, lr_theta=0.1)
    optimizer = torch.optim.AdamW(arch.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    theta = next(arch.relaxed.thetas())
    for step in range(3):
        halves = batches_of(data, 1)[:2]
        for x, y in halves:
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(arch(x), y) / 2
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        before = theta.clone()
        arch.step(lambda net: sum(cross_entropy(net(x), y) / 2 for x, y in halves), scaler)  # noqa: B023
        assert arch.is_settling or not torch.equal(before, theta)
        assert arch.steps_left == 2 - step
    compact = torch.compile(arch.finish(optimizer), backend="eager")
    assert compact(data.example(2)).shape == (2, 5)


def test_a_scale_of_the_loss_does_not_change_thetas_step():
    """Powers of two cancel without rounding."""
    data = tiny_data()
    x, y = batches_of(data, 1)[0]
    thetas = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**6)):
        arch = dnat.attach(small("residual").train(), data.example(2), steps=3, lr_theta=0.1)
        arch(x)
        arch.step(lambda net: cross_entropy(net(x), y), scaler)
        thetas.append(next(arch.relaxed.thetas()).clone())
    assert torch.equal(*thetas)


def test_the_optimizer_of_the_weights_never_moves_theta():
    data = tiny_data()
    arch = dnat.attach(small("residual").train(), data.example(2), steps=100)
    optimizer = torch.optim.AdamW(arch.parameters(), lr=1.0, weight_decay=0.5)
    x, y = batches_of(data, 1)[0]
    trained(arch, torch.optim.SGD(arch.parameters(), lr=1e-3), [(x, y)] * 2)
    before = next(arch.relaxed.thetas()).clone()
    cross_entropy(arch(x), y).backward()
    optimizer.step()
    assert torch.equal(before, next(arch.relaxed.thetas()))


def test_many_labels_and_no_images():
    """A network that takes a dict, with a loss that is not cross entropy, smaller than before and better."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward = nn.Linear(12, 32)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4))
            self.outward = nn.Linear(32, 6)

        def forward(self, x, mask=None):
            x = self.inward(x if mask is None else x * mask)
            for block in self.blocks:
                x = x + block(x)
            return {"logits": self.outward(x)}

    torch.manual_seed(0)
    network, x = Tagger(), torch.randn(64, 12)
    y = (x[:, :6] > x[:, 6:]).float()
    example = {"x": x[:2], "mask": torch.ones(2, 12)}
    batch = {"x": x, "mask": torch.ones(64, 12)}
    arch = dnat.attach(network.train(), example, steps=60, budget=0.6)
    optimizer = torch.optim.AdamW(arch.parameters(), lr=1e-2)

    def criterion(net):
        return binary_cross_entropy_with_logits(net(**batch)["logits"], y)

    first = criterion(arch.eval()).item()
    arch.train()
    for _ in range(60):
        criterion(arch).backward()
        optimizer.step()
        optimizer.zero_grad()
        arch.step(criterion)
    compact = arch.finish(optimizer)
    assert dnat.cost(compact, example).madds <= 0.6 * dnat.cost(network, example).madds
    assert criterion(compact).item() < 0.5 * first
    assert "edges change" in str(arch.report)
    saved = sum(edge.saved for edge in arch.report.edges if edge.choice != "original")
    assert saved >= 0.4 * Costs(arch.plan.edges).total


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n, x: dnat.attach(n, x, steps=0), "steps must be at least 1, not 0"),
        (lambda n, x: dnat.attach(n, x, steps=5, lr=0.1), "lr is for your own loop to decide"),
        (lambda n, x: dnat.attach(n, x, steps=5, ema=0.9), "ema is for your own loop to decide"),
        (lambda n, x: dnat.attach(n, x, steps=5, workers=2), "workers is for your own loop to decide"),
        (lambda n, x: dnat.attach(n, x, steps=5, budget=0.01), "the smallest reachable cost"),
        (lambda n, x: dnat.attach(n, x, steps=5).report, "call finish"),
        (lambda n, x: dnat.attach(n, x, steps=5).step(lambda net: net(x).sum()), "call the network in train mode"),
        (lambda n, x: dnat.attach(nn.Flatten(), x, steps=5), "no operation that could be changed"),
    ],
)
def test_wrong_uses_say_what_to_do(call, words):
    with pytest.raises(UsageError, match=words):
        call(small("residual"), tiny_data().example(2))


def test_after_the_end_there_is_no_theta_to_train():
    data = tiny_data()
    arch = dnat.attach(small("residual").train(), data.example(2), steps=1)
    trained(arch, torch.optim.SGD(arch.parameters(), lr=0.1), batches_of(data, 1)[:1])
    assert arch.finish() is arch.finish()
    with pytest.raises(UsageError, match="plain already"):
        arch.step(lambda net: net(data.example(2)).sum())


def test_two_processes_agree():
    """DistributedDataParallel around it: weights and choices are the same in both, theta too."""
    code = """if True:
        import sys, torch, dnat
        from torch import distributed, nn
        from torch.nn.functional import cross_entropy
        rank = int(sys.argv[1])
        distributed.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
        torch.set_num_threads(1)
        data = dnat.load("digits", train_limit=80, test_limit=40)
        network = dnat.build("resnet8", seed=0, width=4)
        arch = dnat.attach(network.train(), data.example(2), steps=6, budget=0.8, lr_theta=0.1)
        model = nn.parallel.DistributedDataParallel(arch, broadcast_buffers=False)
        optimizer = torch.optim.SGD(arch.parameters(), lr=0.05, momentum=0.9)
        for epoch in range(3):
            for x, y in data.train_batches(0, epoch, 40, part=(rank, 2)):
                cross_entropy(model(x), y).backward()
                optimizer.step(); optimizer.zero_grad()
                arch.step(lambda net: cross_entropy(net(x), y))
        theta = next(arch.relaxed.thetas()).tolist()
        compact = arch.finish(optimizer)
        weights = [p.tolist() for p in compact.parameters()]
        gathered = [None, None]
        distributed.all_gather_object(gathered, (theta, arch.report.choices, weights))
        assert gathered[0] == gathered[1]
        distributed.barrier()
        print("agreed" if rank == 0 else "", end="")
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(rank), f"file://{folder}/meet"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        outputs = [p.communicate(timeout=240) for p in processes]
    assert outputs[0][0] == "agreed", outputs
