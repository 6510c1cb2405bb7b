"""Sparse deltas beside quantised layers: `y = Q(x) + S x`, whose base stays as it is.

The layers of bitsandbytes (`Linear4bit`, `Linear8bitLt`) and linear layers whose weight torchao has quantised compute
as they always do. A sparse matrix adds its product to their output, and is all that trains:

>>> support = random_support(model, 0.002)
>>> trainer = QuantizedTrainer(model, support)
>>> optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-4)
>>> ...  # train as always; there is nothing to attach
>>> trainer.export().save("delta.safetensors")

A delta is served there as it is on any model, whether it was trained beside a quantised base or on the float one:
`delta.apply(model)`, and the verbs of `RSTModel`.
"""

from rst.quantized.layers import QuantizedLinear, quantized_layers
from rst.quantized.trainer import QuantizedTrainer, random_support

__all__ = ["QuantizedLinear", "QuantizedTrainer", "quantized_layers", "random_support"]
