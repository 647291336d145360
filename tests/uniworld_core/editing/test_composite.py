"""Compositing of an edit over the original."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniworld.uniworld_core.editing.composite import composite_edit


def gray(height: int, width: int, value: float = 0.5, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, height, width, 3), value)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 12), st.integers(0, 2**31))
def test_what_was_not_edited_stays_the_original_bit_for_bit(height: int, width: int, feather: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(2, height, width, 3, generator=generator) for _ in range(2))
    mask = (torch.rand(2, height, width, generator=generator) - 0.4).clamp(min=0)
    out = composite_edit(before, after, mask, feather)
    assert torch.equal(out[mask == 0], before[mask == 0])
    assert ((out - before).abs() <= (after - before).abs() + 1e-6).all()


def test_a_hard_mask_takes_the_edit_bit_for_bit() -> None:
    before, after = torch.rand(2, 1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 4:9] = 1
    out = composite_edit(before, after, mask, feather=0)
    assert torch.equal(out[mask > 0], after[mask > 0])
    assert torch.equal(out[mask == 0], before[mask == 0])


def test_feather_fades_inward_by_equal_steps() -> None:
    mask = torch.zeros(1, 41, 41)
    mask[:, 5:36, 5:36] = 1
    out = composite_edit(gray(41, 41, 0.0), gray(41, 41, 1.0), mask, feather=3)
    assert out[0, 20, 3:12, 0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_feather_keeps_full_strength_in_thin_parts_and_at_the_pictures_edge() -> None:
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:15] = 1
    mask[:, 30:] = 1
    out = composite_edit(gray(40, 40, 0.0), gray(40, 40, 1.0), mask, feather=16)
    assert (out[0, 12] == 1).all()
    assert (out[0, 39] == 1).all()
    assert (out[0, 10] < 1).all()


def test_composite_serves_a_batch_from_one_picture_and_one_mask() -> None:
    before, after = gray(8, 8, 0.0), torch.rand(3, 8, 8, 3)
    assert torch.equal(composite_edit(before, after, torch.ones(1, 8, 8)), after)


def test_bad_composite_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="feather is -1"):
        composite_edit(gray(8, 8), gray(8, 8), torch.ones(1, 8, 8), -1)
    with pytest.raises(ValueError, match="'before' is 8x8 pixels and 'mask' is 9x8"):
        composite_edit(gray(8, 8), gray(8, 8), torch.ones(1, 8, 9))
    with pytest.raises(ValueError, match="mask 'mask' has NaN"):
        composite_edit(gray(8, 8), gray(8, 8), torch.full((1, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="'mask' holds 2 pictures and 'after' holds 3"):
        composite_edit(gray(8, 8), gray(8, 8, batch=3), torch.ones(2, 8, 8))
