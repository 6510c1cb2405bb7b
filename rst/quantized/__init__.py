"""Sparse deltas beside quantised layers: `y = Q(x) + S x`, where the base does not change.

The layers of bitsandbytes (`Linear4bit`, `Linear8bitLt`) and linear layers whose weight torchao has quantised compute
as usual. The product of a sparse matrix is added to their output, and only this matrix is trained:

>>> support = random_support(model, 0.002)
>>> trainer = QuantizedTrainer(model, support)
>>> optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-4)
>>> ...  # train as always; there is nothing to attach
>>> trainer.export().save("delta.safetensors")

Such a model serves deltas like any other, whether they were trained beside a quantised base or on the float one:
`delta.apply(model)`, and the methods of `RSTModel`.
"""

from rst.quantized.layers import QuantizedLinear, quantized_layers
from rst.quantized.trainer import QuantizedTrainer, random_support

__all__ = ["QuantizedLinear", "QuantizedTrainer", "quantized_layers", "random_support"]
