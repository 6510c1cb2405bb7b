"""Weights in the shapes of CLIP ViT-B/16's image encoder (86,192,640 in 152 tensors), and a sparse change of them."""

import torch
from torch import Tensor, nn

_WIDTH, _LAYERS, _PATCH, _TOKENS, _EMBEDDING = 768, 12, 16, 197, 512


def shapes() -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    found: dict[str, tuple[int, ...]] = {
        "class_embedding": (_WIDTH,),
        "positional_embedding": (_TOKENS, _WIDTH),
        "proj": (_WIDTH, _EMBEDDING),
        "conv1.weight": (_WIDTH, 3, _PATCH, _PATCH),
    }
    for norm in ("ln_pre", "ln_post"):
        found |= {f"{norm}.weight": (_WIDTH,), f"{norm}.bias": (_WIDTH,)}
    for layer in range(_LAYERS):
        block = f"transformer.resblocks.{layer}"
        found |= {
            f"{block}.ln_1.weight": (_WIDTH,),
            f"{block}.ln_1.bias": (_WIDTH,),
            f"{block}.attn.in_proj_weight": (3 * _WIDTH, _WIDTH),
            f"{block}.attn.in_proj_bias": (3 * _WIDTH,),
            f"{block}.attn.out_proj.weight": (_WIDTH, _WIDTH),
            f"{block}.attn.out_proj.bias": (_WIDTH,),
            f"{block}.ln_2.weight": (_WIDTH,),
            f"{block}.ln_2.bias": (_WIDTH,),
            f"{block}.mlp.c_fc.weight": (4 * _WIDTH, _WIDTH),
            f"{block}.mlp.c_fc.bias": (4 * _WIDTH,),
            f"{block}.mlp.c_proj.weight": (_WIDTH, 4 * _WIDTH),
            f"{block}.mlp.c_proj.bias": (_WIDTH,),
        }
    return found


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Normal weights of standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.02).to(dtype) for name, shape in shapes().items()}


def tuned(base: dict[str, Tensor], density: float, tau: float = 1e-6, seed: int = 1) -> dict[str, Tensor]:
    """A share `density` of the weights moved by tau times 1 + Exp(1), up or down; in bfloat16 by one step at least."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, origin in base.items():
        chosen = torch.rand(origin.shape, generator=generator) < density
        step = tau * (1 + torch.empty(origin.shape).exponential_(generator=generator))
        step = step * torch.where(torch.rand(origin.shape, generator=generator) < 0.5, -1.0, 1.0)
        moved = (origin.float() + step).to(origin.dtype)
        away = torch.full_like(origin, float("inf")) * step.sign().to(origin.dtype)
        moved = torch.where(moved == origin, torch.nextafter(origin, away), moved)
        state[name] = torch.where(chosen, moved, origin)
    return state


def module(state: dict[str, Tensor]) -> nn.Module:
    """A module that holds copies of these weights under these names."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, nn.Parameter(tensor.clone()))
    return root
