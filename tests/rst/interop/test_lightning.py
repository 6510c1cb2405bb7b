"""`RSTCallback` in real fits of Lightning on a small network, against the loop written by hand."""

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rst import (
    ConfigError,
    Linear,
    ResidualSparseTrainer,
    RSTConfig,
    RSTModel,
    SparseDelta,
    Support,
    export,
)
from rst.numerics.exactness import bit_equal

pl = pytest.importorskip("lightning.pytorch")

from rst.interop.lightning import RSTCallback  # noqa: E402
from tests.refusal import refused  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

CONFIG = RSTConfig(threshold=2e-3)
LR, SAMPLES, BATCH = 0.05, 32, 8


class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.automatic_optimization = not manual

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self(inputs), labels)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 8, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(4, (SAMPLES,), generator=generator)), BATCH)


def fit(
    module: nn.Module, callback: Any, folder: Path, epochs: int = 3, resume: Path | None = None, **settings: Any
) -> None:
    callbacks = callback if isinstance(callback, list) else [callback]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        callbacks=[*callbacks, pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **settings},
    )
    trainer.fit(module, loader(), ckpt_path=resume, weights_only=None if resume is None else True)


def by_hand(
    module: Classifier, epochs: int = 3, accumulation: int = 1, dtype: torch.dtype = torch.float32
) -> ResidualSparseTrainer:
    trainer = ResidualSparseTrainer(module, CONFIG)
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for index, (inputs, labels) in enumerate(loader()):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = nn.functional.cross_entropy(module(inputs), labels)
            (loss / accumulation).backward()
            if index % accumulation == accumulation - 1:
                optimizer.step()
                trainer.step()
                optimizer.zero_grad()
    return trainer


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert bit_equal(a, b), name


@pytest.mark.parametrize("manual", [False, True])
def test_fitting_equals_the_loop_by_hand_and_its_adapter_the_fit(manual: bool, tmp_path: Path) -> None:
    module, reference, fresh = Classifier(manual), Classifier(), Classifier()
    callback = RSTCallback(CONFIG)
    fit(module, callback, tmp_path)
    trainer = by_hand(reference)
    assert_same(module, reference)
    assert callback.export() == trainer.export()
    assert 0 < callback.export().density < 1
    callback.save_pretrained(tmp_path / "adapter")
    again = RSTModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    inputs, _ = next(iter(loader()))
    assert torch.equal(again(inputs), module.eval()(inputs))


def test_gradient_accumulation_and_mixed_precision(tmp_path: Path) -> None:
    module, reference = Classifier(), Classifier()
    fit(module, RSTCallback(CONFIG), tmp_path, accumulate_grad_batches=2, precision="bf16-mixed")
    trainer = by_hand(reference, accumulation=2, dtype=torch.bfloat16)
    assert_same(module, reference)
    assert 0 < trainer.export().density < 1


class OnASupport(Classifier):
    def __init__(self) -> None:
        super().__init__()
        support = Support.random(self, 0.2)
        self.callback = RSTCallback(ResidualSparseTrainer(self, RSTConfig(select="support"), support=support))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.callback.trainer.parameters(), lr=LR)


def test_a_support_trains_as_by_hand_is_clipped_and_resumes(tmp_path: Path) -> None:
    clipped = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    module, reference, again = OnASupport(), OnASupport(), OnASupport()
    fit(module, module.callback, tmp_path, epochs=4, **clipped)
    trainer, optimizer = reference.callback.trainer, reference.configure_optimizers()
    for _ in range(4):
        for index, (inputs, labels) in enumerate(loader()):
            (nn.functional.cross_entropy(reference(inputs), labels) / 2).backward()
            if index % 2:
                nn.utils.clip_grad_norm_(trainer.parameters(), 0.05)
                optimizer.step()
                trainer.step()
                optimizer.zero_grad()
    assert_same(module, reference)
    assert module.callback.export() == trainer.export()
    assert trainer.export().nnz > 0
    fit(again, again.callback, tmp_path / "again", epochs=4, resume=tmp_path / "epoch=1.ckpt", **clipped)
    assert_same(again, module)
    assert again.callback.export() == module.callback.export()


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = RSTConfig(threshold=Linear(1e-4, 5e-3), total_steps=16, modules_to_save=["head"])
    whole, callback = Classifier(), RSTCallback(config)
    fit(whole, callback, tmp_path / "whole", epochs=4)
    again, resumed = Classifier(), RSTCallback(config)
    with torch.no_grad():
        again.body[0].weight += 1  # so its w0 is wrong until the record is loaded
    fit(again, resumed, tmp_path / "again", epochs=4, resume=tmp_path / "whole" / "epoch=1.ckpt")
    assert resumed.trainer.steps == 16
    assert_same(again, whole)
    assert resumed.export() == callback.export()


