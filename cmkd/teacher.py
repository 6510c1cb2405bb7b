"""The teacher's view from text (Sec. III.A): scaled cosines between image features and cached class embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextTeacher(nn.Module):
    """What adaptation needs of a text encoder: one embedding per class, and the temperature.

    `logits = scale * cos(features, class_embeddings) + bias`. All three are buffers: they are not trained, and
    `.to(device)` moves them. Gradients pass through the cosine to the features, and so to the image encoder.
    """

    class_embeddings: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, class_embeddings: Tensor, scale: float | Tensor, bias: float | Tensor | None = None) -> None:
        """Normalise and store the class embeddings.

        Args:
            class_embeddings: (C, D), floating point, of any length; detached and stored at length 1.
            scale: CLIP's `exp(logit_scale)`, a scalar.
            bias: SigLIP's `logit_bias`, a scalar. It does not change the softmax.

        Raises:
            ValueError: if the embeddings are not (C, D), or one of them is zero or not finite.
        """
        super().__init__()
        if class_embeddings.ndim != 2 or not class_embeddings.is_floating_point():
            raise ValueError(
                "class_embeddings must be a floating point (classes, dim) tensor, "
                f"got {class_embeddings.dtype} of shape {tuple(class_embeddings.shape)}"
            )
        embeddings = class_embeddings.detach().to(torch.promote_types(class_embeddings.dtype, torch.float32))
        lengths = embeddings.norm(dim=1)
        unusable = ~lengths.isfinite() | (lengths == 0)
        if unusable.any():
            row = int(unusable.nonzero()[0])
            raise ValueError(f"class_embeddings row {row} has length {float(lengths[row])}")
        self.register_buffer("class_embeddings", F.normalize(embeddings, dim=1))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=embeddings.dtype).detach().reshape(()).clone())
        offset = 0.0 if bias is None else bias
        self.register_buffer("bias", torch.as_tensor(offset, dtype=embeddings.dtype).detach().reshape(()).clone())

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) of image features (B, D) of any length; in float32 or better, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, self.class_embeddings.dtype)
            directions = F.normalize(features.to(dtype), dim=1)
            return self.scale * (directions @ self.class_embeddings.to(dtype).T) + self.bias
