"""Object detection in painted pictures.

Every pixel is assigned to the nearest palette color. Connected components of an object's color are objects, whose shape
and size are those of the template with the best soft IoU with the difference from the ground. Everything is measured at
64x64, where a pixel is a unit.

Shapes: H = W = 64, O offsets, T templates, P pixels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ....uniworld_core.images.components import connected_components
from ..world.draw import template
from ..world.scene import CENTERS, COLORS, GROUNDS, PLACES, SHAPES, SIZES, SPLITS, UNITS, Ground
from .morphology import Mask, grow, shrink

# Maximum RGB distance of a pixel from its palette color. Palette colors are at least 70 apart.
NAMED_WITHIN = 75.0
# Pixels within this RGB distance of the ground belong to the ground.
GROUND_WITHIN = 45.0
MIN_CORE = 4  # pixels of a part after erosion by one pixel; rims between colors have none left
MIN_FIT = 0.62  # of a template; shapeless blobs have lower values
REACH = 6  # maximum distance between the centers of an object and of its visible part
WINDOW = 28
BLURS = (0.0, 0.8, 1.3)  # pixels; templates are tried with the softness of a VAE decoder's output
# By how much more of the picture two grounds must explain than one.
MIN_SPLIT_GAIN = 0.08

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class FoundObject:
    """A detected object.

    Attributes:
        x, y: center in units.
        fit: soft IoU with the template, 0 to 1.
        mask: visible pixels, bool (H, W).
    """

    shape: str
    color: str
    size: str
    x: int
    y: int
    fit: float
    mask: Mask

    @property
    def place(self) -> str:
        """The nearest of the nine places."""
        column, row = (int(np.argmin([abs(at - center) for center in CENTERS])) for at in (self.x, self.y))
        return PLACES[3 * row + column]

    def words(self) -> str:
        return f"{self.size} {self.color} {self.shape} at the {self.place}"


@dataclass(frozen=True)
class Found:
    """The detected content of a picture.

    Attributes:
        ground: the detected ground, with empty names for unknown colors.
        objects: the objects in reading order.
        unexplained: fraction of the picture that is neither ground nor near a detected object.
    """

    ground: Ground
    objects: tuple[FoundObject, ...]
    unexplained: float


def pixels(picture: Image.Image) -> Pixels:
    """Return a picture of any size as float32 (64, 64, 3) in 0..255."""
    picture = picture.convert("RGB")
    if picture.size != (UNITS, UNITS):
        picture = picture.resize((UNITS, UNITS), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


def smooth(picture_HW3: Pixels) -> Pixels:
    """Remove pixel noise with a 3x3 median filter."""
    rounded_HW3 = np.rint(picture_HW3.clip(0, 255)).astype(np.uint8)
    return np.asarray(Image.fromarray(rounded_HW3).filter(ImageFilter.MedianFilter(3)), np.float32)


def find(picture: Image.Image | Pixels) -> Found:
    """Detect the ground and the objects of a picture.

    Args:
        picture: a picture of any size, or float32 (64, 64, 3) in 0..255.
    """
    picture_HW3 = pixels(picture) if isinstance(picture, Image.Image) else picture
    smooth_HW3 = smooth(picture_HW3)
    names, palette_C3 = _palette()
    squares_HWC = (smooth_HW3**2).sum(-1, keepdims=True) - 2 * smooth_HW3 @ palette_C3.T + (palette_C3**2).sum(-1)
    distances_HWC = np.sqrt(squares_HWC.clip(0))
    nearest_HW = distances_HWC.argmin(axis=-1)
    nearest_HW[distances_HWC.min(axis=-1) > NAMED_WITHIN] = -1
    ground, ground_HW3 = _find_ground(smooth_HW3, nearest_HW)
    strength_HW = np.linalg.norm(smooth_HW3 - ground_HW3, axis=-1)
    object_HW = (nearest_HW >= 0) & (nearest_HW < len(COLORS)) & (strength_HW > GROUND_WITHIN)
    parts = _parts(np.where(object_HW, nearest_HW + 1, 0))
    everything_HW = np.any([mask_HW for mask_HW, _ in parts], axis=0) if parts else np.zeros_like(object_HW)
    objects: list[FoundObject] = []
    for mask_HW, number in parts:
        others_HW = grow(everything_HW & ~mask_HW)
        thing = _fit(picture_HW3, ground_HW3, mask_HW, others_HW, names[number])
        # An object that is split by another one has two parts, and is counted once.
        if not any(_same(thing, other) for other in objects):
            objects.append(thing)
    explained_HW = (strength_HW <= GROUND_WITHIN) | _border(ground)
    for thing in objects:
        explained_HW |= grow(thing.mask | covered_by(thing), 2)
    return Found(ground, tuple(objects), 1 - float(explained_HW.mean()))


def _same(one: FoundObject, other: FoundObject) -> bool:
    alike = (one.shape, one.color, one.size) == (other.shape, other.color, other.size)
    return alike and max(abs(one.x - other.x), abs(one.y - other.y)) <= 2


@cache
def _palette() -> tuple[tuple[str, ...], Pixels]:
    """Return the names of all colors, those of objects first, and their RGB values, float32 (C, 3)."""
    colors = {**COLORS, **GROUNDS}
    return tuple(colors), np.array(list(colors.values()), np.float32)


def _halves(split: str) -> tuple[tuple[slice, slice], ...]:
    whole, first, second = slice(None), slice(0, UNITS // 2), slice(UNITS // 2, None)
    if split == "left and right":
        return (whole, first), (whole, second)
    return ((first, whole), (second, whole)) if split == "top and bottom" else ((whole, whole),)


def _border(ground: Ground) -> Mask:
    """Return the border of two grounds, where blended pixels may have any color."""
    border_HW = np.zeros((UNITS, UNITS), bool)
    middle = slice(UNITS // 2 - 3, UNITS // 2 + 3)
    if ground.split == "left and right":
        border_HW[:, middle] = True
    elif ground.split == "top and bottom":
        border_HW[middle] = True
    return border_HW


def _find_ground(smooth_HW3: Pixels, nearest_HW: NDArray[np.int64]) -> tuple[Ground, Pixels]:
    """Return the layout and colors that explain most of the picture, and the ground as painted, (H, W, 3)."""
    names, _ = _palette()
    # White is the ground of extracted objects; otherwise it is an object's color.
    able = [*range(len(COLORS), len(names)), names.index("white")]
    best: tuple[float, str, list[int]] = (-1.0, "plain", [])
    for split in SPLITS:
        counts = [
            np.bincount(nearest_HW[half].ravel() + 1, minlength=len(names) + 1)[1:][able] for half in _halves(split)
        ]
        colors = [able[int(count.argmax())] for count in counts]
        share = sum(int(count.max()) for count in counts) / nearest_HW.size
        gain = 0.0 if split == "plain" else MIN_SPLIT_GAIN
        if share - gain > best[0] and (split == "plain" or colors[0] != colors[1]):
            best = (share - gain, split, colors)
    _, split, colors = best
    ground_HW3 = np.empty_like(smooth_HW3)
    known = []
    for half, number in zip(_halves(split), colors):
        its_own = smooth_HW3[half][nearest_HW[half] == number]
        # A ground covers at least a third of its half; otherwise its color counts as unknown.
        known.append(len(its_own) >= nearest_HW[half].size / 3)
        ground_HW3[half] = np.median(its_own if known[-1] else smooth_HW3[half].reshape(-1, 3), axis=0)
    said = [names[number] if sure else "" for number, sure in zip(colors, known)]
    return Ground(*said) if split == "plain" else Ground(said[0], said[1], split), ground_HW3


def _parts(classes_HW: NDArray[np.int64]) -> list[tuple[Mask, int]]:
    """Return the connected parts with their color's index: eroded cores, grown back to their edges."""
    cores_HW = np.zeros_like(classes_HW)
    for value in np.unique(classes_HW[classes_HW > 0]):
        cores_HW[shrink(classes_HW == value)] = value
    cores = connected_components(torch.from_numpy(cores_HW)[None])
    masks = [cores.labels[0].numpy() == number + 1 for number in range(len(cores.areas))]
    kept = [
        (mask_HW, int(value))
        for mask_HW, value, area in zip(masks, cores.values.tolist(), cores.areas.tolist())
        if area >= MIN_CORE
    ]
    # All parts grow in step and only over their own color, so that neighbours of the same color share the gap.
    taken_HW = np.any([mask_HW for mask_HW, _ in kept], axis=0) if kept else np.zeros_like(classes_HW, bool)
    for _ in range(REACH):
        for place, (mask_HW, value) in enumerate(kept):
            new_HW = grow(mask_HW) & (classes_HW == value) & ~taken_HW
            taken_HW |= new_HW
            kept[place] = (mask_HW | new_HW, value)
    return [(mask_HW, value - 1) for mask_HW, value in kept]