def test_the_checkpoint_alone_suffices_for_an_export(tmp_path: Path) -> None:
    module, callback = Classifier(), RSTCallback(CONFIG)
    fit(module, callback, tmp_path)
    delta = export(None, tmp_path / "epoch=2.ckpt")
    assert delta == callback.export()
    base = Classifier()
    delta.apply(base)
    assert_same(base, module)


def test_a_network_called_module_is_exported_under_that_name(tmp_path: Path) -> None:
    class Wrapped(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential(self.body, self.head)
            del self.body, self.head

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.module(inputs)
            return logits

    module, callback = Wrapped(), RSTCallback(CONFIG)
    fit(module, callback, tmp_path)
    delta = export(None, tmp_path / "epoch=2.ckpt")
    assert delta == callback.export()
    assert all(name.startswith("module.") for name in delta)


def test_network_inside_the_module_keeps_its_own_names(tmp_path: Path) -> None:
    module = Classifier()
    body = copy.deepcopy(module.body)
    callback = RSTCallback(ResidualSparseTrainer(module.body, CONFIG))
    fit(module, callback, tmp_path / "whole", epochs=4)
    callback.save_pretrained(tmp_path / "adapter")
    assert "0.weight" in SparseDelta.load(tmp_path / "adapter" / "delta.safetensors")
    RSTModel.from_pretrained(body, tmp_path / "adapter")
    assert_same(body, module.body)
    again = Classifier()
    resumed = RSTCallback(ResidualSparseTrainer(again.body, CONFIG))
    fit(again, resumed, tmp_path / "again", epochs=4, resume=tmp_path / "whole" / "epoch=1.ckpt")
    assert_same(again, module)
    assert resumed.export() == callback.export()


def test_a_second_fit_goes_on_after_an_exception(tmp_path: Path) -> None:
    module, callback = Classifier(), RSTCallback(CONFIG)
    pristine = copy.deepcopy(module)

    class Stop(pl.Callback):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self, *_: Any) -> None:
            raise KeyError

    with pytest.raises(KeyError):
        fit(module, [callback, Stop()], tmp_path / "first")
    fit(module, callback, tmp_path / "second", epochs=1)
    assert callback.trainer.steps == 8
    callback.export().apply(pristine)
    assert_same(pristine, module)


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    callback = RSTCallback(CONFIG)
    with refused(ConfigError, "fit"):
        callback.export()
    fit(Classifier(), pl.callbacks.LambdaCallback(), tmp_path / "without")
    with refused(ConfigError, file="epoch=1.ckpt"):
        fit(Classifier(), callback, tmp_path / "new", resume=tmp_path / "without" / "epoch=1.ckpt")
    fit(Classifier(), callback := RSTCallback(CONFIG), tmp_path / "one")
    with refused(ConfigError, "RSTCallback"):
        fit(Classifier(), callback, tmp_path / "two")


def test_a_fit_without_an_optimiser_is_refused(tmp_path: Path) -> None:
    class Still(Classifier):
        def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
            return []

    with refused(ConfigError, "configure_optimizers"):
        fit(Still(), RSTCallback(CONFIG), tmp_path)


def test_strategies_that_cut_parameters_are_refused(tmp_path: Path) -> None:
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):  # type: ignore[misc, name-defined]
        pass

    with refused(ConfigError, "FSDPStrategy"):
        fit(Classifier(), RSTCallback(CONFIG), tmp_path, strategy=FSDPStrategy(device=torch.device("cpu")))


def test_a_backbone_that_thaws_later_is_in_the_export_or_refused(tmp_path: Path) -> None:
    class Thawing(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.body

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=LR)

    def finetuning() -> Any:
        return pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=LR, train_bn=False)

    with pytest.raises(ConfigError) as caught:
        fit(Thawing(), [RSTCallback(RSTConfig(threshold=0.0)), finetuning()], tmp_path / "late")
    assert caught.value.parameter == "body.0.weight"
    module = Thawing()
    callback = RSTCallback(ResidualSparseTrainer(module, RSTConfig(threshold=0.0)))
    fit(module, [callback, finetuning()], tmp_path / "early")
    assert {"body.0.weight", "head.weight"} <= set(callback.export())


def test_share_and_boundary_are_logged_as_often_as_the_trainer_logs(tmp_path: Path) -> None:
    module, callback = Classifier(), RSTCallback(RSTConfig(ratio=0.1))
    logger = pl.loggers.CSVLogger(tmp_path / "logs")
    fit(module, callback, tmp_path / "run", logger=logger, log_every_n_steps=2)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rst_share"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9, 11]
    for row in rows:
        assert float(row["rst_share"]) == pytest.approx(float(row["rst_target"]), abs=1 / 244)
        assert float(row["rst_boundary"]) > 0
    assert float(rows[0]["rst_target"]) > float(rows[-1]["rst_target"]) == pytest.approx(0.1)
