"""Our attention under autocast equals torch's, and dtype "auto" is one that the device computes fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from uniworld.training.engine.precision import attend, autocast
from uniworld.training.run.loop import train
from uniworld.training.shapes.standins.fit import fast_math
from uniworld.uniworld_core.loading import dtypes


def heads(count: int, length: int, seed: int) -> torch.Tensor:
    return torch.randn(2, count, length, 8, generator=torch.Generator().manual_seed(seed))


MASK = torch.arange(7)[None, None, None] < torch.tensor([7, 4])[:, None, None, None]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"attn_mask": MASK},
        {"attn_mask": torch.linspace(-2, 2, 35).reshape(1, 1, 5, 7)},
        {"is_causal": True},
        {"scale": 0.5},
    ],
    ids=lambda how: next(iter(how), "plain"),
)
def test_attention_equals_torchs(how: dict[str, Any]) -> None:
    query, key, value = heads(4, 5, 0), heads(4, 7, 1), heads(4, 7, 2)
    torch.testing.assert_close(attend(query, key, value, **how), scaled_dot_product_attention(query, key, value, **how))


def test_attention_with_shared_keys_equals_torchs() -> None:
    query, key, value = heads(4, 5, 0), heads(2, 7, 1), heads(2, 7, 2)
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, enable_gqa=True), expected)


@pytest.mark.parametrize("mask", [MASK, MASK.float().log()], ids=["boolean", "added"])
def test_the_gradient_of_masked_attention_equals_torchs(mask: torch.Tensor) -> None:
    inputs = [heads(4, length, seed).requires_grad_() for seed, length in enumerate((5, 7, 7))]
    weights = heads(4, 5, 3)
    found, expected = (
        torch.autograd.grad((function(*inputs, attn_mask=mask) * weights).sum(), inputs)
        for function in (attend, scaled_dot_product_attention)
    )
    torch.testing.assert_close(found, expected)


def test_attention_with_dropout_is_rejected() -> None:
    with pytest.raises(NotImplementedError, match="Dropout"):
        attend(heads(1, 2, 0), heads(1, 2, 1), heads(1, 2, 2), dropout_p=0.1)


def test_autocast_on_a_cpu_computes_attention_in_bfloat16_with_a_close_gradient() -> None:
    query, key, value = (heads(4, 6, seed).requires_grad_() for seed in range(3))
    exact = scaled_dot_product_attention(query, key, value)
    wanted = torch.autograd.grad(exact.square().sum(), (query, key, value))
    with autocast("cpu", torch.bfloat16):
        lowered = scaled_dot_product_attention(query, key, value)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), exact, rtol=0.02, atol=0.02)
    found = torch.autograd.grad(lowered.float().square().sum(), (query, key, value))
    assert all(torch.allclose(one, other, rtol=0.05, atol=0.05) for one, other in zip(found, wanted))


def test_float32_does_not_change_attention() -> None:
    query, key, value = heads(4, 5, 0), heads(4, 7, 1), heads(4, 7, 2)
    with autocast("cpu", torch.float32):
        assert torch.equal(
            scaled_dot_product_attention(query, key, value), scaled_dot_product_attention(query, key, value)
        )
        assert scaled_dot_product_attention(query, key, value).dtype == torch.float32


@pytest.mark.parametrize("instructions", [True, False])
def test_a_stand_in_trains_in_bfloat16_only_where_the_cpu_has_it(
    instructions: bool, product_dtypes: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: instructions)
    layer = torch.nn.Linear(4, 4)
    with fast_math("cpu"):
        layer(torch.ones(2, 4)).sum().backward()
    assert product_dtypes == {torch.bfloat16 if instructions else torch.float32}


@pytest.mark.parametrize("instructions", [True, False])
def test_a_run_of_dtype_auto_computes_in_bfloat16_only_where_the_cpu_has_it(
    instructions: bool,
    product_dtypes: set[torch.dtype],
    tiny_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: instructions)
    train(tiny_config("model.dtype=auto", "run.steps=1"), tmp_path)
    assert (torch.bfloat16 in product_dtypes) == instructions
