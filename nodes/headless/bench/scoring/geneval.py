"""GenEval: from detected boxes to a verdict on one picture, and from verdicts to the table.

Source: djghosh13/geneval af4902f, evaluation/evaluate_images.py and summary_scores.py. A box is (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .outcome import mean

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# Replaces the surroundings of an object with a known mask before its color is classified.
BACKGROUND = "#999"
COLOR_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


@dataclass(frozen=True)
class Rules:
    """Thresholds, by default the published ones.

    Attributes:
        threshold: detections count if their score is above it.
        counting_threshold: the same for prompts with the tag "counting".
        max_objects: maximum number of objects per class; those with the best scores are kept.
        max_overlap: of two boxes with at least this IoU, only the better one is kept; 1 keeps both.
        position_threshold: fraction of both boxes' sizes by which an offset is shortened before its direction is
            determined.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Detection:
    """One detected object, with a boolean mask (H, W) if the detector returns one."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: Any = None


@dataclass(frozen=True)
class GenEvalVerdict:
    """Whether a picture matches its prompt, and otherwise the reasons why not."""

    correct: bool
    reasons: tuple[str, ...] = ()


# Returns the colors of objects of one class, in order.
Colors = Callable[[str, Sequence[Detection]], Sequence[str]]


def keep(detections: Sequence[Detection], tag: str, rules: Rules = Rules()) -> dict[str, list[Detection]]:
    """Return the detections that count, by class and best first. Classes without any are omitted."""
    least = np.float32(rules.counting_threshold if tag == "counting" else rules.threshold)
    kept: dict[str, list[Detection]] = {}
    for name in dict.fromkeys(one.name for one in detections):
        found = [one for one in detections if one.name == name]
        scores = np.asarray([one.score for one in found], np.float32)
        # The published script reverses numpy's ascending sort, which also decides about equal scores.
        order = [place for place in np.argsort(scores)[::-1] if scores[place] > least][: rules.max_objects]
        chosen: list[Detection] = []
        for one in (found[place] for place in order):
            if rules.max_overlap == 1 or all(iou(other.box, one.box) < rules.max_overlap for other in chosen):
                chosen.append(one)
        if chosen:
            kept[name] = chosen
    return kept


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes with inclusive corners, in float32 as published; 0 for empty ones."""
    first, second = (np.asarray(box[:4], np.float32) for box in (a, b))
    shared = np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])])
    union = _area(first) + _area(second) - _area(shared)
    return float(_area(shared) / union) if union else 0.0


def _area(box: np.ndarray) -> np.float32:
    width, height = np.maximum(box[2:] - box[:2] + 1, 0)
    return np.float32(width * height)


