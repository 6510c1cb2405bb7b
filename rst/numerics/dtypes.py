"""The dtypes of the safetensors format by their names there.

A delta changes tensors of `NAME_OF_DTYPE`. A merge also writes what it only copies, `NAME_OF_COPIED`.
"""

import torch

NAME_OF_DTYPE: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
for _dtype, _name in (
    ("float8_e8m0fnu", "F8_E8M0"),
    ("float8_e4m3fnuz", "F8_E4M3FNUZ"),
    ("float8_e5m2fnuz", "F8_E5M2FNUZ"),
):
    if isinstance(_found := getattr(torch, _dtype, None), torch.dtype):  # older versions of torch lack some
        NAME_OF_DTYPE[_found] = _name
DTYPE_OF_NAME: dict[str, torch.dtype] = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}

NAME_OF_COPIED: dict[torch.dtype, str] = {**NAME_OF_DTYPE, torch.complex64: "C64"}
HALF_BYTES: torch.dtype | None = getattr(torch, "float4_e2m1fn_x2", None)
"""Two numbers of "F4" in one element."""
if HALF_BYTES is not None:
    NAME_OF_COPIED[HALF_BYTES] = "F4"
