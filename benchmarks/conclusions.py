"""Conclusions from the recorded tables, one sentence each, from their own numbers."""

from collections.abc import Callable, Mapping
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]


def conclusions(families: Mapping[str, dict[str, Any]]) -> list[str]:
    """A bullet for every family that is there; rows by their name."""
    found = []
    for family, conclude in _CONCLUDE.items():
        if family in families:
            rows = {row["name"]: row for row in families[family]["rows"]}
            found.append(f"- {conclude(rows)}")
    return found


def _projection(rows: Rows) -> str:
    times = "times faster than the paper's"
    compiled, eager = rows["rst compiled"], rows["rst eager"]
    return (
        f"**Projection**: compiled, it takes {compiled['times the limit']} times what memory allows, and is "
        f"{compiled[times]:.0f} times faster than the paper's masks; without a compiler {eager[times]:.0f} times."
    )


def _storage(rows: Rows) -> str:
    row = rows["float32, 0.1 % of ViT-B/16, synthetic"]
    return (
        f"**Storage**: a changed float32 weight of 0.1 % takes {row['rst packed step']:.1f} bits packed, the bound is "
        f"{row['bound']:.1f} and the paper's sparse tensors take {row['paper: torch.save of to_sparse']:.0f}."
    )


def _swap(rows: Rows) -> str:
    prepared, lora = rows["rst: prepared, on and off"], rows["PEFT LoRA r=4: merge and unmerge"]
    limit, file = rows["limit: two scatters a parameter, on and off"], rows["rst: from a coo file, on and off"]
    load = rows["rst: load a coo file"]
    return (
        f"**Swap in memory**: {prepared['milliseconds']:.1f} ms on and off, where two scatters a parameter take "
        f"{limit['milliseconds']:.1f} ms and merging and unmerging PEFT's LoRA {lora['milliseconds']:.0f} ms. "
        f"Reading and verifying a file takes {load['times load_file']:.2f} times safetensors' load_file; that, on and "
        f"off {file['times load_file and scatters']:.2f} times reading it, a gather and two scatters unchecked."
    )


def _mixed_batch(rows: Rows) -> str:
    few, many = next(iter(rows.values())), list(rows.values())[-1]
    ours, same, peft = (
        [row[column] / row["base alone"] for row in (few, many)]
        for column in ("rst: mixed batch", "rst: mixed batch, LoRA's layers", "PEFT LoRA r=4: mixed batch")
    )
    return (
        f"**Mixed batches**: {ours[0]:.2f} times the base alone with {few['adapters']} adapter, {ours[1]:.2f} times "
        f"with {many['adapters']}; PEFT's LoRA, on two thirds of the weights, {peft[0]:.2f} and {peft[1]:.2f}, and "
        f"ours on the same ones {same[0]:.2f} and {same[1]:.2f}."
    )


def _checkpoints(rows: Rows) -> str:
    export = [row["export, share of read bandwidth"] for row in rows.values()]
    merge = [row["merge, share of copy bandwidth"] for row in rows.values()]
    return (
        f"**Files**: export reads at {min(export):.0%} to {max(export):.0%} of the disk's bandwidth, merge writes at "
        f"{min(merge):.0%} to {max(merge):.0%} of a copy's, and neither holds more than the delta and one tensor."
    )


def _sync_scale(rows: Rows) -> str:
    row = rows["1 billion weights"]
    return (
        f"**Weight sync**: {row['bytes a changed weight']:.2f} bytes a changed weight; with a billion weights "
        f"{row['publish s']:.1f} s to publish a step and {row['follow s']:.1f} s to follow it."
    )


def _sync_real(rows: Rows) -> str:
    size = "bytes a changed weight"
    masters = {means: rows[f"{means}: fp32 masters, lr 1e-06"] for means in ("rst", "int32 + bf16", "XOR + zstd")}
    return (
        f"**Steps of SmolLM2-135M** with float32 masters at 1e-6: {masters['rst'][size]:.2f} bytes a changed weight; "
        f"int32 positions and bfloat16 values take {masters['int32 + bf16'][size]:.2f}, XOR and zstd "
        f"{masters['XOR + zstd'][size]:.2f}."
    )


def _training_step(rows: Rows) -> str:
    share = rows["rst: projection, w0 in device"]["share of a step"]
    return f"**Training**: the projection is {share} of a step of 32 images."


def _training_memory(rows: Rows) -> str:
    peak = "peak, times the weights"
    sizes = ", ".join(
        f"{rows[f'{model}: rst, support'][peak]} beside LoRA's {rows[f'{model}: LoRA r=4'][peak]} ({model})"
        for model in ("vit", "gpt2", "llama")
    )
    return f"**Memory of training**, in times the weights: a support of 0.2 % peaks at {sizes}."


_CONCLUDE: dict[str, Callable[[Rows], str]] = {
    "training_memory": _training_memory,
    "training_step": _training_step,
    "projection": _projection,
    "swap": _swap,
    "mixed_batch": _mixed_batch,
    "storage": _storage,
    "checkpoints": _checkpoints,
    "sync_scale": _sync_scale,
    "sync_real": _sync_real,
}
