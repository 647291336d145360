"""GenEval's verdicts equal those of the published scripts on synthetic boxes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from uniworld.nodes.headless.bench.scoring import geneval
from uniworld.nodes.headless.bench.scoring.geneval import (
    Detection,
    Rules,
    classify_colors,
    crop,
    iou,
    judge,
    keep,
    relations,
)


def rules_of(options: dict[str, str]) -> Rules:
    return Rules(**{name: int(value) if name == "max_objects" else float(value) for name, value in options.items()})


def words(reasons: str) -> list[str]:
    """Sort the relations in each reason: the published script joins them from a set."""
    return [
        re.sub(r"found (.*) target", lambda m: " ".join(sorted(m[1].split(" and "))), one)
        for one in reasons.split("\n")
    ]


def test_golden_verdicts(golden: Any) -> None:
    cases = golden("geneval")["cases"]
    assert {one["metadata"]["tag"] for one in cases} <= set(geneval.TAGS)
    for one in cases:
        rules = rules_of(one["options"])
        colors = {(d["class"], tuple(d["box"]), d["score"]): d["color"] for d in one["detections"]}
        found = [Detection(d["class"], tuple(d["box"]), d["score"]) for d in one["detections"]]
        kept = keep(found, one["metadata"]["tag"], rules)
        made = {name: [[*map(np.float32, (*d.box, d.score))] for d in ds] for name, ds in kept.items()}
        wanted = {name: [list(map(np.float32, box)) for box in ds] for name, ds in one["published"]["kept"].items()}
        assert made == wanted
        verdict = judge(
            one["metadata"],
            kept,
            lambda name, ds: [colors[name, d.box, d.score] for d in ds],  # noqa: B023
            rules,
        )
        assert verdict.correct == one["published"]["correct"]
        assert words("\n".join(verdict.reasons)) == words(one["published"]["reason"])


def test_golden_relations_and_overlaps(golden: Any) -> None:
    for one in golden("geneval")["relative_position"]:
        assert sorted(relations(one["a"], one["b"])) == sorted(one["published"])
    for one in golden("geneval")["iou"]:
        assert iou(one["a"], one["b"]) == pytest.approx(one["published"], rel=1e-6)


def test_golden_crops(golden: Any) -> None:
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    pixels = np.stack([(7 * x + 13 * y) % 256, (3 * x) % 256, (5 * y) % 256], axis=-1).astype(np.uint8)
    for one in golden("geneval")["crops"]["items"]:
        mask = None
        if one["mask_rows_cols"] is not None:
            top, bottom, left, right = one["mask_rows_cols"]
            mask = np.zeros((30, 40), bool)
            mask[top:bottom, left:right] = True
        made = crop(Image.fromarray(pixels), Detection("thing", tuple(one["box"][:4]), 0.9, mask))
        assert list(made.size) == one["published"]["size"]
        assert np.asarray(made, int).sum(axis=(0, 1)).tolist() == one["published"]["sum_rgb"]


def test_golden_colors(golden: Any) -> None:
    assert golden("geneval_colour")["colours"] == list(geneval.COLORS)
    for one in golden("geneval_colour")["cases"]:
        colors, logits = classify_colors(one["text_embeddings"], one["class"], one["image_features"])
        assert colors == one["published_colour"]
        assert np.abs(logits - np.asarray(one["published_logits"])).max() < 1e-3


def test_golden_summary(golden: Any) -> None:
    summary = golden("geneval")["summary"]
    made = geneval.summarize([(one["tag"], one["metadata"], one["correct"]) for one in summary["results"]])
    lines = [
        f"{tag:<16} = {share:.2%} ({round(share * made.counts[tag])} / {made.counts[tag]})"
        for tag, share in made.tags.items()
    ]
    published = summary["published_stdout"]
    assert all(line in published for line in lines)
    assert f"% correct images: {made.pictures:.2%}" in published
    assert f"% correct prompts: {made.prompts:.2%}" in published
    assert f"Overall score (avg. over tasks): {made.overall:.5f}" in published


def test_empty_boxes_at_the_same_place_have_no_relation() -> None:
    assert relations((5, 5, 5, 5), (5, 5, 5, 5)) == set()
    assert iou((5, 5, 3, 3), (5, 5, 3, 3)) == 0.0
