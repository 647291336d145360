"""Connected components of masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uniworld.uniworld_core.images.components import connected_components, keep_large


def flood_fill(classes: np.ndarray) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """The 8-connected parts of equal value, one pixel at a time: the slow and certain way."""
    parts, seen = [], set()
    for start in map(tuple, np.argwhere(classes != 0)):
        if start in seen:
            continue
        stack, part = [start], {start}
        while stack:
            y, x = stack.pop()
            for spot in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= spot[0] < classes.shape[0] and 0 <= spot[1] < classes.shape[1]
                if inside and spot not in part and classes[spot] == classes[start]:
                    part.add(spot)
                    stack.append(spot)
        seen |= part
        parts.append((int(classes[start]), frozenset((int(y), int(x)) for y, x in part)))
    return parts


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(1, 16),
    st.sampled_from([0.1, 0.4, 0.6, 0.9]),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_components_are_those_of_a_flood_fill(
    batch: int, height: int, width: int, density: float, kinds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    classes = (rng.random((batch, height, width)) < density) * rng.integers(1, kinds + 1, (batch, height, width))
    parts = connected_components(torch.from_numpy(classes))
    expected = [(item, *part) for item in range(batch) for part in flood_fill(classes[item])]
    assert [tuple(row) for row in zip(parts.items.tolist(), parts.values.tolist())] == [row[:2] for row in expected]
    for number, (item, _, spots) in enumerate(expected):
        found = (parts.labels == number + 1).nonzero().tolist()
        assert {(y, x) for _, y, x in found} == spots
        assert {row[0] for row in found} == {item}
        assert parts.areas[number] == len(spots)
        rows, columns = [y for y, _ in spots], [x for _, x in spots]
        box = [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
        assert parts.boxes[number].tolist() == box


@pytest.mark.parametrize("upright", [False, True])
def test_a_snake_across_the_whole_picture_is_one_component(upright: bool) -> None:
    snake = torch.zeros(1, 257, 257, dtype=torch.bool)
    snake[:, ::2] = True
    snake[:, 1::4, -1] = True
    snake[:, 3::4, 0] = True
    snake = snake.transpose(1, 2) if upright else snake
    parts = connected_components(snake)
    assert parts.areas.tolist() == [int(snake.sum())]


def test_keep_large_measures_each_item_on_its_own() -> None:
    mask = torch.zeros(2, 10, 10, dtype=torch.bool)
    mask[:, 0, :3] = True
    mask[0, 5:9, 5:9] = True
    kept = keep_large(mask, torch.tensor([4.0, 2.0]))
    assert kept[0].sum() == 16
    assert kept[1].sum() == 3


def test_components_refuse_a_float_mask_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="bool or integer tensor"):
        connected_components(torch.zeros(1, 4, 4))
