"""Connected components in pure torch: labels, areas and bounding boxes, for a whole batch at once.

A *run* is a horizontal row of equal pixels. Runs are the nodes of a graph, and runs that touch in neighboring rows are
joined by an edge. The components of this graph are found by hooking roots onto smaller roots and pointer jumping until
nothing changes (Shiloach & Vishkin 1982). The result is exact for shapes of any length.

Alternatives fall short: `scipy.ndimage.label` takes one picture at a time, on the CPU only. In
`kornia.contrib.connected_components` the caller fixes the number of iterations, and too few split long, winding shapes.

Shapes: B items, H rows, W columns, R runs and N parts in the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UniWorldError


@dataclass(frozen=True, eq=False)
class Components:
    """The 8-connected parts of a batch, numbered in reading order, item by item.

    Attributes:
        labels: int64 (B, H, W); 0 is background, the pixels of part k are k + 1.
        areas: int64 (N,), in pixels.
        items: int64 (N,), the batch item of each part.
        values: int64 (N,), the class of each part (1 for a bool mask).
        boxes: int64 (N, 4): left, top, width, height in pixels.
    """

    labels: Tensor
    areas: Tensor
    items: Tensor
    values: Tensor
    boxes: Tensor


@dataclass(frozen=True, eq=False)
class _Runs:
    """Horizontal runs of equal, non-zero pixels."""

    of_pixel_BHW: Tensor  # index of each pixel's run; undefined on background
    starts_BHW: Tensor  # True at the first pixel of each run
    item_R: Tensor
    row_R: Tensor
    column_R: Tensor
    length_R: Tensor
    value_R: Tensor


def connected_components(classes_BHW: Tensor) -> Components:
    """Label the 8-connected parts of equal, non-zero value.

    Args:
        classes_BHW: (B, H, W), bool or integer; 0 or False is background. Pixels of different classes are never joined.

    Raises:
        UniWorldError: the tensor does not have three dimensions, or is floating point.
    """
    if classes_BHW.ndim != 3 or classes_BHW.is_floating_point():
        raise UniWorldError(
            f"Connected components need a bool or integer tensor (B, H, W), but got {classes_BHW.dtype} of shape "
            f"{tuple(classes_BHW.shape)}; threshold it, or add the batch dimension."
        )
    device = classes_BHW.device
    # Other backends, such as MPS, lack integer scatter_reduce or float64.
    if device.type not in ("cpu", "cuda"):
        parts = connected_components(classes_BHW.cpu())
        moved = (parts.labels, parts.areas, parts.items, parts.values, parts.boxes)
        return Components(*(tensor.to(device) for tensor in moved))
    classes_BHW = classes_BHW.to(torch.int64)
    runs = _runs(classes_BHW)
    root_R = _roots(runs.item_R.numel(), _edges(classes_BHW, runs))
    is_root_R = root_R == torch.arange(root_R.numel(), device=device)
    part_R = (is_root_R.cumsum(0) - 1)[root_R]
    labels_BHW = torch.zeros_like(classes_BHW)
    inside_BHW = classes_BHW != 0
    labels_BHW[inside_BHW] = part_R[runs.of_pixel_BHW[inside_BHW]] + 1
    return Components(labels_BHW, *_statistics(runs, part_R, is_root_R))


def keep_large(mask_BHW: Tensor, min_area_B: Tensor) -> Tensor:
    """Remove the 8-connected parts of a bool mask (B, H, W) that have fewer than `min_area_B` (B,) pixels."""
    parts = connected_components(mask_BHW)
    keep_N = parts.areas >= min_area_B.to(parts.areas.device)[parts.items]
    keep_with_background = torch.cat([keep_N.new_zeros(1), keep_N])
    return keep_with_background[parts.labels]


def _runs(classes_BHW: Tensor) -> _Runs:
    left_BHW = torch.zeros_like(classes_BHW)
    left_BHW[..., 1:] = classes_BHW[..., :-1]
    inside_BHW = classes_BHW != 0
    starts_BHW = inside_BHW & (classes_BHW != left_BHW)
    of_pixel_BHW = (starts_BHW.flatten().cumsum(0) - 1).view_as(classes_BHW)
    item_R, row_R, column_R = starts_BHW.nonzero(as_tuple=True)
    length_R = torch.bincount(of_pixel_BHW[inside_BHW], minlength=item_R.numel())
    return _Runs(of_pixel_BHW, starts_BHW, item_R, row_R, column_R, length_R, classes_BHW[starts_BHW])


def _edges(classes_BHW: Tensor, runs: _Runs) -> tuple[Tensor, Tensor]:
    """Return pairs of runs that touch in neighboring rows; a pair may occur a few times.

    The leftmost pixel where two runs overlap is the start of one of them, so only starts are compared. Diagonal contacts
    without a vertical one are at a start as well.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    above = (slice(None), slice(None, -1))
    below = (slice(None), slice(1, None))
    for upper_columns, lower_columns, need_upper, need_lower in (
        (slice(None), slice(None), True, True),
        (slice(1, None), slice(None, -1), True, False),
        (slice(None, -1), slice(1, None), False, True),
    ):
        upper, lower = (*above, upper_columns), (*below, lower_columns)
        touch = (classes_BHW[upper] != 0) & (classes_BHW[upper] == classes_BHW[lower])
        at_start = torch.zeros_like(touch)
        if need_upper:
            at_start |= runs.starts_BHW[upper]
        if need_lower:
            at_start |= runs.starts_BHW[lower]
        touch &= at_start
        pairs.append((runs.of_pixel_BHW[upper][touch], runs.of_pixel_BHW[lower][touch]))
    return torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs])


def _roots(count: int, edges: tuple[Tensor, Tensor]) -> Tensor:
    """Return, for each of `count` nodes, the smallest node of its connected component."""
    one_E, other_E = edges
    parent_R = torch.arange(count, device=one_E.device)
    while True:
        root_one_E, root_other_E = parent_R[one_E], parent_R[other_E]
        if torch.equal(root_one_E, root_other_E):
            return parent_R
        low_E, high_E = torch.minimum(root_one_E, root_other_E), torch.maximum(root_one_E, root_other_E)
        parent_R = parent_R.scatter_reduce(0, high_E, low_E, "amin")
        while not torch.equal(grandparent_R := parent_R[parent_R], parent_R):
            parent_R = grandparent_R


def _statistics(runs: _Runs, part_R: Tensor, is_root_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return areas (N,), items (N,), values (N,) and boxes (N, 4) of the parts."""
    count = int(is_root_R.sum())

    def reduced(values_R: Tensor, how: str) -> Tensor:
        empty_N = values_R.new_zeros(count)
        return empty_N.scatter_reduce(0, part_R, values_R, how, include_self=False)

    left_N, right_N = reduced(runs.column_R, "amin"), reduced(runs.column_R + runs.length_R, "amax")
    top_N, bottom_N = reduced(runs.row_R, "amin"), reduced(runs.row_R + 1, "amax")
    boxes_N4 = torch.stack([left_N, top_N, right_N - left_N, bottom_N - top_N], dim=1)
    areas_N = torch.zeros_like(left_N).index_add(0, part_R, runs.length_R)
    return areas_N, runs.item_R[is_root_R], runs.value_R[is_root_R], boxes_N4
