"""A judge in this process: a tiny random model of transformers, and a tiny UniWorld checkpoint."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from uniworld.__main__ import main
from uniworld.nodes.headless.bench import statistics
from uniworld.nodes.headless.bench.judging.ask import Ask, AskPicture
from uniworld.nodes.headless.bench.judging.identity import identity_of
from uniworld.nodes.headless.bench.judging.local import IMGEDIT_PIXELS, LocalJudge, _limit_pixels
from uniworld.nodes.headless.bench.judging.replies import JudgeReply
from uniworld.uniworld_core.errors import UniWorldError
from uniworld.uniworld_core.loading.shipped import SHIPPED_FOLDER

from ....training.editr1.reward.test_logit import write_llava
from .folders import imgedit, results

TINY = SHIPPED_FOLDER / "tiny" / "uniworld"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder)
    return folder


def reply(judge: LocalJudge, picture: Path, **options: Any) -> str:
    ask = Ask("score", "Rate it.", (AskPicture(picture),), max_tokens=3, **options)
    made = asyncio.run(judge.reply(ask, JudgeReply("k", "i", 0, "score", 0, None)))
    assert made.finish == "length"  # random weights do not end a reply
    return str(made.text)


def test_a_model_of_transformers_replies_greedily(llava: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    judge = LocalJudge(llava, "cpu")
    assert judge.model.startswith(f"{llava.name}-")
    first = reply(judge, tmp_path / "a.png")
    assert first == reply(judge, tmp_path / "a.png")
    assert "ANSWER:" not in first  # only what the model has written
    assert isinstance(reply(judge, tmp_path / "a.png", system="Be strict.", pictures_first=True), str)


def test_a_model_with_other_weights_has_another_name(llava: Path, tmp_path: Path) -> None:
    other = tmp_path / llava.name
    shutil.copytree(llava, other)
    assert identity_of(other) == identity_of(llava)
    weights = next(other.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    weights.write_bytes(data)
    assert identity_of(other) != identity_of(llava)


def test_a_run_with_a_uniworld_checkpoint_is_recorded_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    monkeypatch.setattr("uniworld.nodes.headless.bench.judging.local._MAX_TOKENS", 2)
    names = list(imgedit(tmp_path / "data", 2))
    pictures, run = results(tmp_path / "pictures", names), tmp_path / "run"
    places = ["--data", str(tmp_path / "data"), "--pictures", str(pictures), "--out", str(run)]
    command = ["bench", "imgedit", *places, "--judge", f"local:{TINY}"]
    assert main(command) == 1  # no group has a score
    recorded = (run / "replies.jsonl").read_bytes()
    assert main(command) == 1
    assert (run / "replies.jsonl").read_bytes() == recorded
    # Random weights give no score. The judge is not asked again: it would reply the same.
    assert len(recorded.splitlines()) == 2
    result = json.loads((run / "result.json").read_text())
    assert result["tables"]["published"]["counts"]["unscored"] == 2
    assert result["judge"]["model"].startswith("uniworld-")
    assert result["judge"]["cut_replies"] == 2
    capsys.readouterr()


def test_imgedits_judge_sees_pictures_of_its_sizes() -> None:
    kind = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
    processor = kind()
    _limit_pixels(processor, *IMGEDIT_PIXELS)
    for size in ((64, 64), (2000, 1500)):
        grid = processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0]
        assert IMGEDIT_PIXELS[0] <= int(grid[1]) * int(grid[2]) * 14**2 <= IMGEDIT_PIXELS[1]


def test_a_folder_that_is_no_model_is_named(llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imgedit(tmp_path / "data", 2)
    command = ["bench", "imgedit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main([*command, "--judge", "local:missing"]) == 2
    assert "names no folder" in capsys.readouterr().err
    assert main([*command, "--judge", f"local:{llava}", "--temperature", "1"]) == 2
    assert "a local judge is greedy" in capsys.readouterr().err
    shutil.copytree(llava, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UniWorldError, match="cannot be loaded as an image-text model"):
        LocalJudge(tmp_path / "broken", "cpu")
