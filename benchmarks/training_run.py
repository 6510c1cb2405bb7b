"""One model trained in one mode in a process of its own: `python -m benchmarks.training_run MODEL MODE STEPS`.

With 0 steps it takes two, and counts the bytes of tensors instead of the process' memory.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rst import Constant, ResidualSparseTrainer, RSTConfig, SparseDelta, Support
from rst.numerics.exactness import bit_equal

LR = 1e-5
Loss = Callable[[], Tensor]


def _text(vocabulary: int, tokens: int) -> dict[str, Tensor]:
    words = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))
    return {"input_ids": words, "labels": words}


def _gpt2(**sizes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_positions=128, **sizes)), _text(sizes["vocab_size"], 128)


def _vit() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return ViTForImageClassification(ViTConfig()), {"pixel_values": images, "labels": torch.arange(8) % 2}


def _llama() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=512,
        dtype="bfloat16",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config), _text(32000, 128)
    finally:
        torch.set_default_dtype(before)


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "tiny": lambda: _gpt2(n_layer=2, n_embd=128, n_head=4, vocab_size=256),
    "vit": _vit,
    "gpt2": lambda: _gpt2(n_layer=12, n_embd=1024, n_head=16, vocab_size=8192),
    "llama": _llama,
}
MODES = ("full", "LoRA r=4", "SHiRA r=4", "rst, w0 copied", "rst", "rst, sparse", "rst in backward", "rst, support")


def pretrained(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model, the same each time, in training mode, and a batch of it."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    return model.train(), batch


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers but the last."""
    kinds = ("Linear", "Conv1D")
    names = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    return [name for name in names if not name.endswith(("lm_head", "classifier"))]


def with_linear_layers(model: nn.Module) -> nn.Module:
    """Have `torch.nn.Linear` in place of transformers' `Conv1D`, which PEFT's SHiRA does not take."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            outputs, inputs = module.weight.T.shape
            layer = nn.Linear(inputs, outputs, device="meta")
            layer.weight, layer.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
            model.set_submodule(name, layer)
    return model


def prepare(model: nn.Module, mode: str) -> tuple[torch.optim.Optimizer, ResidualSparseTrainer | None, nn.Module]:
    """The optimiser of a mode, the trainer where it is one of ours, and the model to call."""

    def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=LR)

    if mode == "full":
        return adamw(model.parameters()), None, model
    if mode in ("LoRA r=4", "SHiRA r=4"):
        from peft import LoraConfig, ShiraConfig, get_peft_model

        layers = linear_layers(model)
        transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
        lora = LoraConfig(r=4, target_modules=layers, fan_in_fan_out=transposed)
        shira = ShiraConfig(r=4, target_modules=layers)
        wrapped = get_peft_model(model, lora if mode.startswith("LoRA") else shira)
        return adamw([weight for weight in wrapped.parameters() if weight.requires_grad]), None, wrapped
    if mode == "rst, support":
        config = RSTConfig(select="support", target_modules=[f"{name}.weight" for name in linear_layers(model)])
        support = Support.random(model, 0.002, config=RSTConfig(target_modules=config.target_modules))
        trainer = ResidualSparseTrainer(model, config, support=support)
    elif mode == "rst in backward":
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1.0005 * LR, base_storage="sparse"))
        return trainer.attach_in_backward(adamw), trainer, model
    else:
        storage: Any = {"rst, w0 copied": "device", "rst, sparse": "sparse"}.get(mode)
        share = Constant(0.002)
        trainer = ResidualSparseTrainer(model, RSTConfig(ratio=share, total_steps=100, base_storage=storage))
    optimizer = adamw(trainer.parameters())
    trainer.attach(optimizer)
    return optimizer, trainer, model


def measure(name: str, mode: str, steps: int) -> dict[str, Any]:
    """Train for some steps, and say what it took."""
    model, batch = pretrained(name)
    if mode == "SHiRA r=4":
        model = with_linear_layers(model)
    size = sum(weight.nbytes for weight in model.parameters()) / 2**20
    start = _resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    optimizer, trainer, called = prepare(model, mode)
    trained = sum(weight.numel() for group in optimizer.param_groups for weight in group["params"])
    seconds = []
    for _ in range(steps):
        begun = time.process_time()
        called(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begun)
    peak = _peak()
    numbers = {
        "weights, MiB": round(size),
        "trained": trained,
        "peak, times the weights": round(1 + (peak - start) / size, 2),
        "step, CPU s": round(min(seconds[1:]), 2),
    }
    return numbers | ({"merged": str(_merges(name, trainer, model))} if mode == "rst, support" and trainer else {})


def count_tensors(name: str, mode: str) -> float:
    """The most bytes that tensors have at once in two steps, in times the weights, as torch's profiler counts them."""
    model, batch = pretrained(name)
    if mode == "SHiRA r=4":
        model = with_linear_layers(model)
    size = sum(weight.nbytes for weight in model.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer, _, called = prepare(model, mode)
        for _ in range(2):
            called(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return round(1 + max(accumulate(sizes)) / size, 2)


def _merges(name: str, trainer: ResidualSparseTrainer, tuned: nn.Module) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        trainer.export().save(Path(folder) / "delta.safetensors")
        base = pretrained(name)[0]
        SparseDelta.load(Path(folder) / "delta.safetensors").apply(base)
    pairs = zip(base.state_dict().items(), tuned.state_dict().items(), strict=True)
    return all(a == b and bit_equal(left, right) for (a, left), (b, right) in pairs)


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    name, mode, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(measure(name, mode, steps) if steps else count_tensors(name, mode)))
