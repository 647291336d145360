"""The dtype in which a model is stored and computes."""

from __future__ import annotations

import functools
import platform

import torch

from ..errors import UniWorldError


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device by name. Raises UniWorldError if torch does not know it or this machine does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UniWorldError(
            f"The device {str(device)!r} cannot be used here ({error}): choose another, such as 'cpu'."
        ) from error


def choose_dtype(dtype: torch.dtype | None, device: torch.device | str) -> torch.dtype:
    """Return `dtype`, or if it is None the fastest dtype of the device.

    The default is bfloat16, as in the published programs. CPUs without bfloat16 instructions get float32, because there a
    matrix product in bfloat16 takes 20 to 40 times as long.

    Raises:
        UniWorldError: the device is not available, or models cannot compute in the dtype.
    """
    # One-byte floats are a storage format: layers cannot compute in them.
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise UniWorldError(f"dtype is {dtype!r}; give torch.bfloat16, torch.float16 or torch.float32.")
    kind = usable_device(device).type
    if dtype is not None:
        return dtype
    return torch.bfloat16 if kind != "cpu" or cpu_has_bfloat16() else torch.float32


# The usual cause of NaN and infinite values, for use inside an error message.
OVERFLOW = "a model in float16 overflows, load it in bfloat16 or float32"


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 matrix instructions and PyTorch's oneDNN uses them.

    On x86 these are AVX512_BF16 and AMX. With plain AVX-512, oneDNN emulates bfloat16, which is slower than float32. On
    ARM (ARMv8.6 and later) oneDNN reports support itself. The variable ONEDNN_MAX_CPU_ISA=AVX2 disables the instructions.
    """
    # These functions are not public API. Builds without oneDNN, such as the macOS ones, lack the operator.
    in_onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if in_onednn is None or not in_onednn():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    queries = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return not queries or any(query() for query in queries)
