"""The architecture stage within Lightning's and Hugging Face's own trainers."""

import warnings

import pytest
import torch
from reference import small
from test_training import tiny_data
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dnat
from dnat.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def examples():
    data = tiny_data(48)
    batches = [data.train_batch(torch.arange(48), None)]
    return data, batches[0]


def test_lightning_trains_what_comes_out(tmp_path):
    from dnat.integrations.lightning import Transform, lightning

    _, (x, y) = examples()

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = small("residual")
            self.logged = 0

        def training_step(self, batch, batch_idx):
            loss = cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    module = Classifier()
    before = dnat.cost(module.network, x[:2]).madds
    transform = Transform("network", x[:2], steps=4, budget=0.8, lr_theta=0.2)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[transform], accumulate_grad_batches=2, default_root_dir=tmp_path, **options
    )
    trainer.fit(module, loader)
    assert trainer.global_step == 6
    assert module.network is transform.architecture.compact
    assert dnat.cost(module.network, x[:2]).madds <= 0.8 * before
    assert [id(p) for p in trainer.optimizers[0].param_groups[0]["params"]] == [
        id(p) for p in module.network.parameters()
    ]
    assert trainer.callback_metrics["loss"].isfinite()
    with pytest.raises(UsageError, match="has no network named 'net'"):
        lightning.Trainer(max_epochs=1, callbacks=[Transform("net", x[:2], steps=4)], **options).fit(
            Classifier(), loader
        )


def test_lightning_goes_on_from_its_checkpoint(tmp_path):
    """Stopped in the middle of the architecture stage, the same bits come out."""
    from dnat.integrations.lightning import Transform, lightning

    _, (x, y) = examples()

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = small("residual")

        def training_step(self, batch, batch_idx):
            return cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)

    def fitted(epochs, start=None):
        torch.manual_seed(0)
        module, transform = Classifier(), Transform("network", x[:2], steps=9, budget=0.8, lr_theta=0.2)
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=[transform], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8), ckpt_path=start)
        return trainer, module

    _, whole = fitted(2)
    trainer, _ = fitted(1)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    _, again = fitted(2, tmp_path / "middle.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_hugging_faces_trainer_trains_what_comes_out(tmp_path):
    from dnat.integrations.huggingface import Transform

    transformers = pytest.importorskip("transformers")

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=50,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(5, 50, (32, 12))
    rows = [{"input_ids": row, "labels": (row[0] > 25).long()} for row in ids]
    example = {"input_ids": ids[:2], "labels": torch.tensor([0, 1])}
    before = dnat.cost(model, example).madds
    arch = dnat.attach(model.train(), example, steps=8, budget=0.7, lr_theta=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, report_to=[],
            use_cpu=True, save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=arch, args=arguments, train_dataset=rows, callbacks=[Transform(arch)])
        result = trainer.train()
    assert trainer.state.global_step == 12
    assert dnat.cost(arch.compact, example).madds <= 0.7 * before
    assert result.training_loss < 1
    assert isinstance(arch.compact, nn.Module)
    assert arch.compact(**example).logits.shape == (2, 2)
