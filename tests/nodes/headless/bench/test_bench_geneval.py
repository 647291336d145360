"""GenEval: mmdet's rules on outputs made by hand, tiny random models, and the run from recorded detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.bench.items import SuiteOptions
from uniworld.nodes.headless.bench.judging.ask import Ask, AskPicture
from uniworld.nodes.headless.bench.judging.client import JudgeRejected
from uniworld.nodes.headless.bench.judging.detector import DetectorJudge, clip_pixels
from uniworld.nodes.headless.bench.judging.identity import detector_name
from uniworld.nodes.headless.bench.judging.instances import PaddedPicture, instances, padded
from uniworld.nodes.headless.bench.judging.replies import JudgeReply
from uniworld.nodes.headless.bench.suites.geneval import GenEvalSuite
from uniworld.uniworld_core.errors import UniWorldError

from .folders import GENEVAL, geneval, results

# --- mmdet's rules --------------------------------------------------------------------------------------------------


def outputs(scores: dict[tuple[int, int], float], queries: int = 3, classes: int = 4) -> torch.Tensor:
    """Return class logits in which these (query, class) have these probabilities, and "no object" the rest."""
    probabilities = torch.full((queries, classes + 1), 1e-9)
    for (query, label), score in scores.items():
        probabilities[query, label] = score
    probabilities[:, -1] = 1 - probabilities[:, :-1].sum(dim=1)
    return probabilities.log()


def masks(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (32, 32), logit: float = 20.0) -> torch.Tensor:
    made = torch.full((len(boxes), *size), -20.0)
    for place, (left, top, right, bottom) in enumerate(boxes):
        made[place, top:bottom, left:right] = logit
    return made


PLAIN = PaddedPicture(torch.zeros(1, 3, 32, 32), 32, 32)


def test_boxes_are_the_bounds_of_the_masks_and_scores_the_products() -> None:
    boxes = (2, 3, 10, 20), (12, 12, 30, 16), (0, 0, 1, 1)
    found = instances(outputs({(0, 1): 0.8, (1, 2): 0.5}), masks(*boxes), PLAIN, (32, 32), 0.1)
    assert [(one.label, one.box) for one in found] == [(1, (2, 3, 10, 20)), (2, (12, 12, 30, 16))]
    assert [one.score for one in found] == pytest.approx([0.8, 0.5], abs=1e-4)
    assert found[0].mask.shape == (32, 32)
    assert found[0].mask.sum() == 8 * 17


def test_uncertain_masks_lower_the_score() -> None:
    found = instances(outputs({(0, 1): 0.8}), masks((0, 0, 8, 8), logit=1.0).repeat(3, 1, 1), PLAIN, (32, 32), 0.1)
    assert found[0].score == pytest.approx(0.8 * torch.tensor(1.0).sigmoid().item(), abs=1e-4)


def test_one_query_may_be_several_classes_as_in_mmdet() -> None:
    found = instances(outputs({(0, 1): 0.5, (0, 3): 0.4}), masks((0, 0, 8, 8)).repeat(3, 1, 1), PLAIN, (32, 32), 0.1)
    assert [one.label for one in found] == [1, 3]


def test_an_empty_mask_has_no_score() -> None:
    assert not instances(outputs({(0, 1): 0.9}), masks((0, 0, 0, 0)).repeat(3, 1, 1), PLAIN, (32, 32), 0.01)


def test_padding_is_cut_before_the_mask_is_resized() -> None:
    # The picture of 40x20 pixels was enlarged to 80x40 and padded to 96x64; the masks have a quarter of that size.
    shown = PaddedPicture(torch.zeros(1, 3, 64, 96), 40, 80)
    found = instances(
        outputs({(0, 0): 0.9}), masks((10, 0, 20, 5), size=(16, 24)).repeat(3, 1, 1), shown, (40, 20), 0.1
    )
    left, top, right, bottom = found[0].box
    assert (top, right) == (0, 40)
    assert left == pytest.approx(20, abs=1)
    assert bottom == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    ("size", "expected", "whole"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 512), (667, 1333), (672, 1344)),
        ((300, 400), (1067, 800), (1088, 800)),
    ],
)
def test_sides_of_the_detectors_picture(
    size: tuple[int, int], expected: tuple[int, int], whole: tuple[int, int]
) -> None:
    shown = padded(Image.new("RGB", size))
    assert (shown.height, shown.width) == expected
    assert tuple(shown.pixels.shape) == (1, 3, *whole)


def test_clip_sees_the_middle_of_a_crop_even_if_it_is_empty() -> None:
    assert clip_pixels(Image.new("RGB", (300, 100), "red")).shape == (3, 224, 224)
    assert clip_pixels(Image.new("RGB", (0, 5))).shape == (3, 224, 224)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random Mask2Former of 80 classes, and a tiny random CLIP."""
    pytest.importorskip("scipy")
    from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    stages = [f"stage{number}" for number in range(1, 5)]
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
    layers = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2}
    config = Mask2FormerConfig(backbone_config=swin, num_queries=5, num_labels=80, **sizes, **layers)
    net = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        net.class_predictor.weight.zero_()
        net.class_predictor.bias.fill_(-9.0)
        net.class_predictor.bias[2] = 9.0  # everything is "thing 2"
    net.save_pretrained(folder / "detector")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(
        text_config={**tower, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**tower, "image_size": 224, "patch_size": 56},
        projection_dim=8,
    )
    CLIPModel(clip).save_pretrained(folder / "clip")
    _write_tokenizer(folder / "clip")
    return folder / "detector", folder / "clip"


