"""The dtype that a model is held and computed in."""

from __future__ import annotations

import functools
import platform

import torch

from ..errors import UniWorldError


def usable_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises UniWorldError if torch does not know it, or this machine does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UniWorldError(
            f"The device {str(device)!r} cannot be used here ({error}): choose another, such as 'cpu'."
        ) from error


def choose_dtype(dtype: torch.dtype | None, device: torch.device | str) -> torch.dtype:
    """`dtype`, or the one that the device computes fastest in if it is None.

    That is bfloat16, as in the published programs, except on CPUs without instructions for it: there a matrix product
    in bfloat16 takes 20 to 40 times as long as in float32.

    Raises:
        UniWorldError: the device cannot be used here, or the dtype cannot hold a model.
    """
    # Floats of one byte are a storage: no layer computes in them.
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise UniWorldError(f"dtype is {dtype!r}; give torch.bfloat16, torch.float16 or torch.float32.")
    kind = usable_device(device).type
    if dtype is not None:
        return dtype
    return torch.bfloat16 if kind != "cpu" or cpu_has_bfloat16() else torch.float32


# Why values become NaN or infinite, as the first half of a sentence.
OVERFLOW = "a model in float16 overflows, load it in bfloat16 or float32"


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for matrix products in bfloat16, and PyTorch's oneDNN uses them.

    On x86 they are AVX512_BF16 and AMX: with AVX-512 alone oneDNN emulates them, slower than float32. On ARM (from
    ARMv8.6 on) oneDNN reports them itself. oneDNN's variable ONEDNN_MAX_CPU_ISA=AVX2 hides them.
    """
    # None of these is public. Builds without oneDNN, as for macOS, have no such operator.
    in_onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if in_onednn is None or not in_onednn():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    queries = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return not queries or any(query() for query in queries)
