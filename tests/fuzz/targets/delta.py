"""`SparseDelta.load`, and what is done with an untrusted delta: shown, saved, merged, put into a live model."""

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from rst import SparseDelta, convert, export, merge
from rst.delta.sparse_delta import Encoding
from rst.live.model_card import model_card
from rst.numerics.exactness import bit_equal
from tests.fuzz.safetensors_mutation import mutate_safetensors
from tests.fuzz.target import FuzzError, Target

State = dict[str, Tensor]


@cache
def base() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {
        "w": torch.randn(30, 20, generator=generator),
        "narrow": torch.randn(50, generator=generator).bfloat16(),
        "scale": torch.tensor(1.5),
        "bn.running_mean": torch.zeros(4),
        "flags": torch.zeros(9, dtype=torch.bool),
        "codes": torch.arange(9, dtype=torch.int8),
        "small": torch.zeros(40).to(torch.float8_e4m3fn),
        "head.weight": torch.zeros(3, 3),
    }
    return {**state, "alias": state["w"]}


@cache
def tuned() -> State:
    state = {name: tensor.clone() for name, tensor in base().items()}
    state["w"][::3, ::7] += 0.01
    state["narrow"] += 0.01
    state["scale"] = torch.tensor(-0.0)
    state["bn.running_mean"] += 0.5
    state["flags"][::2] = True
    state["codes"] += 1
    state["small"] = torch.ones(40).to(torch.float8_e4m3fn)
    state["head.weight"] += 1
    return {**state, "alias": state["w"]}


def deltas() -> list[SparseDelta]:
    exact = [export(base(), tuned(), modules_to_save=["head"], op=op) for op in ("add", "replace", "step")]
    few = export({"w": torch.zeros(40)}, {"w": torch.eye(40)[3]}, threshold=1e-6)
    return [*exact, few, few * 0.5, SparseDelta({})]


def saved(delta: SparseDelta, encoding: Encoding) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        delta.save(path, encoding)
        return path.read_bytes()


def seeds(encoding: Encoding) -> list[bytes]:
    return [saved(delta, encoding) for delta in deltas()]


def use(delta: SparseDelta) -> None:
    """Whatever was accepted must survive all this, or be refused by name."""
    delta.summary(), delta.fingerprint(), delta.dsp(), delta.density, repr(delta)
    model_card(delta, 1).encode()
    _comes_back(delta)
    module, state = _module(), base()
    merged = merge(state, delta)
    prepared = delta.prepare(module)
    prepared.apply()
    for name, tensor in module.state_dict().items():
        if not bit_equal(tensor, merged[name]) and name != "alias":  # a file may leave out the tie
            raise FuzzError(f"{name}: live and merged differ")
    prepared.remove()
    for name, tensor in module.state_dict().items():
        if not bit_equal(tensor, state[name]):
            raise FuzzError(f"{name}: not as before")
    for op in ("add", "replace", "step"):
        convert(delta, op=op, base=state)


def _comes_back(delta: SparseDelta) -> None:
    with TemporaryDirectory() as folder:
        for encoding in ("coo", "packed"):
            path = Path(folder) / "again.safetensors"
            delta.save(path, encoding)
            again = SparseDelta.load(path)
            if again != delta or again.config != delta.config:
                raise FuzzError(f"not the same after a round trip ({encoding})")


def _module() -> nn.Module:
    module = nn.Module()
    for name, tensor in base().items():
        owner = module
        *path, attribute = name.split(".")
        for part in path:
            owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(attribute, module.w if name == "alias" else tensor.clone())
    return module


COO = Target("delta_coo", "x.safetensors", partial(seeds, "coo"), mutate_safetensors, SparseDelta.load, use)
PACKED = Target("delta_packed", "x.safetensors", partial(seeds, "packed"), mutate_safetensors, SparseDelta.load, use)