def relations(a: Sequence[float], b: Sequence[float], shortened_by: float = 0.1) -> set[str]:
    """Return the position of box `a` relative to `b`: at most two of "left of", "right of", "above", "below".

    The offset of the centers is shortened by a fraction of both sizes. A direction counts if its component exceeds half
    the length of the original offset.
    """
    first, second = (np.asarray(box[:4], np.float32).reshape(2, 2) for box in (a, b))
    offset = first.mean(axis=0) - second.mean(axis=0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    shortened = np.maximum(np.abs(offset) - shortened_by * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def judge(
    metadata: Mapping[str, Any],
    kept: Mapping[str, Sequence[Detection]],
    colors: Colors,
    rules: Rules = Rules(),
) -> GenEvalVerdict:
    """Check whether the detected objects match the prompt.

    Args:
        metadata: the prompt's `include` clauses, all of which must hold, and `exclude` clauses, none of which may.
        kept: result of `keep`.
        colors: classifies the colors of objects; called only if the prompt mentions one.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", ()):
        found = kept.get(wanted["class"], [])[: wanted["count"]]
        wrong = _missing(wanted, found, matched, colors, rules)
        reasons += [wrong] if wrong else []
        matched.append(None if wrong else found)
    for unwanted in metadata.get("exclude", ()):
        count = len(kept.get(unwanted["class"], ()))
        if count >= unwanted["count"]:
            reasons.append(f"expected {unwanted['class']}<{unwanted['count']}, found {count}")
    return GenEvalVerdict(not reasons, tuple(reasons))


def _missing(
    wanted: Mapping[str, Any],
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colors: Colors,
    rules: Rules,
) -> str:
    """Return why a picture does not satisfy a clause; empty if it does."""
    name, count = wanted["class"], wanted["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in wanted:
        seen = list(colors(name, found))
        if seen.count(wanted["color"]) < count:
            others = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen)
            right = f"{seen.count(wanted['color'])} {wanted['color']}"
            return f"expected {wanted['color']} {name}>={count}, found {right}; and {others}"
    if "position" not in wanted:
        return ""
    relation, group = wanted["position"]
    targets = matched[group]
    if targets is None:
        return f"no target for {name} to be {relation}"
    for one in found:
        for target in targets:
            seen_at = relations(one.box, target.box, rules.position_threshold)
            if relation not in seen_at:
                return f"expected {name} {relation} target, found {' and '.join(sorted(seen_at))} target"
    return ""


def crop(picture: Image.Image, detection: Detection) -> Image.Image:
    """Crop an object for the color classifier, on gray if its mask is known."""
    picture = picture.convert("RGB")
    if detection.mask is not None:
        blank = Image.new("RGB", picture.size, BACKGROUND)
        picture = Image.composite(picture, blank, Image.fromarray(np.asarray(detection.mask, bool)))
    left, top, right, bottom = (round(float(side)) for side in detection.box)
    return picture.crop((left, top, right, bottom))


def classify_colors(text: Mapping[str, Sequence[float]], name: str, features: Any) -> tuple[list[str], np.ndarray]:
    """Classify the colors of crops zero-shot, with CLIP embeddings.

    Args:
        text: embeddings of the prompts of `COLOR_TEMPLATES` for all colors.
        features: image features (N, D) of the crops.

    Returns:
        The color of each crop, and logits (N, 10) in the order of `COLORS`: 100 times the cosine similarity to the
        normalized mean of the color's three normalized embeddings.
    """
    weights = []
    for color in COLORS:
        rows = np.stack([_unit(np.asarray(text[t.format(color=color, name=name)], float)) for t in COLOR_TEMPLATES])
        weights.append(_unit(rows.mean(axis=0)))
    logits = 100.0 * _unit(np.asarray(features, float)) @ np.stack(weights).T
    return [COLORS[index] for index in logits.argmax(axis=1)], logits


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@dataclass(frozen=True)
class GenEvalResult:
    """The table of a run.

    Attributes:
        tags: fraction of correct pictures by tag.
        counts: number of pictures by tag.
        pictures: fraction of correct pictures.
        prompts: fraction of prompts with at least one correct picture.
        overall: GenEval's score, the mean over tags.
    """

    tags: dict[str, float]
    counts: dict[str, int]
    pictures: float
    prompts: float
    overall: float


def summarize(results: Sequence[tuple[str, str, bool]]) -> GenEvalResult:
    """Compute the table. Raises UniWorldError if there are no results.

    Args:
        results: (tag, prompt, correct) of every picture. Pass a prompt's metadata rather than its text, because different
            prompts may have the same text.
    """
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, list[bool]] = {}
    for tag, prompt, correct in results:
        by_tag.setdefault(tag, []).append(correct)
        by_prompt.setdefault(prompt, []).append(correct)
    tags = {tag: mean(right) for tag, right in by_tag.items()}
    return GenEvalResult(
        tags,
        {tag: len(right) for tag, right in by_tag.items()},
        mean(correct for _, _, correct in results),
        mean(any(right) for right in by_prompt.values()),
        mean(tags.values()),
    )
