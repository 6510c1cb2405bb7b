"""What the benchmark of mixed batches says of PEFT holds for the PEFT that is installed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.messages import names


class Block(nn.Module):
    """Attention and an MLP's layer, as CLIP's image encoder has them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.c_fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c_fc(self.attn(x, x, x)[0])
        return result


def test_pefts_attention_takes_no_adapter_names_and_its_linear_layers_do() -> None:
    tokens = torch.randn(2, 3, 8)
    for target, refused in (("c_fc", False), ("attn", True)):
        config = LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
        model = get_peft_model(Block(), config, adapter_name="first")
        model.add_adapter("second", config)
        model.eval()
        if refused:
            with pytest.raises(TypeError, match=names("MultiheadAttention")):
                model(tokens, adapter_names=["first", "second"])
        else:
            assert model(tokens, adapter_names=["first", "second"]).shape == tokens.shape