@cache
def _templates() -> tuple[tuple[tuple[str, str], ...], torch.Tensor, torch.Tensor]:
    """Return (shape, size) of all templates; the templates, centered and at each softness, float32 (P, T); their squares."""
    names, drawn = [], []
    for (shape, size), blur in product(product(SHAPES, SIZES), BLURS):
        window = Image.new("L", (WINDOW, WINDOW))
        across = SIZES[size]
        stamp = Image.fromarray(np.rint(255 * template(shape, across)).astype(np.uint8))
        window.paste(stamp, ((WINDOW - across) // 2, (WINDOW - across) // 2))
        drawn.append(np.asarray(window.filter(ImageFilter.GaussianBlur(blur)), np.float32).ravel() / 255)
        names.append((shape, size))
    templates_PT = torch.from_numpy(np.stack(drawn, axis=1))
    return tuple(names), templates_PT, templates_PT**2


def _fit(picture_HW3: Pixels, ground_HW3: Pixels, mask_HW: Mask, others_HW: Mask, color: str) -> FoundObject:
    """Return the object whose template has the best soft IoU with a part. Pixels of other parts are ignored."""
    rows, columns = np.nonzero(mask_HW)
    y0, x0 = (round((float(at.min() + at.max()) + 1) / 2) for at in (rows, columns))
    full_3 = np.median(picture_HW3[shrink(mask_HW) if shrink(mask_HW).any() else mask_HW], axis=0)
    towards_HW3 = full_3 - ground_HW3
    cover_HW = ((picture_HW3 - ground_HW3) * towards_HW3).sum(-1) / (towards_HW3**2).sum(-1).clip(1)
    pad = WINDOW // 2 + REACH
    # Outside the picture the cover is 0, which counts against templates that reach there.
    counts_HW = np.pad((~others_HW).astype(np.float32), pad, constant_values=1)
    cover_HW = np.pad(cover_HW.clip(0, 1).astype(np.float32), pad) * counts_HW
    names, templates_PT, squares_PT = _templates()
    # Candidate centers, within the picture.
    (top, bottom), (left, right) = ((max(at - REACH, 0), min(at + REACH, UNITS)) for at in (y0, x0))

    def windows(values_HW: Pixels) -> Pixels:
        views = np.lib.stride_tricks.sliding_window_view(values_HW, (WINDOW, WINDOW))
        return views[top + REACH : bottom + REACH + 1, left + REACH : right + REACH + 1].reshape(-1, WINDOW**2)

    cover_OP, counts_OP = windows(cover_HW), windows(counts_HW)
    # Soft IoU from products, so that all offsets and templates are one matrix multiplication. PyTorch's respects the
    # process's number of threads; NumPy's would use all cores, so that parallel evaluations would slow each other down.
    common_OT = (torch.from_numpy(cover_OP) @ templates_PT).numpy()
    union_OT = (cover_OP**2).sum(1, keepdims=True) + (torch.from_numpy(counts_OP) @ squares_PT).numpy() - common_OT
    fit_OT = common_OT / union_OT.clip(1e-6)
    offset, best = np.unravel_index(int(fit_OT.argmax()), fit_OT.shape)
    (y, x), (shape, size) = divmod(int(offset), right - left + 1), names[best]
    return FoundObject(shape, color, size, left + x, top + y, float(fit_OT[offset, best]), mask_HW)


def covered_by(thing: FoundObject) -> Mask:
    """Return the mask of the object's template."""
    across = SIZES[thing.size]
    mask_HW = np.zeros((UNITS + 2 * across, UNITS + 2 * across), bool)
    top, left = (at + across - across // 2 for at in (thing.y, thing.x))
    mask_HW[top : top + across, left : left + across] = template(thing.shape, across) >= 0.5
    return mask_HW[across:-across, across:-across]
