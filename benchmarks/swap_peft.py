"""PEFT's operations on the linear layers of a ViT-B/16: the cost of swapping a LoRA or a SHiRA adapter."""

from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, ShiraConfig, get_peft_model
from torch import Tensor, nn


class _LinearLayers(nn.Module):
    """The linear layers of the transformer as PEFT can wrap them; their forward is never run."""

    def __init__(self, base: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for name, tensor in base.items():
            if "resblocks" in name and tensor.ndim == 2:
                layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
                layer.weight = nn.Parameter(tensor.clone(), requires_grad=False)
                self.layers.append(layer)


def contenders(base: dict[str, Tensor], folder: Path, rank: int = 4) -> dict[str, Callable[[], object]]:
    """Save, load and delete, merge and unmerge, for each method; `folder` receives the adapters."""
    verbs: dict[str, Callable[[], object]] = {}
    for method, config in _configs(rank).items():
        model, saved = get_peft_model(_LinearLayers(base), config), folder / method
        model.save_pretrained(saved)
        who = f"PEFT {method} r={rank}"
        verbs[f"{who}: save"] = lambda model=model, saved=saved: model.save_pretrained(saved)
        verbs[f"{who}: load and delete"] = lambda model=model, saved=saved: _load_and_delete(model, saved)
        verbs[f"{who}: merge and unmerge"] = lambda model=model: _merge_and_unmerge(model)
    return verbs


def merge_and_unmerge(method: str, base: dict[str, Tensor], rank: int = 4) -> Callable[[], None]:
    """Merge and unmerge alone, of "LoRA" or "SHiRA", on the weights' device."""
    device = next(iter(base.values())).device
    model = get_peft_model(_LinearLayers(base), _configs(rank)[method]).to(device)
    return lambda: _merge_and_unmerge(model)


def _configs(rank: int) -> dict[str, PeftConfig]:
    return {
        "LoRA": LoraConfig(r=rank, target_modules=r"layers\.\d+"),
        "SHiRA": ShiraConfig(r=rank, target_modules=r"layers\.\d+"),
    }


def _load_and_delete(model: PeftModel, saved: Path) -> None:
    model.load_adapter(str(saved), adapter_name="other")
    model.delete_adapter("other")


def _merge_and_unmerge(model: PeftModel) -> None:
    model.merge_adapter()
    model.unmerge_adapter()
