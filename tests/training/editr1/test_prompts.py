"""Prompts in the published format and in our own, and the contact sheet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from uniworld.__main__ import main
from uniworld.training.editr1 import prompts as prompts_module
from uniworld.training.editr1.prompts import EditPrompt, ListedPrompts, MetadataPrompts
from uniworld.training.editr1.reward.protocol import RewardFailure
from uniworld.training.editr1.sheet import GroupRow, group_sheet
from uniworld.training.objective.batch import BadSample
from uniworld.uniworld_core.errors import UniWorldError


def test_published_lines_are_read_with_square_pictures(metadata: Path) -> None:
    prompts = MetadataPrompts(metadata, 16)
    assert prompts.count == 4
    third = prompts.read(2)
    assert (third.key, third.prompt, third.requirement) == ("train_metadata.jsonl#3", "Paint it 2.", "red")
    assert [picture.size for picture in third.references] == [(16, 16)]
    assert MetadataPrompts(metadata, 32).fingerprint == prompts.fingerprint


def test_invalid_lines_are_all_listed(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "Paint it.", "image": "1.png"})
    lines = [
        good,
        "{",
        '["a"]',
        '{"image": "1.png"}',
        '{"prompt": " ", "image": "1.png"}',
        '{"prompt": "a", "image": 5}',
        '{"prompt": "a", "image": "1.png", "requirement": 3}',
        '{"prompt": "a", "image": "1.png", "preserve": 1}',
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    with pytest.raises(UniWorldError) as error:
        MetadataPrompts(file, 16)
    message = str(error.value)
    assert "line 1:" not in message
    for number, problem in ((2, "not valid JSON"), (3, "not an object"), (4, "prompt is None"), (5, "prompt is ' '")):
        assert f"line {number}: " in message
        assert problem in message
    assert "line 6: its image is 5" in message
    assert "line 7: its requirement is 3" in message
    assert "line 8: its preserve is 1; it must be true or false." in message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_files_without_prompts_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(UniWorldError, match=r"empty|not UTF-8"):
        MetadataPrompts(file, 16)
    with pytest.raises(UniWorldError, match="cannot be read"):
        MetadataPrompts(tmp_path / "missing.jsonl", 16)


def test_a_check_reports_every_line_and_picture(
    metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(metadata)]) == 0
    assert capsys.readouterr().out == "4 of 4 prompts are good.\n"
    folder = Path(shutil.copytree(metadata.parent, tmp_path / "data"))
    (folder / "images" / "2.png").write_bytes(b"rubbish")
    file = folder / metadata.name
    file.write_text(file.read_text(encoding="utf-8") + '{"prompt": "Paint it."}\n', encoding="utf-8")
    assert main(["data", "check", str(file), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["summary"] == {"prompts": 5, "good": 3}
    assert len(report["problems"]) == 2
    assert "line 5: its image is None" in report["problems"][0]
    assert "line 3: " in report["problems"][1]
    assert "2.png" in report["problems"][1]
    assert main(["data", "check", str(tmp_path / "missing.jsonl")]) == 2


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="devices are files of Unix")
def test_a_device_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "_MAX_BYTES", 2**20)
    with pytest.raises(UniWorldError, match="larger than"):
        MetadataPrompts(Path("/dev/zero"), 16)


def test_our_annotations_give_all_references(tiny_data: Path) -> None:
    prompts = ListedPrompts(tiny_data)
    assert prompts.count == 8
    assert [len(prompts.read(index).references) for index in range(3)] == [1, 1, 0]
    assert prompts.read(0).prompt == "Paint it again."


def test_a_damaged_picture_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"rubbish")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Paint it.", "image": "1.png"}\n', encoding="utf-8")
    with pytest.raises(BadSample, match=r"prompts\.jsonl#1"):
        MetadataPrompts(tmp_path / "prompts.jsonl", 16).read(0)


@pytest.mark.parametrize("name", ["a\\u0000b.png", "\\ud800.png", "x" * 5000, ".", "missing.png"])
def test_a_name_that_no_file_has_is_a_bad_sample(name: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "Paint it.", "image": "{name}"}}\n', encoding="utf-8")
    with pytest.raises(BadSample, match=r"The picture .* (cannot be read|does not exist)"):
        MetadataPrompts(file, 16).read(0)


def test_a_huge_value_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a", "image": ["x"] * 10**5}), encoding="utf-8")
    with pytest.raises(UniWorldError, match="its image is") as error:
        MetadataPrompts(tmp_path / "prompts.jsonl", 16)
    assert len(str(error.value)) < 500


def test_the_sheet_shows_references_and_pictures_best_first() -> None:
    colours = ("red", "green", "blue")
    pictures = [Image.new("RGB", (16, 16), colour) for colour in colours]
    prompt = EditPrompt("a", "Paint it.", (Image.new("RGB", (16, 16), "white"),))
    sheet = group_sheet([GroupRow(prompt, pictures, [0.25, RewardFailure("no judge"), 0.75], True)] * 2)
    middles = [sheet.getpixel((70 + 134 * column, 80)) for column in range(4)]
    assert middles == [(255, 255, 255), (0, 0, 255), (255, 0, 0), (0, 128, 0)]
