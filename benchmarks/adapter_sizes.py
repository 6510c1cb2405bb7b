"""Size on disk of PEFT's adapters for a ViT-B/16, counted from files that were saved."""

from pathlib import Path

from peft import LoraConfig, PeftConfig, ShiraConfig, get_peft_model
from transformers import ViTConfig, ViTModel

from benchmarks.record import Row


def adapter_rows(folder: Path, layers: int, rank: int = 4) -> list[Row]:
    """LoRA and SHiRA of one rank on every linear layer of a ViT of `layers` blocks (12: ViT-B/16), float32."""
    configs: dict[str, PeftConfig] = {
        f"PEFT LoRA r={rank}": LoraConfig(r=rank, target_modules="all-linear"),
        f"PEFT SHiRA r={rank}": ShiraConfig(r=rank, target_modules="all-linear"),
    }
    return [_measure(name, config, layers, folder / name) for name, config in configs.items()]


def _measure(name: str, config: PeftConfig, layers: int, folder: Path) -> Row:
    model = get_peft_model(ViTModel(ViTConfig(num_hidden_layers=layers), add_pooling_layer=False), config)
    model.save_pretrained(folder)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    size = (folder / "adapter_model.safetensors").stat().st_size
    return Row(name, {"trained weights": trained, "bytes": size, "bits a weight": round(8 * size / trained, 2)})
