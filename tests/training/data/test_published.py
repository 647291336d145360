"""The published list and annotations: what is read, and the error message of each invalid one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from uniworld.training.data.annotations import is_painting, read_annotation, scan
from uniworld.training.data.published import BadData, PublishedSamples
from uniworld.training.data.samples import FilePicture, size_table
from uniworld.training.objective.batch import BadSample


def painting(prompt: str = "<image>\nMake it red.", images: Any = ("a.png", "b.png"), **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": "<gen_image>"}]
    return {"image": list(images) if isinstance(images, tuple) else images, "conversations": turns} | more


QUESTION = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}],
}


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Writes annotations and their list; the pictures a.png (40x30) and b.png (64x48) exist."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / "a.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "pictures" / "b.png")

    def write(*annotations: Any, text: str | None = None, listed: str = "pictures,a.json,true\n") -> Path:
        written = json.dumps(annotations, ensure_ascii=False, indent=1) if text is None else text
        (tmp_path / "a.json").write_text(written, encoding="utf-8")
        (tmp_path / "list.txt").write_text(listed, encoding="utf-8")
        return tmp_path / "list.txt"

    return write


def test_last_picture_is_the_target_and_the_others_are_references_in_order(data: Callable[..., Path]) -> None:
    samples = PublishedSamples(data(painting("<image><image>Join them.", ("a.png", "b.png", "c.png"))))
    sample = samples[0]
    assert [Path(source.name).name for source in (*sample.references, sample.target)] == ["a.png", "b.png", "c.png"]
    assert sample.prompt == "Join them."
    assert sample.weighted


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("<image>\nMake it red.", "Make it red."),
        ("Make it\nred. <image>", "Make it red."),
        ("<image>Färbe 赤", "Färbe 赤"),
    ],
)
def test_prompt_is_the_instruction_without_marks_and_line_breaks(
    data: Callable[..., Path], written: str, prompt: str
) -> None:
    assert PublishedSamples(data(painting(written)))[0].prompt == prompt


def test_prompt_is_that_of_the_last_turn() -> None:
    turns = [("human", "<image>What?"), ("gpt", "A dog."), ("human", "Make it red."), ("gpt", "Done: <gen_image>")]
    value = {"image": ["a", "b"], "conversations": [{"from": role, "value": text} for role, text in turns]}
    assert read_annotation(value).prompt == "Make it red."


def test_text_to_image_needs_no_references_and_image_may_be_a_string(data: Callable[..., Path]) -> None:
    sample = PublishedSamples(data(painting("A dog.", "b.png")))[0]
    assert sample.references == ()
    assert sample.target.open().size == (64, 48)


def test_questions_with_answers_in_words_are_counted_and_skipped(data: Callable[..., Path]) -> None:
    samples = PublishedSamples(data(QUESTION, painting(), QUESTION, {"conversations": QUESTION["conversations"]}))
    assert len(samples) == 1
    assert samples.understanding == 3
    assert samples[0].key == "a.json#1"
    assert not is_painting(QUESTION)


def test_annotations_are_located_after_any_characters(data: Callable[..., Path]) -> None:
    prompts = ["Färbe es", "赤くして", "😀 smile", 'a "quoted" ] , [ one', "plain"]
    for indent in (None, 2):
        written = json.dumps([painting(f"<image>{prompt}") for prompt in prompts], ensure_ascii=False, indent=indent)
        samples = PublishedSamples(data(text="\ufeff \n" + written + "\n"))
        assert [samples[index].prompt for index in range(len(samples))] == prompts


def test_paths_are_relative_to_the_list_and_then_to_the_working_directory(
    data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data(painting())
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text(f"{tmp_path / 'pictures'},a.json,false", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sample = PublishedSamples("lists/list.txt")[0]
    assert sample.target.open().size == (64, 48)
    assert not sample.weighted
    (tmp_path / "lists" / "a.json").write_text(json.dumps([painting("<image>Beside.")]), encoding="utf-8")
    assert PublishedSamples("lists/list.txt")[0].prompt == "Beside."


def test_blank_lines_comments_and_commas_in_the_root_are_allowed(data: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "one, two").mkdir()
    listed = "# mine\n\n one, two , a.json , TRUE \r\npictures,a.json,False\n"
    samples = PublishedSamples(data(painting(), listed=listed))
    assert [(samples[i].key, samples[i].weighted) for i in range(2)] == [
        ("a.json (line 3)#0", True),
        ("a.json (line 4)#0", False),
    ]


def test_sizes_are_read_without_decoding_and_upright(data: Callable[..., Path], tmp_path: Path) -> None:
    samples = PublishedSamples(data(painting(), painting(images=("a.png", "gone.png"))))
    assert size_table(samples).tolist() == [[48, 64], [0, 0]]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "rotated.jpg", exif=exif)
    source = FilePicture(tmp_path / "rotated.jpg")
    assert source.size() == (64, 48)
    assert source.open().size == (48, 64)


def test_the_fingerprint_depends_on_annotations_weights_and_order(data: Callable[..., Path]) -> None:
    def fingerprint(*annotations: Any, listed: str = "pictures,a.json,true\n") -> str:
        return PublishedSamples(data(*annotations, listed=listed)).fingerprint

    first = fingerprint(painting(), painting("A dog.", "b.png"))
    assert first == fingerprint(painting(), painting("A dog.", "b.png"))
    others = {
        fingerprint(painting("A dog.", "b.png"), painting()),
        fingerprint(painting(), painting("A cat.", "b.png")),
        fingerprint(painting(), painting("A dog.", "b.png"), listed="pictures,a.json,false\n"),
        fingerprint(painting(), painting("A dog.", "b.png"), listed="./pictures,a.json,true\n"),
    }
    assert len(others) == 4
    assert first not in others


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ("", "The list is empty; its lines must be `image_root,annotations.json,need_weight`."),
        ("# nothing\n\n", "The list is empty"),
        ("pictures,a.json\n", "list.txt, line 1: it has 2 of 3 columns"),
        (
            "\npictures,a.json,maybe\n",
            "list.txt, line 2: the third column, need_weight, is 'maybe'; it must be true or false.",
        ),
        ("elsewhere,a.json,true\n", "the image root 'elsewhere' is not a folder in"),
        ("pictures,b.json,true\n", "the annotations 'b.json' are not a file in"),
    ],
)
def test_an_invalid_list_is_reported_with_the_line(data: Callable[..., Path], listed: str, sentence: str) -> None:
    with pytest.raises(BadData, match=re.escape(sentence)):
        PublishedSamples(data(painting(), listed=listed))


def test_all_invalid_lines_are_reported_at_once(data: Callable[..., Path]) -> None:
    with pytest.raises(BadData) as caught:
        PublishedSamples(data(text="[1", listed="x\npictures,a.json,true\nno,where.json,yes\n"))
    assert len(caught.value.problems) == 3


def test_missing_and_binary_lists_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="The list cannot be read: No such file or directory"):
        PublishedSamples(tmp_path / "none.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match=r"not UTF-8 text \(byte 0\)"):
        PublishedSamples(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a.json is not a JSON list of annotations: it starts with '' instead of '['."),
        ('{"a": 1}', "a.json is not a JSON list of annotations"),
        ("[\n{},\n{,\n]", "a.json, line 3: invalid JSON (Expecting property name enclosed in double quotes)."),
        ("[\n{}\n{}]", "a.json, line 3: expected a comma or ']' after annotation 0."),
        ("[\n{}", "a.json, line 2: expected a comma or ']' after annotation 0."),
        ("[\n{},\n]", "a.json, line 3: invalid JSON"),
        ("[\n{}] x", "a.json, line 2: unexpected text after the end of the list."),
        ("[" * 10**5, "is nested too deeply"),
        ("[{}, " + "1" * 5000 + "]", "a.json: annotation 1 has a number with too many digits."),
    ],
)
def test_invalid_json_is_reported_with_the_line(data: Callable[..., Path], text: str, sentence: str) -> None:
    with pytest.raises(BadData, match=re.escape(sentence)):
        PublishedSamples(data(text=text))


@pytest.mark.parametrize("annotations", [(), (QUESTION,)])
def test_data_without_a_painting_is_rejected(data: Callable[..., Path], annotations: tuple) -> None:
    with pytest.raises(BadData, match="None of the annotations is a painting: none has a <gen_image> answer"):
        PublishedSamples(data(*annotations))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (5, "but is a number or a boolean"),
        ([], "but is a list"),
        ({}, "'conversations' must be a list of turns"),
        (painting(images=7), "'image' must be a file name or a list"),
        (painting(images=["a.png", None]), "'image' must be a file name or a list"),
        (painting(conversations=[{"from": "system", "value": "x"}]), "a turn in 'conversations' is not"),
        (painting(conversations=[{"from": "human"}]), "a turn in 'conversations' is not"),
        (painting(conversations=[{"from": "human", "value": "x"}]), "it has 0 <gen_image> marks"),
        (painting(conversations=painting()["conversations"][::-1]), "one, in the last answer"),
        (painting("Paint.", []), "it has no target picture"),
        (painting("<image><image>Red."), "it has 2 <image> marks, but 1 reference pictures"),
        (painting("Red."), "it has 0 <image> marks, but 1 reference pictures"),
        (painting("<image> \n"), "the last instruction is empty"),
    ],
)
def test_an_invalid_annotation_is_a_bad_sample_with_its_name(
    data: Callable[..., Path], value: Any, sentence: str
) -> None:
    samples = PublishedSamples(data(painting(), value))
    with pytest.raises(BadSample, match=re.escape(sentence)) as caught:
        samples[1]
    assert caught.value.key == "a.json#1"
    assert samples[0].prompt == "Make it red."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"", "is an empty file"),
        (b"GIF of nothing", "is not a picture"),
        (b"short", "is not a picture"),
        ("cut", "damaged or truncated"),
    ],
)
def test_a_picture_that_fails_to_open_is_named(
    data: Callable[..., Path], tmp_path: Path, content: bytes | str | None, sentence: str
) -> None:
    samples = PublishedSamples(data(painting()))
    target = tmp_path / "pictures" / "b.png"
    if content is None:
        target.unlink()
    else:
        target.write_bytes(target.read_bytes()[:-30] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=rf"b\.png' .*{sentence}"):
        samples[0].target.open()


def test_positions_are_the_bytes_of_each_annotation() -> None:
    written = '[ {"a": "é"} ,\n 2,["x"]]'.encode()
    assert [json.loads(written[placed.start : placed.end]) for placed in scan(written, "x")] == [{"a": "é"}, 2, ["x"]]


def test_annotations_in_place_of_a_list_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps([{"image": ["a.png"]}] * 100), encoding="utf-8")
    with pytest.raises(BadData, match="is a JSON file of annotations, not a list of such files"):
        PublishedSamples(tmp_path / "annotations.json")


def test_an_inaccessible_path_does_not_hide_other_problems(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{'x' * 5000},a.json,true\nonly two,columns\n", encoding="utf-8")
    with pytest.raises(BadData) as caught:
        PublishedSamples(tmp_path / "list.txt")
    first, second = caught.value.problems
    assert "line 1: its paths cannot be accessed (File name too long)" in first
    assert "line 2: it has 2 of 3 columns" in second


def test_an_unpaired_surrogate_in_an_instruction_is_named() -> None:
    turns = [{"from": "human", "value": "Paint a \ud83d cat."}, {"from": "gpt", "value": "<gen_image>"}]
    with pytest.raises(ValueError, match=r"contains '\\ud83d', an unpaired surrogate: replace or remove it"):
        read_annotation({"image": ["a.png"], "conversations": turns})