def _write_tokenizer(folder: Path) -> None:
    from transformers import CLIPTokenizerFast

    letters = [chr(number) for number in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt")).save_pretrained(
        str(folder)
    )


def test_the_detectors_reply_has_boxes_and_colors(models: tuple[Path, Path], tmp_path: Path) -> None:
    import asyncio

    Image.effect_noise((48, 32), 90).convert("RGB").save(tmp_path / "a.png")
    judge = DetectorJudge(*models, "cpu")
    names = [f"thing {number}" for number in range(80)]
    ask = Ask("detections", json.dumps({"names": names, "colors_of": ["thing 2"]}), (AskPicture(tmp_path / "a.png"),))
    reply = asyncio.run(judge.reply(ask, JudgeReply("k", "i", 0, "detections", 0, None)))
    found = json.loads(str(reply.text))
    assert found
    assert {one["name"] for one in found} == {"thing 2"}
    assert all(one["color"] for one in found)
    assert all(0 <= one["box"][0] <= one["box"][2] <= 48 and one["score"] > 0.25 for one in found)


@pytest.mark.parametrize("part", ["_detector", "_clip"])
def test_damaged_weights_give_no_score(models: tuple[Path, Path], tmp_path: Path, part: str) -> None:
    import asyncio

    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    judge = DetectorJudge(*models, "cpu")
    with torch.no_grad():
        for parameter in getattr(judge, part).parameters():
            parameter.fill_(torch.nan)
    names = [f"thing {number}" for number in range(80)]
    ask = Ask("detections", json.dumps({"names": names, "colors_of": ["thing 2"]}), (AskPicture(tmp_path / "a.png"),))
    with pytest.raises(JudgeRejected, match="returns NaN or infinite values: its weights are damaged"):
        asyncio.run(judge.reply(ask, JudgeReply("k", "i", 0, "detections", 0, None)))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UniWorldError, match=r"has no config.json"):
        detector_name(tmp_path, tmp_path)
    with pytest.raises(UniWorldError, match=r"'\S+x\.pth' does not exist"):
        detector_name(tmp_path / "x.pth", tmp_path)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_scores_recorded_detections_and_examines_nothing_twice(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    names = geneval(tmp_path / "data")
    pictures, run = results(tmp_path / "pictures", names), tmp_path / "run"
    command = ["bench", "geneval", "--data", str(tmp_path / "data"), "--pictures", str(pictures), "--out", str(run)]
    detector = ["--judge", "detector", "--detector", str(models[0]), "--clip", str(models[1])]
    assert main([*command, *detector]) == 0
    shown = capsys.readouterr()
    assert "other weights than the published one" in shown.err
    assert "; not the published weights of the detector" in shown.out
    assert json.loads((run / "result.json").read_text())["judge"]["published_weights"] is False
    replies = run / "replies.jsonl"
    recorded = replies.read_bytes()
    assert len(recorded.splitlines()) == len(names)
    # Only "thing 2" is ever found, so the first and the last prompt fail.
    table = json.loads((run / "result.json").read_text())["tables"]["published"]
    assert table["groups"]["single_object"] == {"correct": 0.0}
    assert table["groups"]["position"] == {"correct": 0.0}
    # Other detections for the last prompt: thing 2 left of thing 1 in the first sample.
    lines = [json.loads(line) for line in recorded.splitlines()]
    for line in lines:
        if (line["item"], line["sample"]) == ("00002", 0):
            boxes = {"thing 1": [60, 0, 70, 10], "thing 2": [0, 0, 10, 10]}
            line["text"] = json.dumps([{"name": name, "box": box, "score": 0.9} for name, box in boxes.items()])
    replies.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["bench", "score", str(run)]) == 0
    table = json.loads((run / "result.json").read_text())["tables"]["published"]
    assert table["groups"]["position"] == {"correct": 0.25}
    assert main([*command, *detector]) == 0
    assert len(replies.read_bytes().splitlines()) == len(names)


