"""`uniworld data check`: all problems at once, and a summary of the data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from uniworld.training.data.check import check
from uniworld.training.data.published import PublishedSamples
from uniworld.training.data.shards import write_shards


def turns(prompt: str, answer: str = "<gen_image>") -> list[dict[str, str]]:
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]


def write(folder: Path, annotations: Any, listed: str = ".,a.json,true\n") -> Path:
    (folder / "a.json").write_text(json.dumps(annotations), encoding="utf-8")
    (folder / "list.txt").write_text(listed, encoding="utf-8")
    return folder / "list.txt"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """wide.png, 384x256; edit.png, the same with a red patch; speck.png, the same with a few changed pixels."""
    wide = np.random.default_rng(0).integers(0, 200, (256, 384, 3), dtype=np.uint8)
    edit, speck = wide.copy(), wide.copy()
    edit[32:128, 32:128] = (255, 0, 0)
    speck[50:54, 50:54] = 255
    for name, picture in {"wide": wide, "edit": edit, "speck": speck}.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return tmp_path


def test_every_problem_is_named_at_once(pictures: Path) -> None:
    whole = (pictures / "edit.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.png").write_text("no picture")
    (pictures / "broken.json").write_text('[{"image": "wide.png"},\n{]')
    annotations = [
        {"image": ["wide.png", "edit.png"], "conversations": turns("<image>Edit.")},
        {"image": ["cut.png", "empty.png"], "conversations": turns("<image>Edit.")},
        {"image": ["text.png", "absent.png"], "conversations": turns("<image>Edit.")},
        {"image": ["wide.png", "edit.png"], "conversations": turns("<image><image>Edit.")},
        {"image": "edit.png"},
    ]
    listed = "two,columns\n.,a.json,true\n.,a.json,perhaps\nnowhere,none.json,true\n.,broken.json,true\n"
    report = check(write(pictures, annotations, listed), workers=2)
    patterns = [
        "list.txt, line 1: it has 2 of 3 columns",
        "list.txt, line 3: the third column",
        "list.txt, line 4: the image root 'nowhere' is not a folder",
        "line 4: the image root 'nowhere' is not a folder in .* the annotations 'none.json' are not a file",
        "a.json#1: The picture '.*cut.png' cannot be decoded completely",
        "a.json#1: The picture '.*empty.png' is an empty file",
        "a.json#2: The file '.*text.png' is not a picture",
        "a.json#2: The picture '.*absent.png' does not exist",
        "a.json#3: it has 2 <image> marks",
        "a.json#4: 'conversations' must be a list of turns",
        "broken.json#0: 'conversations' must be a list of turns",
        "list.txt, line 5: broken.json, line 2: invalid JSON",
    ]
    for pattern in patterns:
        assert sum(bool(re.search(pattern, problem)) for problem in report.problems) == 1, pattern
    assert len(report.problems) == len(patterns) - 1
    assert (report.summary.paintings, report.summary.good) == (6, 1)


def test_the_summary_counts_the_samples_of_training(pictures: Path) -> None:
    Image.new("RGB", (64, 64)).save(pictures / "square.png")
    annotations = [
        {"image": ["wide.png", "edit.png"], "conversations": turns("<image>Edit.")},
        {"image": ["wide.png", "edit.png", "edit.png"], "conversations": turns("<image><image>Edit.")},
        {"image": "square.png", "conversations": turns("Paint.")},
        {"image": "square.png", "conversations": turns("<image>What?", "A dog.")},
    ]
    report = check(write(pictures, annotations), area=128 * 128)
    summary = report.summary
    assert report.problems == ()
    assert (summary.annotations, summary.understanding, summary.paintings, summary.good) == (4, 1, 3, 3)
    assert summary.references == {0: 1, 1: 1, 2: 1}
    assert list(summary.sizes.values()) == [2, 1]
    assert summary.whole_masks is None
    assert "3 of 3 paintings are good (3 weighted)" in report.to_text()
    assert report.to_text().endswith("No problems.")
    assert json.loads(json.dumps(report.to_json()))["summary"]["good"] == 3


def test_masks_of_the_whole_picture_are_counted_and_small_edits_are_problems(pictures: Path) -> None:
    annotations = [
        {"image": ["wide.png", name], "conversations": turns("<image>Edit.")}
        for name in ("edit.png", "wide.png", "speck.png")
    ]
    report = check(write(pictures, annotations), masks=True, area=256 * 256)
    assert (report.summary.whole_masks, report.summary.small_masks) == (1, 1)
    (problem,) = report.problems
    assert problem.startswith("a.json#2: the edit covers 0.000")
    assert "1 cover the whole picture because nothing differs, 1 are too small" in report.to_text()


def test_problems_are_in_the_order_of_the_data(pictures: Path) -> None:
    annotations = [
        {"image": ["wide.png", "absent.png"], "conversations": turns("<image>Edit.")},
        {"image": "edit.png"},
        {"image": ["wide.png", "absent.png"], "conversations": turns("<image>Edit.")},
    ]
    problems = check(write(pictures, annotations)).problems
    assert [problem.partition(":")[0] for problem in problems] == ["a.json#0", "a.json#1", "a.json#2"]


def test_a_prompt_that_training_would_skip_is_a_problem(pictures: Path) -> None:
    annotations = [{"image": "wide.png", "conversations": turns("Paint <|vision_start|>.")}]
    report = check(write(pictures, annotations))
    (problem,) = report.problems
    assert problem.startswith("a.json#0: The prompt contains <|vision_start|>")
    assert report.to_text().endswith("\n1 problem.")


def test_shards_are_reported_like_the_list_that_they_were_created_from(pictures: Path) -> None:
    pytest.importorskip("webdataset", reason="shards are an extra")
    annotations = [
        {"image": ["wide.png", "edit.png"], "conversations": turns("<image>Edit.")},
        {"image": ["wide.png", "absent.png"], "conversations": turns("<image>Edit.")},
        {"image": "edit.png"},
    ]
    listed = write(pictures, annotations)
    write_shards(PublishedSamples(listed), pictures / "shards")
    of_list, of_shards = check(listed), check(pictures / "shards")
    assert of_shards.problems == of_list.problems
    assert len(of_shards.problems) == 2
    assert of_shards.summary.good == 1


def test_a_missing_list_and_data_without_paintings_are_problems(pictures: Path) -> None:
    assert "The list cannot be read" in check(pictures / "none.txt").problems[0]
    (problem,) = check(write(pictures, [])).problems
    assert "none of the annotations is a painting" in problem


def test_invalid_ratios_are_rejected_before_anything_is_read(pictures: Path) -> None:
    with pytest.raises(ValueError, match="The ratio set 'square' is unknown"):
        check(pictures / "none.txt", ratios="square")


def test_progress_is_reported(pictures: Path) -> None:
    reported: list[int] = []
    annotations = [{"image": "wide.png", "conversations": turns("Paint.")}] * 20
    check(write(pictures, annotations), workers=1, progress=reported.append)
    assert reported == list(range(1, 21))
