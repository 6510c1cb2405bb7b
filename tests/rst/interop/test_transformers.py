"""`RSTCallback` in real runs of `transformers.Trainer` on small GPT-2, BERT and ViT, against a loop written by hand."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from rst import (
    CheckpointError,
    ConfigError,
    Linear,
    ResidualSparseTrainer,
    RSTConfig,
    RSTModel,
    SparseDelta,
    Support,
    export,
    get_rst_model,
)
from rst.numerics.exactness import bit_equal

transformers = pytest.importorskip("transformers")

from rst.interop.transformers import RSTCallback  # noqa: E402
from tests.refusal import refused  # noqa: E402

# torch's, about what accelerate asks the scheduler and transformers the loader on a machine without a GPU
pytestmark = [pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")]

CONFIG = RSTConfig(threshold=1e-3)
LR, SAMPLES, BATCH = 1e-3, 16, 4


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=16,
        intermediate_size=16,
        vocab_size=32,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=16, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def samples(model: nn.Module) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    data = []
    for _ in range(SAMPLES):
        tokens = torch.randint(32, (8,), generator=generator)
        images = torch.randn(3, 8, 8, generator=generator)
        label = torch.randint(2, (), generator=generator)
        if isinstance(model, transformers.GPT2LMHeadModel):
            data.append({"input_ids": tokens, "labels": tokens})
        elif isinstance(model, transformers.BertForSequenceClassification):
            data.append({"input_ids": tokens, "labels": label})
        else:
            data.append({"pixel_values": images, "labels": label})
    return data


def arguments(folder: Path, **settings: Any) -> Any:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 0,
    }
    return transformers.TrainingArguments(**(defaults | settings))


class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
    """Samples in the data's order and the mean loss of each batch, which the loop by hand can do as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def trained(model: Any, folder: Path, rst: Any = CONFIG, resume: Any = None, **settings: Any) -> RSTCallback:
    callback = RSTCallback(rst)
    trainer = InOrder(model, arguments(folder, **settings), train_dataset=samples(model), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return callback


def by_hand(
    model: Any, steps: int, accumulation: int = 1, forward: Callable[..., Any] | None = None
) -> ResidualSparseTrainer:
    """What the Trainer does: AdamW without weight decay, gradients clipped at 1, dropout from the seed."""
    data = samples(model)
    model.train()
    model.config.use_cache = False  # the Trainer sets it, and a cache takes another path through attention
    trainer = ResidualSparseTrainer(model, CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    transformers.set_seed(0)
    batches: Iterator[Any] = iter(())
    for _ in range(steps):
        for _ in range(accumulation):
            if (inputs := next(batches, None)) is None:
                batches = iter(DataLoader(data, BATCH))  # which draws a seed for its workers, as the Trainer's does
                inputs = next(batches)
            loss = (forward or model)(**inputs).loss
            (loss / accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
    return trainer


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert bit_equal(a, b), name


@pytest.mark.parametrize("make", [gpt2, bert, vit])
def test_training_equals_the_loop_by_hand_and_its_adapter_the_training(make: Any, tmp_path: Path) -> None:
    model, reference = make(), make()
    trained(model, tmp_path)
    trainer = by_hand(reference, steps=6)
    assert_same(model, reference)
    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    assert delta == trainer.export()
    assert 0 < delta.density < 1

    fresh = RSTModel.from_pretrained(make(), tmp_path).eval()
    data = samples(model)
    inputs = {name: torch.stack([sample[name] for sample in data]) for name in data[0]}
    model.eval()
    with torch.no_grad():
        assert torch.equal(fresh(**inputs).logits, model(**inputs).logits)
    assert {"delta.safetensors", "rst_config.json", "README.md"} <= {path.name for path in tmp_path.iterdir()}


def test_gradient_accumulation_and_bf16(tmp_path: Path) -> None:
    model, reference = vit(), vit()
    trained(model, tmp_path, gradient_accumulation_steps=2, bf16=True)

    def autocast(**inputs: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return reference(**inputs)

    trainer = by_hand(reference, steps=6, accumulation=2, forward=autocast)
    assert_same(model, reference)
    assert 0 < trainer.export().density < 1


def test_a_support_trains_as_by_hand_drops_its_gradients_and_resumes(tmp_path: Path) -> None:
    def start() -> tuple[Any, ResidualSparseTrainer, torch.optim.Optimizer]:
        model = bert()
        trainer = ResidualSparseTrainer(model, RSTConfig(select="support"), support=Support.random(model, 0.1))
        return model, trainer, torch.optim.AdamW(trainer.parameters(), lr=LR, weight_decay=0.0)

    def run(resume: Any = None) -> tuple[Any, ResidualSparseTrainer]:
        model, trainer, optimizer = start()
        args = arguments(tmp_path, max_grad_norm=0, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
        callbacks = [RSTCallback(trainer)]
        loop = InOrder(
            model,
            args,
            train_dataset=samples(model),
            callbacks=callbacks,
            optimizers=(optimizer, None),  # type: ignore[arg-type]
        )
        loop.train(resume_from_checkpoint=resume)
        return model, trainer

    model, trainer = run()
    reference, wanted, optimizer = start()
    data = samples(reference)
    reference.train()
    transformers.set_seed(0)
    batches: Iterator[Any] = iter(())
    for _ in range(6):
        for _ in range(2):
            if (inputs := next(batches, None)) is None:
                batches = iter(DataLoader(data, BATCH))  # type: ignore[arg-type]
                inputs = next(batches)
            (reference(**inputs).loss / 2).backward()
        optimizer.step()
        wanted.step()
        optimizer.zero_grad()
    assert_same(model, reference)
    assert SparseDelta.load(tmp_path / "delta.safetensors") == trainer.export() == wanted.export()
    assert wanted.export().nnz > 0
    resumed, again = run(resume=str(tmp_path / "checkpoint-3"))
    assert_same(resumed, model)
    assert export(None, tmp_path / "checkpoint-6") == again.export()


def test_scaled_gradients_of_fp16_count_only_real_steps(tmp_path: Path) -> None:
    model = vit()
    callback = RSTCallback(CONFIG)
    trainer = InOrder(model, arguments(tmp_path), train_dataset=samples(model), callbacks=[callback])
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    backward = trainer.accelerator.backward
    calls = iter(range(6))

    def overflowing(loss: Tensor, **kwargs: Any) -> None:
        backward(loss * float("inf") if next(calls) == 2 else loss, **kwargs)

    trainer.accelerator.backward = overflowing
    trainer.accelerator.native_amp = True
    trainer.train()
    assert scaler.get_scale() == 1.0
    assert callback.trainer.steps == 5


CHECKPOINTED = {"save_strategy": "steps", "save_steps": 3}
SCHEDULED = RSTConfig(threshold=Linear(1e-4, 2e-3), total_steps=6, modules_to_save=["classifier"])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_interrupted_and_resumed_equals_uninterrupted(accumulation: int, tmp_path: Path) -> None:
    settings = CHECKPOINTED | {"gradient_accumulation_steps": accumulation}
    whole = bert()
    trained(whole, tmp_path / "whole", SCHEDULED, **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    again = bert()
    trained(again, tmp_path / "cut", SCHEDULED, resume=True, **settings)
    assert_same(again, whole)
    deltas = [SparseDelta.load(tmp_path / run / "delta.safetensors") for run in ("whole", "cut")]
    assert deltas[0] == deltas[1]
    assert 0 < deltas[0].density < 1


@pytest.mark.parametrize("make", [gpt2, bert])
def test_resuming_with_another_w0_takes_that_of_the_record(make: Any, tmp_path: Path) -> None:
    whole = make()
    trained(whole, tmp_path / "whole", **CHECKPOINTED)
    folder = tmp_path / "whole" / "checkpoint-3"
    elsewhere = CHECKPOINTED | {"resume_from_checkpoint": str(folder)}
    trained(again := make(seed=5), tmp_path / "other", resume=str(folder), **elsewhere)
    assert_same(again, whole)
    assert SparseDelta.load(tmp_path / "other" / "delta.safetensors") == SparseDelta.load(
        tmp_path / "whole" / "delta.safetensors"
    )


def test_resuming_without_the_runs_record_is_refused(tmp_path: Path) -> None:
    trained(bert(), tmp_path / "one", **CHECKPOINTED)
    trained(bert(seed=1), tmp_path / "two", **CHECKPOINTED)
    with refused(CheckpointError, "3", "two/checkpoint-3"):
        trained(bert(), tmp_path / "two", resume=str(tmp_path / "one" / "checkpoint-3"), **CHECKPOINTED)
    (tmp_path / "one" / "checkpoint-3" / "rst_trainer.pt").write_bytes(b"broken")
    with refused(CheckpointError, file="rst_trainer.pt"):
        trained(bert(), tmp_path / "one", resume=str(tmp_path / "one" / "checkpoint-3"), **CHECKPOINTED)


def test_checkpoints_are_adapters_where_their_step_was_one_of_selection(tmp_path: Path) -> None:
    config = RSTConfig(threshold=1e-3, every=2)
    straight, saved = bert(), bert()
    trained(straight, tmp_path / "straight", config)
    settings = {"save_strategy": "steps", "save_steps": 1}
    trained(saved, tmp_path / "saved", config, **settings)
    assert_same(saved, straight)
    adapters = {path.parent.name for path in (tmp_path / "saved").glob("checkpoint-*/delta.safetensors")}
    assert adapters == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    base = bert()
    RSTModel.from_pretrained(base, tmp_path / "saved" / "checkpoint-4")
    whole = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "saved" / "checkpoint-4")
    assert_same(base, whole)


@pytest.mark.parametrize("make", [gpt2, bert])  # tied weights, a pooler that is saved whole
@pytest.mark.parametrize("every", [0, 1])
def test_a_checkpoint_is_exported_without_naming_the_base(make: Any, every: int, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rst.cli import app

    whole = ["classifier"] if make is bert else []
    model = make()
    callback = trained(model, tmp_path, RSTConfig(threshold=1e-3, every=every, modules_to_save=whole), **CHECKPOINTED)
    folder, output = tmp_path / "checkpoint-6", tmp_path / "delta-6.safetensors"
    result = CliRunner().invoke(app, ["export", str(folder), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert SparseDelta.load(output) == callback.trainer.export()
    base = make()
    SparseDelta.load(output).apply(base)
    assert_same(base, model)


def test_a_checkpoint_without_a_record_says_what_to_type(tmp_path: Path) -> None:
    trained(bert(), tmp_path, save_only_model=True, **CHECKPOINTED)
    with refused(CheckpointError, "rst_trainer.pt", "--base", file="model.safetensors"):
        export(None, tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "rst_trainer.pt").write_bytes(b"broken")
    with refused(CheckpointError, file="rst_trainer.pt"):
        export(None, tmp_path / "checkpoint-3")


def test_best_model_is_the_adapter_at_the_end(tmp_path: Path) -> None:
    model = bert()
    losses = iter([0.1, 3.0, 2.0])
    callback = RSTCallback(SCHEDULED)
    trainer = InOrder(
        model,
        arguments(
            tmp_path,
            **{"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
            load_best_model_at_end=True,
            metric_for_best_model="made_up",
            greater_is_better=False,
        ),
        train_dataset=samples(model),
        eval_dataset=samples(model),
        compute_metrics=lambda _: {"made_up": next(losses)},
        callbacks=[callback],
    )
    trainer.train()
    best = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert_same(model, best)
    base = bert()
    RSTModel.from_pretrained(base, tmp_path)
    assert_same(base, best)
    assert callback.trainer.steps == 2


def test_rst_model_lends_its_trainer(tmp_path: Path) -> None:
    model = get_rst_model(bert(), CONFIG, "task")
    pristine, reference = bert(), bert()
    trained(model.base_model, tmp_path / "run", model.trainer)
    by_hand(reference, steps=6)
    assert_same(model.base_model, reference)
    with model.disable_adapter():
        assert_same(model.base_model, pristine)
    model.save_pretrained(tmp_path / "adapters")
    assert SparseDelta.load(tmp_path / "adapters" / "task" / "delta.safetensors") == SparseDelta.load(
        tmp_path / "run" / "delta.safetensors"
    )
    with refused(ConfigError, "Trainer(model.base_model"):
        trained(model, tmp_path / "refused", model.trainer)
    with refused(ConfigError, "RSTCallback"):
        trained(bert(), tmp_path / "refused", model.trainer)


def test_frozen_parameters_stay_and_model_init_is_tracked_anew(tmp_path: Path) -> None:
    callback = RSTCallback(RSTConfig(threshold=1e-3, target_modules=["encoder"]))
    trainer = transformers.Trainer(
        args=arguments(tmp_path), model_init=lambda: bert(), train_dataset=samples(bert()), callbacks=[callback]
    )
    trainer.train()
    base = bert().state_dict()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not bit_equal(tensor, base[name])}
    assert changed == set(SparseDelta.load(tmp_path / "delta.safetensors"))
    assert all("encoder" in name for name in changed)


def test_training_goes_on_in_a_second_call(tmp_path: Path) -> None:
    model = bert()
    pristine = copy.deepcopy(model)
    callback = RSTCallback(CONFIG)
    trainer = InOrder(model, arguments(tmp_path), train_dataset=samples(model), callbacks=[callback])
    trainer.train()
    trainer.train()
    assert callback.trainer.steps == 12
    callback.save_pretrained(tmp_path / "packed", encoding="packed")
    RSTModel.from_pretrained(pristine, tmp_path / "packed")
    assert_same(pristine, model)


def test_the_trainer_is_not_there_before_the_model() -> None:
    with refused(ConfigError, "Trainer"):
        _ = RSTCallback(CONFIG).trainer


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    model = bert()
    callback, control = RSTCallback(CONFIG), transformers.TrainerControl()
    args = arguments(tmp_path)
    callback.on_init_end(args, transformers.TrainerState(), control, model=model)
    with refused(ConfigError, 'save_strategy="no"'):
        callback.on_save(args, transformers.TrainerState(is_hyper_param_search=True), control)
    args.deepspeed = {"zero_optimization": {"stage": 2}}
    with refused(ConfigError, "DeepSpeed"):
        callback.on_train_begin(args, transformers.TrainerState(), control, model=model, optimizer=None)


def test_processes_that_save_nothing_select_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving, other = bert(), bert()
    trained(saving, tmp_path / "saving", RSTConfig(threshold=1e-3, every=4), save_strategy="steps", save_steps=3)
    monkeypatch.setattr(transformers.TrainingArguments, "should_save", False)
    trained(other, tmp_path / "other", RSTConfig(threshold=1e-3, every=4), save_strategy="steps", save_steps=3)
    assert_same(saving, other)
    assert list((tmp_path / "saving").glob("*.safetensors"))
    assert {path.name for path in (tmp_path / "other").rglob("*") if path.is_file()} == {"rng_state.pth"}


def test_a_record_of_something_else_is_named(tmp_path: Path) -> None:
    trained(bert(), tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    torch.save({"trainer": {"format": "another"}}, tmp_path / "checkpoint-2" / "rst_trainer.pt")
    with refused(CheckpointError, file="rst_trainer.pt"):
        trained(bert(), tmp_path, max_steps=4, resume=str(tmp_path / "checkpoint-2"))


def test_share_and_boundary_are_in_the_logs(tmp_path: Path) -> None:
    model = bert()
    callback = RSTCallback(RSTConfig(ratio=0.05))
    trainer = InOrder(
        model,
        arguments(tmp_path, logging_strategy="steps", logging_steps=2),
        train_dataset=samples(model),
        callbacks=[callback],
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    for entry in entries:
        assert entry["rst_share"] == pytest.approx(entry["rst_target"], rel=0.02)
        assert entry["rst_boundary"] > 0
    assert entries[0]["rst_target"] > entries[-1]["rst_target"] == pytest.approx(0.05)
    assert entries[-1]["rst_share"] == callback.trainer.status().share
    assert "rst_share" not in trainer.state.log_history[-1], "the summary of a run is no entry of its training"