def test_scores_follow_the_published_rules(tmp_path: Path) -> None:
    geneval(tmp_path / "data")
    suite = GenEvalSuite()
    item = suite.read([tmp_path / "data"], SuiteOptions("original"), tmp_path).items[1]
    red = [{"name": "thing 2", "box": [0, 0, 9, 9], "score": 0.5, "color": "red"}]
    assert suite.score(item, {"detections": json.dumps(red)}, "published") == {"correct": 1.0}
    blue = [{**red[0], "color": "blue"}]
    assert suite.score(item, {"detections": json.dumps(blue)}, "published") == {"correct": 0.0}
    weak = [{**red[0], "score": 0.3}]
    assert suite.score(item, {"detections": json.dumps(weak)}, "published") == {"correct": 0.0}
    assert suite.check("detections", "[{}]", "published") is not None
    ask = suite.asks(item, tmp_path / "a.png", {"names": "thing 1\nthing 2"}, {})[0]
    assert json.loads(ask.text) == {"names": ["thing 1", "thing 2"], "colors_of": ["thing 2"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"include": [{"class": "dragon", "count": 1}]}, "invalid clause"),
        ({"include": [{"class": "thing 1", "count": 1, "position": ["above", 0]}]}, "invalid clause"),
        ({"include": [{"class": "thing 1", "count": 1, "color": "mauve"}]}, "invalid clause"),
        ({"prompt": 5}, "'prompt' is 5"),
    ],
)
def test_invalid_metadata_is_reported(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    geneval(tmp_path / "data")
    (tmp_path / "data" / "evaluation_metadata.jsonl").write_text(json.dumps({**GENEVAL[0], **change}))
    with pytest.raises(UniWorldError, match=sentence):
        GenEvalSuite().read([tmp_path / "data"], SuiteOptions("original"), tmp_path)


def test_the_wrong_kind_of_judge_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    geneval(tmp_path / "data")
    command = ["bench", "geneval", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main([*command, "--judge", "http://127.0.0.1:1/v1", "--judge-model", "m"]) == 2
    assert "The judge of GenEval is a detector" in capsys.readouterr().err
    assert main([*command, "--judge", "detector"]) == 2
    assert "Add --detector PATH and --clip DIR" in capsys.readouterr().err
    folder = str(tmp_path)
    assert main([*command, "--judge", "detector", "--detector", folder, "--clip", folder, "--workflow", "edit"]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # no picture has been made


@pytest.mark.parametrize(
    "clause",
    [
        {"position": ["inside of", 0]},
        {"position": [["left of"], 0]},
        {"position": ["left of", 0], "color": "mauve"},
        {"class": ["thing 2"]},
    ],
)
def test_a_clause_that_could_never_hold_is_named(tmp_path: Path, clause: dict[str, Any]) -> None:
    geneval(tmp_path / "data")
    record = {
        "tag": "position",
        "include": [{"class": "thing 1", "count": 1}, {"class": "thing 2", "count": 1, **clause}],
    }
    (tmp_path / "data" / "evaluation_metadata.jsonl").write_text(json.dumps({**record, "prompt": "p"}) + "\n")
    with pytest.raises(UniWorldError, match="invalid clause"):
        GenEvalSuite().read([tmp_path], SuiteOptions("original"), tmp_path)
