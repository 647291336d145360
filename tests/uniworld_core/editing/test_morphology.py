"""Morphology of masks, against other ways to compute it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniworld.uniworld_core.editing.morphology import close_mask, ellipse


def test_ellipse_has_opencvs_shape() -> None:
    assert ellipse(1).tolist() == [[1]]
    assert ellipse(3).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert ellipse(5).sum(dim=1).tolist() == [1, 5, 5, 5, 1]
    assert ellipse(9).sum(dim=1).tolist() == [1, 7, 7, 9, 9, 9, 7, 7, 1]
    assert ellipse(11).sum(dim=1).tolist() == [1, 7, 9, 11, 11, 11, 11, 11, 9, 7, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 5, 7]), st.integers(0, 2**31))
def test_closing_leaves_the_picture_border_neutral(height: int, width: int, kernel_size: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    offsets = [(y, x) for y, x in np.argwhere(ellipse(kernel_size).numpy() > 0) - kernel_size // 2]

    def around(values: np.ndarray, y: int, x: int) -> list[bool]:
        spots = [(y + dy, x + dx) for dy, dx in offsets]
        return [bool(values[spot]) for spot in spots if 0 <= spot[0] < height and 0 <= spot[1] < width]

    grid = [(y, x) for y in range(height) for x in range(width)]
    dilated = np.array([any(around(mask, y, x)) for y, x in grid]).reshape(height, width)
    closed = np.array([all(around(dilated, y, x)) for y, x in grid]).reshape(height, width)
    assert np.array_equal(close_mask(torch.from_numpy(mask)[None], kernel_size)[0].numpy(), closed)
