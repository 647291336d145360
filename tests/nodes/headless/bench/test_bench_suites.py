"""The items and judge prompts of benchmarks, read from folders in the form of their downloads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from uniworld.nodes.headless.bench.download import Download, filled
from uniworld.nodes.headless.bench.items import BenchItem, SuiteOptions, hash_items, limited, seed_of
from uniworld.nodes.headless.bench.suites.imgedit import ImgEditSuite, ImgEditUGESuite
from uniworld.uniworld_core.errors import UniWorldError

from .folders import imgedit

NO_OPTIONS = SuiteOptions()


def test_imgedit_is_found_anywhere_in_the_download(tmp_path: Path) -> None:
    imgedit(tmp_path / "a" / "b")
    read = ImgEditSuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")
    assert [item.id for item in read.items] == [str(number) for number in range(6)]
    assert [item.cluster for item in read.items[:3]] == ["animal/000000000.jpg"] * 2 + ["animal/000000001.jpg"]
    assert Path(str(read.items[0].picture)).is_file()
    assert read.edition == "unknown"
    assert set(read.files) == {"singleturn.json", "judge_prompt.json"}
    asked = ImgEditSuite().asks(read.items[1], tmp_path / "1.png", read.prompts, {})[0]
    assert asked.text == "adjust: Rate the edit.\nThe instruction was: Edit 1.\n"


def test_the_older_name_of_a_type_gets_the_prompt_of_the_type(tmp_path: Path) -> None:
    imgedit(tmp_path, kinds=("alter",))
    root = tmp_path / "Benchmark" / "singleturn"
    (root / "judge_prompt.json").write_text(json.dumps({"adjust": "<edit_prompt>"}))
    read = ImgEditSuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")
    assert {item.group for item in read.items} == {"adjust"}


def test_the_items_of_a_repository_with_pictures_elsewhere(tmp_path: Path) -> None:
    imgedit(tmp_path / "pictures")
    singleturn = tmp_path / "pictures" / "Benchmark" / "singleturn"
    repository = tmp_path / "repository" / "Benchmark" / "Basic"
    repository.mkdir(parents=True)
    (singleturn / "singleturn.json").rename(repository / "basic_edit.json")
    (singleturn / "judge_prompt.json").rename(repository / "prompts.json")
    folders = [tmp_path / "repository", tmp_path / "pictures"]
    read = ImgEditSuite().read(folders, NO_OPTIONS, tmp_path / "sources")
    assert not read.missing
    assert len(read.items) == 6


@pytest.mark.parametrize("name", ["singleturn.json", "judge_prompt.json"])
def test_a_missing_file_is_named_with_its_source(tmp_path: Path, name: str) -> None:
    imgedit(tmp_path)
    (tmp_path / "Benchmark" / "singleturn" / name).unlink()
    with pytest.raises(UniWorldError, match=f"needs the file '{name}'.*https://huggingface.co/datasets/sysuyy/ImgEdit"):
        ImgEditSuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")


def test_missing_and_damaged_source_pictures_are_listed(tmp_path: Path) -> None:
    imgedit(tmp_path)
    animals = tmp_path / "Benchmark" / "singleturn" / "animal"
    (animals / "000000000.jpg").unlink()
    (animals / "000000001.jpg").write_bytes(b"<html>")
    read = ImgEditSuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")
    assert set(read.missing) == {"0", "1", "2", "3"}
    assert read.missing["0"] == "the file is missing"


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ("[]", "must map keys to items"),
        ('{"1": 5}', "must map keys to items"),
        ('{"1": {"id": "../../etc/passwd", "prompt": "x", "edit_type": "add"}}', "is not a name inside its folder"),
        (
            '{"../1": {"id": "animal/000000000.jpg", "prompt": "x", "edit_type": "add"}}',
            "is not a name inside its folder",
        ),
        ('{"1": {"id": "animal/000000000.jpg", "prompt": "", "edit_type": "add"}}', "'prompt' is ''"),
        (
            '{"1": {"id": "animal/000000000.jpg", "prompt": "x", "edit_type": "melt"}}',
            "no prompt for the edit type 'melt'",
        ),
        ('{"1": {"id"', "is not valid JSON"),
    ],
)
def test_invalid_items_are_reported(tmp_path: Path, items: str, sentence: str) -> None:
    imgedit(tmp_path)
    (tmp_path / "Benchmark" / "singleturn" / "singleturn.json").write_text(items)
    with pytest.raises(UniWorldError, match=sentence):
        ImgEditSuite().read([tmp_path, tmp_path / "Benchmark" / "singleturn"], NO_OPTIONS, tmp_path / "sources")


def uge(folder: Path, code: str) -> None:
    root = folder / "hard"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "1.jpg")
    (folder / "UGE_edit.json").write_text(json.dumps({"1": {"id": "1.jpg", "prompt": "Turn it."}}))
    (folder / "UGE_bench.py").write_text(code)


def test_uge_reads_its_prompt_without_executing_the_file(tmp_path: Path) -> None:
    uge(tmp_path, f'open({str(tmp_path / "executed")!r}, "w")\nprompt = """Judge: <edit_prompt>."""\n')
    read = ImgEditUGESuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")
    asked = ImgEditUGESuite().asks(read.items[0], tmp_path / "1.png", read.prompts, {})
    assert asked[0].text == "Judge: Turn it.."
    assert not (tmp_path / "executed").exists()


def test_uge_without_a_constant_prompt_is_reported(tmp_path: Path) -> None:
    uge(tmp_path, "prompt = make()\n")
    with pytest.raises(UniWorldError, match="defines no text 'prompt'"):
        ImgEditUGESuite().read([tmp_path], NO_OPTIONS, tmp_path / "sources")


def test_texts_of_a_function_keep_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(
        'def make(item):\n    return [{"text": "System."}, {"text": f"P: {item[\'Prompt\']}, {item[\'Key\']}"}]\n'
    )
    download = Download([tmp_path], "x", "")
    assert download.texts_of(path, "make", ["Prompt", "Key"]) == ["System.", "P: <Prompt>, <Key>"]
    with pytest.raises(UniWorldError, match="unknown expression in line 2"):
        download.texts_of(path, "make", ["Prompt"])


def test_a_value_that_looks_like_a_field_stays_as_it_is() -> None:
    assert filled("<A> and <B>", {"A": "<B>", "B": "b"}) == "<B> and b"


def items(count: int) -> list[BenchItem]:
    return [BenchItem(str(number), "g", str(number), "p", str(number)) for number in range(count)]


def test_smaller_subsets_are_part_of_larger_ones() -> None:
    everything = items(50)
    five, ten = ({item.id for item in limited(everything, count)} for count in (5, 10))
    assert len(five) == 5
    assert five < ten
    assert limited(everything, None) == tuple(everything)


def test_seeds_depend_on_item_and_sample() -> None:
    seeds = {seed_of(base, item, sample) for base in (1, 2) for item in items(3) for sample in range(3)}
    assert len(seeds) == 18
    assert seed_of(42, items(1)[0], 0) == seed_of(42, items(1)[0], 0)


def test_the_hash_of_items_ignores_where_pictures_are() -> None:
    one = BenchItem("1", "g", "c", "p", "1", picture="/a/1.jpg")
    assert hash_items([one]) == hash_items([BenchItem("1", "g", "c", "p", "1", picture="/b/1.jpg")])
    assert hash_items([one]) != hash_items([BenchItem("1", "g", "c", "other", "1", picture="/a/1.jpg")])
