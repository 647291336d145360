"""The dtype that nobody chose is one in which the device computes fast."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from uniworld.uniworld_core import UniWorld
from uniworld.uniworld_core.loading import dtypes
from uniworld.uniworld_core.loading.dtypes import choose_dtype

X86 = platform.machine().lower() in ("x86_64", "amd64")


def detected() -> bool:
    """What is found of this CPU, past the cache."""
    return dtypes.cpu_has_bfloat16.__wrapped__()


@pytest.mark.parametrize(("instructions", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_instructions_for_bfloat16_computes_in_float32(
    instructions: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: instructions)
    model = UniWorld.from_pretrained("tiny")
    assert model.dtype == expected
    assert model.dit.dtype == expected
    assert model.parts["dit"].load(None, "cpu").dtype == expected


def test_other_devices_compute_in_bfloat16_and_a_given_dtype_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: False)
    assert choose_dtype(None, "meta") == torch.bfloat16
    assert choose_dtype(torch.bfloat16, "cpu") == torch.bfloat16
    assert choose_dtype(torch.float16, "meta") == torch.float16


@pytest.mark.skipif(not X86, reason="about x86")
@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_emulated_bfloat16_does_not_count(avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert detected() == (avx512 or amx)


def test_a_pytorch_without_these_queries_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert detected()
    monkeypatch.setattr(torch.ops, "mkldnn", object())  # a build without oneDNN
    assert not detected()


@pytest.mark.skipif(not X86, reason="about x86")
def test_a_limit_set_for_onednn_counts() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from uniworld_core.loading.dtypes import cpu_has_bfloat16; print(cpu_has_bfloat16())"
    )
    folder = str(Path(dtypes.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "False"
